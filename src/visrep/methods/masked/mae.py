"""MAE: from a quarter of an image's patches, predict the pixels of the others.

    minimise  mean over hidden patches of  | f(x_visible) - y |^2 / (p p c)        y = (x - mean x) / std x

f: an encoder that sees only visible patches, then a light decoder with mask tokens; y: pixels of a patch,
normalised patch by patch. He et al. 2021, arXiv:2111.06377.

Verified against: the official forward pass, loss and gradients, with and without normalised pixels, 1e-9.
Deviations: none known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visrep.config import Optim, Run
from visrep.encoders import ViT, ViTLike
from visrep.functional import (
    CONTRAST,
    REPAINTED,
    displayed,
    patch_statistics,
    patchify,
    repainted,
    widen,
)
from visrep.masking import random_split
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.decoder import MaskedDecoder
from visrep.nn.transformer import xavier
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""the paper's view: crop and flip"""
SHOWN_RATIOS = (0.5, 0.75, 0.9)
OTHER_RATIOS = "reconstructions with 50%, 75%, 90% hidden"
"""of masks in pictures, besides the ratio of training"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(width=768, heads=12, position="sincos")
    views: OneView = OneView(PLAIN)
    mask_ratio: float = 0.75
    """share of the patches that are hidden"""
    norm_pixels: bool = True
    """predict pixels normalised patch by patch: better features, less pretty pictures"""
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16


def mae_loss(
    prediction: Float[Tensor, "b n q"], target: Float[Tensor, "b n q"], hidden: Int[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """Squared error, mean over the values of a patch, then over all hidden patches of the batch."""
    error = (prediction - target).square().mean(-1)  # b n
    return error.gather(1, hidden).mean()


@final
class MAE(Method):
    captions: ClassVar[dict[str, str]] = {
        "reconstructions": REPAINTED + CONTRAST,
        OTHER_RATIOS: "Columns, for each of these shares: what the encoder sees; this, with predictions in place of "
        "the hidden patches. Trained for one share only.",
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        patch, size = cfg.encoder.patch, cfg.views.size
        self.decoder = MaskedDecoder(
            cfg.encoder.width,
            patch * patch * cfg.encoder.channels,
            (size // patch, size // patch),
            width=cfg.decoder_width,
            depth=cfg.decoder_depth,
            heads=cfg.decoder_heads,
        )
        self.apply(xavier)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        images = batch.crops[0][0]
        _, hidden, prediction = self._predict(images, self.cfg.mask_ratio, at)
        patches = patchify(images, self.cfg.encoder.patch)
        target = patches
        if self.cfg.norm_pixels:
            mean, std = patch_statistics(patches)
            target = (patches - mean) / std
        loss = mae_loss(widen(prediction), target, hidden)
        # What the best constant patch would leave: 1 means that nothing is predicted.
        unexplained = loss.detach() / target.var(correction=0)
        return Losses({"mae": loss}, {"unexplained_variance": unexplained})

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images = batch.crops[0][0]
        others = [self._repainted(images, ratio, at)[:, 1:] for ratio in SHOWN_RATIOS]
        return {
            "reconstructions": self._repainted(images, self.cfg.mask_ratio, at),
            OTHER_RATIOS: torch.cat(others, dim=1),
        }

    def _repainted(
        self, images: Float[Tensor, "b c h w"], ratio: float, at: At
    ) -> Float[Tensor, "b 3 c h w"]:
        keep, _, prediction = self._predict(images, ratio, at)
        if self.cfg.norm_pixels:  # a prediction lacks each patch's mean and contrast: take the true ones
            mean, std = patch_statistics(patchify(images, self.cfg.encoder.patch))
            prediction = prediction * std + mean
        mask = torch.ones_like(prediction[:, :, 0]).scatter(1, keep, 0.0) > 0
        rows = repainted(images, prediction, mask, self.cfg.encoder.patch)
        return displayed(rows, self.cfg.views.view.mean, self.cfg.views.view.std)

    def _predict(self, images: Tensor, ratio: float, at: At) -> tuple[Tensor, Tensor, Tensor]:
        """Kept and hidden indices, and a prediction of every patch."""
        n = (images.shape[-2] // self.cfg.encoder.patch) * (images.shape[-1] // self.cfg.encoder.patch)
        keep, hidden = random_split(at.rand(len(images), n), ratio)
        return keep, hidden, self.decoder(self.backbone(images, keep=keep), keep, hidden)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, position="sincos"),
            views=OneView(replace(PLAIN, size=32)),
            decoder_width=32,
            decoder_depth=1,
            decoder_heads=2,
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def playground() -> Run[Config]:
    """The built-in images; minutes on a CPU."""
    run = small32()
    method = replace(
        run.method,
        encoder=ViT(image=48, patch=6, width=128, depth=6, heads=4, position="sincos", cls=False),
        views=OneView(replace(PLAIN, size=48)),
    )
    return replace(run, method=method, data="playground", epochs=20)


def small32() -> Run[Config]:
    """32-px images, a narrow ViT; three minutes on two cores for 10,000 images.

    No cls token: MAE trains it towards nothing, so the mean of the patches is the better vector, and thus the default.
    """
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=4, width=128, depth=4, heads=4, position="sincos", cls=False),
            views=OneView(replace(PLAIN, size=32)),
            decoder_width=64,
            decoder_depth=1,
            decoder_heads=4,
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=1),
        limit=10_000,
        epochs=9,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def small64() -> Run[Config]:
    """64-px images, a narrow ViT on as many patches; six minutes on two cores for 10,000 images."""
    run = small32()
    encoder = ViT(image=64, patch=8, width=192, depth=6, heads=6, position="sincos", cls=False)
    method = replace(run.method, encoder=encoder, views=OneView(replace(PLAIN, size=64)))
    return replace(run, method=method, epochs=15)


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(image=128, position="sincos", cls=False),
            views=OneView(replace(PLAIN, size=128)),
            decoder_width=256,
            decoder_depth=4,
            decoder_heads=8,
        ),
        optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 800 epochs, batch 4096. Unverified: not run here."""
    return Run(
        method=Config(), optim=_adamw(lr=1.5e-4, lr_scaling="linear", warmup=40.0), epochs=800, batch=4096
    )


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 0.0)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.05),
        betas=(0.9, 0.95),
        no_decay=("*.bias",),  # and what has one axis; the official code decays the tokens
    )
