"""BatchNorm whose statistics are not those of a rank's batch: of all ranks' rows, or of small groups of rows."""

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

    Autograd-correct with gloo and NCCL (PyTorch's SyncBatchNorm has no CPU path); same state-dict names as torch's.
    Every rank must bring equally many rows.
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
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(var.to(self.running_var.dtype), share)
