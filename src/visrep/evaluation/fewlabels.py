"""Few labels: ridge regression on frozen features of 1, 5, 10 and 50 images of each class, as in big_vision.

    W = (X'X + l2 I)⁻¹ X'Y        l2 = 2¹⁰

X: features standardised by the labelled images, and a constant of 100, which leaves the intercept almost free;
Y: 1 for the class of an image, -1 for the others. A closed form with nothing to tune: no image is held out. The
labelled images are drawn five times; the value is the mean over draws, its interval see `interval_over_draws`.

*Deviations*: 50 images of each class instead of 25, five draws instead of three, dimensions that are constant among
the labelled images left out instead of divided by 1e-5. `fewshot_ridge` is without them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from visrep.evaluation.draws import Amount, draw_labelled
from visrep.evaluation.linear import standardise
from visrep.evaluation.results import Prediction

SHOTS = (1, 5, 10, 50)
DRAWS = 5
L2 = 2.0**10
BIAS = 100.0
Scaling = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""both scaled alike, by what the first one says"""


def fewlabels(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    seed: int = 0,
    shots: tuple[int, ...] = SHOTS,
    draws: int = DRAWS,
) -> list[Prediction]:
    """One prediction, of all draws, for each number of images of a class; ``seed`` draws them.

    A number that the smallest class does not have is left out, and the first prediction says so.
    Raises ValueError when none is left.
    """
    return over_shots(
        "fewlabels", train, labels, test, seed=seed, shots=shots, draws=draws, scaling=standardise
    )


def over_shots(
    protocol: str,
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    seed: int,
    shots: tuple[int, ...],
    draws: int,
    scaling: Scaling,
) -> list[Prediction]:
    """`fewlabels` with any numbers of images, draws and scaling of features, under the name of a protocol."""
    classes, targets, counts = labels.unique(return_inverse=True, return_counts=True)
    smallest = int(counts.min())
    possible = [n for n in sorted(shots) if n <= smallest]
    if not possible:
        raise ValueError(
            f"{protocol} needs at least {min(shots)} images of each class to fit on; one class has {smallest}. "
            "Add images or leave the class out."
        )
    missing = ", ".join(f"n={n}" for n in sorted(shots) if n > smallest)
    left_out = (
        f"{protocol}: the smallest class has {smallest} images, {missing} is left out." if missing else ""
    )
    train, test = train.double(), test.double()
    predictions: list[Prediction] = []
    for n in possible:
        chosen = [draw_labelled(labels, Amount(each=n), seed=seed, draw=draw) for draw in range(draws)]
        predicted = [
            classes[ridge(train[rows], targets[rows], test, len(classes), scaling=scaling).argmax(-1)]
            for rows in chosen
        ]
        settings = {"n": n, "draws": draws, "l2": L2}
        caution = left_out if n == possible[0] else ""
        used = n * len(classes)
        predictions.append(Prediction(protocol, torch.stack(predicted), settings, caution, n_train=used))
    return predictions


def ridge(
    x: Float[Tensor, "n d"],
    y: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    k: int,
    l2: float = L2,
    *,
    scaling: Scaling = standardise,
) -> Float[Tensor, "m k"]:
    """Scores of the test images by the fit to ``x``; through the smaller of the two Gram matrices, which is exact."""
    x, test = (F.pad(part, (0, 1), value=BIAS) for part in scaling(x, test))
    y = 2 * F.one_hot(y, k).to(x) - 1

    def solve(gram: Tensor, right: Tensor) -> Tensor:
        return torch.linalg.solve(gram + l2 * torch.eye(len(gram)).to(gram), right)

    n, d = x.shape
    weight = solve(x.T @ x, x.T @ y) if n > d else x.T @ solve(x @ x.T, y)
    return test @ weight
