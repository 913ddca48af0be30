"""Some frames of a video file, by PyAV: seek to the last key frame before the first of them, decode from there on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from visrep.data.decode import UnreadableImage


def need_pyav() -> None:
    """Raises ImportError, with what to install, when PyAV is missing."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'reading video files needs PyAV: pip install "visrep[video]". Folders of frames need nothing.'
        ) from error


def read_film(path: Path, choose: Callable[[int], list[int]]) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The frames, upright, that ``choose`` names in ascending order when told how many there are.

    Where a video ends before it should, its last frame is repeated.
    Raises UnreadableImage for a file without video, or without one of these frames; OSError when it is gone.
    """
    import av
    from av.error import FFmpegError

    path.stat()  # so that a missing file is told as for images
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UnreadableImage("holds no video")
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate
            if not rate or not stream.time_base:
                raise UnreadableImage("does not say how many frames it shows a second")
            ticks = 1 / (rate * stream.time_base)  # between two frames
            wanted = choose(_count(container, stream, ticks))
            began = stream.start_time or 0
            if wanted[0] > 0:
                container.seek(began + int(wanted[0] * ticks), stream=stream)
            return _pick(container.decode(stream), wanted, began, float(ticks))
    except FFmpegError as error:
        raise UnreadableImage(error.strerror or str(error)) from error


def _pick(decoded: Any, wanted: list[int], began: int, ticks: float) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for frame in decoded:
        if frame.pts is None:
            continue
        number = round((frame.pts - began) / ticks)
        if number < wanted[len(found)]:
            continue
        image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
        # Where the rate varies, one frame may stand for several moments.
        found += [image] * sum(moment <= number for moment in wanted[len(found) :])
        if len(found) == len(wanted):
            return found
    if not found:
        raise UnreadableImage(f"ends before frame {wanted[0]}")
    return found + found[-1:] * (len(wanted) - len(found))


def _count(container: Any, stream: Any, ticks: Any) -> int:
    """Frames of the stream: as its header says, by its duration, or by counting packets without decoding them.

    Durations of less than a second are not believed: they are wrong for short files of formats that do not store them,
    and in short files packets are soon counted.
    """
    if stream.frames:
        return stream.frames
    seconds = (stream.duration or 0) * stream.time_base or (container.duration or 0) / 1_000_000
    if seconds >= 1:
        return int(seconds / (ticks * stream.time_base) + 0.5)
    n = sum(packet.size > 0 for packet in container.demux(stream))
    container.seek(0, stream=stream)
    if not n:
        raise UnreadableImage("holds no frames")
    return n
