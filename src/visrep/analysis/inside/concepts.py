"""Where concepts are in images: a mask a concept, from scenes of the playground or from masks of classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from visrep.data.dense import IGNORE, DenseSource, nearest
from visrep.data.dense_playground import DensePlayground
from visrep.data.scene import Scene
from visrep.data.shapes import SHAPES
from visrep.data.surfaces import PATTERNS

BACKGROUND = "background"
COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")


@dataclass(frozen=True, eq=False)
class Concepts:
    """Masks of n images on a grid of s x s; concepts may overlap."""

    names: tuple[str, ...]
    masks: Bool[np.ndarray, "n k s s"]

    def met(self, least: int) -> Concepts:
        """Only the concepts that ``least`` images show."""
        kept = self.masks.any((2, 3)).sum(0) >= least
        names = tuple(name for name, keep in zip(self.names, kept.tolist(), strict=True) if keep)
        return Concepts(names, self.masks[:, kept])


def concepts(source: DenseSource, index: np.ndarray, side: int) -> Concepts:
    """Of images squashed to ``side`` pixels: shapes, textures and colours on the playground, else classes.

    Raises ValueError for a source without masks of classes.
    """
    if isinstance(source, DensePlayground):
        names = (*SHAPES, *PATTERNS, *COLOURS, BACKGROUND)
        return Concepts(names, np.stack([_of_scene(source.scene(int(i)), names, side) for i in index]))
    if "classes" not in source.knows:
        raise ValueError(
            f"{source.name} has no masks of classes, so no concept is known. Use a folder with images/ and masks/, or "
            "playground."
        )
    number = np.arange(len(source.names))
    masks = []
    for i in index:
        classes = source.answers(int(i), (side, side)).classes
        assert classes is not None
        masks.append((classes == number[:, None, None]) & (classes != IGNORE))
    return Concepts(tuple(source.names), np.stack(masks))


def _of_scene(scene: Scene, names: tuple[str, ...], side: int) -> Bool[np.ndarray, "k s s"]:
    mask = nearest(scene.mask, (side, side))
    found = np.zeros((len(names), side, side), dtype=bool)
    for i, thing in enumerate(scene.things, start=1):
        for name in (thing.shape, thing.texture, thing.colour_name):
            found[names.index(name)] |= mask == i
    found[names.index(BACKGROUND)] = mask == 0
    return found
