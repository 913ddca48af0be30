"""Which pixels are objects: known one by one, all that is not background, or classes by their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from visrep.data.dense import IGNORE, Answers
from visrep.evaluation.dense.boxes import Box, around, of_instances, parts_of
from visrep.evaluation.results import Inapplicable

BACKGROUND = "background"
SMALLEST = 0.001
"""share of the image, below which a part of a class is noise of its mask"""
THINGS = frozenset(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)
"""classes of COCO that are objects; the others of its masks (sky, grass, road) are not"""


def object_classes(names: Sequence[str]) -> frozenset[int]:
    """Numbers of those classes that are objects: all but the background, where there is one, else COCO's things.

    Raises Inapplicable when there is no background and no name is known.
    """
    if BACKGROUND in names:
        return frozenset(range(len(names))) - {names.index(BACKGROUND)}
    found = frozenset(number for number, name in enumerate(names) if name in THINGS)
    if not found:
        shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
        raise Inapplicable(
            f"which of these classes are objects is not known: {shown}. Name the class around the objects "
            f"{BACKGROUND!r} in classes.json, use COCO's names, or give data with masks of single objects."
        )
    return found


def foreground(answers: Answers, names: Sequence[str]) -> Bool[np.ndarray, "h w"]:
    """Pixels of objects. Raises Inapplicable as `object_classes`, when single objects are not known."""
    if answers.instances is not None:
        return answers.instances > 0
    return np.isin(_classes(answers), sorted(object_classes(names)))


def counted(answers: Answers) -> Bool[np.ndarray, "h w"]:
    """Pixels that somebody is asked about."""
    return (answers.instances if answers.classes is None else answers.classes) != IGNORE


def true_boxes(answers: Answers, names: Sequence[str]) -> list[Box]:
    """One box an object, around all that can be seen of it; one a connected part where masks do not tell objects apart.

    Then touching objects of one class are one, and one that is hidden in the middle makes two; parts of less than a
    thousandth of the image are left out. Raises Inapplicable as `object_classes`.
    """
    if answers.instances is not None:
        return of_instances(answers.instances)
    classes = _classes(answers)
    found: list[Box] = []
    for label in sorted(object_classes(names).intersection(np.unique(classes).tolist())):
        parts, n = parts_of(classes == label)
        sizes = np.bincount(parts.ravel(), minlength=n + 1)
        found += [around(parts == part) for part in range(1, n + 1) if sizes[part] >= SMALLEST * classes.size]
    return found


def _classes(answers: Answers) -> np.ndarray:
    if answers.classes is None:
        raise Inapplicable("this data knows no objects: neither masks of classes nor of objects.")
    return answers.classes
