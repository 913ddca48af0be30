"""Linear probe of DINOv2 (arXiv:2304.07193, eval/linear.py): 52 linear layers trained at once, the best one reported.

13 learning rates x cls tokens of the last 1 or 4 layers x with or without the mean patch of the last layer. All of them
see the same batches, so they are one matrix: the inputs of every head lie among the five vectors beside each other, its
other weights are zero and stay so, and a step for the whole grid is two matrix products. SGD with momentum 0.9, no
weight decay, half a cosine to 0, 12,500 steps of batches of 1024 (10 epochs); the rates are stated for 256 images and
scaled linearly; weights start at N(0, 0.01), biases at 0.

``linear-dinov2`` chooses among the heads on a held-out part of the training images and trains the chosen one again on
all of them. ``linear-dinov2@paper`` chooses on the reported test images, as published, and says so.

*Deviations*: one view of each image, the central square, in place of random crops and flips, as features are extracted
once; small sets have smaller batches (see `probe_training`). Without a cls token its place is taken by the mean patch,
and there are 26 heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from visrep.evaluation.features import Parts
from visrep.evaluation.holdout import hold_out
from visrep.evaluation.poolings import LAST, beside
from visrep.evaluation.probe_training import Published, batches, check_answered, check_two_classes
from visrep.evaluation.results import Prediction, Setting

LRS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
"""for 256 images"""
SCHEDULE = Published(epochs=10, batch=1024, lr=1024 / 256)
"""its ``lr`` is what `LRS` are multiplied by"""
MOMENTUM = 0.9


@dataclass(frozen=True)
class Head:
    """One of the linear layers."""

    lr: float
    """for 256 images"""
    layers: int
    """last ones whose cls token it sees"""
    mean: bool
    """whether it sees the mean patch of the last layer"""


def linear_dinov2(
    train: Parts,
    labels: Int64[Tensor, " n"],
    test: Parts,
    answers: Int64[Tensor, " m"],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """One prediction, by the head of highest held-out accuracy, the first among equals.

    ``seed`` draws held-out images, initial weights and batches; ``answers`` are not looked at.
    Raises ValueError when there is only one class.
    """
    classes, targets = labels.unique(return_inverse=True)
    fitted, held_out = hold_out(labels, seed)
    x, heads, columns = inputs(train)
    grid = train_heads(x[fitted], targets[fitted], heads, columns, len(classes), seed)
    accuracies = grid.accuracies(x[held_out], targets[held_out])
    best = int(accuracies.argmax())
    chosen = train_heads(x, targets, [heads[best]], columns, len(classes), seed)
    found = chosen.answers(inputs(test)[0])[:, 0]
    check_answered(found >= 0)
    settings = _settings(heads, best, len(x)) | {
        "held_out": len(held_out),
        "held_out_top1": 100 * float(accuracies[best]),
    }
    return [Prediction("linear-dinov2", classes[found], settings)]


def linear_dinov2_as_published(
    train: Parts,
    labels: Int64[Tensor, " n"],
    test: Parts,
    answers: Int64[Tensor, " m"],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """One prediction, by the head of highest accuracy on the test images themselves. Raises as `linear_dinov2`."""
    classes, targets = labels.unique(return_inverse=True)
    check_two_classes(classes)
    x, heads, columns = inputs(train)
    grid = train_heads(x, targets, heads, columns, len(classes), seed)
    found = grid.answers(inputs(test)[0])  # m heads
    predicted = classes[found]
    right = (predicted == answers[:, None]).double().mean(0)
    best = int(right.where((found >= 0).all(0), -1).argmax())
    check_answered(found[:, best] >= 0)
    name = "linear-dinov2@paper"
    caution = (
        f"{name}: the best of {len(heads)} settings was chosen on the reported test images, as in the paper: the value "
        "is optimistic. linear-dinov2 chooses on held-out training images."
    )
    settings = _settings(heads, best, len(x)) | {"chosen_on": "test images"}
    return [Prediction(name, predicted[:, best], settings, caution)]


def inputs(parts: Parts) -> tuple[Float[Tensor, "n d"], list[Head], dict[tuple[int, bool], Tensor]]:
    """All vectors beside each other, the heads, and which columns a head of (layers, mean) sees."""
    depth = max(layer for layer, _ in parts)
    has_cls = (depth, "cls") in parts
    x = beside(parts, depth, LAST, mean=True)
    width = parts[depth, "mean"].shape[1]
    last = x.shape[1] - width * has_cls  # where the cls tokens end and the mean patch begins
    columns: dict[tuple[int, bool], Tensor] = {}
    for layers, mean in product((1, LAST), (False, True) if has_cls else (False,)):
        seen = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        seen[0 if layers > 1 else last - width : last] = True
        seen[last:] = mean
        columns[layers, mean] = seen
    return x, [Head(lr, layers, mean) for layers, mean in columns for lr in LRS], columns


@dataclass(frozen=True)
class Grid:
    """Trained heads."""

    weight: Tensor
    """ "d (h k)" """
    bias: Tensor
    """ "h k" """

    def logits(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n h k"]:
        return (x @ self.weight).unflatten(1, self.bias.shape) + self.bias

    def answers(self, x: Float[Tensor, "n d"]) -> Int64[Tensor, "n h"]:
        """The number of the most likely class; -1 by heads whose training diverged."""
        logits = self.logits(x)
        return logits.argmax(-1).where(logits.isfinite().all(-1), -1)

    def accuracies(self, x: Float[Tensor, "n d"], y: Int64[Tensor, " n"]) -> Float[Tensor, " h"]:
        right = [
            (self.answers(rows) == answers[:, None]).double().sum(0)
            for rows, answers in zip(x.split(1024), y.split(1024), strict=True)
        ]
        return torch.stack(right).sum(0) / len(x)


def train_heads(
    x: Float[Tensor, "n d"],
    y: Int64[Tensor, " n"],
    heads: list[Head],
    columns: dict[tuple[int, bool], Tensor],
    k: int,
    seed: int,
) -> Grid:
    """All heads trained on the same batches. A head's result does not depend on which others there are."""
    h = len(heads)
    seen = torch.stack([columns[head.layers, head.mean] for head in heads], 1).to(x)  # d h
    mask = seen.repeat_interleave(k, 1)  # d (h k)
    rates = x.new_tensor([head.lr for head in heads])
    start = torch.cat([_start(x.shape[1], k, head, seed) for head in heads], 1).to(x)
    weight, bias = start * mask, x.new_zeros(h, k)
    velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    grid = Grid(weight, bias)
    for epoch, rows in batches(len(x), SCHEDULE, torch.Generator().manual_seed(seed)):
        rows = rows.to(x.device)
        step = SCHEDULE.lr_at(epoch) * rates
        # the gradient of the mean cross-entropy by the logits, for all heads at once
        slope = grid.logits(x[rows]).softmax(-1)
        slope[torch.arange(len(rows), device=x.device), :, y[rows]] -= 1
        slope /= len(rows)
        velocity.mul_(MOMENTUM).addcmul_(x[rows].T @ slope.flatten(1), mask)
        bias_velocity.mul_(MOMENTUM).add_(slope.sum(0))
        weight.addcmul_(velocity, step.repeat_interleave(k), value=-1)
        bias.addcmul_(bias_velocity, step[:, None], value=-1)
    return grid


def _start(d: int, k: int, head: Head, seed: int) -> Float[Tensor, "d k"]:
    """Initial weights of a head, the same whichever others are trained with it."""
    rng = torch.Generator().manual_seed(
        (seed << 16) + 256 * head.layers + 64 * head.mean + LRS.index(head.lr)
    )
    return 0.01 * torch.randn(d, k, generator=rng)


def _settings(heads: list[Head], best: int, n: int) -> dict[str, Setting]:
    head = heads[best]
    return {
        "lr": head.lr,
        "layers": head.layers,
        "mean": head.mean,
        "heads": len(heads),
        "batch": SCHEDULE.batch_for(n),
        "steps": SCHEDULE.steps(n),
    }
