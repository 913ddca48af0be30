"""Few-shot ridge regression as in big_vision (evaluators/fewshot_lsr.py): 1, 5, 10, 25 images a class, three draws.

    W = (X'X + l2 I)⁻¹ X'Y        l2 = 2¹⁰

X: features less the mean of the labelled images, divided by their deviation plus 1e-5, and a constant of 100; Y: 1 for
the class of an image, -1 for the others. A closed form with nothing to tune. `fewlabels` is the same with more images
and draws. The value is the mean over draws, its interval see `interval_over_draws`.

*Deviation*: a number of images that the smallest class does not have is left out, and the result says so.
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor

from visrep.evaluation.fewlabels import over_shots
from visrep.evaluation.results import Prediction

SHOTS = (1, 5, 10, 25)
DRAWS = 3
EPS = 1e-5
"""added to deviations"""


def fewshot_ridge(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """One prediction, of all draws, for each number of images of a class; ``seed`` draws them."""
    return over_shots(
        "fewshot-ridge", train, labels, test, seed=seed, shots=SHOTS, draws=DRAWS, scaling=whiten
    )


def whiten(
    train: Float[Tensor, "n d"], test: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Both, with the mean and the deviation, plus 1e-5, of the first."""
    mean, scale = train.mean(0), train.std(0, correction=0) + EPS
    return (train - mean) / scale, (test - mean) / scale
