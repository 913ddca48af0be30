"""Schedules are values: frozen dataclasses called with `At`, nothing to step, save or replay."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace

from visrep.method import At


@dataclass(frozen=True)
class Constant:
    """The same value throughout."""

    value: float

    def __call__(self, at: At) -> float:
        return self.value


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``start`` at the first step towards ``end``, which it would reach at step ``total``.

    Equal to the official DINO ``cosine_scheduler``.
    """

    start: float
    end: float

    def __call__(self, at: At) -> float:
        return self.end + 0.5 * (self.start - self.end) * (1 + math.cos(math.pi * at.progress))


@dataclass(frozen=True)
class Ramp:
    """A straight line from ``start`` to ``end`` over the first ``epochs`` epochs, then ``end``."""

    start: float
    end: float
    epochs: float

    def __call__(self, at: At) -> float:
        share = min(1.0, at.epoch / self.epochs) if self.epochs > 0 else 1.0
        return self.start + (self.end - self.start) * share


@dataclass(frozen=True)
class Line:
    """A straight line from ``start`` at the first step towards ``end``, which it would reach at step ``total``."""

    start: float
    end: float

    def __call__(self, at: At) -> float:
        return self.start + (self.end - self.start) * at.progress


@dataclass(frozen=True)
class Step:
    """``values[i]`` from epoch ``at_epochs[i - 1]`` on; one more value than milestones."""

    values: tuple[float, ...]
    at_epochs: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.at_epochs) + 1:
            raise ValueError(
                f"Step needs one more value than milestones, got {len(self.values)} values and "
                f"{len(self.at_epochs)} milestones. Give {len(self.at_epochs) + 1} values."
            )

    def __call__(self, at: At) -> float:
        return self.values[sum(at.epoch >= epoch for epoch in self.at_epochs)]


@dataclass(frozen=True)
class Warmup:
    """A line from ``start`` to where ``then`` begins over ``epochs``, then ``then`` over what is left.

    The last warm-up step already has the full value, as in the official DINO ``cosine_scheduler``. A warm-up
    longer than half the run is shortened to half of it, so that short trials also leave the ground.
    """

    epochs: float
    then: Constant | Cosine | Ramp | Line | Step
    start: float = 0.0

    def __call__(self, at: At) -> float:
        warm = min(round(self.epochs * at.steps_per_epoch), at.total // 2)
        if at.step >= warm:
            return self.then(replace(at, step=at.step - warm, total=at.total - warm))
        peak = self.then(replace(at, step=0))
        return self.start + (peak - self.start) * at.step / max(1, warm - 1)


@dataclass(frozen=True)
class Stages:
    """``then`` from its start to its end in each of ``n`` stages, see `stage`."""

    n: int
    then: Constant | Cosine | Ramp | Line | Step | Warmup

    def __call__(self, at: At) -> float:
        return self.then(stage(at, self.n))


def stage(at: At, n: int) -> At:
    """This moment as one of a run that is only its stage, when a run is cut into ``n`` stages of whole epochs.

    Raises ValueError when there are not enough epochs.
    """
    epochs = at.total / at.steps_per_epoch
    if not 1 <= n <= max(1, epochs):
        raise ValueError(
            f"{n} stages need {n} epochs or more and the run has {epochs:.3g}. Use fewer stages (1 at least) or give "
            f"--epochs {max(1, n)}."
        )
    starts = [round(i * epochs / n) * at.steps_per_epoch for i in range(n)]
    i = bisect_right(starts, at.step) - 1
    end = starts[i + 1] if i + 1 < n else at.total
    return replace(at, step=at.step - starts[i], total=end - starts[i])


Schedule = Constant | Cosine | Ramp | Line | Step | Warmup | Stages
