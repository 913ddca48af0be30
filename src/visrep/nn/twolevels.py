"""An encoder with a head for whole images and a head for patches, as in iBOT (arXiv:2111.07832) and DINOv2."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from visrep.functional import widen
from visrep.method import Encoder, Tokens
from visrep.nn.heads import PrototypeHead


@final
class TwoLevels(nn.Module):
    """``encoder`` is a ViT; ``patch_head`` may be ``head`` itself, or share layers with it."""

    def __init__(self, encoder: Encoder, head: PrototypeHead, patch_head: PrototypeHead) -> None:
        super().__init__()
        self.encoder, self.head, self.patch_head = encoder, head, patch_head

    def forward(
        self,
        groups: tuple[Float[Tensor, "_ b c _ _"], ...],
        patches: Bool[Tensor, "i n"],
        hide: bool,
        warps: tuple[Float[Tensor, "_ 2 2"], ...] = (),
    ) -> tuple[Tokens, Float[Tensor, "v b k"], Float[Tensor, "m q"]]:
        """Tokens of the first group, logits of all v crops, logits of m patches.

        ``patches`` of the first group, one row a crop, get logits, in their order; ``hide`` puts the mask token in
        their place before they are encoded; ``warps`` changes positions, group by group.
        Raises ValueError when the encoder has no cls or no mask token.
        """
        warp, *warped = warps or [None] * len(groups)
        first = self.encoder(groups[0].flatten(0, 1), mask=patches if hide else None, warp=warp)
        others = [
            self.encoder(group.flatten(0, 1), warp=warp).pool("cls")
            for group, warp in zip(groups[1:], warped, strict=True)
        ]
        logits = self.head(torch.cat([first.pool("cls"), *others])).unflatten(0, (-1, groups[0].shape[1]))
        return first, widen(logits), widen(self.patch_head(first.patches[patches]))
