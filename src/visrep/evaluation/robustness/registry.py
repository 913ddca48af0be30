"""The protocols of robustness by name, and how an encoder goes through them."""

from __future__ import annotations

from collections.abc import Callable

from visrep.evaluation.results import Inapplicable, Judged, Result
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


def judge_robust(
    encoder: Judged, subjects: Subjects, protocols: tuple[str, ...], *, lenient: bool = False
) -> tuple[list[Result], list[str]]:
    """Results and cautions of those protocols of robustness that were asked for.

    ``lenient``: what cannot be run on such data is left out, and a caution says why.
    """
    results: list[Result] = []
    cautions: dict[str, None] = {}
    for name in protocols:
        if name not in ROBUST:
            continue
        try:
            with CLOCK.timed(name):
                found = ROBUST[name](subjects)
        except Inapplicable as error:
            if not lenient:
                raise
            cautions[f"left out: {error}"] = None
            continue
        for where, measures in found.items():
            results += [measure.result(encoder, *where) for measure in measures]
            cautions |= {measure.caution: None for measure in measures if measure.caution}
    return results, list(cautions)
