"""Logistic regression of DINOv2 (arXiv:2304.07193, eval/log_regression.py): 45 values of C, on features as they are.

    minimise over W, b   mean cross-entropy(x W + b, y) + |W|² / (2 C n)        C = 10^-6 ... 10^5, evenly in log C

C is chosen on a tenth of the training images, drawn at random, the smallest among equals; then all of them are used.
The grid is that of Ericsson et al. (arXiv:2011.13377) too, who hold out a fifth. Features are neither centred nor
scaled, in double precision. `linear` is the same objective on standardised features, with fewer values of C.

*Deviation*: solved by `linear`'s L-BFGS to a gradient of 1e-8 (1e-6 while C is chosen), in place of cuML's to 1e-12.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from visrep.evaluation.linear import LogisticRegression, fit, in_their_span
from visrep.evaluation.probe_training import check_two_classes
from visrep.evaluation.results import Prediction

CS = tuple(10 ** (-6 + 11 * step / 44) for step in range(45))
HELD_OUT = 10
"""one image of so many"""


def logreg(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """One prediction, with the C of highest held-out accuracy; ``seed`` draws the held-out images.

    Raises ValueError when there is only one class.
    """
    classes, targets = labels.unique(return_inverse=True)
    check_two_classes(classes)
    train, test, k = train.double(), test.double(), len(classes)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).to(train.device)
    held_out, fitted = order.tensor_split([max(1, len(train) // HELD_OUT)])
    c, accuracy = choose(train[fitted], targets[fitted], train[held_out], targets[held_out], k)
    x, x_test = in_their_span(train, test)
    probe = fit(x, targets, k, c, tolerance=1e-8)
    settings = {
        "C": c,
        "held_out": len(held_out),
        "held_out_top1": 100 * accuracy,
        "converged": probe.converged,
    }
    caution = "" if probe.converged else f"logreg: no optimum for C={c:g}; the value may be off."
    return [Prediction("logreg", classes[probe.logits(x_test).argmax(-1)], settings, caution)]


def choose(x: Tensor, y: Tensor, x_held_out: Tensor, y_held_out: Tensor, k: int) -> tuple[float, float]:
    """C with the best held-out accuracy, the smallest among equals, and that accuracy."""
    x, x_held_out = in_their_span(x, x_held_out)
    gram = x.T @ x / len(x)
    probe: LogisticRegression | None = None
    accuracies: dict[float, float] = {}
    for c in CS:  # each fit starts from the one before
        probe = fit(x, y, k, c, start=probe, gram=gram, tolerance=1e-6)
        accuracies[c] = float((probe.logits(x_held_out).argmax(-1) == y_held_out).double().mean())
    best = max(CS, key=lambda c: (accuracies[c], -c))
    return best, accuracies[best]
