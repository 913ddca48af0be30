"""Linear probe of DINO (arXiv:2104.14294, eval_linear.py): a linear layer trained by SGD, with nothing chosen.

Reads the cls tokens of the last four layers beside each other where the encoder is as narrow as ViT-S (384) or
narrower, cls and mean patch of the last layer where it is wider, and the mean alone where there is no cls token, as
for their ResNet-50. 100 epochs of batches of 1024, learning rate 0.004 (0.001 for 256 images) along half a cosine
that moves between epochs, momentum 0.9, no weight decay; weights start at N(0, 0.01), the bias at 0.

*Deviations*: one view of each image, the central square, in place of random crops and flips, as features are
extracted once; small sets have smaller batches (see `probe_training`); the last epoch counts, not the best one on
the test images.
"""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from visrep.evaluation.features import Parts
from visrep.evaluation.poolings import LAST, beside
from visrep.evaluation.probe_training import Published, check_two_classes, predict, train
from visrep.evaluation.results import Prediction

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
    depth = max(layer for layer, _ in train_parts)
    has_cls = (depth, "cls") in train_parts
    narrow = train_parts[depth, "mean"].shape[1] <= NARROW
    layers, mean = (LAST, False) if has_cls and narrow else (1, has_cls)
    x, x_test = (beside(parts, depth, layers, mean=mean) for parts in (train_parts, test_parts))
    classes, targets = labels.unique(return_inverse=True)
    check_two_classes(classes)
    rng = torch.Generator().manual_seed(seed)
    probe = normal_linear(x.shape[1], len(classes), rng).to(x)
    optimiser = torch.optim.SGD(probe.parameters(), lr=SCHEDULE.lr, momentum=MOMENTUM)
    train(probe, x, targets, optimiser, SCHEDULE, rng)
    settings = {"layers": layers, "mean": mean} | SCHEDULE.settings(len(x))
    return [Prediction("linear-dino", classes[predict(probe, x_test)], settings)]


def normal_linear(d: int, k: int, rng: torch.Generator) -> nn.Linear:
    """Weights from N(0, 0.01), bias 0."""
    layer = nn.Linear(d, k)
    with torch.no_grad():
        layer.weight.normal_(0, 0.01, generator=rng)
        layer.bias.zero_()
    return layer
