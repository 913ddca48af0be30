"""dBOT: predict a teacher's features of hidden patches; the teacher is the student of the stage before, first random.

    minimise  mean over hidden patches i of  smooth_l1(f(x_visible)_i - y_i)          y = (t(x) - mean) / std
    at the start of a stage:  t <- f's encoder,  f <- fresh weights

f: MAE's encoder of visible patches and its decoder; t: the teacher, output of its last block; mean, std: of each patch,
over the width. With enough stages it hardly matters which teacher was the first. Liu et al. 2022, arXiv:2209.03917.

Verified against: the official forward pass, loss and gradients, 1e-9, and its learning rate stage by stage.
Deviations: no stochastic depth in the decoder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.encoders import ViT, ViTLike
from visrep.encoders.patches import take
from visrep.functional import feature_std, patch_statistics, widen
from visrep.masking import random_split
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.decoder import MaskedDecoder
from visrep.nn.feature_pictures import FEATURES, feature_pictures
from visrep.nn.teacher import Teacher
from visrep.nn.transformer import xavier
from visrep.schedules import Constant, Cosine, Stages, Warmup, stage
from visrep.views import OneView, View

PLAIN = View(scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""the paper's view: crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(width=768, heads=12, position="sincos", drop_path=0.2)
    views: OneView = OneView(PLAIN)
    stages: int = 2
    """parts of the run, each with a new teacher; give optim.lr as many `Stages`"""
    mask_ratio: float = 0.75
    """share of the patches that are hidden"""
    beta: float = 2.0
    """errors below it count squared, those above in proportion"""
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16


def targets(h: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """y: each token with mean 0 and deviation 1 over the width."""
    mean, std = patch_statistics(h)
    return (h - mean) / std


@final
class Student(nn.Module):
    """MAE's network, predicting as many numbers a patch as its encoder is wide."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.encoder = cfg.encoder.build()
        side = cfg.views.size // cfg.encoder.patch
        self.decoder = MaskedDecoder(
            cfg.encoder.width,
            cfg.encoder.width,
            (side, side),
            width=cfg.decoder_width,
            depth=cfg.decoder_depth,
            heads=cfg.decoder_heads,
        )
        self.apply(xavier)

    def forward(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b v"], hidden: Int[Tensor, "b m"]
    ) -> Float[Tensor, "b n d"]:
        """A prediction of every patch, after one of the cls token where there is one."""
        return self.decoder(self.encoder(images, keep=keep), keep, hidden, with_cls=True)


@final
class DBOT(Method):
    captions: ClassVar[dict[str, str]] = {"predicted features": FEATURES}

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.student = Student(cfg)
        self.teacher = Teacher(self.student.encoder)  # at first random

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    @torch.no_grad()
    def before_epoch(self, images: Iterable[Batch], at: At) -> None:
        if stage(at, self.cfg.stages).step > 0 or at.step == 0:
            return
        self.teacher.follow(self.student.encoder, decay=0.0)
        devices = [at.rng.device] if at.rng.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # of the step, like all randomness, and the same on every rank
            torch.manual_seed(at.rng.initial_seed())
            self.student.load_state_dict(Student(self.cfg).state_dict())

    def loss(self, batch: Batch, at: At) -> Losses:
        images = batch.crops[0][0]
        keep, hidden = self._split(images, at)
        y = self._targets(images)
        z = widen(self.student(images, keep, hidden))
        if self.cfg.encoder.cls:  # comes first, and counts as one more hidden patch, as in the official code
            hidden = F.pad(hidden + 1, (1, 0))
        z, wanted = take(z, hidden), take(y, hidden)
        with torch.autocast(z.device.type, enabled=False):
            loss = F.smooth_l1_loss(z, wanted, beta=self.cfg.beta)
        monitor = {
            # Over images, place by place: 0 when the teacher has collapsed, also when only the place is left.
            "target_std": y.std(0, correction=0).mean(),
            # 1: no better than the mean of all targets.
            "unexplained_variance": F.mse_loss(z.detach(), wanted) / y.var((0, 1), correction=0).mean(),
            "feature_std": feature_std(y.mean(1)),
        }
        return Losses({"smooth_l1": loss}, monitor)

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images = batch.crops[0][0]
        keep, hidden = self._split(images, at)
        n = keep.shape[1] + hidden.shape[1]
        prediction, y = self.student(images, keep, hidden)[:, -n:], self._targets(images)[:, -n:]
        mask = torch.ones_like(y[:, :, 0]).scatter(1, keep, 0.0) > 0
        view = self.cfg.views.view
        shown = feature_pictures(images, mask, y, prediction, mean=view.mean, std=view.std)
        return {"predicted features": shown}

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Float[Tensor, "b n d"]:
        """y of every patch, after that of the cls token where there is one."""
        (last,) = self.teacher.module(images, layers=(self.cfg.encoder.depth,), layer_kind="raw").layers
        with torch.autocast(images.device.type, enabled=False):
            first = [] if last.cls is None else [last.cls.unsqueeze(1)]
            return targets(widen(torch.cat([*first, last.patches], dim=1)))

    def _split(self, images: Tensor, at: At) -> tuple[Int[Tensor, "b v"], Int[Tensor, "b m"]]:
        n = (images.shape[-2] // self.cfg.encoder.patch) * (images.shape[-1] // self.cfg.encoder.patch)
        return random_split(at.rand(len(images), n), self.cfg.mask_ratio)


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
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2, stages=2),
        data="playground:n=64,size=32",
        epochs=2,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT; two stages of 390 steps.

    What short runs need: a target from a random teacher is mostly colour and place, which is learned in few epochs, so
    stages may be short, but each needs its own warm-up and its own fall of the learning rate. What is measured in the
    first epochs of a stage is a network that has just begun again.
    """
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=4, width=128, depth=4, heads=4, position="sincos", cls=False),
            views=OneView(replace(PLAIN, size=32)),
            decoder_width=64,
            decoder_depth=1,
            decoder_heads=4,
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=0.5, stages=2),
        limit=10_000,
        epochs=10,
        batch=128,
        monitor_epochs=5,
        monitor_images=1000,
    )


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
        optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=5.0, stages=2),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, two stages of 800 epochs, batch 4096. Unverified: not run here."""
    optim = _adamw(lr=1.5e-4, lr_scaling="linear", warmup=40.0, stages=2)
    return Run(method=Config(), optim=replace(optim, clip=3.0), epochs=1600, batch=4096)


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float, stages: int) -> Optim:
    return Optim(
        lr=Stages(stages, then=Warmup(epochs=warmup, then=Cosine(lr, 0.0))),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.05),
        betas=(0.9, 0.95),
        no_decay=("*.bias",),  # and what has one axis; the official code decays the tokens
    )
