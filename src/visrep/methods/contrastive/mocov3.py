"""MoCo v3: of all images in the batch, find the teacher's code of the other view of this one.

    minimise  sum over (v, w), mean over i of  -2 tau log  exp(q_vi . k_wi / tau) / sum over j of exp(q_vi . k_wj / tau)
    t <- decay t + (1 - decay) s

(v, w): the two views, either way round; q: student s, encoder, projector and predictor; k: teacher t, encoder and
projector; both of length 1. No queue: large batches have negatives enough. A ViT's patch embedding keeps its random
start, without which training has sudden dips. Chen, Xie & He 2021, arXiv:2104.02057.

Verified against: the official loss and its gradient, 1e-9.
Deviations: the teacher's decay lags a step; biases and norms do not decay (the official AdamW decays them); blur is a
true Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.distributed import gather, rank
from visrep.encoders import NAMED, EncoderConfig, ViT
from visrep.encoders.vit import VisionTransformer
from visrep.functional import feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import projection
from visrep.nn.teacher import Teacher
from visrep.schedules import Constant, Cosine, Schedule, Warmup
from visrep.views import TwoViews, View

FIRST = View(blur=1.0)
SECOND = View(blur=0.1, solarize=0.2)
SMALL = View(size=32, saturation=0.4, blur=0.0)
"""for small images: both views alike, no blur"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ViT(heads=12, position="sincos")
    views: TwoViews = TwoViews(FIRST, SECOND)
    layers: int = 3
    """of the projector: 2 in the paper's ResNets"""
    hidden: int = 4096
    """width of the hidden layers of projector and predictor"""
    out: int = 256
    """width in which views are compared"""
    predictor_norm: bool = True
    """BatchNorm after the predictor too: not in the paper's ResNets"""
    freeze_patches: bool = True
    """a ViT's patch embedding is not trained"""
    tau: float = 0.2
    """temperature: 1 in the paper's ResNets"""
    teacher_decay: Schedule = Cosine(0.99, 1.0)
    """start it at 0.996 for 1000 epochs, at 0.98 for runs of few steps"""


def contrast(
    q: Float[Tensor, "b d"], k: Float[Tensor, "m d"], first: int, tau: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """2 tau times InfoNCE of this rank's queries among everyone's keys, of which theirs are rows ``first`` and on.

    The factor makes the size of the gradient independent of tau. Returns the loss and the share of queries that are
    nearest to their own key.
    """
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).T / tau  # b m
    right = torch.arange(first, first + len(q), device=q.device)
    return 2 * tau * F.cross_entropy(logits, right), (logits.argmax(1) == right).float().mean()


class Network(nn.Module):
    """Encoder and projector, which the teacher has too."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.encoder: Encoder = cfg.encoder.build()
        self.head = projection(self.encoder.width, cfg.hidden, cfg.out, layers=cfg.layers, last_scale=False)
        if isinstance(self.encoder, VisionTransformer):
            _initialise(self.encoder)
            self.encoder.patch_embed.requires_grad_(not cfg.freeze_patches)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.head(self.encoder(images).pool())


def _initialise(vit: VisionTransformer) -> None:
    """The official start: Xavier's, queries, keys and values as layers of their own; nearly no class token."""
    for name, layer in vit.named_modules():
        if isinstance(layer, nn.Linear):
            n_out = layer.out_features // (3 if name.endswith("qkv") else 1)
            bound = math.sqrt(6 / (layer.in_features + n_out))
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if vit.cls_token is not None:
        nn.init.normal_(vit.cls_token, std=1e-6)


@final
class MoCoV3(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.student = Network(cfg)
        self.predictor = projection(
            cfg.out, cfg.hidden, cfg.out, last_norm=cfg.predictor_norm, last_scale=False, last_bias=False
        )
        self.teacher = Teacher(self.student)

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        # One view at a time: BatchNorm's statistics are those of a view.
        features = [self.student.encoder(view).pool() for view in batch.crops[0]]
        q = [widen(self.predictor(self.student.head(x))) for x in features]
        k = [gather(widen(self.teacher(view))) for view in batch.crops[0]]
        first, tau = rank() * len(batch), self.cfg.tau
        with torch.autocast(q[0].device.type, enabled=False):
            forth, accuracy = contrast(q[0], k[1], first, tau)
            back, _ = contrast(q[1], k[0], first, tau)
        monitor = {"pretext_accuracy": accuracy, "feature_std": feature_std(features[0])}
        return Losses({"contrast": forth + back}, monitor)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.teacher.follow(self.student, self.cfg.teacher_decay(at))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, position="sincos"),
            views=TwoViews(SMALL, SMALL),
            hidden=32,
            out=16,
            teacher_decay=Cosine(0.95, 1.0),
        ),
        optim=_adamw(lr=1e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18; minutes on a CPU for 10,000 images.

    What short runs need: a teacher that follows within fifty steps. The heads are those of the paper's ResNets.
    """
    return Run(
        method=Config(
            encoder=NAMED["resnet_narrow"],
            views=TwoViews(SMALL, SMALL),
            layers=2,
            hidden=512,
            out=128,
            predictor_norm=False,
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
    """128-px images, ViT-S/16. Unverified: not run here."""
    first, second = replace(FIRST, size=128), replace(SECOND, size=128)
    encoder = ViT(image=128, heads=12, position="sincos")
    return Run(
        method=Config(encoder=encoder, views=TwoViews(first, second), hidden=2048),
        optim=_adamw(lr=3e-4, lr_scaling="linear", warmup=10.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-S/16 with 12 heads, 300 epochs, batch 4096. Unverified: not run here."""
    optim = _adamw(lr=1.5e-4, lr_scaling="linear", warmup=40.0)
    return Run(method=Config(), optim=optim, epochs=300, batch=4096)


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 0.0)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.1),
        no_decay=("*.bias",),  # and what has one axis; tokens decay as in the official code
    )
