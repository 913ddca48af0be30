"""The protocols of robustness by name, and how an encoder goes through them."""

from __future__ import annotations

from collections.abc import Callable

from visrep.evaluation.results import Judged, Result
from visrep.evaluation.robustness import backgrounds, corruptions, ood_layers, shifts
from visrep.evaluation.robustness.base import Found, Subjects
from visrep.evaluation.timing import CLOCK

ROBUST: dict[str, Callable[[Subjects], Found]] = {
    corruptions.NAME: corruptions.corruptions,
    shifts.NAME: shifts.shifts,
    backgrounds.NAME: backgrounds.backgrounds,
    ood_layers.NAME: ood_layers.ood_layers,
}
"""encode changed images, and ask a probe that was fitted on images as they are"""
EVERY_LAYER = frozenset({ood_layers.NAME})
"""of them, those that read all layers, whichever were asked for"""


def judge_robust(encoder: Judged, subjects: Subjects, protocol: str) -> tuple[list[Result], list[str]]:
    """Results and cautions of a protocol of robustness. Raises Inapplicable as the protocol does."""
    with CLOCK.timed(protocol):
        found = ROBUST[protocol](subjects)
    results = [measure.result(encoder, *where) for where, measures in found.items() for measure in measures]
    cautions = {
        measure.caution: None for measures in found.values() for measure in measures if measure.caution
    }
    return results, list(cautions)
