"""Labels that probes can be trained and judged on, or an error that says what is wrong with them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from visrep.data.source import Source, Subset


def labels_of(source: Source) -> Int64[np.ndarray, " n"]:
    """The labels of a source. Raises ValueError when it has none, or marks images as unlabelled."""
    if source.labels is None:
        labelled = (
            "a folder with one sub-folder of videos, or of folders of frames, a class"
            if source.frames
            else "a folder with one sub-folder a class, a Parquet file with a 'label' column, an .npz with 'labels', "
            "or (image, label) pairs"
        )
        only = source.only_folder()
        why = f" (all lie in one folder, {only!r}, and classes are two folders or more)" if only else ""
        raise ValueError(f"{source.name} has no labels{why}, and protocols need them. Use {labelled}.")
    if unlabelled := int((source.labels < 0).sum()):
        raise ValueError(
            f"{unlabelled} of {len(source.labels)} labels of {source.name} are negative, which marks "
            "unlabelled images. Use a labelled part of the data, such as its validation split."
        )
    return source.labels


def numbered_as(train: Source, test: Source) -> Source:
    """``test`` with labels in the numbering of ``train``: where some classes are missing, numbers differ.

    A ``test`` of one folder is of the class of that name. Raises ValueError when a class of ``test`` is not in
    ``train``.
    """
    if test.labels is None and train.classes and (only := test.only_folder()) in train.classes:
        test = Subset(test, np.arange(len(test)))
        test.labels = np.full(len(test), train.classes.index(only))
        test.classes = train.classes
    labels, known = labels_of(test), np.unique(labels_of(train))
    if train.classes is not None and test.classes is not None and train.classes != test.classes:
        if missing := [
            test.classes[label] for label in np.unique(labels) if test.classes[label] not in train.classes
        ]:
            raise ValueError(_missing(train, test, [repr(name) for name in missing]))
        number = {name: label for label, name in enumerate(train.classes)}
        labels = np.array([number[test.classes[label]] for label in labels], dtype=np.int64)
        test = Subset(test, np.arange(len(test)))
        test.labels, test.classes = labels, train.classes
    if missing := [class_name(train, label) for label in np.setdiff1d(labels, known).tolist()]:
        raise ValueError(_missing(train, test, missing))
    return test


def check_classes(source: Source, labels: Int64[np.ndarray, " n"], least: int = 2) -> None:
    """Raises ValueError for a single class, or for a class of fewer than ``least`` images.

    Of a single one none could be held out, so that 1 will only do where nothing is (`protocols.least_images`).
    """
    present, counts = np.unique(labels, return_counts=True)
    if len(present) < 2:
        raise ValueError(
            f"all {len(labels)} labelled images of {source.name} are of one class, "
            f"{class_name(source, int(present[0]))}. Probes need at least 2: check the folder given, or a "
            "limit that cuts a sorted list short."
        )
    if single := [class_name(source, label) for label in present[counts < least].tolist()]:
        have = "has" if len(single) == 1 else "have"
        raise ValueError(
            f"{_list(single)} of {source.name} {have} 1 image to fit on; every class needs at least 2, to "
            "fit on one and choose settings on another. Add images, leave the class out, or ask with test images of "
            "their own for knn, retrieval or clustering, which hold nothing out."
        )


def without_test_images(train: Source, test: Source) -> list[str]:
    """A warning where classes that are fitted on have no image that is judged."""
    if missing := np.setdiff1d(labels_of(train), labels_of(test)).tolist():
        have = "has" if len(missing) == 1 else "have"
        names = _list([class_name(train, label) for label in missing])
        return [
            f"{names} of {train.name} {have} no test image: results say nothing about telling it from others."
        ]
    return []


def class_name(source: Source, label: int) -> str:
    """Name of a class where there are names, else its number."""
    return f"class {label}" if source.classes is None else f"{source.classes[label]!r}"


def first_of_each_class(labels: Int64[np.ndarray, " n"], limit: int) -> Int64[np.ndarray, " k"]:
    """Positions of ``limit`` images, in order: the first of every class, each class in its proportion.

    A sorted folder cut at its first images would be left with one class. 0, or more than there are, keeps
    all.
    """
    if not 0 < limit < len(labels):
        return np.arange(len(labels))
    rank = np.empty(len(labels))
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        rank[of_class] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return np.sort(np.argsort(rank, kind="stable")[:limit])


def _missing(train: Source, test: Source, missing: list[str]) -> str:
    have = "has" if len(missing) == 1 else "have"
    return (
        f"{_list(missing)} of the test images ({test.name}) {have} no training image in {train.name}. "
        "Give training images of every class, or leave the class out of the test images."
    )


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more classes" if len(names) > 5 else shown
