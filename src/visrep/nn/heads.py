"""Heads between an encoder and a loss."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.nn.transformer import linear


def projection(
    n_in: int,
    hidden: int,
    n_out: int,
    *,
    layers: int = 2,
    last_norm: bool = True,
    last_scale: bool = True,
    last_bias: bool = True,
) -> nn.Sequential:
    """The MLP of SimCLR's official code (arXiv:2002.05709): linear, BatchNorm, ReLU, ..., linear, BatchNorm.

    BatchNorm after the last layer is optional and, as there, without an offset; ``last_scale=False`` also takes its
    scale away, ``last_bias=False`` the bias of a last layer that no BatchNorm follows. Takes and gives "b d".
    Raises ValueError for fewer than one layer.
    """
    if layers < 1:
        raise ValueError(f"A projection needs at least one layer, got {layers}.")
    widths = [n_in, *[hidden] * (layers - 1), n_out]
    modules: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(widths), start=1):
        last = i == layers
        # BatchNorm takes any constant away, so a bias before it would be a parameter without effect.
        modules.append(nn.Linear(before, after, bias=last and last_bias and not last_norm))
        if not last:
            modules += [nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        elif last_norm:
            norm = nn.BatchNorm1d(after, affine=last_scale)
            if last_scale:
                norm.bias.requires_grad_(False)
            modules.append(norm)
    return nn.Sequential(*modules)


def gelu_mlp(n_in: int, hidden: int, n_out: int, *, batch_norm: bool = False) -> nn.Sequential:
    """The three linear layers of DINO's head (arXiv:2104.14294), GELU between them, after BatchNorm where asked."""
    modules: list[nn.Module] = []
    for before, after in ((n_in, hidden), (hidden, hidden)):
        # BatchNorm takes any constant away, so a bias before it would be a parameter without effect.
        modules.append(linear(before, after, bias=not batch_norm))
        modules += [nn.BatchNorm1d(after), nn.GELU()] if batch_norm else [nn.GELU()]
    return nn.Sequential(*modules, linear(hidden, n_out))


@final
class PrototypeHead(nn.Module):
    """DINO's head (arXiv:2104.14294): MLP, L2-normalised bottleneck, cosine with each of k prototypes.

    ``learn_norm`` also learns the prototypes' lengths (``norm_last_layer=False`` in the official code);
    ``batch_norm`` normalises the hidden layers (its ``use_bn_in_head``).
    """

    def __init__(
        self,
        n_in: int,
        prototypes: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        learn_norm: bool = False,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.mlp = gelu_mlp(n_in, hidden, bottleneck, batch_norm=batch_norm)
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        self.prototypes_norm = nn.Parameter(torch.ones(prototypes, 1), requires_grad=learn_norm)
        nn.init.kaiming_uniform_(self.prototypes, a=math.sqrt(5))  # nn.Linear's; only directions matter

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        z = F.normalize(self.mlp(x), dim=-1)
        return F.linear(z, F.normalize(self.prototypes, dim=-1) * self.prototypes_norm)
