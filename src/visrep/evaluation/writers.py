"""Vectors with names to a file, batch by batch: Parquet, .npz and .csv."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float32, Int64


class Writer(ABC):
    """A table with columns ``path``, ``vector`` and, when there are labels, ``label``."""

    def __init__(self, path: Path, width: int, labelled: bool) -> None:
        self.path, self.width, self.labelled = path, width, labelled

    @abstractmethod
    def write(
        self, paths: list[str], vectors: Float32[np.ndarray, "b d"], labels: Int64[np.ndarray, " b"] | None
    ) -> None:
        """Add rows."""

    @abstractmethod
    def close(self) -> None:
        """Finish the file."""


@final
class ParquetWriter(Writer):
    """``vector`` is a fixed-size list of float32, as vector stores and data frames read it."""

    def __init__(self, path: Path, width: int, labelled: bool) -> None:
        super().__init__(path, width, labelled)
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(
                'writing Parquet needs pyarrow: pip install "visrep[data]". Or write .npz or .csv.'
            ) from error
        columns = [("path", pyarrow.string()), ("vector", pyarrow.list_(pyarrow.float32(), width))]
        if labelled:
            columns.append(("label", pyarrow.int64()))
        self.schema = pyarrow.schema(columns)
        self.file = pyarrow.parquet.ParquetWriter(path, self.schema)

    def write(self, paths: list[str], vectors: np.ndarray, labels: np.ndarray | None) -> None:
        import pyarrow

        columns = [pyarrow.array(paths), pyarrow.FixedSizeListArray.from_arrays(vectors.ravel(), self.width)]
        if labels is not None:
            columns.append(pyarrow.array(labels))
        self.file.write_table(pyarrow.table(columns, schema=self.schema))

    def close(self) -> None:
        self.file.close()


@final
class ArraysWriter(Writer):
    """Arrays ``path``, ``vector`` "n d" and ``label`` in one .npz, collected in memory until the end."""

    def __init__(self, path: Path, width: int, labelled: bool) -> None:
        super().__init__(path, width, labelled)
        self.paths: list[str] = []
        self.vectors: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    def write(self, paths: list[str], vectors: np.ndarray, labels: np.ndarray | None) -> None:
        self.paths += paths
        self.vectors.append(vectors)
        if labels is not None:
            self.labels.append(labels)

    def close(self) -> None:
        vectors = np.concatenate(self.vectors) if self.vectors else np.empty((0, self.width), np.float32)
        arrays = {"path": np.array(self.paths, dtype=str), "vector": vectors}
        if self.labels:
            arrays["label"] = np.concatenate(self.labels)
        with self.path.open("wb") as file:
            np.savez(file, **arrays)


@final
class CsvWriter(Writer):
    """Columns ``path``, ``label`` and one a dimension, ``v0``, ``v1``, ...; 9 digits hold a float32."""

    def __init__(self, path: Path, width: int, labelled: bool) -> None:
        super().__init__(path, width, labelled)
        self.file = path.open("w", newline="", encoding="utf-8")
        self.rows = csv.writer(self.file)
        self.rows.writerow(["path", *(["label"] if labelled else []), *(f"v{i}" for i in range(width))])

    def write(self, paths: list[str], vectors: np.ndarray, labels: np.ndarray | None) -> None:
        between = [[]] * len(paths) if labels is None else labels[:, None].tolist()
        for path, label, vector in zip(paths, between, vectors, strict=True):
            self.rows.writerow([path, *label, *(f"{x:.9g}" for x in vector)])

    def close(self) -> None:
        self.file.close()


WRITERS: dict[str, type[Writer]] = {".parquet": ParquetWriter, ".npz": ArraysWriter, ".csv": CsvWriter}
"""by suffix"""
