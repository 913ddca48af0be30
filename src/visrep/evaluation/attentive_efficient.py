"""Efficient probing (arXiv:2506.10178): learned queries look at the tokens as they are, each pools part of the values.

    a_m = softmax over tokens of q_m . x / sqrt(d)      y = W BatchNorm(concat_m V_m sum over tokens of a_m x) + b

32 queries that start at N(0, 0.02), neither queries nor keys projected, V without bias, d / 32 dimensions of it for
each query, BatchNorm without affine. Trained as MAE's linear probe: LARS, 90 epochs of batches of 4,096, learning
rate 1.6 (0.1 for 256 images), 10 epochs of warm-up, no weight decay. MAE with ViT-B reaches 75.6 % on ImageNet so,
67.8 % linearly.

*Deviations*: one view of each image in place of random crops and flips; small sets have smaller batches (see
`probe_training`); the last epoch counts; as many queries up to 32 as divide the width.
``attentive-efficient@paper`` takes the epoch that is best on the reported test images, as published, and says so.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from visrep.evaluation.linear_mae import batch_norm, lars
from visrep.evaluation.probe_training import (
    Published,
    best_on_test,
    check_two_classes,
    predict,
    seeded,
)
from visrep.evaluation.probe_training import train as train_probe
from visrep.evaluation.results import Prediction
from visrep.optim import LARS

SCHEDULE = Published(epochs=90, batch=4096, lr=0.1 * 4096 / 256, warmup=10)
MAX_QUERIES = 32


class EfficientProbe(nn.Module):
    """Tokens "b p d" to logits "b k"."""

    def __init__(self, d: int, k: int, queries: int) -> None:
        super().__init__()
        self.query = nn.Parameter(0.02 * torch.randn(queries, d))
        self.value = nn.Linear(d, d, bias=False)
        self.norm = batch_norm(d)
        self.head = nn.Linear(d, k)

    def forward(self, tokens: Float[Tensor, "b p d"]) -> Float[Tensor, "b k"]:
        d = tokens.shape[-1]
        attention = (tokens @ (self.query / math.sqrt(d)).T).softmax(1)  # b p m
        # values after pooling instead of before: the same function for a fraction of the products
        pooled = attention.transpose(1, 2) @ tokens  # b m d
        values = self.value.weight.view(len(self.query), -1, d)  # m d/m d
        return self.head(self.norm(torch.einsum("bmd,med->bme", pooled, values).flatten(1)))


def attentive_efficient(
    train: Float[Tensor, "n p d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m p d"],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """One prediction; ``seed`` draws initial weights and batches. Tokens may be stored in half precision.

    Raises ValueError when there is only one class.
    """
    classes, targets = labels.unique(return_inverse=True)
    probe, optimiser, rng = _start(train, classes, seed)
    train_probe(probe, train, targets, optimiser, SCHEDULE, rng)
    settings = SCHEDULE.settings(len(train)) | {"queries": len(probe.query)}
    return [Prediction("attentive-efficient", classes[predict(probe, test)], settings)]


def attentive_efficient_as_published(
    train: Float[Tensor, "n p d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m p d"],
    answers: Int64[Tensor, " m"],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """One prediction, of the epoch with the highest accuracy on the test images. Raises as `attentive_efficient`."""
    probe, optimiser, rng = _start(train, labels.unique(), seed)
    settings = SCHEDULE.settings(len(train)) | {"queries": len(probe.query)}
    name = "attentive-efficient@paper"
    return best_on_test(name, probe, train, labels, optimiser, SCHEDULE, rng, test, answers, settings)


def _start(tokens: Tensor, classes: Tensor, seed: int) -> tuple[EfficientProbe, LARS, torch.Generator]:
    """What is trained, by what, and the generator of batches. Raises ValueError for a single class."""
    check_two_classes(classes)
    d = tokens.shape[-1]
    queries = max(m for m in range(1, MAX_QUERIES + 1) if d % m == 0)
    probe = seeded(lambda: EfficientProbe(d, len(classes), queries), seed).to(tokens.device)
    return probe, lars(probe.parameters(), SCHEDULE.lr), torch.Generator().manual_seed(seed)
