"""data2vec: from an image with hidden blocks, predict a teacher's features of the hidden patches in the whole image.

    minimise  mean over hidden patches i of  smooth_l1(g(f(x with mask tokens)_i) - y_i)
    y = norm(mean over the last K blocks l of norm(t_l(x)))            t <- decay t + (1 - decay) f

f, t: student and teacher; t_l: output of its block l; g: a linear layer; norm: layer norm without parameters, over the
width. Nothing but the slow teacher and the norms keeps y from becoming one vector for all: watch target_std.
Baevski et al. 2022, arXiv:2202.03555.

Verified against: targets, loss and gradients of the official vision code, also through its encoder, 1e-9; masks are
BEiT's.
Deviations: fixed positions instead of a bias learned for each distance of two patches; no cls token, which has no loss;
no dropout in attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.encoders import ViT, ViTLike
from visrep.encoders.patches import patch_grid
from visrep.functional import feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.feature_pictures import FEATURES, feature_pictures
from visrep.nn.teacher import Teacher
from visrep.nn.tokens import expected_hidden, hidden_rectangles, shrink_residuals
from visrep.nn.transformer import linear
from visrep.schedules import Constant, Cosine, Ramp, Schedule, Warmup
from visrep.views import OneView, View

JITTERED = View(jitter=1.0, saturation=0.4, hue=0.0, gray=0.0, blur=0.0)
"""the paper's view, that of BEiT: crop, flip, a little colour"""
PLAIN = View(scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(
        width=768, heads=12, position="sincos", cls=False, mask_token=True, layer_scale=1e-4, drop_path=0.25
    )
    views: OneView = OneView(JITTERED)
    mask_ratio: float = 0.6125
    """greatest share of patches that is hidden: 120 of 196; rectangles that fit badly hide less"""
    smallest_block: int = 16
    """patches in the smallest rectangle: about a twelfth of the grid"""
    top: int = 6
    """K, the teacher's last blocks that make the target: half of them, or more when targets lose their spread"""
    beta: float = 2.0
    """errors below it count squared, those above in proportion"""
    teacher_decay: Schedule = Ramp(0.999, 0.9998, epochs=800)
    """begin at 0.98 in runs of few steps: a slower teacher stays what it was at the start"""


def targets(layers: Float[Tensor, "k b n d"]) -> Float[Tensor, "b n d"]:
    """y of every patch, from the outputs of k blocks."""
    width = layers.shape[-1:]
    return F.layer_norm(F.layer_norm(layers, width).mean(0), width)


def regression(
    z: Float[Tensor, "m d"], y: Float[Tensor, "m d"], expected: Float[Tensor, ""], beta: float
) -> Float[Tensor, ""]:
    """Smooth L1, mean over the width and over hidden patches, of which a rank has m and on average ``expected``."""
    return F.smooth_l1_loss(z, y, beta=beta, reduction="sum") / (expected * y.shape[1])


@final
class Data2Vec(Method):
    captions: ClassVar[dict[str, str]] = {"predicted features": FEATURES}

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        if not 1 <= cfg.top <= cfg.encoder.depth:
            raise ValueError(
                f"top={cfg.top} blocks of an encoder that has {cfg.encoder.depth}. Use 1 to {cfg.encoder.depth}."
            )
        self.backbone = cfg.encoder.build()
        shrink_residuals(self.backbone.blocks)
        self.predictor = linear(cfg.encoder.width, cfg.encoder.width)
        self.teacher = Teacher(self.backbone)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        images = batch.crops[0][0]
        hidden = self._hidden(images, at)
        everywhere = self._targets(images)
        y = everywhere[hidden]
        z = widen(self.predictor(self.backbone(images, mask=hidden).patches[hidden]))  # m d
        with torch.autocast(z.device.type, enabled=False):
            loss = regression(z, y, expected_hidden(hidden).to(z), self.cfg.beta)
        monitor = {
            # Over images, place by place: 0 when collapsed, also when only the place is left.
            "target_std": everywhere.std(0, correction=0).mean(),
            # 1: no better than the mean of all targets.
            "unexplained_variance": F.mse_loss(z.detach(), y) / y.var(0, correction=0).mean(),
            "feature_std": feature_std(everywhere.mean(1)),
        }
        return Losses({"smooth_l1": loss}, monitor)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.teacher.follow(self.backbone, self.cfg.teacher_decay(at))

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images = batch.crops[0][0]
        hidden = self._hidden(images, at)
        prediction = self.predictor(self.backbone(images, mask=hidden).patches)
        view = self.cfg.views.view
        shown = feature_pictures(
            images, hidden, self._targets(images), prediction, mean=view.mean, std=view.std
        )
        return {"predicted features": shown}

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Float[Tensor, "b n d"]:
        depth = self.cfg.encoder.depth
        numbers = tuple(range(depth - self.cfg.top + 1, depth + 1))
        layers = self.teacher.module(images, layers=numbers, layer_kind="raw").layers
        with torch.autocast(images.device.type, enabled=False):
            return targets(torch.stack([widen(layer.patches) for layer in layers]))

    def _hidden(self, images: Tensor, at: At) -> Bool[Tensor, "b n"]:
        grid = patch_grid(images.shape[-2], images.shape[-1], self.cfg.encoder.patch)
        return hidden_rectangles(at, len(images), grid, self.cfg.mask_ratio, self.cfg.smallest_block)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(
                image=32, patch=8, width=32, depth=2, heads=2, position="sincos", cls=False, mask_token=True
            ),
            views=OneView(replace(PLAIN, size=32)),
            smallest_block=2,
            top=2,
            teacher_decay=Cosine(0.98, 1.0),
        ),
        optim=_adamw(lr=3e-3, final=0.0, warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT; 64 images a step, because student and teacher see all patches.

    What short runs need: more steps rather than larger batches; a teacher that follows within fifty of them; three of
    the four blocks as targets (the lower ones stay near the pixels and keep their spread); branches that need not first
    grow (no layer_scale). target_std should stay above 0.5.
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
            views=OneView(replace(PLAIN, size=32)),
            smallest_block=4,
            top=3,
            teacher_decay=Cosine(0.98, 1.0),
        ),
        optim=replace(_adamw(lr=1.5e-3, final=0.0, warmup=1.0), betas=(0.9, 0.95)),
        limit=10_000,
        epochs=8,
        batch=64,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16, a grid of 8 x 8 patches. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(image=128, position="sincos", cls=False, mask_token=True, drop_path=0.1),
            views=OneView(replace(JITTERED, size=128)),
            smallest_block=5,
            top=8,
            teacher_decay=Cosine(0.99, 1.0),
        ),
        optim=_adamw(lr=1e-3, final=1e-5, warmup=10.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 800 epochs, batch 2048. Unverified: not run here."""
    return Run(method=Config(), optim=_adamw(lr=2e-3, final=1e-5, warmup=10.0), epochs=800, batch=2048)


def _adamw(*, lr: float, final: float, warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, final)),
        lr_scaling="none",
        weight_decay=Constant(0.05),
        no_decay=("*.bias",),  # and what has one axis; the official code decays the mask token
        clip=3.0,
    )
