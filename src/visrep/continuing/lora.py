"""LoRA: linear layers that learn by a sum of few products (arXiv:2106.09685), and become plain ones again.

y = (W + B A) x      A: rank x n_in, random; B: n_out x rank, zero at the start; W stays as it is
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from visrep.method import Encoder

PARAMETRIZED = ".parametrizations."
"""in the names of what `add_low_rank` adds, and of what it adds to"""


@final
class LowRank(nn.Module):
    """What a linear layer's weight becomes: itself plus ``B A``."""

    def __init__(self, weight: Float[Tensor, "n m"], rank: int, rng: torch.Generator) -> None:
        super().__init__()
        n_out, n_in = weight.shape
        drawn = torch.rand(rank, n_in, generator=rng) * 2 - 1
        self.a = nn.Parameter((drawn / math.sqrt(n_in)).to(weight))  # as nn.Linear, and as the official code
        self.b = nn.Parameter(weight.new_zeros(n_out, rank))

    def forward(self, weight: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        return weight + self.b @ self.a


def add_low_rank(module: nn.Module, rank: int, paths: Iterable[str], seed: int) -> None:
    """Let the linear layers under ``paths`` learn by additions alone: the same ones for the same seed.

    Additions to a teacher need no gradient, like the rest of it; all other parameters stop needing one.
    Raises ValueError where there is no linear layer, or none as wide as the rank.
    """
    inside = tuple(f"{path}." for path in paths)
    linear = [
        part
        for name, part in module.named_modules()
        if type(part) is nn.Linear and f"{name}.".startswith(inside)
    ]
    if not linear or rank > min(min(part.weight.shape) for part in linear):
        found = f"narrower than {rank}" if linear else "none"
        raise ValueError(
            f"adapt.lora_rank={rank} adds to linear layers, and those of this encoder are {found}. Use a smaller rank, "
            "or adapt.train_blocks."
        )
    learns = any(p.requires_grad for p in module.parameters())
    module.requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)
    for part in linear:
        added = LowRank(part.weight, rank, rng).requires_grad_(learns)
        parametrize.register_parametrization(part, "weight", added)


def merge(module: nn.Module) -> None:
    """Make every linear layer that `add_low_rank` changed a plain one that computes the same."""
    for part in module.modules():
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)


def merged(encoder: Encoder) -> Encoder:
    """A plain encoder that computes the same; the encoder itself where nothing was added to it."""
    added = [name for name, part in encoder.named_modules() if parametrize.is_parametrized(part, "weight")]
    if not added:
        return encoder
    weights = {name: x for name, x in encoder.state_dict().items() if PARAMETRIZED not in name}
    weights |= {f"{name}.weight": cast(Tensor, encoder.get_submodule(name).weight) for name in added}
    plain: Encoder = encoder.config.build()
    plain.load_state_dict(weights)
    plain.preprocessing = encoder.preprocessing
    return plain.train(encoder.training)
