"""Barlow Twins: each feature agrees between two views of an image, and no feature repeats another.

    minimise  sum over i of (1 - C_ii)^2  +  w  sum over i != j of C_ij^2        C_ij = mean over images of z_i z'_j

z, z': projections of the two views, each feature standardised over the images of all ranks, so that C holds
correlations; w: `w_redundancy`. Zbontar et al. 2021, arXiv:2103.03230.

Verified against: the official loss, value and gradients, 1e-9.
Deviations: blur is a true Gaussian. The official code first multiplied its loss by 0.024, later the learning rate of
biases and norms: `paper` does the latter, `scale` the former.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.distributed import gather
from visrep.encoders import NAMED, EncoderConfig, ResNet
from visrep.functional import feature_std, off_diagonal, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import projection
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import TwoViews, View

FIRST, SECOND = View(blur=1.0), View(blur=0.1, solarize=0.2)
"""the paper's views, which are BYOL's"""
SMALL = View(size=32, saturation=0.4, blur=0.0)
"""small images: stronger colour, no blur"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ResNet(depth=50)
    views: TwoViews = TwoViews(FIRST, SECOND)
    hidden: int = 8192
    """width of the projection's two hidden layers"""
    out: int = 8192
    """width of the projection: wider is better up to here, and far wider than the encoder's features"""
    w_redundancy: float = 0.0051
    """weight of each squared correlation between two features; there are out - 1 of them for each on the diagonal"""
    scale: float = 1.0
    """factor on the loss, which is about ``out`` at the start: SGD wants less, 0.1 for small images; AdamW and LARS
    follow the gradient's direction and hardly notice"""


def cross_correlation(z1: Float[Tensor, "m d"], z2: Float[Tensor, "m d"]) -> Float[Tensor, "d d"]:
    """C: the correlation, over the batch, of each feature of one view with each of the other."""
    z1, z2 = (F.batch_norm(z, None, None, training=True) for z in (z1, z2))
    return z1.T @ z2 / len(z1)


def barlow_twins(c: Float[Tensor, "d d"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """How far C is from the identity: on its diagonal and off it, sums of squares."""
    return (1 - c.diagonal()).square().sum(), off_diagonal(c).square().sum()


@final
class BarlowTwins(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        self.head = projection(
            self.backbone.width, cfg.hidden, cfg.out, layers=3, last_norm=False, last_bias=False
        )

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        (crops,) = batch.crops  # 2 b c h w
        features = [self.backbone(view).pool() for view in crops]  # BatchNorm sees one view at a time
        z1, z2 = (gather(widen(self.head(x))) for x in features)  # m d: the images of all ranks
        with torch.autocast(z1.device.type, enabled=False):
            c = cross_correlation(z1, z2)
            agreement, redundancy = barlow_twins(c)
        terms = {"agreement": agreement, "redundancy": self.cfg.w_redundancy * redundancy}
        monitor = {
            "correlation": c.detach().diagonal().mean(),  # of a feature with itself in the other view
            "feature_std": feature_std(torch.cat(features)),
        }
        return Losses({name: self.cfg.scale * term for name, term in terms.items()}, monitor)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    encoder = ResNet(depth=18, width=4, stem="small")
    return Run(
        method=Config(encoder=encoder, views=TwoViews(SMALL, SMALL), hidden=32, out=32),
        optim=_adamw(lr=2e-3, warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18.

    Short runs need AdamW, as LARS moves a layer by about a thousandth of its length a step, and a projection not much
    wider than the batch, as correlations over few images are noise.
    """
    return Run(
        method=Config(encoder=NAMED["resnet_narrow"], views=TwoViews(SMALL, SMALL), hidden=512, out=512),
        optim=_adamw(lr=3e-3, warmup=1),
        limit=10_000,
        epochs=8,
        batch=256,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ResNet-18. Unverified: not run here."""
    views = TwoViews(replace(FIRST, size=128), replace(SECOND, size=128))
    return Run(
        method=Config(encoder=NAMED["resnet18"], views=views, hidden=2048, out=2048),
        optim=_adamw(lr=1e-3, warmup=10),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ResNet-50, 1000 epochs, batch 2048. Unverified: not run here."""
    lr = 0.2
    slow = Constant(0.0048 / lr)  # biases and norms have a learning rate of their own, 0.0048
    optim = Optim(
        name="lars",
        lr=Warmup(epochs=10, then=Cosine(lr, 0.001 * lr)),
        weight_decay=Constant(1e-6),
        multipliers=tuple((name, slow) for name in ("*.bn?.*", "*.downsample.1.*", "head.[14].*")),
    )
    return Run(method=Config(), optim=optim, epochs=1000, batch=2048)


def _adamw(lr: float, warmup: float) -> Optim:
    schedule = Warmup(epochs=warmup, then=Cosine(lr, 0.0))
    return Optim(lr=schedule, lr_scaling="none", weight_decay=Constant(1e-4))
