"""VICReg: two views have near projections, each feature keeps its variance, no two features covary.

    minimise  w_i mean |z - z'|^2 / d  +  w_v mean over both of V(z)  +  w_c sum over both of C(z)
    V(z) = mean over i of max(0, 1 - sqrt(var z_i + 1e-4))        C(z) = sum over i != j of cov(z_i, z_j)^2 / d

z, z': projections of the two views, d wide; var, cov: unbiased, over the images of all ranks.
Bardes et al. 2022, arXiv:2105.04906.

Verified against: the official loss and each of its three terms alone, values and gradients, 1e-9.
Deviations: blur is a true Gaussian; biases before a BatchNorm, which have no effect, are left out.
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
"""the official code's views, which are BYOL's"""
SMALL = View(size=32, saturation=0.4, blur=0.0)
"""small images: stronger colour, no blur"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ResNet(depth=50)
    views: TwoViews = TwoViews(FIRST, SECOND)
    hidden: int = 8192
    """width of the projection's two hidden layers"""
    out: int = 8192
    """width of the projection, far wider than the encoder's features"""
    w_invariance: float = 25.0
    w_variance: float = 25.0
    """of the mean over the two views: code that adds them has twice this weight. Keep it near w_invariance: with much
    less, features shrink"""
    w_covariance: float = 1.0


def invariance(z: Float[Tensor, "2 b d"]) -> Float[Tensor, ""]:
    """Mean squared difference of the two views."""
    return F.mse_loss(z[0], z[1])


def variance(z: Float[Tensor, "2 m d"]) -> Float[Tensor, ""]:
    """How far each feature's deviation over the batch falls short of 1: mean over views and features."""
    return F.relu(1 - (z.var(1) + 1e-4).sqrt()).mean()


def covariance(z: Float[Tensor, "2 m d"]) -> Float[Tensor, ""]:
    """Squared covariances of different features over the batch, a feature; summed over the two views."""
    _, m, d = z.shape
    z = z - z.mean(1, keepdim=True)
    return off_diagonal(z.mT @ z / (m - 1)).square().sum() / d


@final
class VICReg(Method):
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
        cfg, (crops,) = self.cfg, batch.crops  # 2 b c h w
        features = [self.backbone(view).pool() for view in crops]  # BatchNorm sees one view at a time
        z = widen(torch.stack([self.head(x) for x in features]))  # 2 b d
        everyone = gather(z.transpose(0, 1)).transpose(0, 1)  # 2 m d: the images of all ranks
        with torch.autocast(z.device.type, enabled=False):
            terms = {
                "invariance": cfg.w_invariance * invariance(z),
                "variance": cfg.w_variance * variance(everyone),
                "covariance": cfg.w_covariance * covariance(everyone),
            }
        monitor = {
            "projection_std": everyone.detach().std(1).mean(),  # the variance term wants 1
            "feature_std": feature_std(torch.cat(features)),
        }
        return Losses(terms, monitor)


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
    wider than the batch, as covariances over few images are noise.
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
    schedule = Warmup(epochs=10, then=Cosine(0.2, 0.0002))
    return Run(
        method=Config(),
        optim=Optim(name="lars", lr=schedule, weight_decay=Constant(1e-6)),
        epochs=1000,
        batch=2048,
    )


def _adamw(lr: float, warmup: float) -> Optim:
    schedule = Warmup(epochs=warmup, then=Cosine(lr, 0.0))
    return Optim(lr=schedule, lr_scaling="none", weight_decay=Constant(1e-4))
