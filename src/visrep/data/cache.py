"""Canvases decoded once: in memory, or in a memory-mapped file that later runs find again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from visrep.data.arrays import Arrays
from visrep.data.decode import canvas_shape
from visrep.data.folder import Folder
from visrep.data.parquet import Parquet
from visrep.data.source import Source, Subset
from visrep.data.video import Clips
from visrep.data.workers import decode_in_order
from visrep.progress import counted

FORMAT = 1
"""part of the fingerprint: raise it whenever decoding changes, so that old caches are left alone"""
CHUNK = 64
"""images a worker process decodes at a time"""
FEW = 4 * CHUNK
"""so few images are decoded sooner than processes start"""
SAMPLED = 64
"""images whose content stands for that of a source that keeps no record of change"""


@dataclass(frozen=True)
class Kept:
    """Every image or clip of a source, decoded."""

    pixels: UInt8[np.ndarray, "n *t 3 s s"]
    sizes: Int64[np.ndarray, "n 2"]
    unreadable: dict[int, str]


def keep_in_memory(source: Source, size: int, *, workers: int, progress: bool) -> Kept:
    """Decode a source into memory."""
    pixels = np.empty((len(source), *canvas_shape(source.frames, size)), dtype=np.uint8)
    return _fill(pixels, source, size, workers, progress)


def keep_on_disk(source: Source, size: int, folder: Path, *, workers: int, progress: bool) -> Kept:
    """Decode a source into ``folder``, or map what an earlier run left there for the same images and size.

    Two files: canvases-S-FINGERPRINT.npy, and a .json of the same name with true sizes and unreadable
    images. The .json is written last and both are moved into place whole, so a run that is killed leaves no
    cache that counts. Raises ValueError when the disk has not enough room.
    """
    mark = fingerprint(source, size)
    stem = folder / f"canvases-{size}-{mark[:16]}"
    array, notes = stem.with_suffix(".npy"), stem.with_suffix(".json")
    shape = (len(source), *canvas_shape(source.frames, size))
    kept = _find(array, notes, mark, shape)
    if kept is not None:
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the cache of {len(source)} canvases of {size} px needs {needed / 2**30:.1f} GiB and {folder} "
            f"has {free / 2**30:.1f} GiB left. Use --cache off, a smaller --canvas, or another folder."
        )
    notes.unlink(missing_ok=True)
    part = array.with_name(f"{array.name}.{os.getpid()}.part")
    try:
        pixels = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=shape)
        kept = _fill(pixels, source, size, workers, progress)
        pixels.flush()
        part.replace(array)
    finally:
        part.unlink(missing_ok=True)
    written = notes.with_name(f"{notes.name}.{os.getpid()}.part")
    unreadable = {str(index): reason for index, reason in kept.unreadable.items()}
    content = {
        "fingerprint": mark,
        "source": source.name,
        "sizes": kept.sizes.tolist(),
        "unreadable": unreadable,
    }
    written.write_text(json.dumps(content))
    written.replace(notes)
    return kept


def default_folder() -> Path:
    """Where canvases stay when no folder is named."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "visrep" / "canvases"


def fingerprint(source: Source, size: int) -> str:
    """Changes with the canvas size, the number, names and order of images, and their content.

    Content is judged by size and time of change for files and shards, by the pixels for arrays, and by the
    first reading of 64 images spread over the source for other sources.
    """
    digest = hashlib.sha256(f"{FORMAT}:{size}:{len(source)}".encode())
    origin, indices = source, np.arange(len(source))
    while isinstance(origin, Subset):
        origin, indices = origin.source, origin.indices[indices]
    for index in indices:
        digest.update(f"\n{origin.key(int(index))}".encode())
    if isinstance(origin, Folder | Parquet | Clips):
        for index in indices:
            digest.update(f"\n{origin.stamp(int(index))}".encode())
        return digest.hexdigest()
    spread = np.unique(np.linspace(0, len(indices) - 1, SAMPLED).astype(np.int64))
    for index in indices if isinstance(origin, Arrays) else indices[spread]:
        raw = origin.read(int(index))
        for image in raw if isinstance(raw, list) else [raw]:
            digest.update(image if isinstance(image, bytes) else np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _find(array: Path, notes: Path, mark: str, shape: tuple[int, ...]) -> Kept | None:
    """A finished cache of exactly these images, or None."""
    try:
        content = json.loads(notes.read_text())
        # copy-on-write, so that torch may wrap it: nothing ever writes
        pixels = np.load(array, mmap_mode="c")
        sizes = np.array(content["sizes"], dtype=np.int64)
        unreadable = {int(index): str(reason) for index, reason in content["unreadable"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, cut short or not ours
        return None
    if content["fingerprint"] != mark or pixels.shape != shape or sizes.shape != (shape[0], 2):
        return None
    return Kept(pixels, sizes, unreadable)


def _fill(pixels: np.ndarray, source: Source, size: int, workers: int, progress: bool) -> Kept:
    n = len(source)
    sizes = np.empty((n, 2), dtype=np.int64)
    unreadable: dict[int, str] = {}
    chunks = [np.arange(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
    workers = 0 if n <= FEW else workers
    decoded = decode_in_order(source, size, chunks, workers=workers, ahead=2 * workers, replace=False)
    begun = time.monotonic()
    with counted(f"decoding {source.name}", n, shown=progress) as advance:
        for part in decoded:
            rows = slice(int(part.index[0]), int(part.index[-1]) + 1)
            pixels[rows], sizes[rows] = part.pixels, part.sizes
            unreadable |= part.unreadable
            advance(len(part.index), f"{rows.stop / (time.monotonic() - begun):,.0f} images/s")
    return Kept(pixels, sizes, unreadable)
