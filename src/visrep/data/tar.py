"""Tar shards in the layout of WebDataset: the files of one sample follow each other and share their name up to a dot.

Uncompressed tar files are read where they lie, any image at any time: one pass over the headers finds them all.
"""

from __future__ import annotations

import json
import tarfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visrep.data.folder import is_image, natural
from visrep.data.source import Source, stamp_of

LABEL = ".cls"
"""ending of the file that holds the number of a sample's class"""
CLASSES = "classes.json"
"""a list of the names of the classes, beside the shards"""


@dataclass
class _Sample:
    shard: int
    name: str
    offset: int = 0
    size: int = -1
    """-1: no image yet"""
    label: int | None = None


class Tar(Source):
    """Samples of one or more shards: the first image of each, and its label where there is a ``.cls`` file.

    Samples without an image are left out. When some have no label all images count as unlabelled, with a warning if
    others have one. Names of classes are those of ``classes.json`` in the folder of the shards, where it is there.
    """

    def __init__(self, shards: Sequence[Path], name: str) -> None:
        """Raises ValueError for files that are no uncompressed tar files, and for labels that are no numbers."""
        self.name = name
        self.shards = sorted(shards, key=lambda path: natural(str(path)))
        samples = [
            sample
            for number, shard in enumerate(self.shards)
            for sample in _samples(shard, number)
            if sample.size >= 0
        ]
        if not samples:
            raise ValueError(
                f"no images in the shards of {name}. A sample is files such as 000123.jpg and 000123.cls."
            )
        self.shard = np.array([sample.shard for sample in samples], dtype=np.int64)
        self.offset = np.array([sample.offset for sample in samples], dtype=np.int64)
        self.size = np.array([sample.size for sample in samples], dtype=np.int64)
        self.names = [sample.name for sample in samples]
        self.stamps = [stamp_of(path) for path in self.shards]
        self.labels = _labels([sample.label for sample in samples], name)
        self.classes = (
            None if self.labels is None else _classes(self.shards[0].parent, int(self.labels.max()))
        )

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        with self.shards[self.shard[index]].open("rb") as file:
            file.seek(int(self.offset[index]))
            return file.read(int(self.size[index]))

    def key(self, index: int) -> str:
        return f"{self.shards[self.shard[index]].name}:{self.names[index]}"

    def stamp(self, index: int) -> str:
        """Changes when the image is replaced: size and time of change of its shard."""
        return self.stamps[self.shard[index]]


def _samples(shard: Path, number: int) -> list[_Sample]:
    """In the order of the shard. WebDataset's name of a sample ends at the first dot after the last slash."""
    found: dict[str, _Sample] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, slash, file = member.name.rpartition("/")
                stem, dot, ending = file.partition(".")
                sample = found.setdefault(folder + slash + stem, _Sample(number, folder + slash + stem))
                if is_image(file) and sample.size < 0:
                    sample.offset, sample.size = member.offset_data, member.size
                elif dot + ending.lower() == LABEL:
                    sample.label = _number(tar, member, shard)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(
            f"cannot read {shard} as an uncompressed tar file: {error}. Unpack compressed ones first (gunzip): their "
            "images cannot be read in any order."
        ) from error
    return [*found.values()]


def _number(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> int:
    file = tar.extractfile(member)
    text = file.read().decode(errors="replace").strip() if file else ""
    if not text.isdecimal():
        raise ValueError(
            f"{member.name} in {shard} holds {text[:40]!r}: a label is the number of a class, from 0 on."
        )
    return int(text)


def _labels(values: list[int | None], name: str) -> np.ndarray | None:
    missing = sum(value is None for value in values)
    if 0 < missing < len(values):
        warnings.warn(
            f"{missing} of {len(values)} samples of {name} have no {LABEL} file, so all its images count as "
            "unlabelled. Keep labelled samples in shards of their own to use their labels.",
            stacklevel=3,
        )
    return None if missing else np.array(values, dtype=np.int64)


def _classes(folder: Path, largest: int) -> tuple[str, ...] | None:
    """Raises ValueError for a file of names that is no list of enough strings."""
    file = folder / CLASSES
    if not file.is_file():
        return None
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"cannot read {file}: {error}. Write a list of names of classes, or remove it."
        ) from error
    if (
        not isinstance(names, list)
        or not all(isinstance(name, str) for name in names)
        or len(names) <= largest
    ):
        raise ValueError(
            f"{file} should be a list of at least {largest + 1} names of classes, as labels go up to {largest}. "
            "Write one, or remove it."
        )
    return tuple(names)
