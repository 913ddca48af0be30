"""MaskFeat: from an image with some blocks covered by mask tokens, predict the gradient histograms of the covered ones.

    minimise  mean over hidden patches of  | W f(x with hidden patches) - h(x) |^2 / q

f: an encoder that sees mask tokens in place of hidden patches; W: one linear map a patch; h: histograms of oriented
gradients of the patch's cells, each channel and cell at length 1, so contrast and brightness do not count: q = cells x
channels x bins numbers. Wei et al. 2021, arXiv:2112.09133.

Verified against: the official histograms, targets (of images and of video), loss and gradient, 1e-5 as theirs are in 32
bits; histograms of scikit-image where its definition agrees, 1e-6; masks: the official generator's, in distribution.
Deviations: none known; the head's LayerNorm is the encoder's last one, and targets are listed in another order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.distributed import mean_over_ranks
from visrep.encoders import ViT, ViTLike
from visrep.functional import displayed, unpatchify, widen
from visrep.masking import ATTEMPTS, block_mask
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.hog import draw_hog, hog_patches
from visrep.nn.transformer import linear
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.5, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""the paper's view: crop and flip"""
ZOOM = 4
"""pixels of a picture for a pixel of an image, so that strokes can be told apart"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(width=768, heads=12, mask_token=True)
    views: OneView = OneView(PLAIN)
    mask_ratio: float = 0.4
    """share of the patches to hide, in rectangles: a few fewer where the last one does not fit"""
    cell: int = 8
    """side of a histogram's cell in pixels, which divides the patch: smaller cells are sharper and noisier"""
    bins: int = 9
    """directions in a histogram"""


def maskfeat_loss(
    prediction: Float[Tensor, "b n q"], target: Float[Tensor, "b n q"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """Squared error, mean over the numbers of all hidden patches of the batch, of which each rank may have others."""
    error = (prediction - target).square().mean(-1)  # b n
    return error[mask].sum() / mean_over_ranks(mask.sum().to(error))


@final
class MaskFeat(Method):
    captions: ClassVar[dict[str, str]] = {
        "histograms": "Columns: the image; what the encoder sees of it; its histograms of gradients; these, with "
        "predictions in hidden places. Strokes run along edges, in the colour of the channels that have them."
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        n = (cfg.views.size // cfg.encoder.patch) ** 2
        if not 0 < round(n * cfg.mask_ratio) < n:
            raise ValueError(
                f"mask_ratio={cfg.mask_ratio} hides {round(n * cfg.mask_ratio)} of the {n} patches. The paper uses 0.4."
            )
        if cfg.encoder.patch % cfg.cell:
            raise ValueError(
                f"cell={cfg.cell} does not divide patches of {cfg.encoder.patch} pixels. Try cell={cfg.encoder.patch}."
            )
        self.backbone = cfg.encoder.build()
        cells = (cfg.encoder.patch // cfg.cell) ** 2
        self.head = linear(cfg.encoder.width, cells * cfg.encoder.channels * cfg.bins)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        images = batch.crops[0][0]
        mask, target = self._mask(images, at), self._targets(images)
        prediction = self.head(self.backbone(images, mask=mask).patches)
        with torch.autocast(images.device.type, enabled=False):
            loss = maskfeat_loss(widen(prediction), target, mask)
        # What the mean histogram would leave: 1 means that nothing is predicted.
        unexplained = loss.detach() / target.var((0, 1), correction=0).mean()
        return Losses(
            {"maskfeat": loss},
            {"unexplained_variance": unexplained, "masked_share": mask.to(target).mean()},
        )

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images, patch, view = batch.crops[0][0], self.cfg.encoder.patch, self.cfg.views.view
        mask, target = self._mask(images, at), self._targets(images)
        prediction = self.head(self.backbone(images, mask=mask).patches)
        grid = (images.shape[-2] // patch, images.shape[-1] // patch)
        hidden = mask.unflatten(1, grid).repeat_interleave(patch, 1).repeat_interleave(patch, 2)  # b h w
        shown = displayed(images, view.mean, view.std)
        seen = [
            F.interpolate(x, scale_factor=ZOOM) for x in (shown, shown.masked_fill(hidden.unsqueeze(1), 0.5))
        ]
        drawn = [self._draw(x, grid) for x in (target, torch.where(mask.unsqueeze(-1), prediction, target))]
        return {"histograms": torch.stack([*seen, *drawn], dim=1)}

    def _mask(self, images: Float[Tensor, "b c h w"], at: At) -> Bool[Tensor, "b n"]:
        """Which patches are hidden."""
        grid = (images.shape[-2] // self.cfg.encoder.patch, images.shape[-1] // self.cfg.encoder.patch)
        count = round(grid[0] * grid[1] * self.cfg.mask_ratio)
        noise, counts = at.rand(len(images), ATTEMPTS, 4), images.new_full((len(images),), count)
        return block_mask(noise, counts, grid, smallest=count // 5)

    def _targets(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n q"]:
        return hog_patches(images, self.cfg.encoder.patch, self.cfg.cell, self.cfg.bins)

    def _draw(self, histograms: Float[Tensor, "b n q"], grid: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        cells = unpatchify(histograms, self.cfg.encoder.patch // self.cfg.cell, grid)  # b (c k) rows columns
        return draw_hog(cells.unflatten(1, (-1, self.cfg.bins)), self.cfg.cell * ZOOM)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, position="sincos", mask_token=True),
            views=OneView(replace(PLAIN, size=32)),
            cell=4,
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT, one histogram a patch.

    Short runs need fixed positions, so that mask tokens know from the start where they are, and the paper's tight
    clipping: histograms of flat cells are noise, and some batches have many.
    """
    return Run(
        method=Config(
            encoder=ViT(
                image=32,
                patch=4,
                width=128,
                depth=4,
                heads=4,
                position="sincos",
                cls=False,
                mask_token=True,
            ),
            views=OneView(replace(PLAIN, size=32, scale=(0.2, 1.0))),
            cell=4,
        ),
        optim=replace(_adamw(lr=2e-3, lr_scaling="none", warmup=1.0), betas=(0.9, 0.95)),
        limit=10_000,
        epochs=9,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(image=128, position="sincos", cls=False, mask_token=True),
            views=OneView(replace(PLAIN, size=128)),
        ),
        optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 300 epochs, batch 2048. Unverified: not run here."""
    return Run(
        method=Config(), optim=_adamw(lr=2e-4, lr_scaling="linear", warmup=30.0), epochs=300, batch=2048
    )


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    """The paper's optimiser, which clips so tightly that nearly every step has one length."""
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 1e-6)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.05),
        no_decay=("*.bias",),  # and what has one axis; the official code decays the tokens
        clip=0.02,
    )
