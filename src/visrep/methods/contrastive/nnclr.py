"""NNCLR: find the view of the same image, judged not by the other view but by its nearest neighbour among many images.

    minimise  mean over (v, w) and i of  -log  exp(n_vi . p_wi / tau) / sum over j of exp(n_vi . p_wj / tau)
    n_vi = the vector of the queue that is nearest to z_vi

(v, w): the two views, either way round; z: projections; p: predictions from them; both of length 1; the queue holds z
of the first views of earlier batches. The gradient flows through p alone. Dwibedi et al. 2021, arXiv:2104.14548.

Verified against: loss, gradient and neighbours of solo-learn (no official code is published), 1e-9.
Deviations: the projector's last BatchNorm has no offset; blur is a true Gaussian.
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
from visrep.distributed import gather, rank
from visrep.encoders import NAMED, EncoderConfig, ResNet
from visrep.functional import feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import projection
from visrep.nn.queue import Queue
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import TwoViews, View

FIRST = View(blur=1.0)
SECOND = View(blur=0.1, solarize=0.2)
SMALL = View(size=32, saturation=0.4, blur=0.0)
"""for small images: both views alike, no blur"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ResNet(depth=50)
    views: TwoViews = TwoViews(FIRST, SECOND)
    layers: int = 3
    """of the projector"""
    hidden: int = 2048
    """width of the projector's hidden layers"""
    predictor_hidden: int = 4096
    """width of the predictor's hidden layer"""
    out: int = 256
    """width in which views are compared"""
    tau: float = 0.1
    """temperature: 0.2 for small data"""
    queue: int = 98_304
    """vectors among which neighbours are sought, a multiple of the batch; at most about as many as there are images"""


def nearest(z: Float[Tensor, "*any d"], queue: Float[Tensor, "k d"]) -> Float[Tensor, "*any d"]:
    """The vector of the queue, in which all have length 1, that is most similar to each z."""
    return queue[(z @ queue.T).argmax(-1)]


def nnclr_loss(
    neighbours: Float[Tensor, "b d"], p: Float[Tensor, "m d"], first: int, tau: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """InfoNCE of this rank's neighbours among everyone's predictions, of which theirs are rows ``first`` and on.

    Returns the loss and the share of neighbours that are nearest to the prediction of their own image.
    """
    logits = neighbours @ F.normalize(p, dim=-1).T / tau  # b m
    right = torch.arange(first, first + len(neighbours), device=p.device)
    return F.cross_entropy(logits, right), (logits.argmax(1) == right).float().mean()


@final
class NNCLR(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        self.projector = projection(self.backbone.width, cfg.hidden, cfg.out, layers=cfg.layers)
        self.predictor = projection(cfg.out, cfg.predictor_hidden, cfg.out, last_norm=False)
        self.queue = Queue(cfg.queue, cfg.out)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        # One view at a time: BatchNorm's statistics are those of a view.
        features = [self.backbone(view).pool() for view in batch.crops[0]]
        projected = [self.projector(x) for x in features]
        p = [gather(widen(self.predictor(x))) for x in projected]  # m d
        z = F.normalize(widen(torch.stack(projected).detach()), dim=-1)  # 2 b d
        first, tau = rank() * len(batch), self.cfg.tau
        with torch.autocast(z.device.type, enabled=False):
            neighbours = nearest(z, self.queue.rows)
            forth, accuracy = nnclr_loss(neighbours[0], p[1], first, tau)
            back, _ = nnclr_loss(neighbours[1], p[0], first, tau)
        monitor = {
            "pretext_accuracy": accuracy,
            "neighbour_similarity": (z * neighbours).sum(-1).mean(),  # cosine; 1: as near as the image itself
            "feature_std": feature_std(features[0]),
        }
        return Losses({"nnclr": (forth + back) / 2}, monitor, carry={"z": z[0]})

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.queue.push(carry["z"])


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    encoder = ResNet(depth=18, width=4, stem="small")
    return Run(
        method=Config(
            encoder=encoder,
            views=TwoViews(SMALL, SMALL),
            hidden=32,
            predictor_hidden=32,
            out=16,
            tau=0.2,
            queue=64,
        ),
        optim=Optim(lr=Warmup(epochs=0.2, then=Cosine(2e-3, 0.0)), lr_scaling="none"),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18; minutes on a CPU for 10,000 images.

    What short runs need: a small queue, so that neighbours come from nearly today's network, and many steps.
    """
    return Run(
        method=Config(
            encoder=NAMED["resnet_narrow"],
            views=TwoViews(SMALL, SMALL),
            layers=2,
            hidden=512,
            predictor_hidden=512,
            out=128,
            tau=0.2,
            queue=2048,
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
    first, second = replace(FIRST, size=128), replace(SECOND, size=128)
    return Run(
        method=Config(encoder=NAMED["resnet18"], views=TwoViews(first, second), tau=0.2, queue=8192),
        optim=_lars(weight_decay=1e-5),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ResNet-50, 1000 epochs, batch 4096. Unverified: not run here."""
    return Run(method=Config(), optim=_lars(weight_decay=1e-6), epochs=1000, batch=4096)


def _lars(*, weight_decay: float) -> Optim:
    schedule = Warmup(epochs=10, then=Cosine(0.3, 0.0))
    return Optim(name="lars", lr=schedule, weight_decay=Constant(weight_decay))
