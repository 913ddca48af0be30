"""SimMIM: from an image with most patches covered by mask tokens, predict the covered pixels with one linear map.

    minimise  mean over hidden pixels of  | W f(x with hidden patches) - x |

f: an encoder that sees mask tokens in place of hidden patches, so any architecture will do, at the cost of encoding all
places; W: one linear map a patch, or of Swin a final token; x: normalised pixels. Xie et al. 2021, arXiv:2111.09886.

Verified against: the official ViT, masks, loss and gradients, 1e-9, with learned positions and, put into our
attention by the test, with the official relative ones. With Swin, the loss: a plain rewriting of the published code.
Deviations: learned absolute positions (the official ViT has relative ones, shared by all blocks); no cls token, which
enters no loss; layers start as everywhere here; no 1e-5 added to the number of hidden pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.encoders import Swin, ViT, ViTLike
from visrep.functional import REPAINTED, displayed, patchify, repainted, unpatchify, widen
from visrep.masking import unit_mask
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.schedules import Constant, Cosine, Step, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.67, 1.0), jitter=0.0, gray=0.0, blur=0.0, interpolation="bilinear")
"""the paper's view: crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike | Swin = ViT(
        width=768, heads=12, cls=False, mask_token=True, layer_scale=0.1, drop_path=0.1
    )
    views: OneView = OneView(PLAIN)
    mask_ratio: float = 0.6
    """share of the units that are hidden, rounded up"""
    mask_unit: int = 32
    """side in pixels of what is hidden at once, a multiple of the patch: too small, and neighbours give pixels away; a
    seventh of the image's side is good"""
    window: int = 0
    """side in pixels, odd, of the surroundings whose mean and deviation a pixel is told by, as for Swin v2: 47 of 192;
    0: pixels as they are"""


def simmim_loss(
    prediction: Float[Tensor, "b n q"], target: Float[Tensor, "b n q"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """Absolute error, mean over the values of all hidden patches of the batch."""
    return (prediction - target).abs().mean(-1)[mask].mean()


def surroundings(
    images: Float[Tensor, "b c h w"], window: int
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
    """Mean and deviation of the pixels around each, at borders of those that there are."""
    pool = partial(F.avg_pool2d, kernel_size=window, stride=1, padding=window // 2)
    mean, square = (pool(x, count_include_pad=False) for x in (images, images**2))
    n = pool(torch.ones_like(images)) * window**2
    variance = (square - mean**2).clamp(min=0) * n / (n - 1)
    return mean, (variance + 1e-6).sqrt()


@final
class SimMIM(Method):
    captions: ClassVar[dict[str, str]] = {"reconstructions": REPAINTED}

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        patch, size = cfg.encoder.patch, cfg.views.size
        if cfg.mask_unit % patch or size % cfg.mask_unit:
            raise ValueError(
                f"mask_unit={cfg.mask_unit} must be a multiple of the patch of {patch} pixels and divide the views' "
                f"{size} pixels. Try mask_unit={patch}."
            )
        if cfg.window and (cfg.window % 2 == 0 or cfg.window < 3):
            raise ValueError(
                f"window={cfg.window} has no middle: take an odd number from 3 on, or 0 for plain pixels."
            )
        self.backbone = cfg.encoder.build()
        self.head = nn.Linear(self.backbone.width, self.backbone.stride**2 * cfg.encoder.channels)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        images = batch.crops[0][0]
        mask, prediction = self._predict(images, at)
        if self.cfg.window:
            mean, deviation = surroundings(images, self.cfg.window)
            images = (images - mean) / deviation
        target = patchify(images, self.cfg.encoder.patch)
        loss = simmim_loss(widen(prediction), target, mask)
        # What the mean colour would leave: 1 means that nothing is predicted.
        unexplained = loss.detach() / (target - target.mean()).abs().mean()
        return Losses({"simmim": loss}, {"unexplained_deviation": unexplained})

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images, view = batch.crops[0][0], self.cfg.views.view
        mask, prediction = self._predict(images, at)
        if self.cfg.window:
            mean, deviation = (
                patchify(x, self.cfg.encoder.patch) for x in surroundings(images, self.cfg.window)
            )
            prediction = prediction * deviation + mean
        rows = repainted(images, prediction, mask, self.cfg.encoder.patch)
        return {"reconstructions": displayed(rows, view.mean, view.std)}

    def _predict(self, images: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """Which patches are hidden, and a prediction of every patch."""
        unit = self.cfg.mask_unit
        noise = at.rand(len(images), images.shape[-2] // unit, images.shape[-1] // unit)
        mask = unit_mask(noise, self.cfg.mask_ratio, unit // self.cfg.encoder.patch)
        seen = self.backbone(images, mask=mask)
        prediction, cell = self.head(seen.patches), self.backbone.stride
        if cell == self.cfg.encoder.patch:
            return mask, prediction
        return mask, patchify(unpatchify(prediction, cell, seen.grid), self.cfg.encoder.patch)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    encoder = ViT(
        image=32, patch=4, width=32, depth=2, heads=2, position="sincos", cls=False, mask_token=True
    )
    return Run(
        method=Config(encoder=encoder, views=OneView(replace(PLAIN, size=32)), mask_unit=8),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT.

    Short runs need units as small as a patch, which at this size are as large a share of the image as the paper's 32
    pixels are of 224, and fixed positions, so that mask tokens know from the start where they are.
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
            mask_unit=4,
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=1.0),
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
            mask_unit=16,
        ),
        optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 800 epochs, batch 2048. Unverified: not run here."""
    optim = Optim(
        lr=Warmup(
            epochs=10, then=Step((1e-4, 1e-5), at_epochs=(690,)), start=5e-7
        ),  # epoch 700, 10 of them warm-up
        lr_batch=512,
        weight_decay=Constant(0.05),
        clip=5.0,
    )
    return Run(method=Config(), optim=optim, epochs=800, batch=2048)


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 0.0)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.05),
        betas=(0.9, 0.95),
        clip=5.0,
    )
