"""An encoder with a projector: the networks that BYOL, its relatives and LatentMIM copy into a teacher."""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from visrep.method import Encoder


@final
class Projected(nn.Module):
    """``projector`` of the pooled output of ``encoder``, view by view."""

    def __init__(self, encoder: Encoder, projector: nn.Module) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector

    def forward(self, crops: Float[Tensor, "v b c h w"]) -> Float[Tensor, "v b d"]:
        # One view at a time: BatchNorm must not see from the batch which view an image is.
        return torch.stack([self.projector(self.encoder(view).pool()) for view in crops])


@final
class ProjectedTokens(nn.Module):
    """Some patches of each image through ``encoder``, and each token through a projector (arXiv:2407.15837)."""

    def __init__(self, encoder: Encoder, hidden: int) -> None:
        super().__init__()
        self.encoder = encoder
        layers: list[nn.Module] = []
        for n_in, n_out in ((encoder.width, hidden), (hidden, hidden), (hidden, encoder.width)):
            layers += [nn.Linear(n_in, n_out, bias=False), nn.LayerNorm(n_out), nn.GELU()]
        self.projector = nn.Sequential(*layers[:-1])

    def forward(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b d"] | None]:
        """The patches in ``keep``, and the cls token where there is one."""
        tokens = self.encoder(images, keep=keep)
        return self.projector(tokens.patches), None if tokens.cls is None else self.projector(tokens.cls)
