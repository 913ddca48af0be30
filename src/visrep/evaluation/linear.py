"""Linear probe: multinomial logistic regression on frozen features, solved to convergence by L-BFGS.

    minimise over W, b   mean cross-entropy(x W + b, y) + |W|² / (2 C n)

which is scikit-learn's objective (the intercept is free). Features are standardised by the statistics of the
training images. C is chosen on a held-out part of the *training* images (as in DINOv2's logistic regression),
then all of them are used. A convex problem with one answer: no learning rate, no epochs, no seed in the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from visrep.evaluation.holdout import hold_out
from visrep.evaluation.results import Prediction

CS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1, 1e2)
"""tried in this order, strongest regularisation first; then half a decade to either side of the best"""
PATIENCE = 2
"""values of C without a better held-out accuracy before the larger ones are left out. At chance all are tried: there
small ones say nothing about large ones, as what tells the classes apart may vary little"""
MAX_ITERATIONS = 500


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted probe."""

    weight: Tensor
    """ "d k" """
    bias: Tensor
    """ "k" """
    converged: bool
    """False when the iterations ran out first"""

    def logits(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return x @ self.weight + self.bias


def linear(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    seed: int = 0,
    cs: tuple[float, ...] = CS,
) -> list[Prediction]:
    """One prediction, with the C of highest held-out accuracy (the strongest regularisation among equals).

    ``cs`` are tried from the smallest on, as long as larger ones help, then half a decade around the best.
    ``seed`` draws the held-out images (see `hold_out`).
    Raises ValueError when there is only one class.
    """
    classes, targets = labels.unique(return_inverse=True)
    fitted, held_out = hold_out(labels, seed)
    x, x_held_out = in_their_span(*standardise(train[fitted], train[held_out]))
    c, accuracy = _choose(x, targets[fitted], x_held_out, targets[held_out], len(classes), tuple(sorted(cs)))
    x, x_test = in_their_span(*standardise(train, test))
    probe = fit(x, targets, len(classes), c)
    predicted = classes[probe.logits(x_test).argmax(-1)]
    settings = {
        "C": c,
        "held_out": len(held_out),
        "held_out_top1": 100 * accuracy,
        "converged": probe.converged,
    }
    return [Prediction("linear", predicted, settings, caution=_caution(c, cs, probe.converged))]


def standardise(
    train: Float[Tensor, "n d"], test: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Both, with the mean and standard deviation of the first. Constant dimensions become 0."""
    mean, std = train.mean(0), train.std(0, correction=0)
    # rounding leaves a constant column a std of 1e-7 of its value: dividing by that would make noise of it
    varies = std > 1e-6 * mean.abs().clamp_min(torch.finfo(std.dtype).tiny)
    scale = torch.where(varies, 1 / std, 0)
    return (train - mean) * scale, (test - mean) * scale


def in_their_span(
    train: Float[Tensor, "n d"], test: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n r"], Float[Tensor, "m r"]]:
    """Both in an orthonormal basis of the training rows when these are few (n <= d / 2), else as they are.

    Exact: weights that minimise the objective are combinations of training rows (the representer theorem).
    """
    if 2 * len(train) > train.shape[1]:
        return train, test
    basis, _ = torch.linalg.qr(train.T)  # d n
    return train @ basis, test @ basis


def fit(
    x: Float[Tensor, "n d"],
    y: Int64[Tensor, " n"],
    k: int,
    c: float,
    *,
    start: LogisticRegression | None = None,
    gram: Float[Tensor, "d d"] | None = None,
    tolerance: float = 1e-5,
) -> LogisticRegression:
    """Logistic regression for one C, in the precision of ``x``.

    L-BFGS runs in coordinates V = L'W, where LL' is the curvature of the objective at uniform probabilities,
    x'x / (n k) + 1 / (C n): on correlated features this takes a quarter of the iterations. ``start`` is a
    solution nearby and ``gram`` is x'x / n when already known; both save time only. ``tolerance`` is for the
    gradient.
    """
    n, d = x.shape
    decay = 1 / (c * n)
    curvature = (x.T @ x / n if gram is None else gram) / k
    # more than rounding: keeps the factorisation possible when features are linearly dependent
    curvature = curvature + torch.eye(d, dtype=x.dtype, device=x.device) * (
        decay + 10 * torch.finfo(x.dtype).eps * curvature.diagonal().sum()
    )
    upper = torch.linalg.cholesky(curvature, upper=True)
    v = x.new_zeros(d, k) if start is None else upper @ start.weight
    bias = x.new_zeros(k) if start is None else start.bias.clone()
    parameters = [v.requires_grad_(), bias.requires_grad_()]
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=MAX_ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=0.01 * torch.finfo(x.dtype).eps,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimiser.zero_grad()
        weight = torch.linalg.solve_triangular(upper, v, upper=True)
        loss = F.cross_entropy(x @ weight + bias, y) + decay / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(objective)
    iterations = optimiser.state[v]["n_iter"]
    weight = torch.linalg.solve_triangular(upper, v.detach(), upper=True)
    return LogisticRegression(weight, bias.detach(), converged=iterations < MAX_ITERATIONS)


def _choose(
    x: Tensor, y: Tensor, x_held_out: Tensor, y_held_out: Tensor, k: int, cs: tuple[float, ...]
) -> tuple[float, float]:
    """C with the best held-out accuracy, and that accuracy. Each fit starts from the one before."""
    gram = x.T @ x / len(x)
    chance = float(y_held_out.bincount().max()) / len(y_held_out)
    chance += 2 * (chance * (1 - chance) / len(y_held_out)) ** 0.5
    accuracies: dict[float, float] = {}
    fits: dict[float, LogisticRegression] = {}

    def attempt(c: float, start: float | None) -> None:
        known = None if start is None else fits[start]
        fits[c] = fit(x, y, k, c, start=known, gram=gram, tolerance=1e-4)  # ample for an accuracy
        accuracies[c] = float((fits[c].logits(x_held_out).argmax(-1) == y_held_out).double().mean())

    def best() -> float:
        return max(accuracies, key=lambda c: (accuracies[c], -c))

    previous = None
    for tried, c in enumerate(cs):
        attempt(c, previous)
        previous = c
        if tried - cs.index(best()) >= PATIENCE and accuracies[best()] > chance:
            break
    middle = best()
    for c in (middle * 10**-0.5, middle * 10**0.5):
        attempt(c, middle)
    return best(), accuracies[best()]


def _caution(c: float, cs: tuple[float, ...], converged: bool) -> str:
    if not converged:
        return f"linear: no optimum within {MAX_ITERATIONS} iterations for C={c:g}; the value may be off."
    if c > max(cs):
        return (
            f"linear: the best C is the largest that was tried, {c:g}; less regularisation might do better."
        )
    return ""
