"""Exchange between ranks; on one process every function is the identity.

Gradients: the engine averages parameter gradients over ranks, and each rank's loss is a mean over its own
rows. Then the gradient of the whole batch is right when `gather` hands back, for a rank's own rows, the sum
of what comes back on all ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor


def world() -> int:
    """Number of processes that share the batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Position of this process among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(x: Shaped[Tensor, " b *any"]) -> Shaped[Tensor, " m *any"]:
    """The rows of all ranks, in rank order, with gradient. Every rank must bring the same number of rows."""
    if world() == 1:
        return x
    rows = _Gather.apply(x)
    assert isinstance(rows, Tensor)  # torch types the result of every Function as unknown
    return rows


@torch.no_grad()
def sum_over_ranks(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The sum over ranks, without gradient, the same on every rank."""
    total = x.detach().clone()
    if world() > 1:
        dist.all_reduce(total)
    return total


@torch.no_grad()
def max_over_ranks(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The greatest value over ranks, without gradient, the same on every rank."""
    greatest = x.detach().clone()
    if world() > 1:
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
    return greatest


def mean_over_ranks(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """The mean over ranks, without gradient, the same on every rank."""
    return sum_over_ranks(x) / world()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        # Not reduce_scatter: gloo has none on older versions, and the gathered tensors are small.
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world())[rank()]
