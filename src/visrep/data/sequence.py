"""A Python sequence of images, or of (image, label) pairs, as a source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visrep.data.decode import to_array
from visrep.data.source import Source

Picture = bytes | str | os.PathLike[str] | np.ndarray | Image.Image


class Items(Source):
    """Images given as PIL images, uint8 arrays "h w" or "h w c", paths, or encoded bytes."""

    def __init__(self, items: Sequence[Any], name: str = "sequence") -> None:
        """Raises ValueError for an empty sequence, for other types, and when only some items have a label."""
        if not len(items):
            raise ValueError("the sequence holds no images; give at least one.")
        paired = [isinstance(item, tuple) for item in items]
        if any(paired) and not all(paired):
            raise ValueError(
                f"{sum(paired)} of {len(items)} items are (image, label) pairs; label all or none."
            )
        self.items: list[Picture] = [
            _checked(item[0] if pair else item, i)
            for i, (item, pair) in enumerate(zip(items, paired, strict=True))
        ]
        self.name = name
        self.labels, self.classes = as_labels([item[1] for item in items]) if all(paired) else (None, None)

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> bytes | np.ndarray:
        match item := self.items[index]:
            case bytes() | np.ndarray():
                return item
            case Image.Image():
                return to_array(item)
            case _:
                return Path(item).read_bytes()

    def key(self, index: int) -> str:
        item = self.items[index]
        return str(item) if isinstance(item, str | os.PathLike) else str(index)


def as_labels(values: Sequence[Any]) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Integers as they are; strings numbered in sorted order, with their names.

    Raises ValueError for anything else, and for negative integers.
    """
    if all(isinstance(value, str) for value in values):
        classes, labels = np.unique(np.array(values), return_inverse=True)
        return labels.astype(np.int64), tuple(str(name) for name in classes)
    wrong = [v for v in values if not isinstance(v, int | np.integer) or v < 0]
    if wrong:
        raise ValueError(
            f"label {wrong[0]!r} ({len(wrong)} of {len(values)} like it): labels are all strings, or all "
            "integers from 0 upwards."
        )
    return np.array(values, dtype=np.int64), None


def _checked(item: Any, index: int) -> Picture:
    if not isinstance(item, bytes | str | os.PathLike | np.ndarray | Image.Image):
        raise ValueError(
            f"item {index} is a {type(item).__name__}; an image is a PIL image, a uint8 array (height, "
            "width, channels), a path or the bytes of a file, alone or as a tuple (image, label)."
        )
    return item
