"""alpha-ReQ: how fast the variance falls from one principal axis to the next."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.measures.base import Measure
from visrep.analysis.spectra import spectrum

FIRST, LAST = 10, 100
"""axes left out at the head, and the last one of the fit"""
NOTHING = 1e-12
"""share of the largest variance below which an axis is numerically empty"""


def alpha_req(z: Float[Tensor, "n d"], first: int = FIRST, last: int = LAST) -> float:
    """alpha-ReQ (Agrawal et al., NeurIPS 2022): the exponent of variance_i ~ i^-alpha, by least squares on logarithms.

    Fitted on axes ``first + 1`` to ``last`` of the centred covariance, or to its end where there are fewer; the
    value depends on that range (1.03 over all 256 axes of the reference draw, 1.00 on these).
    About 1 was found best; far above, few directions hold everything; far below, the features are close to noise.
    Raises ValueError with fewer than 5 axes in the range that hold any variance.
    """
    variances = spectrum(z)
    filled = int((variances > NOTHING * variances[0]).sum())
    last = min(last, filled)
    if last - first < 5:
        raise ValueError(
            f"{filled} axes hold variance; a slope over axes {first + 1} and on needs {first + 5} or more."
        )
    index = torch.arange(first + 1, last + 1, dtype=variances.dtype, device=variances.device).log()
    index = index - index.mean()
    return float(-(index * variances[first:last].log()).sum() / index.square().sum())


ALPHA_REQ = Measure(
    name="alpha-req",
    title="alpha-ReQ",
    variant="least squares on log variance against log axis, centred covariance, axes 11 to 100",
    compares="Compares shapes of spectra of encoders of one width on the same images, fitted on the same axes; it "
    "says nothing of what the axes hold, and the best value of about 1 is an observation, not a law.",
    better="near 1",
    of=alpha_req,
    over_width=True,
)
