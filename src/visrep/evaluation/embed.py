"""One vector an image, written to a file: Parquet, .npz or .csv."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from visrep.data.canvas import CanvasSet, canvas_size
from visrep.data.source import Source
from visrep.encoders import applied_to
from visrep.evaluation.features import Features, count_bad, stream
from visrep.evaluation.writers import WRITERS, Writer
from visrep.method import Encoder
from visrep.progress import tracked


def embed(
    encoder: Encoder,
    source: Source,
    out: str | Path,
    *,
    layer: int = 0,
    pooling: str = "auto",
    batch: int = 256,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Path:
    """Write a row an image: ``path`` (name in the source), ``vector`` (float32) and, with labels, ``label``.

    Images are decoded, encoded and written batch by batch, in order; ``out`` appears when it is whole.
    An encoder of images sees clips frame by frame (see `FrameAverage`).
    Unreadable images are left out and listed with reasons in ``<out without suffix>.unreadable.txt``.
    ``layer`` of 0 is the last.
    Returns ``out``.
    Raises ValueError for another suffix, a layer or pooling that the encoder does not have, features that are
    not finite, or when no image can be read; ImportError for Parquet without its extra.
    """
    out = Path(out)
    if out.suffix not in WRITERS:
        raise ValueError(f"cannot write {out.name!r}: use a name that ends in {', '.join(WRITERS)}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    encoder = applied_to(encoder, source.frames)
    canvases = CanvasSet(source, canvas_size(source, encoder.preprocessing.size), cache="off")
    layer = layer or encoder.depth
    parts = stream(
        encoder,
        canvases,
        np.arange(len(source)),
        layers=(layer,),
        poolings=(pooling,),
        batch=batch,
        device=device,
    )
    n_batches = -(-len(source) // batch)
    temporary = out.with_name(out.name + ".part")
    try:
        _write(
            tracked(parts, "embedding", total=n_batches, shown=progress),
            layer,
            source,
            WRITERS[out.suffix],
            temporary,
        )
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    _list_unreadable(out.with_suffix(".unreadable.txt"), source, canvases.unreadable)
    return out


def _write(parts: Iterable[Features], layer: int, source: Source, kind: type[Writer], path: Path) -> None:
    rows = (part for part in parts if len(part))
    first = next(iter(rows), None)
    if first is None:
        raise ValueError(f"none of the {len(source)} images of {source.name} can be read.")
    width = _vectors(first, layer).shape[1]
    with closing(kind(path, width, source.labels is not None)) as writer:
        for part in chain([first], rows):
            labels = None if part.labels is None else part.labels.numpy()
            writer.write([source.key(index) for index in part.index.tolist()], _vectors(part, layer), labels)


def _vectors(part: Features, layer: int) -> np.ndarray:
    if bad := count_bad(part):
        raise ValueError(
            f"{bad} of {len(part)} images of one batch have NaN or infinite features: training diverged. "
            "Use an earlier checkpoint, or train again with a lower optim.lr or with optim.clip."
        )
    return next(vectors for (of, _), vectors in part.vectors.items() if of == layer).numpy()


def _list_unreadable(path: Path, source: Source, unreadable: dict[int, str]) -> None:
    """A line an image, name and reason with a tab between; no file when there is none."""
    path.unlink(missing_ok=True)
    if unreadable:
        reasons = {source.key(index): reason for index, reason in sorted(unreadable.items())}
        lines = (f"{key}\t{reason.removeprefix(key + ': ')}" for key, reason in reasons.items())
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
