"""BYOL: from one view of an image, predict what a slow copy of the network makes of the other view.

    minimise  sum over both views of  mean |q(z) / |q(z)|  -  t / |t||^2  =  sum of  2 - 2 cos(q(z_1), t_2)
    t's weights <- decay * themselves + (1 - decay) * z's

z, t: online and target projection, encoder and MLP; q: the predictor, an MLP that only the online side has;
only z and q get a gradient. Grill et al. 2020, arXiv:2006.07733.

What stops collapse: nothing in the loss, which a constant makes zero, but nobody descends it: the target only follows.
With the best q the loss is the variance of t_2 that z_1 leaves unexplained, and a z that says less explains less.
So q has to keep up with the encoder (a slow q lets it collapse), and BatchNorm in the heads to keep images apart early.

Verified against: the loss and gradient of solo-learn (the official code needs JAX), 1e-9; the official heads, schedule
of the decay, and BatchNorm (over the batch, each view and each side by itself) were read.
Deviations: the target starts as a copy (there: with other random weights, which made no difference); no bias before a
BatchNorm, which would take it away; brightness is multiplied and not added; blur is a true Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.encoders import NAMED, EncoderConfig, ResNet
from visrep.functional import feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import projection
from visrep.nn.projected import Projected
from visrep.nn.teacher import Teacher
from visrep.schedules import Constant, Cosine, Schedule, Warmup
from visrep.views import TwoViews, View

FIRST, SECOND = View(blur=1.0), View(blur=0.1, solarize=0.2)
"""the paper's views: blur and solarisation differ between the two"""
SMALL = View(size=32, saturation=0.4, blur=0.0)
"""for 32 px: both views alike, no blur"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ResNet(depth=50)
    views: TwoViews = TwoViews(FIRST, SECOND)
    hidden: int = 4096
    """width of the hidden layer of projector and predictor"""
    out: int = 256
    """width of projection and prediction"""
    teacher_decay: Schedule = Cosine(0.996, 1.0)
    """per step, for 1000 epochs: 0.99 for 100 to 300, 0.97 for 40, less for runs of few steps"""


def byol_loss(p: Float[Tensor, "2 b d"], t: Float[Tensor, "2 b d"]) -> Float[Tensor, ""]:
    """Squared distance of unit vectors: each view's prediction to the other's target, sum of both directions."""
    cosine = F.cosine_similarity(p, t.flip(0), dim=-1)  # 2 b
    return (2 - 2 * cosine).mean(1).sum()


@final
class BYOL(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        encoder = cfg.encoder.build()
        projector = projection(encoder.width, cfg.hidden, cfg.out, last_norm=False, last_bias=False)
        self.online = Projected(encoder, projector)
        self.predictor = projection(cfg.out, cfg.hidden, cfg.out, last_norm=False, last_bias=False)
        self.target = Teacher(self.online)

    @property
    def encoder(self) -> Encoder:
        return self.online.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        (crops,) = batch.crops  # 2 b c h w
        t = widen(self.target(crops))  # 2 b d
        z = self.online(crops)
        p = widen(torch.stack([self.predictor(view) for view in z]))
        with torch.autocast(p.device.type, enabled=False):
            loss = byol_loss(p, t)
        return Losses({"byol": loss}, {"projection_std": feature_std(z[0])})

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.target.follow(self.online, self.cfg.teacher_decay(at))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ResNet(depth=18, width=4, stem="small"),
            views=TwoViews(SMALL, SMALL),
            hidden=32,
            out=16,
            teacher_decay=Cosine(0.9, 1.0),
        ),
        optim=Optim(lr=Warmup(epochs=0.2, then=Cosine(2e-3, 0.0)), lr_scaling="none"),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18, 10,000 images.

    What short runs need: a fast target, or the network learns from random weights for long (teacher_decay), and more
    steps rather than large batches.
    """
    return Run(
        method=Config(
            encoder=NAMED["resnet_narrow"],
            views=TwoViews(SMALL, SMALL),
            hidden=512,
            out=128,
            teacher_decay=Cosine(0.98, 1.0),
        ),
        optim=Optim(
            lr=Warmup(epochs=1, then=Cosine(3e-3, 0.0)), weight_decay=Constant(1e-4), lr_scaling="none"
        ),
        limit=10_000,
        epochs=8,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ResNet-18. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=NAMED["resnet18"],
            views=TwoViews(replace(FIRST, size=128), replace(SECOND, size=128)),
            teacher_decay=Cosine(0.99, 1.0),
        ),
        optim=_lars(lr=0.45, weight_decay=1e-6),
        epochs=200,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ResNet-50, 1000 epochs. Unverified: not run here."""
    return Run(method=Config(), optim=_lars(lr=0.2, weight_decay=1.5e-6), epochs=1000, batch=4096)


def _lars(lr: float, weight_decay: float) -> Optim:
    schedule = Warmup(epochs=10, then=Cosine(lr, 0.0))
    return Optim(name="lars", lr=schedule, weight_decay=Constant(weight_decay))
