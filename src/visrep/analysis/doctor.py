"""A run's checkup: its health, what else may be wrong, and what was said at its start. `visrep doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from visrep.analysis.complaints import (
    broken_weights,
    cluster_collapse,
    failed,
    forgetting,
    leaking,
    over_augmented,
    starved,
)
from visrep.analysis.health import MIN_STEPS, State, Verdict, diagnose
from visrep.analysis.record import RunRecord
from visrep.analysis.signs import read_signs

MOST_SERIOUS_FIRST: tuple[State, ...] = (
    "diverging", "complete collapse", "failed", "cluster collapse", "leaking", "over-augmented",
    "forgetting", "dimensional collapse", "flat", "starved by data loading",
)  # fmt: skip
"""A leak and too strong views stand before what they lead to: few directions, a flat loss."""
HARMLESS: tuple[State, ...] = ("healthy", "too early")


@dataclass(frozen=True)
class Checkup:
    """Everything found, the most serious first; of a sound run one finding that says so."""

    findings: tuple[Verdict, ...]
    remarks: tuple[str, ...]
    """what is worth knowing and no illness: advice at the start, unreadable images, an unfinished run"""

    @property
    def verdict(self) -> Verdict:
        """The most serious finding."""
        return self.findings[0]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong; a run too short to tell is not yet healthy."""
        return self.verdict.state == "healthy"


def examine(record: RunRecord) -> Checkup:
    """Examine a run, finished or not, by what its folder holds. Writes nothing."""
    health = diagnose(record.steps, record.epochs, record.from_fresh_weights)
    signs = read_signs(record.steps, record.epochs) if record.steps else None
    found = [failed(record, signs) or broken_weights(record), forgetting(record), starved(record, signs)]
    if signs and signs.step >= MIN_STEPS:
        found += [look(record, signs) for look in (cluster_collapse, leaking, over_augmented)]
    states = {verdict.state for verdict in found if verdict}
    if health.state not in HARMLESS and health.state not in states:
        found.append(health)
    ill = [verdict for verdict in found if verdict]
    ill.sort(key=lambda verdict: MOST_SERIOUS_FIRST.index(verdict.state))
    return Checkup(tuple(ill) or (health,), tuple(_remarks(record)))


def _remarks(record: RunRecord) -> list[str]:
    about = record.about
    said = []
    if about["status"] in ("running", "stopped"):
        what = "is still running, or was killed" if about["status"] == "running" else "was stopped"
        said.append(f"The run {what}: this is how it stands after {_steps(record)}.")
    said += [f"Said at the start: {advice}" for advice in about.get("advice", [])]
    if record.unreadable:
        name, reason = record.unreadable[0]
        said.append(
            f"{len(record.unreadable)} images could not be read and were left out (unreadable.txt), the first: "
            f"{name}: {reason}"
        )
    if record.steps and not any("data_wait" in step for step in record.steps):
        said.append(
            "This run was made before waiting for images was logged: whether it was starved is not known."
        )
    return said


def _steps(record: RunRecord) -> str:
    return f"{record.steps[-1]['step']:,} steps" if record.steps else "no step on record"
