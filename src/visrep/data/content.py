"""What the images of a source are, wherever they lie: a hash of their files, or of pixels where there are none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from visrep.data.decode import UnreadableImage
from visrep.data.dense_playground import PlaygroundFrames
from visrep.data.playground import Playground
from visrep.data.playground_video import PlaygroundVideo
from visrep.data.source import Source, Subset

SAMPLED = 64
"""drawn images that stand for all: the same settings draw the same ones, and drawing takes as long as judging"""
ABSENT = b"unreadable"


def content_of(source: Source) -> str:
    """16 hexadecimal digits that change with any byte of any image, and with their order; not with paths or times.

    Nothing is decoded: files count as they are, of clips the whole video and the frames that are taken. Images that
    cannot be read count as such. Of the playgrounds 64 images are drawn, spread over all.
    """
    origin, indices = source, np.arange(len(source))
    while isinstance(origin, Subset):
        origin, indices = origin.source, origin.indices[indices]
    if isinstance(origin, Playground | PlaygroundVideo | PlaygroundFrames):
        indices = indices[np.unique(np.linspace(0, len(indices) - 1, SAMPLED).astype(np.int64))]
    # in the order of the source, whose shards are read one after the other
    marks = {index: _mark(origin, index) for index in np.unique(indices).tolist()}
    return hashlib.sha256(b"".join(marks[index] for index in indices.tolist())).hexdigest()[:16]


def _mark(source: Source, index: int) -> bytes:
    digest = hashlib.sha256()
    for part in _parts(source, index):
        digest.update(part)
    return digest.digest()


def _parts(source: Source, index: int) -> Iterator[bytes]:
    try:
        raw = source.undecoded(index)
    except (UnreadableImage, OSError):
        raw = ABSENT
    for part in raw if isinstance(raw, list) else [raw]:
        if isinstance(part, np.ndarray):
            yield f"{part.dtype.str}{part.shape}".encode()
            yield part.tobytes()
        else:
            yield f"{len(part)}:".encode()
            yield part
