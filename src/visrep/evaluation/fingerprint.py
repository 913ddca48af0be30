"""What was judged, on what, with what: enough to tell whether two evaluations can be compared."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from visrep.data.content import content_of
from visrep.data.dense import DenseSource
from visrep.data.source import Source
from visrep.evaluation.results import Result
from visrep.method import Encoder


def fingerprint(
    encoder: Encoder, train: Source, test: Source, results: list[Result], *, seed: int
) -> dict[str, Any]:
    """JSON values. Data carry a hash of images, labels and masks, the encoder of all weights, protocols a version."""
    return judged_by({
        "train": _of_source(train),
        "test": _of_source(test),
        "encoder": digest_of(encoder),
        "image": encoder.preprocessing.size,
        "protocols": {},
        "seed": seed,
        "versions": {
            "visrep": version("visrep"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }, results)  # fmt: skip


def judged_by(mark: dict[str, Any], results: list[Result]) -> dict[str, Any]:
    """The fingerprint with the protocols of these results."""
    known = {result.protocol: result.version for result in results}
    return {**mark, "protocols": {name: known[name] for name in sorted(known)}}


def digest_of(encoder: Encoder) -> str:
    """A hash of all weights."""
    return _digest(_weights(encoder))


def images_in(side: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two sides of fingerprints share that are of the same images: wherever they lie, so the name is no part."""
    return tuple(side.get(part) for part in ("content", "hash", "images"))


def hashed(side: Mapping[str, Any]) -> bool:
    """Whether the images of a side of a fingerprint are part of its mark: of the first sheets only names were."""
    return "content" in side


def _of_source(source: Source) -> dict[str, Any]:
    labels = np.zeros(0, dtype=np.int64) if source.labels is None else source.labels
    parts = [content_of(source).encode(), labels.astype("<i8").tobytes()]
    if isinstance(source, DenseSource):
        everyone = range(len(source))
        parts += [source.key(index).encode(errors="surrogateescape") + b"\0" for index in everyone]
        parts += map(source.mark, everyone)
    return {
        "name": source.name,
        "images": len(source),
        "classes": len(np.unique(labels)),
        "content": _digest(parts),
    }


def _weights(encoder: Encoder) -> Iterable[bytes]:
    for name, value in sorted(encoder.state_dict().items()):
        yield name.encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
