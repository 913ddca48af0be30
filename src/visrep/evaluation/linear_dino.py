"""Linear probe of DINO (arXiv:2104.14294, eval_linear.py): a linear layer trained by SGD, with nothing chosen.

Reads the cls tokens of the last four layers beside each other where the encoder is as narrow as ViT-S (384) or
narrower, cls and mean patch of the last layer where it is wider, and the mean alone where there is no cls token, as
for their ResNet-50. 100 epochs of batches of 1024, learning rate 0.004 (0.001 for 256 images) along half a cosine
that moves between epochs, momentum 0.9, no weight decay; weights start at N(0, 0.01), the bias at 0.

*Deviations*: one view of each image, the central square, in place of random crops and flips, as features are
extracted once; small sets have smaller batches (see `probe_training`); the last epoch counts. ``linear-dino@paper``
takes the epoch that is best on the reported test images, as published, and says so.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from visrep.evaluation.features import Parts
from visrep.evaluation.poolings import LAST, beside
from visrep.evaluation.probe_training import (
    Published,
    best_on_test,
    check_two_classes,
    predict,
    train,
)
from visrep.evaluation.results import Prediction, Setting

SCHEDULE = Published(epochs=100, batch=1024, lr=0.001 * 1024 / 256, by_epoch=True)
MOMENTUM = 0.9
NARROW = 384


def linear_dino(
    train_parts: Parts,
    labels: Int64[Tensor, " n"],
    test_parts: Parts,
    answers: Int64[Tensor, " m"],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """One prediction; ``seed`` draws initial weights and batches, ``answers`` are not looked at.

    Raises ValueError when there is only one class.
    """
    x, x_test, read = _read(train_parts, test_parts)
    classes, targets = labels.unique(return_inverse=True)
    probe, optimiser, rng = _start(x, classes, seed)
    train(probe, x, targets, optimiser, SCHEDULE, rng)
    settings = read | SCHEDULE.settings(len(x))
    return [Prediction("linear-dino", classes[predict(probe, x_test)], settings)]


def linear_dino_as_published(
    train_parts: Parts,
    labels: Int64[Tensor, " n"],
    test_parts: Parts,
    answers: Int64[Tensor, " m"],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """One prediction, of the epoch with the highest accuracy on the test images themselves. Raises as `linear_dino`."""
    x, x_test, read = _read(train_parts, test_parts)
    probe, optimiser, rng = _start(x, labels.unique(), seed)
    settings = read | SCHEDULE.settings(len(x))
    name = "linear-dino@paper"
    return best_on_test(name, probe, x, labels, optimiser, SCHEDULE, rng, x_test, answers, settings)


def _read(train_parts: Parts, test_parts: Parts) -> tuple[Tensor, Tensor, dict[str, Setting]]:
    """The vectors of both sides, and which they are."""
    depth = max(layer for layer, _ in train_parts)
    has_cls = (depth, "cls") in train_parts
    narrow = train_parts[depth, "mean"].shape[1] <= NARROW
    layers, mean = (LAST, False) if has_cls and narrow else (1, has_cls)
    x, x_test = (beside(parts, depth, layers, mean=mean) for parts in (train_parts, test_parts))
    return x, x_test, {"layers": layers, "mean": mean}


def _start(x: Tensor, classes: Tensor, seed: int) -> tuple[nn.Linear, torch.optim.SGD, torch.Generator]:
    """What is trained, by what, and the generator of batches. Raises ValueError for a single class."""
    check_two_classes(classes)
    rng = torch.Generator().manual_seed(seed)
    probe = normal_linear(x.shape[1], len(classes), rng).to(x)
    return probe, torch.optim.SGD(probe.parameters(), lr=SCHEDULE.lr, momentum=MOMENTUM), rng


def normal_linear(d: int, k: int, rng: torch.Generator) -> nn.Linear:
    """Weights from N(0, 0.01), bias 0."""
    layer = nn.Linear(d, k)
    with torch.no_grad():
        layer.weight.normal_(0, 0.01, generator=rng)
        layer.bias.zero_()
    return layer
