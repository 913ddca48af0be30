"""Which labelled images are fitted on and which are judged, with labels in one numbering."""

from __future__ import annotations

from visrep.data.source import Source, Subset
from visrep.data.split import stratified_split
from visrep.evaluation.labels import check_classes, first_of_each_class, labels_of, numbered_as

TEST_SHARE = 0.2
"""of each class, when no test images are given"""


def labelled_sides(
    train: Source, test: Source | None, *, limit: int = 0, test_limit: int = 0, least: int = 2, seed: int = 0
) -> tuple[Source, Source]:
    """Images to fit on and to judge: without ``test`` a fifth of each class of ``train``, of clips of its videos.

    ``limit`` and ``test_limit`` keep so many, the first of every class; 0 keeps all. Every class has ``least`` images
    to fit on, and one more where some are held out. Raises ValueError for labels that cannot be used.
    """
    labels = labels_of(train)
    check_classes(train, labels, 2 if test is None else least)
    if test is None:
        fitted, judged = stratified_split(labels, TEST_SHARE, seed, train.groups)
        train, test = Subset(train, fitted), Subset(train, judged)
    else:
        test = numbered_as(train, test)
    train, test = (
        Subset(source, first_of_each_class(labels_of(source), n))
        for source, n in ((train, limit), (test, test_limit))
    )
    check_classes(train, labels_of(train), least)
    return train, test
