"""Images and clips as uint8 canvases: decoded once and kept, or decoded whenever they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice, tee
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64

from visrep.data.cache import CHUNK, Kept, default_folder, keep_in_memory, keep_on_disk
from visrep.data.decode import UnreadableImage, canvas_shape, true_size
from visrep.data.source import Source
from visrep.data.workers import Decoded, decode_in_order, decode_rows, default_workers, nothing_readable
from visrep.method import Canvases

AUTO_BYTES = 2 * 2**30
"""``cache="auto"`` keeps canvases in memory up to this size"""
LOOKED_AT = 64
"""images whose size `canvas_size` reads"""


class CanvasSet:
    """The images or clips of a source as square canvases of one size: each squashed whole, its true size kept.

    ``cache`` says where decoded canvases stay: in memory, on disk (memory-mapped, below ``folder``, found
    again by later runs as long as images and size are the same), nowhere (``off``), or ``auto``: in memory
    up to 2 GiB, else nowhere. Parquet files of more than that want ``disk``: reading single rows at random
    is slow. ``workers`` is the number of decoding processes, -1 to choose, 0 for none.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        *,
        cache: Literal["auto", "memory", "disk", "off"] = "auto",
        workers: int = -1,
        folder: Path | None = None,
        progress: bool = False,
    ) -> None:
        """Decodes everything unless the cache is off.

        Raises ValueError when there are no images, when none is readable, or when the disk is too full.
        """
        n = len(source)
        if not n:
            raise ValueError(f"{source.name} holds no images.")
        if cache == "auto":
            bytes_kept = n * math.prod(canvas_shape(source.frames, size))
            cache = "memory" if bytes_kept <= AUTO_BYTES else "off"
        self.source = source
        self.size = size
        self._kept: Kept | None = None
        """None: decoded whenever asked for"""
        processes = default_workers() if workers < 0 else workers
        if cache == "memory":
            self._kept = keep_in_memory(source, size, workers=processes, progress=progress)
        elif cache == "disk":
            place = default_folder() if folder is None else folder
            self._kept = keep_on_disk(source, size, place, workers=processes, progress=progress)
        self.unreadable: dict[int, str] = {} if self._kept is None else self._kept.unreadable
        """image -> "key: reason"; without a cache it grows as images are met"""
        self.usable: Int64[np.ndarray, " m"] = np.delete(np.arange(n), list(self.unreadable))
        """images that decode; without a cache all, as nobody has tried yet"""
        if not len(self.usable):
            raise ValueError(nothing_readable(n, self.unreadable))

    def __len__(self) -> int:
        return len(self.source)

    @property
    def cached(self) -> bool:
        return self._kept is not None

    def get(self, indices: Int64[np.ndarray, " b"]) -> Canvases:
        """Canvases of these images; an unreadable one is replaced by the next readable one of the source."""
        if self._kept is None:
            decoded = decode_rows(self.source, self.size, indices, replace=True, known=self.unreadable)
            return self._canvases(decoded)
        # the first usable image from each index on, beginning again at the end
        position = np.searchsorted(self.usable, indices) % len(self.usable)
        index = self.usable[position]
        return self._canvases(Decoded(index, self._kept.pixels[index], self._kept.sizes[index], {}))

    def stream(
        self, batches: Iterable[Int64[np.ndarray, " _"]], *, rows: int, workers: int
    ) -> Iterator[Canvases]:
        """`get` of each batch of ``rows`` images; without a cache, processes decode two batches ahead."""
        if self._kept is not None or workers == 0:
            yield from map(self.get, batches)
            return
        # batches go to the workers in parts, so that all of them share the one that is waited for
        part = min(CHUNK, math.ceil(rows / workers))
        ahead = max(2 * workers, 2 * math.ceil(rows / part))
        asked, expected = tee(batches)
        chunks = (batch[at : at + part] for batch in asked for at in range(0, len(batch), part))
        decoded = decode_in_order(self.source, self.size, chunks, workers=workers, ahead=ahead, replace=True)
        with closing(decoded):
            for batch in expected:
                yield self._canvases(Decoded.join(list(islice(decoded, math.ceil(len(batch) / part)))))

    def _canvases(self, decoded: Decoded) -> Canvases:
        self.unreadable.update(decoded.unreadable)
        labels = None if self.source.labels is None else torch.from_numpy(self.source.labels[decoded.index])
        return Canvases(
            pixels=torch.from_numpy(decoded.pixels),
            sizes=torch.from_numpy(decoded.sizes.astype(np.float32)),
            index=torch.from_numpy(decoded.index),
            labels=labels,
        )


def canvas_size(source: Source, view_size: int) -> int:
    """A canvas side for views of ``view_size``: the usual longer side of the images, one to two views long.

    Looks at the headers of up to 64 images or frames; a multiple of 8, never below ``view_size``.
    """
    longer = []
    looked_at = LOOKED_AT // max(1, source.frames)  # all frames of a clip are read to see one
    for index in np.unique(np.linspace(0, len(source) - 1, max(1, looked_at)).astype(np.int64)):
        try:
            longer.append(max(true_size(source.read(int(index)))))
        except (UnreadableImage, OSError):  # reported when it is decoded
            continue
    usual = int(np.median(longer)) if longer else view_size
    return math.ceil(min(max(usual, view_size), 2 * view_size) / 8) * 8
