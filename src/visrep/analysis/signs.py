"""The few numbers of a run's metrics that a verdict on its health rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

Record = Mapping[str, Any]
NEIGHBOURS = 20
"""of the kNN whose accuracy is compared: those of the monitor"""


@dataclass(frozen=True)
class Gain:
    """Two kNN accuracies, in percent, each measured on so many images."""

    start: float
    end: float
    queries: int

    @property
    def noise(self) -> float:
        """Twice the standard error of the difference, in points."""
        share = self.end / 100
        return 200 * math.sqrt(2 * share * (1 - share) / max(1, self.queries))

    @property
    def points(self) -> float:
        """What was gained, 0 within the noise."""
        gain = self.end - self.start
        return gain if abs(gain) > self.noise else 0.0


@dataclass(frozen=True)
class Signs:
    """Losses smoothed by medians, monitors made comparable between widths. What is not logged is empty."""

    step: int
    """the last step on record"""
    start: float
    """loss over the first records"""
    best: float
    """lowest smoothed loss so far"""
    loss: float
    """loss over the last records; the last one itself when that is not finite"""
    fall: float
    """how far the loss fell, in standard errors of its wobble from record to record; infinite where that is none"""
    peak_lr: float
    """highest learning rate so far; NaN when none is logged"""
    warming: bool
    """whether the learning rate is still on its first rise"""
    tau_teacher: float
    """temperature of the teacher now; NaN when the method has none"""
    spread: tuple[float, ...]
    """feature_std * sqrt(width), one a monitored epoch: 1 is even on the sphere, 0 is one vector for all"""
    rank: tuple[float, ...]
    """rankme / min(images, width), one a monitored epoch"""
    rankme: float
    """the last one, in directions; NaN when not logged"""
    directions: int
    """min(images, width): the most that rankme could be"""
    knn: tuple[float, ...]
    """online kNN accuracy in percent, one a monitored epoch"""
    queries: int
    """how many images that kNN was measured on; of older runs, a fifth of those monitored"""
    judged: Gain | None
    """kNN of fresh weights and of the encoder in evaluation.json; None where either is missing"""
    entropy: tuple[float, ...]
    """of the teacher's output divided by log k, one a step record"""
    kl: float
    """of the student from the teacher in nats, over the last records; infinite when not logged"""
    projected: float
    """spread of what the loss compares (projection_std) over the last records, as a share of its highest; NaN when
    not logged"""
    in_use: float
    """entropy of the teacher's mean output divided by log k, over the last records: near 0 when all images share
    one prototype; NaN when not logged"""
    told_apart: float
    """``in_use`` minus the teacher's entropy: what its output tells of the image, as a share of log k; NaN when
    not logged"""
    guessing: float
    """loss of a student of prototypes that knows nothing, log k; infinite where that cannot be told"""

    @property
    def scale(self) -> float:
        """What a change of the loss is measured against: its size at the start, or its fall so far."""
        return max(abs(self.start), self.start - self.best, 1e-8)

    @property
    def knn_gain(self) -> float:
        """Points of kNN accuracy gained since the first measurement, 0 within twice the error of a difference."""
        return self._monitored.points

    @property
    def knn_noise(self) -> float:
        """Twice the standard error of the difference of two kNN accuracies, in points."""
        return self._monitored.noise

    @property
    def judged_gain(self) -> float:
        """The same of the evaluation: points over fresh weights, 0 within the error or without evaluation."""
        return 0.0 if self.judged is None else self.judged.points

    @property
    def _monitored(self) -> Gain:
        return Gain(self.knn[0], self.knn[-1], self.queries) if self.knn else Gain(0.0, 0.0, 0)

    @property
    def entropy_stays_above(self) -> float:
        """Lowest teacher entropy over the last fifth of the run; 0 when not logged."""
        return min(self.entropy[-max(1, len(self.entropy) // 5) :]) if self.entropy else 0.0


def _logged(steps: Sequence[Record], name: str) -> list[float]:
    return [float(record["monitor"][name]) for record in steps if name in record["monitor"]]


def _guessing(steps: Sequence[Record]) -> float:
    """log k from loss = teacher's entropy + divergence of the student, at the most uncertain teacher."""
    names = {"teacher_entropy", "teacher_student_kl"}
    taught = [record for record in steps if names <= record["monitor"].keys()]
    if not taught:
        return math.inf
    blurred = max(taught, key=lambda record: record["monitor"]["teacher_entropy"])
    entropy = float(blurred["monitor"]["teacher_entropy"])
    if entropy < 0.1:
        return math.inf
    return (float(blurred["loss"]) - float(blurred["monitor"]["teacher_student_kl"])) / entropy


def _fall(losses: Sequence[float], window: int) -> float:
    """From the first records to the lowest median of a later part, in standard errors; parts are windows or thirds.

    The median change between neighbours, less the trend, is 0.954 standard deviations of independent normal numbers;
    the error of a median of n of them is 1.253 of their standard deviations over the root of n.
    """
    changes = [now - before for before, now in pairwise(losses)]
    trend = median(changes) if changes else 0.0
    wobble = median(abs(change - trend) for change in changes) / 0.954 if changes else 0.0
    falls = []
    for part, first in ((window, min(window, 10)), (max(1, len(losses) // 3),) * 2):
        lowest = min(median(losses[i : i + part]) for i in range(0, len(losses) - part + 1, part))
        error = 1.253 * wobble * math.sqrt(1 / part + 1 / first)
        fell = median(losses[:first]) - lowest
        falls.append(fell / error if error else math.copysign(math.inf, fell) if fell else 0.0)
    return max(falls)


def _judged(evaluation: Record) -> Gain | None:
    """kNN of the untrained twin and of the trained encoder, of its last layer."""
    found = [
        result
        for result in evaluation.get("results", ())
        if result["protocol"] == "knn" and result["settings"].get("k") == NEIGHBOURS
    ]
    trained = [result for result in found if result["encoder"] == "trained"]
    if not trained:
        return None
    last = max(trained, key=lambda result: result["layer"])
    place = last["layer"], last["pooling"]
    twins = [r for r in found if r["encoder"] == "untrained" and (r["layer"], r["pooling"]) == place]
    return Gain(float(twins[0]["value"]), float(last["value"]), int(last["n_test"])) if twins else None


def read_signs(steps: Sequence[Record], epochs: Sequence[Record], evaluation: Record | None = None) -> Signs:
    """Condense ``step`` records (at least one) and ``epoch`` records, oldest first, and an evaluation.json."""
    losses = [float(record["loss"]) for record in steps]
    finite = [loss for loss in losses if math.isfinite(loss)] or [math.nan]
    window = max(1, min(len(finite) // 10, 100))
    smooth = [median(finite[i : i + window]) for i in range(0, len(finite) - window + 1, window)]
    rates = [float(r["schedules"]["lr"]) for r in steps if "lr" in r["schedules"]]
    taus = [float(r["schedules"]["tau_teacher"]) for r in steps if "tau_teacher" in r["schedules"]]
    entropy, kls = _logged(steps, "teacher_entropy"), _logged(steps, "teacher_student_kl")
    used, projections = _logged(steps, "prototype_entropy"), _logged(steps, "projection_std")
    monitors = [record["monitors"] for record in epochs]
    ranked = [m for m in monitors if "rankme" in m]
    return Signs(
        step=int(steps[-1]["step"]),
        # few records: the loss often falls fastest in the first steps
        start=median(finite[: min(window, 10)]),
        best=min(smooth),
        fall=_fall(finite, window),
        loss=median(finite[-window:]) if math.isfinite(losses[-1]) else losses[-1],
        peak_lr=max(rates, default=math.nan),
        warming=len(rates) > 1 and rates[-1] == max(rates) > rates[-2],
        tau_teacher=taus[-1] if taus else math.nan,
        spread=tuple(m["feature_std"] * math.sqrt(m["width"]) for m in monitors if "feature_std" in m),
        rank=tuple(m["rankme"] / min(m["images"], m["width"]) for m in ranked),
        rankme=float(ranked[-1]["rankme"]) if ranked else math.nan,
        directions=int(min(ranked[-1]["images"], ranked[-1]["width"])) if ranked else 0,
        queries=int(monitors[-1].get("queries", monitors[-1]["images"] // 4)) if monitors else 0,
        judged=_judged(evaluation or {}),
        knn=tuple(float(m["knn"]) for m in monitors if "knn" in m),
        entropy=tuple(entropy),
        kl=median(kls[-window:]) if kls else math.inf,
        projected=median(projections[-window:]) / max(*projections, 1e-12) if projections else math.nan,
        in_use=median(used[-window:]) if used else math.nan,
        told_apart=median(used[-window:]) - median(entropy[-window:]) if used and entropy else math.nan,
        guessing=_guessing(steps),
    )
