"""Which data protocols want: images with masks where one of them is dense, labelled images otherwise."""

from __future__ import annotations

from visrep.data.dense_opening import dense_splits, is_dense, of_one_numbering, open_dense
from visrep.data.opening import Spec, open_source
from visrep.data.playgrounds import playground_settings
from visrep.data.source import Source
from visrep.data.split import numbered_alike, open_splits
from visrep.evaluation.dense.protocols import DENSE
from visrep.evaluation.protocols import ALL


def wants_masks(spec: Spec, protocols: tuple[str, ...]) -> bool:
    """Whether a dense protocol was asked for, or all of them on data that has masks.

    A folder of images and masks is always one of images: its two folders are no classes.
    """
    if any(name in DENSE for name in protocols):
        return True
    return is_dense(spec) and (ALL in protocols or playground_settings(spec) is None)


def open_for(
    protocols: tuple[str, ...], data: Spec, test: Spec | None = None
) -> tuple[Source, Source | None]:
    """Training images and test images, if any, with what these protocols need of them.

    ``test`` takes the place of test images that ``data`` brings. Raises what `dense_splits` and `open_splits` raise.
    """
    if wants_masks(data, protocols):
        train, held_out = dense_splits(data)
        return (train, held_out) if test is None else of_one_numbering(train, open_dense(test))
    train, held_out = open_splits(data)
    return train, held_out if test is None else numbered_alike(open_source(test), train)
