"""SimCLR: of all other views in the batch, find the one of the same image.

    minimise  mean over i of  -log  exp(z_i . z_j / tau) / sum over k != i of exp(z_i . z_k / tau)

i: every view of every image; j: the other view of its image; k: all views but i; z: projections of
length 1. Chen et al. 2020, arXiv:2002.05709.

Verified against: NT-Xent of solo-learn and lightly, loss and gradient, 1e-9.
Deviations: the mean over all 2b views, as in the paper (the official code adds the means of the two halves);
blur is a true Gaussian of the same deviation instead of a kernel cut off at 10 % of the image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.distributed import gather, rank
from visrep.encoders import NAMED, EncoderConfig, ResNet
from visrep.functional import feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import projection
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import TwoViews, View

COLOUR = View(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
"""the paper's views: colour strength 1"""
SMALL = replace(COLOUR, size=32, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0)
"""the paper's views for CIFAR: half the colour strength, no blur"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ResNet(depth=50)
    views: TwoViews = TwoViews(COLOUR, COLOUR)
    hidden: int = 2048
    """width of the projection's hidden layers"""
    out: int = 128
    """width of the projection, in which views are compared"""
    layers: int = 2
    """of the projection"""
    tau: float = 0.1
    """temperature: small batches and images want more, about 0.2 to 0.5"""


def nt_xent(
    z: Float[Tensor, "v b d"], everyone: Float[Tensor, "v m d"], first: int, tau: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """NT-Xent (equation 1) of this rank's ``z`` among ``everyone``, of which it is rows ``first`` and on.

    Returns the loss and the share of views whose nearest other view is of their own image.
    """
    b, m = z.shape[1], everyone.shape[1]
    z, everyone = F.normalize(z, dim=-1).flatten(0, 1), F.normalize(everyone, dim=-1).flatten(0, 1)
    row = torch.arange(first, first + b, device=z.device)
    itself, partner = torch.cat([row, row + m]), torch.cat([row + m, row])
    logits = (z @ everyone.T / tau).scatter(1, itself[:, None], -torch.inf)  # 2b 2m
    return F.cross_entropy(logits, partner), (logits.argmax(1) == partner).float().mean()


@final
class SimCLR(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        self.head = projection(self.backbone.width, cfg.hidden, cfg.out, layers=cfg.layers)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        (crops,) = batch.crops  # 2 b c h w
        features = self.backbone(crops.flatten(0, 1)).pool()
        z = widen(self.head(features)).unflatten(0, crops.shape[:2])  # 2 b d
        everyone = gather(z.transpose(0, 1)).transpose(0, 1)  # 2 m d
        with torch.autocast(z.device.type, enabled=False):
            loss, accuracy = nt_xent(z, everyone, rank() * len(batch), self.cfg.tau)
        return Losses({"nt_xent": loss}, {"pretext_accuracy": accuracy, "feature_std": feature_std(features)})


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    encoder = ResNet(depth=18, width=4, stem="small")
    return Run(
        method=Config(encoder=encoder, views=TwoViews(SMALL, SMALL), hidden=32, out=16, tau=0.2),
        optim=Optim(lr=Warmup(epochs=0.2, then=Cosine(2e-3, 0.0)), lr_scaling="none"),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def playground() -> Run[Config]:
    """The built-in images, in which colour says nothing about the shape: so it is changed at will. For the demo."""
    view = replace(SMALL, scale=(0.3, 1.0), hue=0.5, gray=0.3)
    run = small32()
    return replace(
        run,
        method=replace(run.method, encoder=NAMED["convnet_narrow"], views=TwoViews(view, view)),
        optim=replace(run.optim, lr=Warmup(epochs=1, then=Cosine(4e-3, 0.0))),
        data="playground",
        epochs=23,
        monitor_epochs=2,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18; three minutes on two cores for 10,000 images."""
    return Run(
        method=Config(encoder=NAMED["resnet_narrow"], views=TwoViews(SMALL, SMALL), hidden=512, tau=0.2),
        optim=Optim(
            lr=Warmup(epochs=1, then=Cosine(3e-3, 0.0)), weight_decay=Constant(1e-4), lr_scaling="none"
        ),
        limit=10_000,
        epochs=8,
        batch=256,
        monitor_epochs=2,
        monitor_images=1000,
    )


def small64() -> Run[Config]:
    """64-px images, a narrow ResNet-18; twelve minutes on two cores for 10,000 images."""
    run, view = small32(), replace(SMALL, size=64)
    return replace(run, method=replace(run.method, views=TwoViews(view, view)), batch=128)


def imagenette128() -> Run[Config]:
    """128-px images, ResNet-18. Unverified: not run here."""
    view = replace(COLOUR, size=128)
    return Run(
        method=Config(encoder=NAMED["resnet18"], views=TwoViews(view, view), tau=0.2),
        optim=_lars(lr=0.3, weight_decay=1e-4),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ResNet-50, 100 epochs. Unverified: not run here."""
    return Run(method=Config(), optim=_lars(lr=0.3, weight_decay=1e-6), epochs=100, batch=4096)


def _lars(lr: float, weight_decay: float) -> Optim:
    schedule = Warmup(epochs=10, then=Cosine(lr, 0.0))
    return Optim(name="lars", lr=schedule, weight_decay=Constant(weight_decay))
