"""A teacher: a frozen copy of a student that follows it slowly."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar, final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

M = TypeVar("M", bound=nn.Module)


@final
class Teacher(nn.Module, Generic[M]):
    """The exponential moving average of a student's parameters; saved with the run, never given a gradient.

    As in the official MoCo and DINO code: dropout and stochastic depth are off; BatchNorm uses the statistics
    of its batch while training, so its running statistics are the teacher's own and are not averaged.
    """

    def __init__(self, student: M) -> None:
        super().__init__()
        self.module: M = copy.deepcopy(student).requires_grad_(False)
        self.train()

    @torch.no_grad()
    def follow(self, student: M, decay: float) -> None:
        """Each parameter becomes decay * itself + (1 - decay) * the student's. Buffers stay as they are."""
        get_ema_multi_avg_fn(decay)(list(self.module.parameters()), list(student.parameters()), 0)

    def train(self, mode: bool = True) -> Teacher[M]:
        super().train(False)
        self.training = mode
        for module in self.module.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode)
        return self

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """What the copied module makes of the inputs, without gradient."""
        return self.module(*inputs)
