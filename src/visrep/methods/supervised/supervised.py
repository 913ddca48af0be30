"""Supervised: name the class of an image, the reference for methods that see no labels.

    minimise  mean over images of  -(1 - e) log q_y - e / k sum over c of log q_c        q = softmax(W h + b)

h: the encoder's features; y: the label; k: the number of classes; e: label smoothing.
He et al. 2015, arXiv:1512.03385 (recipe); Szegedy et al. 2015, arXiv:1512.00567 (label smoothing).

Verified against: the sum above written out, 1e-12 (there is no one official code).
Deviations: AdamW or SGD with a cosine schedule instead of steps of the learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from visrep.config import Optim, Run
from visrep.encoders import NAMED, EncoderConfig, ResNet
from visrep.functional import feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.transformer import linear
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.08, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""the usual supervised view: crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ResNet(depth=50)
    views: OneView = OneView(PLAIN)
    classes: int = 10
    """number of classes; labels run from 0 to classes - 1"""
    label_smoothing: float = 0.0
    """e: share of the target that is spread over all classes"""


def cross_entropy(
    logits: Float[Tensor, "b k"], labels: Int[Tensor, " b"], label_smoothing: float
) -> Float[Tensor, ""]:
    """Cross-entropy with smoothed targets, mean over images."""
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


@final
class Supervised(Method):
    needs_labels = True

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        self.classifier = linear(self.backbone.width, cfg.classes)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        labels = self._labels(batch)
        features = self.backbone(batch.crops[0][0]).pool()
        logits = widen(self.classifier(features))
        loss = cross_entropy(logits, labels, self.cfg.label_smoothing)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return Losses(
            {"cross_entropy": loss}, {"train_accuracy": accuracy, "feature_std": feature_std(features)}
        )

    def _labels(self, batch: Batch) -> Tensor:
        if batch.labels is None:
            raise ValueError(
                "The method 'supervised' needs labels and these images have none. "
                "Put them in one folder a class, or choose a method that needs no labels, such as simclr."
            )
        low, high = torch.stack([batch.labels.min(), batch.labels.max()]).tolist()
        if low < 0 or high >= self.cfg.classes:
            wrong = low if low < 0 else high
            raise ValueError(
                f"There is a label {wrong} and method.classes={self.cfg.classes} allows 0 to "
                f"{self.cfg.classes - 1}. "
                + (
                    "Labels must not be negative."
                    if low < 0
                    else f"Set method.classes to at least {high + 1}."
                )
            )
        return batch.labels


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    view = replace(PLAIN, size=32, scale=(0.7, 1.0))
    return Run(
        method=Config(encoder=ResNet(depth=18, width=4, stem="small"), views=OneView(view)),
        optim=Optim(lr=Warmup(epochs=0.2, then=Cosine(1e-2, 0.0)), lr_scaling="none"),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def playground() -> Run[Config]:
    """The built-in images; minutes on a CPU."""
    view = replace(PLAIN, size=48, scale=(0.4, 1.0))
    run = small32()
    return replace(run, method=replace(run.method, views=OneView(view)), data="playground", epochs=8)


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18; a few minutes on two cores for 10,000 images."""
    view = replace(PLAIN, size=32, scale=(0.2, 1.0))
    return Run(
        method=Config(encoder=NAMED["resnet_narrow"], views=OneView(view)),
        optim=Optim(
            lr=Warmup(epochs=2, then=Cosine(3e-3, 0.0)), weight_decay=Constant(0.05), lr_scaling="none"
        ),
        limit=10_000,
        epochs=40,
        batch=256,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ResNet-18. Unverified: not run here."""
    view = replace(PLAIN, size=128, scale=(0.2, 1.0))
    return Run(
        method=Config(encoder=NAMED["resnet18"], views=OneView(view), label_smoothing=0.1),
        optim=_sgd(warmup=5.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ResNet-50, 90 epochs. Unverified: not run here."""
    return Run(method=Config(classes=1000), optim=_sgd(warmup=0.0), epochs=90, batch=256)


def _sgd(warmup: float) -> Optim:
    schedule = Warmup(epochs=warmup, then=Cosine(0.1, 0.0))
    return Optim(name="sgd", lr=schedule, weight_decay=Constant(1e-4))
