"""Every label-free measure there is, in the order of tables."""

from __future__ import annotations

from visrep.analysis.measures.base import Measure
from visrep.analysis.measures.clusters import CLID, CLUSTER_LEARNABILITY
from visrep.analysis.measures.coding import CODING_RATE
from visrep.analysis.measures.intrinsic import INTRINSIC_DIMENSION
from visrep.analysis.measures.lidar import LIDAR
from visrep.analysis.measures.power_law import ALPHA_REQ
from visrep.analysis.measures.prototypes import CODE_ENTROPY, PROTOTYPE_ENTROPY, PROTOTYPE_USE
from visrep.analysis.measures.spectral import NESUM, PARTICIPATION_RATIO, RANKME
from visrep.analysis.measures.sphere import ALIGNMENT, FEATURE_STD, UNIFORMITY
from visrep.analysis.measures.tokens import TOKEN_ENTROPY

MEASURES: tuple[Measure, ...] = (
    RANKME, LIDAR, ALPHA_REQ, PARTICIPATION_RATIO, NESUM, CODING_RATE, ALIGNMENT, UNIFORMITY, FEATURE_STD,
    INTRINSIC_DIMENSION, CLUSTER_LEARNABILITY, CLID, TOKEN_ENTROPY, PROTOTYPE_USE, PROTOTYPE_ENTROPY, CODE_ENTROPY,
)  # fmt: skip
ONLINE: tuple[Measure, ...] = (FEATURE_STD, UNIFORMITY, RANKME, ALIGNMENT)
"""measured while training, each measured epoch: the cheap ones that a verdict on health rests on"""


def measure(name: str) -> Measure:
    """The measure of this name. Raises ValueError with the names there are."""
    found = {known.name: known for known in MEASURES}
    if name not in found:
        raise ValueError(f"There is no measure {name!r}. Available: {', '.join(found)}.")
    return found[name]


def selector(name: str) -> Measure:
    """A measure that can choose between encoders. Raises ValueError with those that can."""
    able = [known.name for known in MEASURES if known.better and known.needs != "codes"]
    if name not in able:
        raise ValueError(f"--select {name}: choose by one of {', '.join(able)}.")
    return measure(name)
