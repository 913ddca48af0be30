"""Several data sets, one number: a suite in the style of VTAB-1k (arXiv:1910.04867).

Of each data set 1,000 training images are kept, the first of every class in their proportion; protocols that choose a
setting hold out a fifth of them, so that 800 are fitted on and 200 choose, and then all of them are used. All test
images are judged (a cap can be set). The suite's number is the plain mean over the data sets, as VTAB's. Its interval
joins those of the data sets, which are independent: half width sqrt(sum of squares) / number. It covers the choice of
test images, and not that of data sets: another choice of these may turn an order round.

*Deviations*: VTAB fine-tunes the whole network with two learning rates and two lengths, which ``finetune`` does here in
its own way; the default is a linear probe. VTAB's 19 data sets are not brought along: the suite is of those given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from visrep.evaluation.evaluate import Evaluation
from visrep.evaluation.results import Judged, Result, from_headline

TRAIN = 1000
"""training images of each data set: 800 to fit on, 200 to choose settings with"""
WHO: tuple[Judged, ...] = ("trained", "untrained", "pixels")


@dataclass(frozen=True)
class Mean:
    """Of one protocol and encoder over data sets, in percent with a 95 % interval over their test images."""

    protocol: str
    metric: str
    encoder: Judged
    value: float
    ci_low: float
    ci_high: float
    tasks: int


@dataclass(frozen=True)
class Suite:
    """One encoder on several data sets."""

    evaluations: dict[str, Evaluation]
    """by name of the data set"""
    means: list[Mean]
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON values, as suite.json holds them."""
        tasks = {name: evaluation.to_json() for name, evaluation in self.evaluations.items()}
        return {"means": [asdict(mean) for mean in self.means], "warnings": self.warnings, "tasks": tasks}


def run_suite(names: Sequence[str], evaluate_one: Callable[[str], Evaluation]) -> Suite:
    """Judge on one data set after the other; ``evaluate_one`` is called with each name.

    Raises ValueError for fewer than two data sets, or one given twice.
    """
    if len(names) < 2:
        raise ValueError(
            "a suite is of at least 2 data sets. For one, use: visrep evaluate ENCODER --data FOLDER."
        )
    if twice := next((name for name in names if list(names).count(name) > 1), ""):
        raise ValueError(f"{twice} was given twice, which would count it twice in the mean. Give it once.")
    evaluations = {name: evaluate_one(name) for name in names}
    warnings = [f"{name}: {text}" for name, one in evaluations.items() for text in one.warnings]
    return Suite(evaluations, means(evaluations), warnings)


def headline(evaluation: Evaluation, protocol: str, encoder: Judged) -> Result | None:
    """The result that stands for a protocol: of the last layer, first pooling, usual number of neighbours or labels."""
    mine = [r for r in evaluation.results if (r.protocol, r.encoder) == (protocol, encoder)]
    return min(mine, key=lambda r: (-r.layer, from_headline(r.settings)), default=None)


def means(evaluations: Mapping[str, Evaluation]) -> list[Mean]:
    """For each protocol and encoder that every data set has a number of, and of the same metric."""
    found = []
    first = next(iter(evaluations.values()))
    for protocol in dict.fromkeys(result.protocol for result in first.results):
        for who in WHO:
            results = [headline(one, protocol, who) for one in evaluations.values()]
            known = [result for result in results if result is not None]
            if len(known) == len(results) and len({result.metric for result in known}) == 1:
                found.append(mean_of(known))
    return found


def mean_of(results: Sequence[Result]) -> Mean:
    """Of results on different data sets. Raises ValueError when there is none."""
    if not results:
        raise ValueError("a mean of no results does not exist. Give at least one data set.")
    value = float(np.mean([result.value for result in results]))
    below = _joined([result.value - result.ci_low for result in results])
    above = _joined([result.ci_high - result.value for result in results])
    one = results[0]
    return Mean(one.protocol, one.metric, one.encoder, value, value - below, value + above, len(results))


def _joined(widths: Sequence[float]) -> float:
    """Half width of the mean's interval, from those of independent parts."""
    return float(np.sqrt(np.square(widths).sum())) / len(widths)
