"""RankMe, participation ratio and NESum as measures; the functions are in `visrep.analysis.spectra`."""

from __future__ import annotations

from visrep.analysis.measures.base import Measure
from visrep.analysis.spectra import nesum, participation_ratio, rankme

RANKME = Measure(
    name="rankme",
    title="RankMe",
    variant="entropy of singular values (not eigenvalues), not centred, eps 1e-7, not renormalised",
    compares="Was proposed to choose between runs and checkpoints of one method with the same images, width and layer "
    "(arXiv:2210.02885); it does not rank methods or widths, and grows with the number of images.",
    better="higher",
    of=rankme,
    over_width=True,
)
PARTICIPATION_RATIO = Measure(
    name="participation-ratio",
    title="participation ratio",
    variant="squared sum over sum of squares of the variances, centred covariance",
    compares="Compares how evenly encoders of one width spread their variance on the same images; ruled by the "
    "strongest axes, so a long tail of useful weak ones does not show.",
    better="higher",
    of=participation_ratio,
    over_width=True,
)
NESUM = Measure(
    name="nesum",
    title="NESum",
    variant="sum of the variances over the largest, centred covariance (the stable rank)",
    compares="Compares how far one axis outweighs the others in encoders of one width on the same images; it knows "
    "nothing of how the rest is shared.",
    better="higher",
    of=nesum,
    over_width=True,
)
