"""Coding rate: the volume that the directions of the features fill."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.measures.base import Measure
from visrep.analysis.spectra import checked
from visrep.functional import coding_rate as coding_rate_of_loss

EPS = 0.5
"""squared error of the code"""


def coding_rate(z: Float[Tensor, "n d"], eps: float = EPS) -> float:
    """Coding rate (arXiv:2006.08558) of rows of length 1: log det(I + d / (n eps) z' z) / 2, in nats, uncentred.

    Between about log(1 + d / eps) / 2 when all rows are one vector and d log(1 + 1 / eps) / 2 when they fill all
    directions evenly.
    Raises ValueError for fewer than two rows or values that are not finite.
    """
    return float(coding_rate_of_loss(F.normalize(checked(z), dim=-1), eps))


CODING_RATE = Measure(
    name="coding-rate",
    title="coding rate",
    variant="rows of length 1, uncentred, squared error 0.5, nats",
    compares="Compares encoders of one width on the same number of the same images; its ceiling grows with the "
    "width, and like every spread it rewards noise as much as content.",
    better="higher",
    of=coding_rate,
    over_width=True,
)
