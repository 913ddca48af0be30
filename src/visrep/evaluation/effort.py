"""What training an encoder took: images seen, epochs, seconds, and how it ended, read from its run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visrep.analysis.health import diagnose
from visrep.analysis.record import RunRecord


@dataclass(frozen=True)
class Effort:
    """One run in a line."""

    path: str
    method: str
    preset: str
    data: str
    batch: int
    steps: int
    epochs: float
    images: int
    """seen, whatever the number of views of each: steps times batch"""
    seconds: float
    """from the first step to the last, with the measuring in between, without what a kill threw away"""
    state: str
    """the verdict of `diagnose`"""
    evidence: str


def effort(record: RunRecord) -> Effort:
    """What a run has on record; zeros where it has no metrics."""
    run, last = record.about["run"], record.steps[-1] if record.steps else {"step": 0, "epoch": 0.0}
    verdict = diagnose(record.steps, record.epochs, record.from_fresh_weights)
    return Effort(
        path=str(record.path),
        method=record.about["method"],
        preset=record.about["preset"],
        data=run["data"],
        batch=run["batch"],
        steps=last["step"],
        epochs=last["epoch"],
        images=last["step"] * run["batch"],
        seconds=_seconds(record.steps, run["batch"]),
        state=verdict.state,
        evidence=verdict.evidence,
    )


def _seconds(steps: Sequence[Mapping[str, Any]], batch: int) -> float:
    """The clock of a resumed run begins again at zero, but every record has its own images and rate."""
    images = [batch * record["step"] for record in steps]
    seen = (now - before for before, now in zip([0, *images], images, strict=False))
    return sum(n / record["images_per_second"] for n, record in zip(seen, steps, strict=True))


def duration(seconds: float) -> str:
    """Seconds in words: 4.2 s, 12 min 05 s, 2 h 03 min."""
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min" if minutes else f"{hours} h"
    return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
