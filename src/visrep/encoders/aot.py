"""AoT (arXiv:2506.03790): a transformer of nothing but attention.

    x <- x + MSSA(LN x)

Each block moves tokens towards the subspaces they nearly lie in, which takes noise off them. MSSA is CRATE's, with one
projection a head; ``attention="mhsa"`` is the usual attention with three, the paper's other variant. Without the MLP,
which holds two thirds of a ViT block's weights, networks of the same size are deeper or wider.

Verified against: the official code of CRATE, whose first half block this is (1e-9); with "mhsa" our own ViT without its
MLPs. There is no public code of AoT.
Deviations: sizes of vision models are our choice, about as many parameters as the ViT of the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final, get_args

from jaxtyping import Float
from torch import Tensor, nn

from visrep.encoders.checks import check_choice
from visrep.encoders.crate import SubspaceAttention
from visrep.encoders.vit import ViTLike
from visrep.nn.positions import Rotary
from visrep.nn.transformer import Attention, DropPath

AttentionKind = Literal["mssa", "mhsa"]


@dataclass(frozen=True)
class AoT(ViTLike):
    """An attention-only transformer. Raises ValueError for sizes that do not divide."""

    attention: AttentionKind = "mssa"
    """mssa: one projection a head is query, key and value; mhsa: three"""

    def __post_init__(self) -> None:
        check_choice("attention", self.attention, get_args(AttentionKind))
        super().__post_init__()

    def block(self, drop_path: float) -> AoTBlock:
        return AoTBlock(self, drop_path)


@final
class AoTBlock(nn.Module):
    """Attention with a residual connection."""

    def __init__(self, config: AoT, drop_path: float) -> None:
        super().__init__()
        kind = SubspaceAttention if config.attention == "mssa" else Attention
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = kind(config.width, config.heads)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Rotary | None = None,
        maps: list[Tensor] | None = None,
        added: list[Tensor] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """``maps``: see `SubspaceAttention`. What attention adds is appended to ``added``."""
        out = self.drop_path(self.attn(self.norm1(x), rotary, maps))
        if added is not None:
            added.append(out)
        return x + out
