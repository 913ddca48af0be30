"""BatchNorm over other rows than a rank's batch: over those of all ranks, or over small groups of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from visrep.distributed import gather, mean_over_ranks, world
from visrep.functional import widen


@final
class GatheredBatchNorm(_BatchNorm):
    """BatchNorm of "b c *any" whose statistics are those of all ranks' rows together.

    Autograd-correct with gloo and NCCL, while PyTorch's SyncBatchNorm has no CPU path; same state-dict names as
    torch's. Every rank must bring equally many rows.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        _check_axes(input)

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        running_mean, running_var = self.running_mean, self.running_var
        if running_mean is None or running_var is None:
            raise ValueError(
                "Gathered BatchNorm needs running statistics: build it with track_running_stats=True."
            )
        if not self.training:
            return F.batch_norm(input, running_mean, running_var, self.weight, self.bias, eps=self.eps)

        x = widen(input)
        reduced = [axis for axis in range(x.ndim) if axis != 1]
        var, mean = torch.var_mean(x, dim=reduced, correction=0)
        # One exchange. Variances join by the law of total variance: E[x^2] - E[x]^2 would cancel.
        means, variances = gather(torch.stack([mean, var])[None]).unbind(1)  # ranks c
        mean = means.mean(0)
        var = variances.mean(0) + means.var(0, correction=0)

        n = x.numel() // x.shape[1] * world()
        self._track(mean, var * (n / max(1, n - 1)))
        scale = torch.rsqrt(var + self.eps) * self.weight if self.affine else torch.rsqrt(var + self.eps)
        shape = (1, -1, *[1] * (x.ndim - 2))
        y = (x - mean.view(shape)) * scale.view(shape)
        return (y + self.bias.view(shape) if self.affine else y).to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None  # forward has checked
        share = _share(self)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)


@final
class SplitBatchNorm(_BatchNorm):
    """BatchNorm of "b c *any" with statistics of each ``group`` consecutive rows, as if each group had its own GPU.

    On several ranks it stays so: the groups of a rank are its own, and only the running statistics, the mean over
    all groups of all ranks, are exchanged. Then two ranks with half the groups each equal one with all. Same
    state-dict names as torch's. Raises ValueError for a group of one, and for a batch that has no whole groups.
    """

    def __init__(self, features: int, group: int, eps: float, momentum: float | None, affine: bool) -> None:
        super().__init__(features, eps, momentum, affine)
        if group < 2:
            raise ValueError(f"BatchNorm over groups of {group} has no variance. Use at least 2.")
        self.group = group

    def _check_input_dim(self, input: Tensor) -> None:
        _check_axes(input)

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        running_mean, running_var = self.running_mean, self.running_var
        assert running_mean is not None and running_var is not None  # a converted one has them
        if not self.training:
            return F.batch_norm(input, running_mean, running_var, self.weight, self.bias, eps=self.eps)
        if len(input) % self.group:
            raise ValueError(
                f"{len(input)} images do not divide into groups of {self.group} that share BatchNorm statistics. "
                "Choose a group that divides what each device gets in a micro-batch, or another batch."
            )
        share, parts = _share(self), input.split(self.group)
        means, variances = running_mean.repeat(len(parts), 1), running_var.repeat(len(parts), 1)
        y = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, share, self.eps)
            for part, mean, var in zip(parts, means, variances, strict=True)
        ]
        mean, var = mean_over_ranks(torch.stack([means, variances]).mean(1))
        running_mean.copy_(mean)
        running_var.copy_(var)
        return torch.cat(y)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group={self.group}"


def convert_batchnorm(module: nn.Module) -> None:
    """Replace every BatchNorm inside ``module`` by a gathered one that shares its parameters and statistics.

    Those that `split_batchnorm` made stay. Raises ValueError when ``module`` itself is a BatchNorm, which cannot be
    replaced in place.
    """
    _replace(module, lambda norm: GatheredBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine))


def split_batchnorm(module: nn.Module, group: int) -> None:
    """Replace every BatchNorm inside ``module`` by one over groups of rows that shares its parameters and statistics.

    Raises ValueError for a group of less than 2, and when ``module`` itself is a BatchNorm.
    """
    _replace(
        module, lambda norm: SplitBatchNorm(norm.num_features, group, norm.eps, norm.momentum, norm.affine)
    )


def _replace(module: nn.Module, make: Callable[[_BatchNorm], _BatchNorm]) -> None:
    done = (GatheredBatchNorm, SplitBatchNorm)
    if isinstance(module, _BatchNorm) and not isinstance(module, done):
        raise ValueError("A lone BatchNorm cannot be converted in place. Wrap it in a module.")
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, done):
            module.register_module(name, _like(child, make(child)))
        else:
            _replace(child, make)


def _like(norm: _BatchNorm, new: _BatchNorm) -> _BatchNorm:
    """``new`` with the parameters and statistics of ``norm``."""
    if norm.running_mean is None:
        raise ValueError(
            "A converted BatchNorm needs running statistics: build it with track_running_stats=True."
        )
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    return new.train(norm.training)


def _share(norm: _BatchNorm) -> float:
    """Count a batch; its share in the running statistics."""
    assert norm.num_batches_tracked is not None  # whoever calls has running statistics
    norm.num_batches_tracked.add_(1)
    return 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


def _check_axes(input: Tensor) -> None:
    if input.ndim < 2:
        raise ValueError(
            f"BatchNorm needs at least 2 axes (batch, channels), got a tensor of {tuple(input.shape)}."
        )
