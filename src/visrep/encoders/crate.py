"""CRATE (arXiv:2306.01129): a transformer whose blocks are steps that compress tokens, then make them sparse.

    z = x + MSSA(LN x)                                  heads k: softmax(u_k u_k' / sqrt(d_k)) u_k,  u_k = LN(x) U_k
    x = ReLU( y + eta (D' y - D' D y) - eta lambda )    y = LN z

One projection U_k a head is query, key and value at once: tokens move towards others in the same subspace. D is a
dictionary of d vectors in d dimensions, and the second line one step of the iterative shrinkage-thresholding algorithm
(ISTA) that starts at y. It has no residual connection: what follows sees sparse codes only.

Verified against: the official modules, forward and gradient, and the official network's output, 1e-9.
Deviations: mask token, registers and drop path (of MSSA) can be added; the official dropout, by default 0, cannot. The
row of the position table that belongs to the cls token is part of the token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from visrep.encoders.patches import PatchEmbed, cut
from visrep.encoders.vit import ViTLike
from visrep.functional import coding_rate
from visrep.nn.positions import Rotary
from visrep.nn.transformer import DropPath, attend


@dataclass(frozen=True)
class CRATE(ViTLike):
    """A CRATE, by default CRATE-T/16, with as many parameters as a ViT of half its width.

    Raises ValueError for sizes that do not divide and steps that are not positive.
    """

    norm_eps: float = 1e-5
    last_norm_eps: float = 1e-5
    """1e-6 in CRATE-MAE"""
    patch_norms: bool = True
    """LayerNorm of each patch's pixels and of its embedding; CRATE-MAE has neither"""
    step: float = 0.1
    """eta"""
    sparsity: float = 0.1
    """lambda: the larger, the more zeros; 0.5 in CRATE-MAE"""

    def __post_init__(self) -> None:
        check_step(self.step, self.sparsity)
        super().__post_init__()

    def block(self, drop_path: float) -> CRATEBlock:
        return CRATEBlock(self, drop_path)

    def embedding(self) -> PatchEmbed:
        return NormedPatchEmbed(self) if self.patch_norms else super().embedding()

    def last_norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.width, eps=self.last_norm_eps)

    @property
    def token_std(self) -> float:
        return 1.0 if self.patch_norms else 0.02  # that of embedded patches


def check_step(step: float, sparsity: float) -> None:
    """Raises ValueError unless a step of ISTA goes somewhere and its threshold is none or positive."""
    if step <= 0 or sparsity < 0:
        raise ValueError(
            f"step={step}, sparsity={sparsity}: ISTA needs step > 0 and sparsity >= 0. Published: 0.1 and 0.1."
        )


def subspace_rate(u: Float[Tensor, "b h n c"], eps: float = 0.01) -> Float[Tensor, " b"]:
    """R^c, what MSSA reduces: nats to code an image's n tokens in each of h subspaces, summed.

    ``u`` holds the tokens' coordinates, which are scaled to length 1; ``eps`` is the squared error allowed.
    Yu et al. 2023, arXiv:2306.01129, as in the official measurement.
    """
    return coding_rate(F.normalize(u, dim=-1), eps).sum(-1)


@final
class SubspaceAttention(nn.Module):
    """MSSA: multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.subspaces = nn.Linear(width, width, bias=False)
        # as in the official code, a single head is not mixed with others
        self.proj = nn.Linear(width, width, bias=bias) if heads > 1 else nn.Identity()

    def coordinates(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n c"]:
        """Of each token in each subspace."""
        return self.subspaces(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(
        self, x: Float[Tensor, "b n d"], rotary: Rotary | None = None, maps: list[Tensor] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Each token gathers from all tokens; for ``maps`` see `visrep.nn.transformer.Attention`.

        Rotary positions turn tokens where they are compared, not what is gathered.
        """
        u = self.coordinates(x)
        k = u if rotary is None else rotary(u)
        return self.proj(attend(k, k, u, maps).transpose(1, 2).flatten(2))


@final
class ISTA(nn.Module):
    """A step from tokens y towards codes z >= 0 with D z near y: down |y - D z|^2 / 2 + lambda |z|_1, from z = y."""

    def __init__(self, width: int, step: float, sparsity: float) -> None:
        super().__init__()
        self.dictionary = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(width, width)))
        self.step, self.sparsity = step, sparsity

    def forward(self, y: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        missing = y - F.linear(y, self.dictionary)  # y - D y, row by row
        return F.relu(y + self.step * F.linear(missing, self.dictionary.T) - self.step * self.sparsity)


@final
class CRATEBlock(nn.Module):
    """MSSA with a residual connection, then ISTA without one."""

    def __init__(self, config: CRATE, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = SubspaceAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.ista = ISTA(config.width, config.step, config.sparsity)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Rotary | None = None,
        maps: list[Tensor] | None = None,
        added: list[Tensor] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """``maps``: see `SubspaceAttention`. The sparse codes are also appended to ``added``."""
        z = x + self.drop_path(self.attn(self.norm1(x), rotary, maps))
        x = self.ista(self.norm2(z))
        if added is not None:
            added.append(x)
        return x


@final
class NormedPatchEmbed(PatchEmbed):
    """A linear map of the pixels of each patch between two LayerNorms: brightness and contrast of a patch are lost."""

    def __init__(self, config: CRATE) -> None:
        super().__init__(config.channels, config.patch, config.width)
        self.norm_pixels = nn.LayerNorm(config.channels * config.patch**2, eps=config.norm_eps)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        return self.norm(self.proj(self.norm_pixels(cut(images, self.patch, keep))))
