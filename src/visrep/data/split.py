"""Training and test images: splits that the data brings, and a stratified one that it does not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from visrep.data.folder import split_of
from visrep.data.opening import SHARDS, Spec, clip_settings, of_shards, open_folder, open_source
from visrep.data.playgrounds import open_playground, playground_settings
from visrep.data.source import Source, Subset

HELD_OUT = ("test", "val", "valid", "validation")
"""names of the split to judge on, the first found counts"""


def open_splits(spec: Spec) -> tuple[Source, Source | None]:
    """Training images and, where the data brings some, test images.

    Splits are sub-folders ``train`` and one of ``test``, ``val``, ``valid``, ``validation``; Parquet or tar
    shards whose names begin so, in the folder or in its sub-folder ``data``; or the two streams of the playground
    (a fifth as many test images). Numbers may follow (``val2017``). Test labels are numbered as the
    training classes are, classes that only the test images have coming last. Raises what `open_source`
    raises.
    """
    settings = playground_settings(spec)
    if settings is not None:
        train = open_source(spec)
        if "split" in settings:
            return train, None
        test = {**settings, "n": max(1, len(train) // 5), "split": "test"}
        return train, open_playground(test, f"{spec} (test split)")
    if isinstance(spec, str | Path):
        folder, clips = clip_settings(spec) or (Path(spec).expanduser(), None)
        parts = (_folders(folder, clips) or _shards(folder)) if folder.is_dir() else None
        if parts:
            return parts[0], numbered_alike(parts[1], parts[0])
    return open_source(spec), None


def numbered_alike(test: Source, train: Source) -> Source:
    """``test`` with the label numbers of ``train``, where both name their classes; new classes come last.

    Two folders number their classes apart: when one of them lacks a class, the same number means two things.
    """
    if train.classes is None or test.classes is None or test.labels is None or test.classes == train.classes:
        return test
    classes = train.classes + tuple(name for name in test.classes if name not in train.classes)
    number = np.array([classes.index(name) for name in test.classes], dtype=np.int64)
    renumbered = Subset(test, np.arange(len(test)))
    renumbered.labels, renumbered.classes = number[test.labels], classes
    return renumbered


def stratified_split(
    labels: Int64[np.ndarray, " n"],
    fraction: float,
    seed: int,
    groups: Int64[np.ndarray, " n"] | None = None,
) -> tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " b"]]:
    """Sorted training and test indices: ``fraction`` of each class is test, with at least one on each side.

    Rows of one of ``groups``, such as the clips of a video, have one label and stay on one side: ``fraction`` is then
    that of each class's groups.
    Raises ValueError for a fraction outside (0, 1) and for classes of a single image or group.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction={fraction}: the share of test images lies between 0 and 1, say 0.2.")
    rng = np.random.default_rng(seed)
    group, what = (np.arange(len(labels)), "image") if groups is None else (groups, "video")
    _, first, group = np.unique(group, return_index=True, return_inverse=True)
    label_of = labels[first]
    classes, counts = np.unique(label_of, return_counts=True)
    if len(classes) and counts.min() < 2:
        lonely = classes[counts < 2]
        raise ValueError(
            f"{len(lonely)} classes have a single {what} (label {lonely[0]} is the first), which cannot be "
            "in both train and test. Leave them out, or bring a test split."
        )
    test = np.zeros(len(label_of), dtype=bool)
    for label, count in zip(classes, counts, strict=True):
        wanted = min(max(round(fraction * count), 1), count - 1)
        test[rng.permutation(np.flatnonzero(label_of == label))[:wanted]] = True
    return np.flatnonzero(~test[group]), np.flatnonzero(test[group])


def _folders(folder: Path, clips: dict[str, int] | None) -> tuple[Source, Source] | None:
    found = by_split((path.name, path) for path in folder.iterdir() if path.is_dir())
    if found is None or len(found[0]) > 1 or len(found[1]) > 1:
        return None
    return open_folder(found[0][0], clips), open_folder(found[1][0], clips)


def _shards(folder: Path) -> tuple[Source, Source] | None:
    for place in (folder, folder / "data"):
        found = by_split((path.stem, path) for path in place.glob("*") if path.suffix.lower() in SHARDS)
        if found is not None:
            return of_shards(found[0], f"{place} (train split)"), of_shards(found[1], f"{place} (test split)")
    return None


def by_split(named: Iterable[tuple[str, Path]]) -> tuple[list[Path], list[Path]] | None:
    """Paths of the training split and of the first held-out one, or None when one of the two is missing."""
    groups: dict[str, list[Path]] = {}
    for name, path in named:
        groups.setdefault(split_of(name), []).append(path)
    held_out = next((groups[name] for name in HELD_OUT if name in groups), None)
    return (groups["train"], held_out) if "train" in groups and held_out else None
