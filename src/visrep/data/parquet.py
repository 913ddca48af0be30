"""Parquet shards in the layout of Hugging Face image data sets: a column of images, perhaps one of labels."""

from __future__ import annotations

import importlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visrep.data.decode import UnreadableImage
from visrep.data.folder import natural
from visrep.data.sequence import as_labels
from visrep.data.source import Source, stamp_of

HELD_BYTES = 256 * 2**20
"""encoded images that one process keeps at hand"""
_IMAGE_NAMES = ("image", "img", "images", "jpg", "jpeg", "png")
_LABEL_NAMES = ("label", "labels", "fine_label")


@dataclass(frozen=True)
class _RowGroup:
    shard: Path
    number: int
    """of the row group within the shard"""
    above: int
    """rows of the shard above it"""
    column: str
    """of images"""
    stamp: str
    """size and time of change of the shard"""


class Parquet(Source):
    """Rows of one or more shards. An image is the bytes of a file, or a struct of ``bytes`` and ``path``.

    Labels are read when opening; images a row group at a time when asked for, the latest row groups being
    kept. Labels are strings, or integers named by the Hugging Face metadata where there is some. When some
    are missing (null or -1) all images count as unlabelled, with a warning if others are there; label
    columns of other types are ignored.
    """

    def __init__(self, shards: Sequence[Path], name: str) -> None:
        """Raises ValueError for other files and without an image column, ImportError without pyarrow."""
        self.name = name
        self._groups: list[_RowGroup] = []
        self._held: OrderedDict[int, Any] = OrderedDict()
        rows: list[int] = []
        labels: list[Any] = []
        names: tuple[str, ...] | None = None
        for shard in sorted(shards, key=lambda path: natural(str(path))):
            with _opened(shard) as file:
                images = _image_column(file.schema_arrow, shard)
                stamp = stamp_of(shard)
                above = 0
                for number in range(file.num_row_groups):
                    self._groups.append(_RowGroup(shard, number, above, images, stamp))
                    rows.append(file.metadata.row_group(number).num_rows)
                    above += rows[-1]
                column = _label_column(file.schema_arrow)
                labels += file.read([column])[column].to_pylist() if column else [None] * above
                names = _class_names(file.schema_arrow, column) or names
        self._starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.labels, self.classes = _as_labels(labels, names, name)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> bytes:
        group, row = self._find(index)
        value = self._images(group)[row].as_py()
        if isinstance(value, dict):
            path, value = value.get("path"), value["bytes"]
            if value is None and path:
                return (self._groups[group].shard.parent / path).read_bytes()
        if not value:
            raise UnreadableImage("the row holds no image")
        return value

    def key(self, index: int) -> str:
        group, row = self._find(index)
        return f"{self._groups[group].shard.name}:{self._groups[group].above + row}"

    def stamp(self, index: int) -> str:
        """Changes when the image is replaced: size and time of change of its shard."""
        return self._groups[self._find(index)[0]].stamp

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": OrderedDict()}  # a worker reads its own

    def _find(self, index: int) -> tuple[int, int]:
        """Row group, and row within it."""
        group = int(np.searchsorted(self._starts, index, side="right")) - 1
        return group, index - int(self._starts[group])

    def _images(self, group: int) -> Any:
        """The images of a row group, an Arrow array."""
        if group not in self._held:
            where = self._groups[group]
            with _opened(where.shard) as file:
                table = file.read_row_group(where.number, columns=[where.column], use_threads=False)
            self._held[group] = table[where.column].combine_chunks()
            while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > HELD_BYTES:
                self._held.popitem(last=False)
        self._held.move_to_end(group)
        return self._held[group]


def _opened(shard: Path) -> Any:
    """An open ParquetFile."""
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError('reading Parquet needs pyarrow: pip install "visrep[data]"') from error
    try:
        return parquet.ParquetFile(shard)
    except (arrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"cannot read {shard} as Parquet: {error}") from error


def _image_column(schema: Any, shard: Path) -> str:
    """The column that Hugging Face metadata calls an image, else one named image that holds bytes."""
    candidates = [*_features(schema, "Image"), *_IMAGE_NAMES]
    for name in candidates:
        if name in schema.names and _holds_bytes(schema.field(name).type):
            return name
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise ValueError(
        f"no image column in {shard}. Wanted one named image, of bytes or of a struct with bytes and path; "
        f"its columns are: {columns}. Rename or convert one."
    )


def _holds_bytes(kind: Any) -> bool:
    types = importlib.import_module("pyarrow").types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _label_column(schema: Any) -> str | None:
    """The first column of class labels: integers, strings or a dictionary of strings."""
    types = importlib.import_module("pyarrow").types
    for name in (*_features(schema, "ClassLabel"), *_LABEL_NAMES):
        kind = schema.field(name).type if name in schema.names else None
        if kind is not None and (
            types.is_integer(kind)
            or types.is_string(kind)
            or types.is_large_string(kind)
            or types.is_dictionary(kind)
        ):
            return name
    return None


def _features(schema: Any, kind: str) -> list[str]:
    """Columns of a type of the Hugging Face `datasets` library, from the metadata that it writes."""
    return [
        name
        for name, feature in _metadata(schema).items()
        if isinstance(feature, dict) and feature.get("_type") == kind
    ]


def _metadata(schema: Any) -> dict[str, Any]:
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):  # written by something else
        return {}


def _class_names(schema: Any, column: str | None) -> tuple[str, ...] | None:
    names = _metadata(schema).get(column or "", {}).get("names")
    return tuple(names) if names else None


def _as_labels(
    values: list[Any], names: tuple[str, ...] | None, source: str
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    missing = sum(value is None or value == -1 for value in values)
    if missing:
        if missing < len(values):
            warnings.warn(
                f"{missing} of {len(values)} rows of {source} have no label (null or -1), so all its images "
                "count as unlabelled. Keep labelled rows in a file of their own to use their labels.",
                stacklevel=2,
            )
        return None, None
    labels, found = as_labels(values)
    return labels, found or names
