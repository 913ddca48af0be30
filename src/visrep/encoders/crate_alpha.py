"""CRATE-alpha (arXiv:2405.20299): CRATE with an overcomplete dictionary, made to grow.

    z = x + MSSA(LN x)
    a = ReLU( eta D' y - eta lambda )                   y = LN z, two steps of ISTA from 0 to codes
    b = ReLU( a + eta D' (y - D a) - eta lambda )
    x = z + E b                                         D, E: d x 4d, the second one decodes

What follows sees denoised tokens, not codes, and there is a residual connection around both halves.

Verified against: the official PyTorch modules, forward and gradient, and the official network's output, 1e-9.
Deviations: weights start as in the official training code (JAX), whose dictionaries are twice as large as those of the
PyTorch port; the last norm's eps is its 1e-6 too, not the port's 1e-5. Mask token and registers can be added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.encoders.crate import SubspaceAttention, check_step
from visrep.encoders.vit import ViTLike
from visrep.nn.positions import Rotary
from visrep.nn.transformer import DropPath


@dataclass(frozen=True)
class CRATEAlpha(ViTLike):
    """A CRATE-alpha, by default of ViT-S's size. Raises ValueError for what CRATE refuses and dictionaries below d."""

    step: float = 0.1
    """eta"""
    sparsity: float = 0.1
    """lambda: the larger, the more zeros in the codes"""
    overcomplete: int = 4
    """words of a dictionary for each dimension"""

    def __post_init__(self) -> None:
        check_step(self.step, self.sparsity)
        if self.overcomplete < 1:
            raise ValueError(
                f"overcomplete={self.overcomplete} leaves no words. Use 1 or more; published: 4."
            )
        super().__post_init__()

    def block(self, drop_path: float) -> CRATEAlphaBlock:
        return CRATEAlphaBlock(self, drop_path)


@final
class OvercompleteISTA(nn.Module):
    """Two steps from 0 towards the sparse codes of tokens, which another dictionary decodes."""

    def __init__(self, width: int, words: int, step: float, sparsity: float) -> None:
        super().__init__()
        self.step, self.sparsity = step, sparsity
        reach = math.sqrt(6 / width)
        self.dictionary, self.decoder = (
            nn.Parameter(nn.init.uniform_(torch.empty(width, words), -reach, reach)) for _ in range(2)
        )

    def codes(self, y: Float[Tensor, "b n d"]) -> Float[Tensor, "b n k"]:
        """Sparse and not negative."""
        first = F.relu(self.step * (y @ self.dictionary - self.sparsity))
        missing = y - F.linear(first, self.dictionary)
        return F.relu(first + self.step * (missing @ self.dictionary - self.sparsity))

    def forward(self, y: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return F.linear(self.codes(y), self.decoder)


@final
class CRATEAlphaBlock(nn.Module):
    """MSSA, then the overcomplete ISTA, each with a residual connection."""

    def __init__(self, config: CRATEAlpha, drop_path: float) -> None:
        super().__init__()
        width, words = config.width, config.overcomplete * config.width
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = SubspaceAttention(width, config.heads, bias=False)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.ista = OvercompleteISTA(width, words, config.step, config.sparsity)
        self.drop_path = DropPath(drop_path)
        for weight in self.attn.parameters():
            nn.init.normal_(weight, std=0.02)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Rotary | None = None,
        maps: list[Tensor] | None = None,
        added: list[Tensor] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """``maps``: see `SubspaceAttention`. What the dictionaries add is appended to ``added``."""
        z = x + self.drop_path(self.attn(self.norm1(x), rotary, maps))
        out = self.drop_path(self.ista(self.norm2(z)))
        if added is not None:
            added.append(out)
        return z + out
