"""Linear probe of MAE (arXiv:2111.06377, main_linprobe.py): BatchNorm without affine, a linear layer, LARS.

90 epochs of batches of 16,384, learning rate 6.4 (0.1 for 256 images) with 10 epochs of warm-up and half a cosine,
momentum 0.9, trust coefficient 0.001, no weight decay; weights from a normal distribution of deviation 0.01, bias
0. It was made for ViT-B; for ViT-L and ViT-H they train for 50 epochs.

*Deviations*: one view of each image, the central square, in place of random crops and flips, as features are
extracted once; small sets have smaller batches (see `probe_training`); the last epoch counts. ``linear-mae@paper``
takes the epoch that is best on the reported test images, as published, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from visrep.evaluation.linear_dino import normal_linear
from visrep.evaluation.probe_training import (
    Published,
    best_on_test,
    check_two_classes,
    predict,
)
from visrep.evaluation.probe_training import train as train_probe
from visrep.evaluation.results import Prediction
from visrep.optim import LARS

SCHEDULE = Published(epochs=90, batch=16384, lr=0.1 * 16384 / 256, warmup=10)
MOMENTUM = 0.9
TRUST = 0.001


def linear_mae(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """One prediction; ``seed`` draws initial weights and batches. Raises ValueError when there is only one class."""
    classes, targets = labels.unique(return_inverse=True)
    probe, optimiser, rng = _start(train, classes, seed)
    train_probe(probe, train, targets, optimiser, SCHEDULE, rng)
    return [Prediction("linear-mae", classes[predict(probe, test)], SCHEDULE.settings(len(train)))]


def linear_mae_as_published(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    answers: Int64[Tensor, " m"],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """One prediction, of the epoch with the highest accuracy on the test images themselves. Raises as `linear_mae`."""
    probe, optimiser, rng = _start(train, labels.unique(), seed)
    settings = SCHEDULE.settings(len(train))
    name = "linear-mae@paper"
    return best_on_test(name, probe, train, labels, optimiser, SCHEDULE, rng, test, answers, settings)


def _start(x: Tensor, classes: Tensor, seed: int) -> tuple[nn.Sequential, LARS, torch.Generator]:
    """What is trained, by what, and the generator of batches. Raises ValueError for a single class."""
    check_two_classes(classes)
    rng = torch.Generator().manual_seed(seed)
    d = x.shape[1]
    probe = nn.Sequential(batch_norm(d), normal_linear(d, len(classes), rng)).to(x)
    return probe, lars(probe.parameters(), SCHEDULE.lr), rng


def batch_norm(d: int) -> nn.BatchNorm1d:
    """As MAE's: no weight, no bias."""
    return nn.BatchNorm1d(d, affine=False, eps=1e-6)


def lars(parameters: Iterable[nn.Parameter], lr: float) -> LARS:
    """As MAE's: vectors, such as biases, are not scaled."""
    kinds: dict[bool, list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault(parameter.ndim > 1, []).append(parameter)
    groups = [{"params": mine, "decay": scaled} for scaled, mine in kinds.items()]
    return LARS(groups, lr=lr, momentum=MOMENTUM, trust=TRUST)
