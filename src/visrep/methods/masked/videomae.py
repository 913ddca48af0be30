"""VideoMAE: from a tenth of the places of a clip, seen at all times, predict the pixels of the others.

    minimise  mean over hidden patches of  | f(x_visible) - y |^2 / (k p p c)        y = (x - mean x) / std x

f: an encoder that sees only visible patches, then a light decoder with mask tokens; y: pixels of a patch, k frames of
p x p, each of its c channels normalised on its own. What is hidden is hidden at all times, or it could be copied from a
frame before. Tong et al. 2022, arXiv:2203.12602.

Verified against: transformers' VideoMAEForPreTraining, loss and gradients, with and without normalised pixels, 1e-9;
the number and shape of the official masks.
Deviations: random crops as in MAE instead of multi-scale ones at five places; the map into the decoder and the keys of
attention have a bias, which the official ones lack (that of the keys changes nothing).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visrep.config import Optim, Run
from visrep.encoders import VideoViT
from visrep.encoders.patches import take
from visrep.encoders.video import clip_grid, cut, paste
from visrep.functional import CONTRAST, displayed, widen
from visrep.masking import tube_split
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.decoder import MaskedDecoder
from visrep.nn.transformer import xavier
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.4, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""crop and flip; set flip to 0 where left and right matter"""
SHOWN = 3
"""clips in pictures"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: VideoViT = VideoViT()
    views: OneView = OneView(PLAIN, frames=16)
    mask_ratio: float = 0.9
    """share of the places that are hidden: more than of an image, as frames repeat each other"""
    norm_pixels: bool = True
    """predict pixels normalised patch by patch and channel by channel: better features, less pretty pictures"""
    decoder_width: int = 384
    decoder_depth: int = 4
    decoder_heads: int = 6


def pixel_statistics(
    patches: Float[Tensor, "b n q c"],
) -> tuple[Float[Tensor, "b n 1 c"], Float[Tensor, "b n 1 c"]]:
    """Mean and unbiased deviation of each channel of each patch, the latter 1e-6 too large as in the official code."""
    return patches.mean(2, keepdim=True), patches.var(2, keepdim=True).sqrt() + 1e-6


def videomae_loss(
    prediction: Float[Tensor, "b n q"], target: Float[Tensor, "b n q"], hidden: Int[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """Squared error, mean over the values of all hidden patches of the batch."""
    return (take(prediction, hidden) - take(target, hidden)).square().mean()


@final
class VideoMAE(Method):
    captions: ClassVar[dict[str, str]] = {
        "reconstructions": "Columns: the clip; what the encoder sees of it; this, with predictions in place of the "
        f"hidden patches.{CONTRAST}"
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        e = cfg.encoder
        self.grid = clip_grid(cfg.views.frames, cfg.views.size, cfg.views.size, e.tubelet, e.patch)
        self.decoder = MaskedDecoder(
            e.width,
            e.tubelet * e.patch * e.patch * e.channels,
            self.grid,
            width=cfg.decoder_width,
            depth=cfg.decoder_depth,
            heads=cfg.decoder_heads,
            by_axis=e.position != "sequence",
        )
        self.apply(xavier)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        clips = batch.crops[0][0]
        _, hidden, prediction = self._predict(clips, at)
        target = self._pixels(clips)
        if self.cfg.norm_pixels:
            mean, std = pixel_statistics(target)
            target = (target - mean) / std
        loss = videomae_loss(widen(prediction), target.flatten(2), hidden)
        # What the best constant patch would leave: 1 means that nothing is predicted.
        unexplained = loss.detach() / target.var(correction=0)
        return Losses({"videomae": loss}, {"unexplained_variance": unexplained})

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        clips = batch.crops[0][0]
        keep, _, prediction = self._predict(clips, at)
        pixels = self._pixels(clips)  # b n (k p p) c
        prediction = widen(prediction).view_as(pixels)
        if self.cfg.norm_pixels:  # a prediction lacks each patch's mean and contrast: take the true ones
            mean, std = pixel_statistics(pixels)
            prediction = prediction * std + mean
        visible = torch.zeros_like(pixels[:, :, 0, 0]).scatter(1, keep, 1.0)[:, :, None, None]
        e = self.cfg.encoder
        columns = [
            paste(x[:SHOWN].transpose(2, 3).unflatten(3, (e.tubelet, e.patch, e.patch)), self.grid)
            for x in (pixels, pixels * visible, torch.where(visible > 0, pixels, prediction))
        ]
        return {"reconstructions": torch.stack(columns, dim=1).clamp(0, 1)}

    def _predict(self, clips: Tensor, at: At) -> tuple[Tensor, Tensor, Tensor]:
        """Kept and hidden indices, and a prediction of every patch."""
        times, rows, columns = self.grid
        keep, hidden = tube_split(at.rand(len(clips), rows * columns), self.cfg.mask_ratio, times)
        return keep, hidden, self.decoder(self.backbone(clips, keep=keep), keep, hidden)

    def _pixels(self, clips: Tensor) -> Float[Tensor, "b n q c"]:
        """The pixels of each patch, in [0, 1]."""
        view = self.cfg.views.view
        shown = displayed(clips, view.mean, view.std)
        return cut(shown, self.cfg.encoder.tubelet, self.cfg.encoder.patch).flatten(3).transpose(2, 3)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=VideoViT(frames=4, image=32, patch=8, width=32, depth=2, heads=2),
            views=OneView(replace(PLAIN, size=32), frames=4),
            mask_ratio=0.75,
            decoder_width=32,
            decoder_depth=1,
            decoder_heads=2,
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground-video:n=64,size=32,frames=4",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """Clips of 8 frames of 32 px, a narrow ViT; a quarter of an hour on a core for 4,000 clips of the playground.

    Short runs need a lower ratio: of 8 x 8 places 16 are seen, where 90 % hidden would leave 7; and positions by axis,
    which are learned from sooner. Drawn clips have flat patches, whose normalised pixels would be noise. Motion comes
    late, after shapes and colours: see docs/methods/masked.md.
    """
    return Run(
        method=Config(
            encoder=VideoViT(frames=8, image=32, patch=4, width=128, depth=4, heads=4, position="sincos"),
            views=OneView(replace(PLAIN, size=32, flip=0.0), frames=8),
            mask_ratio=0.75,
            norm_pixels=False,
            decoder_width=128,
            decoder_depth=1,
            decoder_heads=4,
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=1.0),
        data="playground-video:n=4000,size=48,frames=8",
        epochs=40,
        batch=64,
        monitor_epochs=20,
        monitor_images=1000,
    )


def davis64() -> Run[Config]:
    """64 px, for a few long videos, as the folders of frames of DAVIS.

    Give the data as ``--data JPEGImages:frames=12,stride=1,clips=20``: 20 clips a video, of whose 12 frames 8 are seen.
    Six videos want more epochs: 120 steps on them teach nothing, 360 a little (see docs/methods/masked.md).
    """
    run = small32()
    method = replace(
        run.method,
        encoder=VideoViT(frames=8, image=64, patch=8, width=128, depth=4, heads=4, position="sincos"),
        views=OneView(replace(PLAIN, size=64), frames=8),
        norm_pixels=True,
    )
    return replace(run, method=method, batch=32)


def paper() -> Run[Config]:
    """Kinetics-400, ViT-B, clips of 16 frames, every 4th, 1600 epochs, batch 1024. Unverified: not run here."""
    return Run(
        method=Config(), optim=_adamw(lr=1.5e-4, lr_scaling="linear", warmup=40.0), epochs=1600, batch=1024
    )


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 0.0)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.05),
        betas=(0.9, 0.95),
        no_decay=("*.bias",),  # and what has one axis; the official code decays the mask token
    )
