"""A budget that every method of a comparison gets: so many seconds of training, or so many images seen."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from visrep.evaluation.effort import duration

SHARE = 0.95
"""of a budget of seconds that is planned for: the rest is for a machine that slows down"""
WARM_UP = 4
"""first steps, which pay for starting up and are not timed"""
LEAST_BARE = 1000
"""the least number of images that may stand without the word"""

_NUMBER = r"(\d+(?:\.\d+)?)"
_IMAGES = re.compile(rf"{_NUMBER}([kK]?)(?:images)?")
_TIME = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m(?:in)?)?(?:{_NUMBER}s)?")


@dataclass(frozen=True)
class Budget:
    """What each method may spend."""

    unit: Literal["seconds", "images"]
    amount: float

    def __str__(self) -> str:
        if self.unit == "images":
            return f"{self.amount:,.0f} images each"
        return f"{duration(self.amount)} each"


def parse_budget(text: str) -> Budget:
    """``90s``, ``30m``, ``2h``, ``1h30m``: seconds; ``500000``, ``500k``, ``500 images``: images.

    Neither is a capital M, minutes to some and a million to others, nor a small bare number, for the same reason.
    Raises ValueError with what is possible.
    """
    compact = re.sub(r"[\s,_]", "", text)
    if found := _IMAGES.fullmatch(compact):
        if compact.isdigit() and int(compact) < LEAST_BARE:
            raise ValueError(f"--budget {text}: minutes or images? Write {text}m or '{text} images'.")
        budget = Budget("images", float(found[1]) * (1000 if found[2] else 1))
    elif compact and (found := _TIME.fullmatch(compact)):
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
        budget = Budget("seconds", 3600 * hours + 60 * minutes + seconds)
    else:
        budget = Budget("seconds", 0)
    if budget.amount <= 0:
        raise ValueError(
            f"{text!r} is no budget. Give every method a time, as 90s, 30m, 2h or 1h30m, or a number of images "
            "to see, as 500000 or 500k."
        )
    return budget


@dataclass(frozen=True)
class Timing:
    """What a method's own steps cost, in seconds, measured on a few of them in the real training loop."""

    step: float
    start: float
    """once: what the first steps take longer"""
    epoch: float
    """at the beginning of each epoch, for methods that look at all images then"""
    measure: float
    """each time that the representation is measured and a checkpoint written"""
    steps: int
    """how many were timed"""

    def seconds(self, steps: int, *, steps_per_epoch: int, monitor_epochs: float) -> float:
        """How long a run of so many steps will take."""
        return self.start + steps * self._each(steps_per_epoch, monitor_epochs)

    def steps_within(self, seconds: float, *, steps_per_epoch: int, monitor_epochs: float) -> int:
        """The most steps that a run can take in `SHARE` of this time; 0 when there is time for none."""
        left = SHARE * seconds - self.start
        return max(0, math.floor(left / self._each(steps_per_epoch, monitor_epochs)))

    def _each(self, steps_per_epoch: int, monitor_epochs: float) -> float:
        measured = self.measure / (monitor_epochs * steps_per_epoch) if monitor_epochs else 0.0
        return self.step + self.epoch / steps_per_epoch + measured


def read_timing(
    steps: Sequence[Mapping[str, Any]], measured_at: int, *, steps_per_epoch: int, looks_ahead: bool
) -> Timing:
    """The timing that the "step" records of a short run hold, which measured after step ``measured_at``.

    ``looks_ahead``: the method sees all images before each epoch.
    """
    before = [record for record in steps if WARM_UP <= record["step"] <= measured_at]
    after = [record for record in steps if record["step"] > measured_at]

    def passed(records: Sequence[Mapping[str, Any]], key: str) -> float:
        return records[-1][key] - records[0][key]

    timed = passed(before, "step") + passed(after, "step")
    step = (passed(before, "seconds") + passed(after, "seconds")) / timed
    measure = passed([before[-1], after[0]], "seconds") - step * passed([before[-1], after[0]], "step")
    start = max(0.0, before[0]["seconds"] - step * before[0]["step"])
    # Beyond the first epoch the steps' own time holds what each epoch's beginning takes.
    per_epoch = looks_ahead and steps[-1]["step"] <= steps_per_epoch
    return Timing(
        step=step,
        start=0.0 if per_epoch else start,
        epoch=start if per_epoch else 0.0,
        measure=max(0.0, measure),
        steps=int(timed),
    )
