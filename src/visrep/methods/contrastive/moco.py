"""MoCo: among the many images that a queue remembers, find the other view of this one.

    minimise  mean over i of  -log  exp(q_i . k_i / tau) / (exp(q_i . k_i / tau) + sum over n of exp(q_i . n / tau))
    t <- decay t + (1 - decay) s

q: first views through the student s; k: second views through the teacher t; n: the queue, keys k of earlier batches;
all of length 1. v1: He et al. 2019, arXiv:1911.05722; v2, with a deeper head, stronger views and a higher tau: Chen
et al. 2020, arXiv:2003.04297.

Were query and key normalised with statistics of one batch, those would give the key away: no image of the queue has
them. So BatchNorm takes its statistics from small groups of images, which are drawn anew for the keys.

Verified against: the official forward pass (loss, gradient, queue), 1e-9; each row is one of NT-Xent when the
queue holds all views of the batch's other images.
Deviations: groups are drawn for queries as well and over all ranks (the official ones are what a GPU got), so that
neither the order of images nor the number of ranks matters; running statistics are means over ranks; biases and
BatchNorm do not decay; the cosine falls every step; blur is a true Gaussian; v1 takes colour away after the jitter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.distributed import gather, rank
from visrep.encoders import NAMED, EncoderConfig, ResNet
from visrep.functional import feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.batchnorm import split_batchnorm
from visrep.nn.queue import Queue
from visrep.nn.teacher import Teacher
from visrep.schedules import Constant, Cosine, Schedule, Step, Warmup
from visrep.views import TwoViews, View

V1 = View(scale=(0.2, 1.0), jitter=1.0, saturation=0.4, hue=0.4, blur=0.0)
V2 = View(scale=(0.2, 1.0), saturation=0.4)
SMALL = View(size=32, saturation=0.4, blur=0.0)
"""for small images: smaller crops, no blur"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ResNet(depth=50, zero_init_residual=False)
    views: TwoViews = TwoViews(V2, V2)
    layers: int = 2
    """of the head, with ReLU between and without BatchNorm: 1 in v1, 2 in v2"""
    hidden: int = 2048
    """width of the head's hidden layers: that of the encoder"""
    out: int = 128
    """width in which views are compared"""
    tau: float = 0.2
    """temperature: 0.07 in v1"""
    queue: int = 65_536
    """keys to tell the right one from, a multiple of the batch; small data wants fewer (1024 to 16,384)"""
    teacher_decay: Schedule = Constant(0.999)
    """0.99 for runs of few steps; lower, and the keys of the queue come from too many different teachers"""
    group: int = 32
    """images that share BatchNorm statistics, as many as a GPU has in the paper; divides a device's micro-batch"""


def info_nce(
    q: Float[Tensor, "b d"], k: Float[Tensor, "b d"], queue: Float[Tensor, "n d"], tau: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """InfoNCE (equation 1) of queries with their keys among the queue's, all of length 1.

    Returns the loss and the share of queries that are nearest to their own key.
    """
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], dim=1) / tau  # b 1+n
    right = torch.zeros(len(q), dtype=torch.long, device=q.device)
    return F.cross_entropy(logits, right), (logits.argmax(1) == right).float().mean()


class Network(nn.Module):
    """Encoder and head: images to features and to vectors of length 1."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        if cfg.layers < 1:
            raise ValueError(f"layers={cfg.layers}: the head needs at least one layer.")
        self.encoder: Encoder = cfg.encoder.build()
        widths = [self.encoder.width, *[cfg.hidden] * (cfg.layers - 1), cfg.out]
        modules: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            modules += [nn.Linear(n_in, n_out), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*modules[:-1])
        split_batchnorm(self, cfg.group)

    def forward(
        self, images: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b width"], Float[Tensor, "b d"]]:
        features = self.encoder(images).pool()
        return features, F.normalize(widen(self.head(features)), dim=-1)


@final
class MoCo(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.student = Network(cfg)
        self.teacher = Teacher(self.student)
        self.queue = Queue(cfg.queue, cfg.out)

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        b = len(batch)
        own = slice(rank() * b, (rank() + 1) * b)  # of the m images of all ranks
        images = gather(batch.crops[0].transpose(0, 1))  # m 2 c h w
        order_q, order_k = (gather(at.rand(b)).argsort() for _ in range(2))  # m, the same on every rank
        features, q = self.student(images[order_q[own], 0])
        k = gather(self.teacher(images[order_k[own], 1])[1])[
            order_k.argsort()
        ]  # m d, in the images' own order
        with torch.autocast(q.device.type, enabled=False):
            loss, accuracy = info_nce(q, k[order_q[own]], self.queue.rows, self.cfg.tau)
        monitor = {"pretext_accuracy": accuracy, "feature_std": feature_std(features)}
        return Losses({"info_nce": loss}, monitor, carry={"keys": k[own]})

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.queue.push(carry["keys"])
        self.teacher.follow(self.student, self.cfg.teacher_decay(at))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ResNet(depth=18, width=4, stem="small"),
            views=TwoViews(SMALL, SMALL),
            hidden=32,
            out=16,
            queue=64,
            teacher_decay=Constant(0.95),
            group=8,
        ),
        optim=Optim(lr=Warmup(epochs=0.2, then=Cosine(2e-3, 0.0)), lr_scaling="none"),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18; minutes on a CPU for 10,000 images.

    What short runs need: many steps, a teacher that follows within a hundred of them, and a queue of a few thousand.
    """
    return Run(
        method=Config(
            encoder=NAMED["resnet_narrow"],
            views=TwoViews(SMALL, SMALL),
            hidden=512,
            queue=2048,
            teacher_decay=Constant(0.99),
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
    view = replace(V2, size=128)
    return Run(
        method=Config(
            encoder=NAMED["resnet18"],
            views=TwoViews(view, view),
            hidden=512,
            queue=4096,
            teacher_decay=Constant(0.99),
        ),
        optim=_sgd(Cosine(0.06, 0.0), weight_decay=5e-4),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """v2: ImageNet, ResNet-50, 200 epochs. Unverified: not run here."""
    return Run(method=Config(), optim=_sgd(Cosine(0.03, 0.0), weight_decay=1e-4), epochs=200, batch=256)


def paper_v1() -> Run[Config]:
    """v1: ImageNet, ResNet-50, 200 epochs. Unverified: not run here."""
    lr = Step((0.03, 0.003, 0.0003), at_epochs=(120, 160))
    method = Config(views=TwoViews(V1, V1), layers=1, tau=0.07)
    return Run(method=method, optim=_sgd(lr, weight_decay=1e-4), epochs=200, batch=256)


def _sgd(lr: Cosine | Step, *, weight_decay: float) -> Optim:
    return Optim(name="sgd", lr=lr, weight_decay=Constant(weight_decay))
