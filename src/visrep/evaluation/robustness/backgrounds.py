"""What a probe of shapes goes by: playground scenes with another background, another texture, and cues in conflict.

Up to 500 test scenes are drawn anew, once before another scene's background and once with another texture on the main
object, all else as it was. A linear probe of shapes, fitted on training images as they are, is judged on both
(arXiv:2006.09994 does so with photographs). "kept" is that accuracy as a share of the accuracy on the same scenes
unchanged.

"follows shape" is the cue conflict of arXiv:1811.12231: up to 1,200 training scenes of six shapes are drawn with one
texture a shape, so that both tell the label, and a probe is fitted on them. Test scenes pair each shape with the
texture of another. Of the answers that name either, the number is the share that names the shape.

*Deviations*: the backgrounds challenge has "same class" and "random class" backgrounds; on the playground backgrounds
and classes are independent, so there is one kind. Texture here is a pattern of two colours, which keep their hue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from visrep.data.scene import Plan
from visrep.evaluation.features import Parts
from visrep.evaluation.fitting import Images
from visrep.evaluation.results import Inapplicable, Measure, Setting
from visrep.evaluation.robustness.base import (
    BATCH,
    Found,
    Subjects,
    Where,
    answers,
    drawn,
    near_chance,
    share,
)
from visrep.evaluation.robustness.corruptions import kept
from visrep.evaluation.robustness.swaps import (
    TEXTURES,
    drawn_anew,
    other_backgrounds,
    other_textures,
    scenes,
    textured,
)
from visrep.views import center

NAME = "backgrounds"
BIASED = 1200
"""training scenes whose texture tells their shape"""


def backgrounds(subjects: Subjects) -> Found:
    """Accuracy of shapes with other backgrounds and textures, and which cue decides, for each layer and pooling.

    Raises Inapplicable for other data than the playground.
    """
    images = subjects.test.rows(subjects.chosen(NAME))
    plans, side = scenes(images, NAME)
    canvas = images.canvases.size
    changes = {
        "background": other_backgrounds(plans, subjects.seed),
        "texture": other_textures(plans, subjects.seed),
    }
    made = {
        what: encoded(subjects, drawn_anew(changed, side, images.labels, canvas), f"{NAME}, {what}")
        for what, changed in changes.items()
    }
    conflict = cues(subjects, plans, side, images)
    rows = subjects.chosen(NAME)
    found: Found = {}
    for where, vectors in subjects.vectors.items():
        sets = [vectors[rows], *(part[where] for part in made.values())]
        before, *after = (answer == images.labels for answer in subjects.answers(where, *sets))
        caution = near_chance(NAME, before, images.labels)
        found[where] = []
        for what, right in zip(made, after, strict=True):
            found[where] += _swapped(what, before, right, subjects, caution)
        found[where] += conflict.measures(where, subjects)
    return found


def encoded(subjects: Subjects, images: Images, title: str) -> Parts:
    """Vectors of images drawn anew, of the layers and poolings that are judged."""
    rows = images.index.split(BATCH)
    expects = subjects.encoder.preprocessing

    def batches() -> Iterator[Tensor]:
        for part in rows:
            yield center(images.canvases.get(part.numpy()).to(subjects.device), expects)

    return subjects.encoded(batches(), title, len(rows))


@dataclass(frozen=True, eq=False)
class Cues:
    """Scenes whose texture tells the shape, and scenes whose texture tells another shape."""

    biased: Parts
    shapes: Int64[Tensor, " n"]
    """of ``biased``"""
    conflicting: Parts
    shape: Int64[Tensor, " m"]
    """of ``conflicting``; ``texture`` is the shape that their texture goes with"""
    texture: Int64[Tensor, " m"]

    def measures(self, where: Where, subjects: Subjects) -> list[Measure]:
        """The share of answers that follow the shape; none where no answer names shape or texture."""
        (said,) = answers(self.biased[where], self.shapes, [self.conflicting[where]], subjects.seed)
        by_shape, by_texture = said == self.shape, said == self.texture
        either = by_shape | by_texture
        if not either.any():
            return []
        shares = {"shape": by_shape, "texture": by_texture, "neither": ~either}
        details = {name: 100 * float(which.double().mean()) for name, which in shares.items()}
        seed, n_train, right = subjects.seed, len(self.shapes), by_shape[either]
        return [share(NAME, "follows shape", right, {}, seed=seed, n_train=n_train, details=details)]


def cues(subjects: Subjects, plans: list[Plan], side: int, images: Images) -> Cues:
    """Both kinds of scenes for the first six shapes there are, one for each texture. Raises Inapplicable for fewer."""
    names = sorted({plan.main.shape for plan in plans})[: len(TEXTURES)]
    if len(names) < len(TEXTURES):
        raise Inapplicable(
            f"{NAME} needs {len(TEXTURES)} shapes among the test images, there are {len(names)}. Give more images."
        )
    some = subjects.fitted.rows(drawn(len(subjects.fitted), 2 * BIASED, subjects.seed))
    own = [plan for plan in scenes(some, NAME)[0] if plan.main.shape in names][:BIASED]
    number = [names.index(plan.main.shape) for plan in own]
    rng = np.random.default_rng([subjects.seed, 3])
    tested = [plan for plan in plans if plan.main.shape in names]
    shape = np.array([names.index(plan.main.shape) for plan in tested])
    other = (shape + rng.integers(1, len(names), len(shape))) % len(names)

    def vectors(scenes: list[Plan], texture: list[int], title: str) -> Parts:
        made = textured(scenes, [TEXTURES[i] for i in texture])
        anew = drawn_anew(made, side, torch.zeros(len(made), dtype=torch.int64), images.canvases.size)
        return encoded(subjects, anew, f"{NAME}, {title}")

    return Cues(
        vectors(own, number, "texture tells the shape"),
        torch.tensor(number),
        vectors(tested, other.tolist(), "texture against shape"),
        torch.from_numpy(shape),
        torch.from_numpy(other),
    )


def _swapped(what: str, before: Tensor, after: Tensor, subjects: Subjects, caution: str) -> list[Measure]:
    settings: dict[str, Setting] = {"unchanged": 100 * float(before.double().mean())}
    n_train, seed = subjects.n_fitted, subjects.seed
    value, low, high = kept(after.double().numpy(), before.double().numpy(), seed)
    accuracy = share(NAME, f"other {what}, top-1", after, settings, seed=seed, n_train=n_train)
    still = Measure(
        NAME, f"other {what}, kept", value, low, high, {**settings}, caution, n_train=n_train, n_test=len(after)
    )  # fmt: skip
    return [accuracy, still]
