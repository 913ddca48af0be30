"""Is a run learning? A plain verdict from its metrics, with the likely cause and the field to change.

No label is needed. Four numbers carry the weight:

* the loss, now against its start;
* the spread of the representation, ``feature_std * sqrt(width)``: the mean standard deviation of
  L2-normalised features, 1 when they cover the sphere evenly, 0 when every image gets one vector
  (arXiv:2011.10566, 4.1);
* its rank share, ``rankme / min(images, width)`` (RankMe, arXiv:2210.02885);
* for a teacher with prototypes, the entropy of its output divided by log k: 1 is uniform and teaches nothing,
  0 is one-hot, a collapse once the student no longer differs (DINO, arXiv:2104.14294, 5.3).

The limits below are alarms that tell broken runs from sound ones, not measures of quality: a probe on
labelled images measures quality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from visrep.analysis.narrow import COLLAPSED_DIRECTIONS, directions, few_directions, why_no_collapse
from visrep.analysis.signs import Record, Signs, read_signs

State = Literal[
    "healthy", "complete collapse", "dimensional collapse", "cluster collapse", "diverging", "flat", "leaking",
    "over-augmented", "starved by data loading", "failed", "forgetting", "too early",
]  # fmt: skip
"""`diagnose` tells those that a loss and a representation show by themselves; `visrep.analysis.doctor` all of them"""

MIN_STEPS = 50
"""optimiser steps before which only a non-finite loss is told from a sound run"""
COLLAPSED_SPREAD = 0.02
"""spread at which all images have practically one vector, whatever came before"""
FALLEN_SPREAD = 0.1
"""spread that counts as collapsed when it also fell to a third of its highest, or with hardly a direction left"""
UNIFORM = 0.98
"""normalised teacher entropy at which the teacher hardly tells images apart"""
ONE_HOT = 0.02
"""normalised teacher entropy at which the teacher gives one prototype"""
FALLEN_PROJECTIONS = 0.4
"""spread of the projections, as a share of its highest, at which images are becoming one: sound runs keep nearly all"""
FEW_PROTOTYPES = 0.2
"""normalised entropy of the prototypes in use at which (nearly) all images share one or two"""
TOLD_APART = 0.01
"""what the teacher's output tells of the image, as a share of log k, at which it tells nothing"""
AGREED = 0.05
"""divergence of the student from the teacher, in nats, at which there is nothing left to learn"""
RISE = 0.5
"""rise of the loss over its start, as a share of its scale, that counts as diverging"""
GUESS = 1.05
"""loss over log k that counts as diverging in a student of prototypes"""
FALL = 0.01
"""fall of the loss below its start, as a share of its scale, that counts as learning"""
WOBBLES = 3.0
"""standard errors that such a fall must be: the best of many noisy losses lies below the first by chance"""
KNN_GAIN = 3.0
"""gain of the online kNN, in points, that outweighs a flat loss or a low rank if it is beyond its error"""


@dataclass(frozen=True)
class Verdict:
    """What the metrics say, in words to act on. An empty ``cause`` and ``change`` mean nothing to do."""

    state: State
    evidence: str
    """the numbers behind the verdict"""
    cause: str
    """what most likely did it"""
    change: str
    """which configuration field to change, and how"""


def diagnose(steps: Sequence[Record], epochs: Sequence[Record], evaluation: Record | None = None) -> Verdict:
    """The verdict on a run from the ``step`` and ``epoch`` records of its metrics, oldest first.

    The most serious finding wins: a loss that is not finite, complete collapse, a loss that rises, a teacher
    that stays uniform, dimensional collapse, a flat loss. What a method does not log is left out of the reasoning.
    ``evaluation``, of a run that began with fresh weights, tells better than few images whether few directions do.
    """
    if not steps:
        return Verdict("too early", "No step is logged yet.", "", "")
    signs = read_signs(steps, epochs, evaluation)
    if not math.isfinite(signs.loss):
        return _not_finite(steps, signs)
    if signs.step < MIN_STEPS:
        return Verdict("too early", f"{_summary(signs)} A verdict needs {MIN_STEPS} steps.", "", "")
    for finding in (_complete_collapse, _diverging, _uniform_teacher, _dimensional_collapse, _flat):
        if verdict := finding(signs):
            return verdict
    return _healthy(signs)


def _not_finite(steps: Sequence[Record], signs: Signs) -> Verdict:
    broken = next(record for record in steps if not math.isfinite(record["loss"]))
    terms = [name for name, value in broken["terms"].items() if not math.isfinite(value)]
    return Verdict(
        "diverging",
        f"The loss became {broken['loss']} at step {broken['step']} (in {', '.join(terms) or 'the sum'}; "
        f"learning rate up to {signs.peak_lr:.3g}).",
        "The learning rate is too high for this batch and encoder, or a number overflowed in low precision.",
        "Set optim.lr to a third, lengthen its warm-up or set optim.clip to 1; with precision=16-mixed try "
        "bf16-mixed or 32-true.",
    )


def _diverging(signs: Signs) -> Verdict | None:
    """A loss well above its start; with a teacher, a student that came to know less than a guess.

    Such a loss may rise in a sound run: it starts low while the centre has not caught up with the teacher.
    """
    worse_than_start = signs.loss - signs.start > RISE * signs.scale
    worse_than_guessing = signs.loss > GUESS * signs.guessing > GUESS * signs.best
    if not (worse_than_guessing if signs.entropy else worse_than_start):
        return None
    return Verdict(
        "diverging",
        f"The loss rose from {signs.start:.4g} at the start to {signs.loss:.4g} at step {signs.step} "
        f"(best {signs.best:.4g}; learning rate up to {signs.peak_lr:.3g}).",
        "The learning rate is too high for this batch and encoder.",
        "Set optim.lr to a third and lengthen its warm-up; optim.clip=1 also helps.",
    )


def _complete_collapse(signs: Signs) -> Verdict | None:
    one_hot = bool(signs.entropy) and signs.entropy[-1] < ONE_HOT and signs.kl < AGREED
    one_hot = one_hot or signs.in_use < FEW_PROTOTYPES
    was_sharp = bool(signs.entropy) and min(signs.entropy) < UNIFORM - 0.05
    same_for_all = was_sharp and (_uniform(signs) or signs.told_apart < TOLD_APART)
    one_projection = signs.projected < FALLEN_PROJECTIONS
    if not (_one_vector(signs) or one_projection or one_hot or same_for_all):
        return None
    cause = (
        "The same vector for every image satisfies the objective: the learning rate is too high, gradient "
        "flows through a target that should be fixed, or nothing pushes images apart."
    )
    change = (
        "Set optim.lr to a third and lengthen its warm-up; check that targets are detached; for a "
        "contrastive method raise batch, which adds negatives."
    )
    if one_hot and not signs.entropy:
        cause = "The codes give all images the same prototype or two: what makes them share all evenly is too weak."
        change = (
            "Raise method.epsilon and method.iterations, lower method.prototypes, set optim.lr to a third."
        )
    elif one_hot:
        cause = "The teacher gives all images the same prototype or two: centring is missing or too slow."
        change = (
            f"Lower method.center_momentum (0.9 follows ten steps), raise method.tau_teacher{_now(signs)}, "
            "set optim.lr to a third."
        )
    elif signs.entropy:
        cause = "The teacher gives every image the same output: too little sharpening, or too high a rate."
        change = (
            f"Lower method.tau_teacher{_now(signs)} or method.prototypes, raise method.teacher_decay, set "
            "optim.lr to a third."
        )
    return Verdict("complete collapse", _summary(signs), cause, change)


def _one_vector(signs: Signs) -> bool:
    if not signs.spread:
        return False
    spread, highest = signs.spread[-1], max(signs.spread)
    low = spread < highest / 3 or signs.rankme < COLLAPSED_DIRECTIONS
    return spread < COLLAPSED_SPREAD or (spread < FALLEN_SPREAD and low)


def _uniform(signs: Signs) -> bool:
    """Whether the teacher has been uniform for the last fifth of the run: a target that teaches nothing."""
    return signs.entropy_stays_above > UNIFORM


def _uniform_teacher(signs: Signs) -> Verdict | None:
    """A prototype head that never left its start: the loss stays near log k and nothing is learned."""
    if not _uniform(signs) or signs.warming or signs.knn_gain >= KNN_GAIN:
        return None
    return Verdict(
        "flat",
        f"{_summary(signs)} The teacher still spreads every image evenly over its prototypes.",
        "There are more prototypes than so few images and steps can tell apart, or the teacher is too blunt.",
        "Lower method.prototypes (128 suits ten thousand small images) and "
        f"method.tau_teacher{_now(signs)} to about 0.03, or train longer.",
    )


def _dimensional_collapse(signs: Signs) -> Verdict | None:
    """Few directions, unless the labels gained: those of a masked method may be few and well chosen."""
    if not few_directions(signs) or _learned(signs):
        return None
    return Verdict(
        "dimensional collapse",
        f"{_summary(signs)} {directions(signs)}",
        f"The learning rate is too high (up to {signs.peak_lr:.3g} so far), the views share too easy a cue "
        "(often colour), or nothing in the objective decorrelates.",
        "Set optim.lr to a third, strengthen the views (method.views: jitter, gray, smaller scale), raise "
        "batch; with prototypes also raise method.tau_teacher.",
    )


def _learned(signs: Signs) -> bool:
    """Whether kNN is clearly above that of the start, as monitored or as judged afterwards."""
    return max(signs.knn_gain, signs.judged_gain) >= KNN_GAIN


def _flat(signs: Signs) -> Verdict | None:
    """No fall of the loss, which a sharpening teacher is excused: its cross-entropy falls only later."""
    fell = signs.start - signs.best > FALL * signs.scale and signs.fall > WOBBLES
    sharpening = bool(signs.entropy) and signs.entropy[-1] <= UNIFORM
    if fell or sharpening or signs.knn_gain >= KNN_GAIN:
        return None
    if signs.warming:
        evidence = f"{_summary(signs)} The learning rate is still warming up ({signs.peak_lr:.3g})."
        return Verdict("too early", evidence, "", "")
    return Verdict(
        "flat",
        f"{_summary(signs)} The learning rate reached {signs.peak_lr:.3g}.",
        "The learning rate is too low, or so high that the first steps broke the network; or these views "
        "make the task impossible.",
        "Try optim.lr three times higher and three times lower; look at the sample views; train longer.",
    )


def _healthy(signs: Signs) -> Verdict:
    narrow = f" {directions(signs)} {why_no_collapse(signs)}" if few_directions(signs) else ""
    evidence = f"{_summary(signs)}{narrow}"
    if signs.knn and max(signs.knn) - signs.knn[-1] >= max(KNN_GAIN, signs.knn_noise):
        return Verdict(
            "healthy",
            f"{evidence} But kNN is below its best, {max(signs.knn):.1f} %.",
            "The objective is still being solved, by features that serve the labels less.",
            "Lower epochs, or strengthen the views (method.views).",
        )
    return Verdict("healthy", evidence, "", "")


def _summary(signs: Signs) -> str:
    facts = [f"Loss {signs.start:.4g} → {signs.loss:.4g} in {signs.step} steps"]
    if signs.spread:
        facts.append(f"spread {signs.spread[-1]:.2g} (1 is even, 0 is one vector for every image)")
    if signs.rank:
        facts.append(f"RankMe {signs.rankme:.1f} of {signs.directions} directions")
    if signs.entropy:
        facts.append(f"teacher entropy {signs.entropy[-1]:.3f} of its maximum")
    if signs.in_use < FEW_PROTOTYPES:
        facts.append(f"entropy of the prototypes in use {signs.in_use:.3f} of its maximum")
    if signs.projected < FALLEN_PROJECTIONS:
        facts.append(f"spread of the projections {signs.projected:.3f} of its highest")
    if signs.knn:
        facts.append(f"kNN {signs.knn[0]:.1f} → {signs.knn[-1]:.1f} %")
    return "; ".join(facts) + "."


def _now(signs: Signs) -> str:
    return "" if math.isnan(signs.tau_teacher) else f" ({signs.tau_teacher:.3g} now)"
