"""MaskFeat on clips: from a clip with some cuboids covered by mask tokens, predict the histograms of gradients in them.

    minimise  mean over hidden patches of  | W f(x with hidden patches) - h(x) |^2 / q

f: an encoder that sees mask tokens in place of hidden patches; W: one linear map a patch; h: histograms of oriented
gradients of the cells in the patch's first frame, each channel and cell at length 1, so q = cells x channels x bins.
Cuboids last for some of the time, so that what is hidden can be told from before and after it or from beside it.
Wei et al. 2021, arXiv:2112.09133.

Verified against: the official targets of clips, 1e-5 as theirs are in 32 bits; the loss of maskfeat, which equals the
official one; masks: the official generator's of cuboids, in distribution.
Deviations: a plain vision transformer instead of MViTv2, whose positions are relative and whose patches overlap; the
head's LayerNorm is the encoder's last one.
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
from visrep.encoders import VideoViT
from visrep.encoders.video import clip_grid
from visrep.functional import displayed, unpatchify, widen
from visrep.masking import CUBES, cube_mask
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.hog import draw_hog, hog_patches
from visrep.nn.transformer import linear
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.5, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""the paper's view: crop and flip; set flip to 0 where left and right matter"""
ZOOM = 4
"""pixels of a picture for a pixel of a frame, so that strokes can be told apart"""
SHOWN = 3
"""clips in pictures"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: VideoViT = VideoViT(position="sincos", mask_token=True)
    views: OneView = OneView(PLAIN, frames=16)
    mask_ratio: float = 0.4
    """share of the clip to hide, in cuboids: a little less where the last one does not fit"""
    mask_unit: int = 2
    """side in patches of the squares of which a cuboid's face is made: larger ones are harder to fill from beside"""
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
class MaskFeatVideo(Method):
    captions: ClassVar[dict[str, str]] = {
        "histograms": "Columns: a frame of each patch of a clip; what the encoder sees of it; its histograms of "
        "gradients; these, with predictions in hidden places. Strokes run along edges."
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        e = cfg.encoder
        self.grid = clip_grid(cfg.views.frames, cfg.views.size, cfg.views.size, e.tubelet, e.patch)
        self._check()
        self.backbone = e.build()
        self.head = linear(e.width, (e.patch // cfg.cell) ** 2 * e.channels * cfg.bins)

    def _check(self) -> None:
        cfg, (times, rows, columns) = self.cfg, self.grid
        if rows % cfg.mask_unit:
            raise ValueError(
                f"mask_unit={cfg.mask_unit} does not divide {rows} x {columns} patches. Try mask_unit=1."
            )
        n = times * rows * columns // cfg.mask_unit**2
        if not 0 < round(n * cfg.mask_ratio) < n:
            raise ValueError(
                f"mask_ratio={cfg.mask_ratio} hides {round(n * cfg.mask_ratio)} of {n} units. The paper uses 0.4."
            )
        if cfg.encoder.patch % cfg.cell:
            raise ValueError(
                f"cell={cfg.cell} does not divide patches of {cfg.encoder.patch} pixels. Try cell={cfg.encoder.patch}."
            )

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        clips = batch.crops[0][0]
        mask, target = self._mask(len(clips), at), self._targets(clips)
        prediction = self.head(self.backbone(clips, mask=mask).patches)
        with torch.autocast(clips.device.type, enabled=False):
            loss = maskfeat_loss(widen(prediction), target, mask)
        # What the mean histogram would leave: 1 means that nothing is predicted.
        unexplained = loss.detach() / target.var((0, 1), correction=0).mean()
        return Losses(
            {"maskfeat": loss}, {"unexplained_variance": unexplained, "masked_share": mask.to(target).mean()}
        )

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        clips, view, e = batch.crops[0][0][:SHOWN], self.cfg.views.view, self.cfg.encoder
        mask, target = self._mask(len(clips), at), self._targets(clips)
        prediction = self.head(self.backbone(clips, mask=mask).patches)
        times, rows, columns = self.grid
        frames = displayed(clips[:, :: e.tubelet], view.mean, view.std).flatten(0, 1)  # (b times) c h w
        places = mask.view(-1, 1, rows, columns).repeat_interleave(e.patch, 2).repeat_interleave(e.patch, 3)
        seen = (frames, frames.masked_fill(places, 0.5))
        drawn = (self._draw(x) for x in (target, torch.where(mask.unsqueeze(-1), prediction, target)))
        pictures = (*(F.interpolate(x, scale_factor=ZOOM) for x in seen), *drawn)
        return {"histograms": torch.stack([x.unflatten(0, (-1, times)) for x in pictures], dim=1)}

    def _mask(self, b: int, at: At) -> Bool[Tensor, "b n"]:
        """Which patches are hidden. A face covers between a fifth of the places and all but some."""
        times, rows, columns = self.grid
        unit = self.cfg.mask_unit
        grid = (times, rows // unit, columns // unit)
        face = grid[1] * grid[2]
        count = round(times * face * self.cfg.mask_ratio)
        units = cube_mask(at.rand(b, CUBES, 6), count, grid, smallest=face // 5, largest=face)
        return units.unflatten(1, grid).repeat_interleave(unit, 2).repeat_interleave(unit, 3).flatten(1)

    def _targets(self, clips: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b n q"]:
        """The histograms of each patch, in its first frame."""
        e = self.cfg.encoder
        return hog_patches(clips[:, :: e.tubelet], e.patch, self.cfg.cell, self.cfg.bins).flatten(1, 2)

    def _draw(self, histograms: Float[Tensor, "b n q"]) -> Float[Tensor, "m c h w"]:
        """Pictures of the histograms of each moment, m = b times."""
        times, *grid = self.grid
        cells = unpatchify(
            histograms.unflatten(1, (times, -1)).flatten(0, 1),
            self.cfg.encoder.patch // self.cfg.cell,
            tuple(grid),
        )  # m (c k) rows columns
        return draw_hog(cells.unflatten(1, (-1, self.cfg.bins)), self.cfg.cell * ZOOM)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    encoder = VideoViT(
        frames=4, image=32, patch=8, width=32, depth=2, heads=2, position="sincos", mask_token=True
    )
    return Run(
        method=Config(encoder=encoder, views=OneView(replace(PLAIN, size=32), frames=4), mask_unit=1, cell=4),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground-video:n=64,size=32,frames=4",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """Clips of 8 frames of 32 px, a narrow ViT, one histogram a patch; minutes on two cores for 4,000 clips.

    What short runs need: a high learning rate, which the tight clipping of gradients allows. The encoder sees all
    places, so a step costs several times VideoMAE's.
    """
    encoder = VideoViT(
        frames=8, image=32, patch=4, width=128, depth=4, heads=4, position="sincos", mask_token=True
    )
    return Run(
        method=Config(encoder=encoder, views=OneView(replace(PLAIN, size=32, flip=0.0), frames=8), cell=4),
        optim=replace(_adamw(lr=2e-3, lr_scaling="none", warmup=1.0), betas=(0.9, 0.95)),
        data="playground-video:n=4000,size=48,frames=8",
        epochs=8,
        batch=64,
        monitor_epochs=2,
        monitor_images=1000,
    )


def paper() -> Run[Config]:
    """Kinetics-400, ViT-B, clips of 16 frames, every 4th, 300 epochs, batch 512. Unverified: not run here."""
    return Run(
        method=Config(), optim=_adamw(lr=8e-4, lr_scaling="linear", warmup=10.0), epochs=300, batch=512
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
