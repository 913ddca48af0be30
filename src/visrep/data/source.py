"""A source: images or clips by index, not yet decoded, with names and, when there are any, labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visrep.data.decode import Raw


def stamp_of(path: Path) -> str:
    """Changes when a file is replaced: its size and time of change. Raises OSError when it is gone."""
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


class Source(ABC):
    """Images or clips by index. Cheap to open, to copy to a worker process and to index."""

    name: str
    """what the user called it: a path, or 'playground'"""
    labels: np.ndarray | None
    """int64 [n], or None when the images have no labels"""
    classes: tuple[str, ...] | None
    """class names by label, or None"""
    frames: int = 0
    """of each clip; 0 for images"""
    per_video: int = 0
    """clips of each video, where the user can ask for more of them; else 0"""
    groups: np.ndarray | None = None
    """int64 [n]: the video of each clip, where several are of one; they are alike, so a split keeps them together"""
    notes: tuple[str, ...] = ()
    """what a user should know about the data, such as images left out"""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Raw | list[Raw]:
        """One image; of a source of clips, the ``frames`` images of one clip."""

    def undecoded(self, index: int) -> Raw | list[Raw]:
        """What tells the image from any other: what `read` gives, or the files that it decodes."""
        return self.read(index)

    @abstractmethod
    def key(self, index: int) -> str:
        """A name for one image, unique within the source: its path, row or seed."""

    def only_folder(self) -> str:
        """The one that all images lie in, where classes are folders and a single one makes no labels; else empty."""
        return ""


class Subset(Source):
    """Some of the images of another source, in the order given."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray, name: str = "") -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.name = name or source.name
        self.labels = None if source.labels is None else source.labels[self.indices]
        self.classes = source.classes
        self.frames, self.per_video = source.frames, source.per_video
        self.groups = None if source.groups is None else source.groups[self.indices]
        self.notes = source.notes

    def __len__(self) -> int:
        return len(self.indices)

    def only_folder(self) -> str:
        return self.source.only_folder()

    def read(self, index: int) -> Raw | list[Raw]:
        return self.source.read(int(self.indices[index]))

    def undecoded(self, index: int) -> Raw | list[Raw]:
        return self.source.undecoded(int(self.indices[index]))

    def key(self, index: int) -> str:
        return self.source.key(int(self.indices[index]))
