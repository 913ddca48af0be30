"""A trained or public encoder put to use: loaded, run over images, handed to another tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visrep.data import Source
    from visrep.exports.export import Export
    from visrep.exports.quantize import Kind
    from visrep.method import Encoder


def load_encoder(name: str | Path) -> Encoder:
    """An encoder in evaluation mode: ``encoder(images)`` gives `Tokens`, ``encoder.preprocessing`` what it expects.

    ``name`` is a run folder, an official checkpoint file, ``timm:NAME``, ``hf:NAME_OR_FOLDER``, ``open_clip:NAME@TAG``
    or ``pip:NAME``; or an ONNX file, which can be judged and used, not trained.
    """
    from visrep.encoders import load_encoder

    return load_encoder(name)


def embed(
    run: str | Path,
    data: str | Path | Source | Sequence,
    out: str | Path,
    *,
    pooling: str = "auto",
    progress: bool = False,
) -> Path:
    """One vector an image, written with its path: .parquet, .npz or .csv by the name of ``out``."""
    from visrep.data import open_source
    from visrep.evaluation.embed import embed
    from visrep.machine import default_device

    return embed(
        load_encoder(run),
        open_source(data),
        Path(out),
        pooling=pooling,
        device=default_device(),
        progress=progress,
    )


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    heads: bool = False,
    licence: str = "",
    quantize: Kind = "",
    data: str | Path | Source | None = None,
    limit: int = 0,
    progress: bool = False,
) -> Export:
    """Write an encoder into a new folder for another tool: safetensors, timm, hf, onnx, torch-export or torchscript.

    ``run`` is whatever `load_encoder` knows but an ONNX file. The folder is loaded back by that tool and compared with
    the encoder before it is kept; its README.md is a model card. ``heads`` adds the method's other weights;
    ``licence`` is an SPDX identifier for the card (MIT, Apache-2.0, ...), which public weights bring where it is known.
    ``quantize`` (int8, int8-dynamic) adds an ONNX file in 8 bits, calibrated on ``data`` and judged on ``limit`` images
    a side of it.
    """
    from visrep.exports.export import export

    return export(
        run,
        to,
        out,
        heads=heads,
        licence=licence,
        quantize=quantize,
        data=data,
        limit=limit,
        progress=progress,
    )
