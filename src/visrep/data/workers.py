"""Decode images in worker processes, results in the order asked for."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jaxtyping import Int64, UInt8

from visrep.data.decode import UnreadableImage, canvas_shape, decode
from visrep.data.source import Source


@dataclass(frozen=True)
class Decoded:
    """Some images of a source, decoded."""

    index: Int64[np.ndarray, " k"]
    """which image each row is"""
    pixels: UInt8[np.ndarray, "k *t 3 s s"]
    sizes: Int64[np.ndarray, "k 2"]
    """true height and width"""
    unreadable: dict[int, str]
    """images met that do not decode, with the reason"""

    @staticmethod
    def join(parts: list[Decoded]) -> Decoded:
        """The rows of several, one after the other."""
        if len(parts) == 1:
            return parts[0]
        index, pixels, sizes = (
            np.concatenate(column)
            for column in zip(*((p.index, p.pixels, p.sizes) for p in parts), strict=True)
        )
        return Decoded(index, pixels, sizes, {k: v for part in parts for k, v in part.unreadable.items()})


def decode_rows(
    source: Source,
    size: int,
    indices: Int64[np.ndarray, " k"],
    *,
    replace: bool,
    known: Mapping[int, str] = MappingProxyType({}),
) -> Decoded:
    """Decode ``indices``; an unreadable image leaves a black row, or with ``replace`` the next readable one.

    ``known`` are images found unreadable before, not tried again. Raises ValueError when nothing is readable.
    """
    unreadable: dict[int, str] = {}
    index = indices.copy()
    pixels = np.zeros((len(indices), *canvas_shape(source.frames, size)), dtype=np.uint8)
    sizes = np.ones((len(indices), 2), dtype=np.int64)
    for row, first in enumerate(indices):
        for tried in range(len(source) if replace else 1):
            index[row] = candidate = (int(first) + tried) % len(source)
            if candidate in known or candidate in unreadable:
                continue
            try:
                pixels[row], sizes[row] = decode(source.read(candidate), size)
                break
            except UnreadableImage as error:
                unreadable[candidate] = f"{source.key(candidate)}: {error}"
            except OSError as error:  # gone, or not ours to read
                unreadable[candidate] = f"{source.key(candidate)}: {error.strerror or error}"
        else:
            if replace:
                raise ValueError(nothing_readable(len(source), {**known, **unreadable}))
    return Decoded(index, pixels, sizes, unreadable)


def nothing_readable(n: int, unreadable: Mapping[int, str]) -> str:
    reasons = "\n  ".join(list(unreadable.values())[:3])
    return f"none of the {n} images can be read. The first reasons:\n  {reasons}"


def decode_in_order(
    source: Source,
    size: int,
    chunks: Iterable[Int64[np.ndarray, " _"]],
    *,
    workers: int,
    ahead: int,
    replace: bool,
) -> Generator[Decoded, None, None]:
    """`decode_rows` of each chunk, in order, by ``workers`` processes up to ``ahead`` chunks in advance.

    With ``workers=0`` everything happens in this process. Raises RuntimeError when a worker dies.
    """
    if workers == 0:
        for chunk in chunks:
            yield decode_rows(source, size, chunk, replace=replace)
        return
    # Forking hands the source over without pickling it, and scripts need no __main__ guard
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(source, size, replace))
    pending: deque[Future[Decoded]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(_decode_chunk, chunk))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"one of {workers} decoding processes was ended from outside or crashed; most often memory ran "
            "out. Use fewer with --workers, or --workers 0 to decode in the main process."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # also when the consumer stops early


def default_workers(world: int = 1) -> int:
    """Decoding processes for one of ``world`` ranks on this machine: a share of its cores, at most 16."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(16, max(1, cores // world))


class _Job:
    """What a worker process decodes: handed over once, when it starts."""

    source: Source
    size: int
    replace: bool
    known: dict[int, str]


def _start(source: Source, size: int, replace: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends the workers
    _Job.source, _Job.size, _Job.replace, _Job.known = source, size, replace, {}
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed main process must not leave workers behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode_chunk(indices: np.ndarray) -> Decoded:
    decoded = decode_rows(_Job.source, _Job.size, indices, replace=_Job.replace, known=_Job.known)
    _Job.known.update(decoded.unreadable)
    return decoded
