"""CRATE-MAE: a white-box encoder and its mirror image predict the pixels of hidden patches.

    minimise  mean over hidden patches of  | g(f(x)) - y |^2 / (p p c)        y = (x - mean x) / std x

    a layer of f:  z = x + MSSA(LN x),  x = ISTA(LN z)
    a layer of g:  z = A LN x,          x = z - MSSA(LN z)

f: a CRATE that sees mask tokens in place of hidden patches; g undoes it layer by layer: A decodes sparse codes, the
minus spreads what f compressed. g is as wide and deep as f and gets no mask tokens of its own. Pai et al. 2024,
arXiv:2404.02446.

Verified against: the official forward pass, loss and gradients, with and without normalised pixels, 1e-9.
Deviations: the official linear map between f and g is built but never used, and left out. lambda is 0.5 as in the code;
the paper's table says 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.encoders import CRATE
from visrep.encoders.crate import SubspaceAttention
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
from visrep.method import At, Batch, Encoder, Losses, Method, Tokens
from visrep.nn.transformer import xavier
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""MAE's view: crop and flip"""
BASE = CRATE(
    width=768,
    heads=12,
    position="sincos",
    mask_token=True,
    patch_norms=False,
    last_norm_eps=1e-6,
    sparsity=0.5,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: CRATE = BASE
    """with a mask token; the decoder takes its width, depth and heads"""
    views: OneView = OneView(PLAIN)
    mask_ratio: float = 0.75
    """share of the patches that are hidden"""
    norm_pixels: bool = True
    """predict pixels normalised patch by patch: better features, less pretty pictures"""


def crate_mae_loss(
    prediction: Float[Tensor, "b n q"], target: Float[Tensor, "b n q"], mask: Bool[Tensor, "b n"]
) -> Float[Tensor, ""]:
    """Squared error, mean over the values of a patch, then over all hidden patches of the batch."""
    error = (prediction - target).square().mean(-1)  # b n
    return (error * mask).sum() / mask.sum()


class MirrorBlock(nn.Module):
    """What undoes a block of CRATE: a linear map in place of ISTA, then MSSA subtracted."""

    def __init__(self, config: CRATE) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(config.width, eps=config.norm_eps) for _ in range(2))
        self.decode = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(config.width, config.width)))
        self.attn = SubspaceAttention(config.width, config.heads)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        z = F.linear(self.norm1(x), self.decode)
        return z - self.attn(self.norm2(z))


class MirrorDecoder(nn.Module):
    """As many blocks as the encoder has, then a linear map to ``n_out`` numbers a patch."""

    def __init__(self, config: CRATE, n_out: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MirrorBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.last_norm_eps)
        self.predict = nn.Linear(config.width, n_out)

    def forward(self, tokens: Tokens) -> Float[Tensor, "b n k"]:
        """A prediction of every patch, in which cls and registers take part."""
        front = [] if tokens.cls is None else [tokens.cls.unsqueeze(1)]
        front += [] if tokens.registers is None else [tokens.registers]
        x = torch.cat([*front, tokens.patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x[:, -tokens.patches.shape[1] :]))


@final
class CRATEMAE(Method):
    captions: ClassVar[dict[str, str]] = {"reconstructions": REPAINTED + CONTRAST}

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        self.decoder = MirrorDecoder(cfg.encoder, cfg.encoder.patch**2 * cfg.encoder.channels)
        self.apply(xavier)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        images = batch.crops[0][0]
        mask, prediction = self._predict(images, at)
        target = patchify(images, self.cfg.encoder.patch)
        if self.cfg.norm_pixels:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        loss = crate_mae_loss(widen(prediction), target, mask)
        # What the best constant patch would leave: 1 means that nothing is predicted.
        unexplained = loss.detach() / target.var(correction=0)
        return Losses({"crate_mae": loss}, {"unexplained_variance": unexplained})

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images, view = batch.crops[0][0], self.cfg.views.view
        mask, prediction = self._predict(images, at)
        if self.cfg.norm_pixels:  # a prediction lacks each patch's mean and contrast: take the true ones
            mean, std = patch_statistics(patchify(images, self.cfg.encoder.patch))
            prediction = prediction * std + mean
        rows = repainted(images, prediction, mask, self.cfg.encoder.patch)
        return {"reconstructions": displayed(rows, view.mean, view.std)}

    def _predict(self, images: Tensor, at: At) -> tuple[Bool[Tensor, "b n"], Float[Tensor, "b n q"]]:
        """Which patches are hidden, and a prediction of every patch."""
        n = (images.shape[-2] // self.cfg.encoder.patch) * (images.shape[-1] // self.cfg.encoder.patch)
        noise = at.rand(len(images), n)
        _, hidden = random_split(noise, self.cfg.mask_ratio)
        mask = torch.zeros_like(noise, dtype=torch.bool).scatter(1, hidden, True)
        return mask, self.decoder(self.backbone(images, mask=mask))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=replace(BASE, image=32, patch=8, width=32, depth=2, heads=2),
            views=OneView(replace(PLAIN, size=32)),
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2, weight_decay=0.05),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow CRATE, half the patches hidden, half the learning rate of MAE's short run and 24 epochs.

    Encoder and decoder see all 64 patches, where MAE's encoder sees 16. No cls token, as there: the mean of the patches
    is then the default vector. With MAE's short run as it is (three quarters hidden, 9 epochs) the last layers end
    below where they began: they paint in place of mask tokens.
    """
    return Run(
        method=Config(
            encoder=replace(BASE, image=32, patch=4, width=128, depth=4, heads=4, cls=False),
            views=OneView(replace(PLAIN, size=32)),
            mask_ratio=0.5,
        ),
        optim=_adamw(lr=1e-3, lr_scaling="none", warmup=1.0, weight_decay=0.05),
        limit=10_000,
        epochs=24,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, the width of CRATE-MAE-S. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=replace(BASE, image=128, width=576, depth=8, cls=False),
            views=OneView(replace(PLAIN, size=128)),
        ),
        optim=_adamw(lr=1e-4, lr_scaling="linear", warmup=10.0, weight_decay=0.1),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, CRATE-MAE-B/16, 800 epochs, batch 4096. Unverified: not run here."""
    return Run(
        method=Config(),
        optim=_adamw(lr=3e-5, lr_scaling="linear", warmup=40.0, weight_decay=0.1),
        epochs=800,
        batch=4096,
    )


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float, weight_decay: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 0.0)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(weight_decay),
        betas=(0.9, 0.95),
        no_decay=("*.bias",),  # and what has one axis; MAE's official code decays the tokens
    )
