"""A leaderboard as a value: its entries, what it rests on, and what may be said of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from visrep.analysis.measures.registry import measure
from visrep.evaluation.effort import Effort
from visrep.evaluation.results import Judged, Result, clearly_ahead, from_headline, goodness


@dataclass(frozen=True)
class Entry:
    """A line of the leaderboard: an encoder, or a baseline of some of them."""

    name: str
    kind: Judged
    results: list[Result] = field(default_factory=list)
    """every number of every protocol; empty without labels"""
    scores: dict[str, float] = field(default_factory=dict)
    """label-free, where there are no labels"""
    effort: Effort | None = None
    """what its training took; None for baselines"""
    of: tuple[str, ...] = ()
    """for a baseline: the encoders whose baseline it is"""

    def headline(self, protocol: str) -> Result | None:
        """The number that stands for a protocol: for kNN that of k closest to 20, for few labels n closest to 10."""
        mine = [result for result in self.results if result.protocol == protocol]
        return min(mine, key=lambda result: from_headline(result.settings), default=None)


@dataclass(frozen=True)
class Comparison:
    """A leaderboard and what it rests on."""

    entries: list[Entry]
    """best first, baselines among them"""
    protocols: tuple[str, ...]
    """in the order of columns, the first decides; none without labels"""
    split: str
    """in words: which images were fitted on and which judged"""
    budget: str
    """in words: what each method could spend; empty when only finished runs were compared"""
    seed: int
    fingerprint: dict[str, Any]
    """of the images, of every encoder, of the versions"""
    notes: list[str] = field(default_factory=list)
    """how far to trust the order, and what to know about single numbers"""
    failed: dict[str, str] = field(default_factory=dict)
    """names of those whose training failed, and why"""
    selected: str = "rankme"
    """without labels: the measure that decides the order"""
    plans: dict[str, Any] = field(default_factory=dict)
    """for those trained here: the timing of their steps and the epochs that follow from it"""
    made: list[dict[str, Any]] = field(default_factory=list)
    """how the numbers were made, on sheets too: see `evaluation.making.made_by`"""

    @property
    def ranked(self) -> list[Entry]:
        """Without the baselines."""
        return [entry for entry in self.entries if entry.kind == "trained"]

    def level(self, protocol: str) -> list[str]:
        """Names of entries whose interval overlaps that of the best encoder in this protocol, without its own."""
        ranked = [(entry.name, entry.headline(protocol)) for entry in self.ranked]
        found = [(name, result) for name, result in ranked if result]
        best, leader = max(found, key=lambda pair: goodness(pair[1].metric, pair[1].value))
        others = ((entry.name, entry.headline(protocol)) for entry in self.entries if entry.name != best)
        return [name for name, result in others if result and not _ahead(leader, result)]

    def beaten(self, entry: Entry) -> bool:
        """Whether its interval in the deciding protocol is better than those of its untrained twin and raw pixels."""
        mine = entry.headline(self.protocols[0]) if self.protocols else None
        if mine is None:
            return False
        baselines = [other.headline(self.protocols[0]) for other in self.entries if entry.name in other.of]
        return all(_ahead(mine, result) for result in baselines if result)

    def summary(self) -> str:
        """The result in one sentence."""
        leader, *others = self.ranked
        if not self.protocols:
            title = measure(self.selected).title
            if self.entries[0] is not leader:
                return f"No encoder has a better {title} than {self.entries[0].name}: nothing can be said."
            return f"{leader.name} has the best {title}, which does not say that it is the best encoder."
        level = set(self.level(self.protocols[0]))
        near = [entry.name for entry in others if entry.name in level]
        said = f"{leader.name} is clearly best" if not near else f"{leader.name} leads"
        said += f"; not clearly behind: {', '.join(near)}" if near else ""
        if not self.beaten(leader):
            said += "; but it is not clearly better than its baselines"
        return f"{said}."

    def to_json(self) -> dict[str, Any]:
        """JSON values, as comparison.json holds them."""
        level = {protocol: self.level(protocol) for protocol in self.protocols}
        return {**asdict(self), "summary": self.summary(), "not_clearly_behind": level}


def _ahead(one: Result, other: Result) -> bool:
    """Whether the intervals do not overlap and this one is the better."""
    return clearly_ahead(one.metric, (one.ci_low, one.ci_high), (other.ci_low, other.ci_high))
