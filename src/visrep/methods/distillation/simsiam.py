"""SimSiam: from one view of an image, predict the same network's projection of the other view.

    minimise  - ( cos(q(z_1), stop(z_2)) + cos(q(z_2), stop(z_1)) ) / 2        mean over images

z: projection, encoder and MLP; q: the predictor, an MLP with a narrow middle; stop: no gradient goes that way. BYOL
whose target is the network itself. Chen & He 2021, arXiv:2011.10566.

What stops collapse: the stop-gradient and q; without either of them all outputs become one vector within few steps.
The authors read it as alternation: q learns the mean of z over views, z moves to what q expects, neither descends to
the constant that is best for both. So q keeps its learning rate to the end, and BatchNorm ends the projector (without
scale and offset: each output varies over the batch). Watch projection_std: near 1 / sqrt(out) is healthy, 0 collapsed.

Verified against: the official loss and gradient, 1e-9; BYOL with decay 0 and the same heads, loss, gradients and three
steps, 1e-9; the official heads, learning rates and BatchNorm (over each view by itself) were read.
Deviations: the learning rate falls every step instead of every epoch; biases and BatchNorm are not decayed; blur is a
true Gaussian.
"""

from __future__ import annotations

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
from visrep.schedules import Constant, Cosine, Schedule, Warmup
from visrep.views import TwoViews, View

VIEW = View(scale=(0.2, 1.0), saturation=0.4)
"""the paper's view"""
SMALL = replace(VIEW, size=32, scale=(0.08, 1.0), blur=0.0)
"""for 32 px: smaller crops, no blur"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ResNet(depth=50)
    views: TwoViews = TwoViews(VIEW, VIEW)
    hidden: int = 2048
    """width of the projector's hidden layers: the encoder's width in the paper"""
    layers: int = 3
    """of the projector; the paper takes 2 for CIFAR"""
    out: int = 2048
    """width of projection and prediction"""
    bottleneck: int = 512
    """width of the predictor's hidden layer: a quarter of ``out``"""


def simsiam_loss(p: Float[Tensor, "2 b d"], z: Float[Tensor, "2 b d"]) -> Float[Tensor, ""]:
    """Negative cosine of each view's prediction with the other's projection, which gets no gradient."""
    return -F.cosine_similarity(p, z.detach().flip(0), dim=-1).mean()


@final
class SimSiam(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        self.projector = projection(
            self.backbone.width, cfg.hidden, cfg.out, layers=cfg.layers, last_scale=False
        )
        self.predictor = projection(cfg.out, cfg.bottleneck, cfg.out, last_norm=False)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        (crops,) = batch.crops  # 2 b c h w
        # One view at a time: BatchNorm must not see from the batch which view an image is.
        z = torch.stack([self.projector(self.backbone(view).pool()) for view in crops])  # 2 b d
        p = widen(torch.stack([self.predictor(view) for view in z]))
        with torch.autocast(p.device.type, enabled=False):
            loss = simsiam_loss(p, widen(z))
        return Losses({"simsiam": loss}, {"projection_std": feature_std(z[0])})


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    encoder = ResNet(depth=18, width=4, stem="small")
    return Run(
        method=Config(encoder=encoder, views=TwoViews(SMALL, SMALL), hidden=32, out=32, bottleneck=8),
        optim=Optim(
            lr=Constant(2e-3), lr_scaling="none", multipliers=_constant_for_predictor(Cosine(1.0, 0.0))
        ),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18, 10,000 images.

    What short runs need: a shallow projector, a predictor that keeps up (its learning rate is the constant one), and
    more steps rather than large batches.
    """
    schedule = Warmup(epochs=1, then=Cosine(1.0, 0.0))
    return Run(
        method=Config(
            encoder=NAMED["resnet_narrow"],
            views=TwoViews(SMALL, SMALL),
            hidden=512,
            layers=2,
            out=512,
            bottleneck=128,
        ),
        optim=Optim(
            lr=Constant(2e-3),
            lr_scaling="none",
            weight_decay=Constant(1e-4),
            multipliers=_constant_for_predictor(schedule),
        ),
        limit=10_000,
        epochs=8,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ResNet-18. Unverified: not run here."""
    view = replace(VIEW, size=128)
    return Run(
        method=Config(encoder=NAMED["resnet18"], views=TwoViews(view, view)),
        optim=_sgd(),
        epochs=200,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ResNet-50, 100 epochs. Unverified: not run here."""
    return Run(method=Config(), optim=_sgd(), epochs=100, batch=512)


def _sgd() -> Optim:
    return Optim(
        name="sgd",
        lr=Constant(0.05),
        weight_decay=Constant(1e-4),
        multipliers=_constant_for_predictor(Cosine(1.0, 0.0)),
    )


def _constant_for_predictor(schedule: Schedule) -> tuple[tuple[str, Schedule], ...]:
    """The predictor at ``lr``, which is constant, all else at ``lr`` times the schedule."""
    return (("predictor.*", Constant(1.0)), ("*", schedule))
