"""An ONNX file, for onnxruntime, TensorRT, OpenVINO and others; `visrep evaluate` reads it too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visrep.config import to_json
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.onnx import KEY, load_onnx
from visrep.exports.traced import NAMES, example, exported_program, named_outputs, quietly
from visrep.exports.written import Written
from visrep.method import Encoder, Tokens

FILE = "model.onnx"
INPUT = "images"
LARGEST = 1_900_000_000
"""bytes of weights that one ONNX file can hold, about; more lie in a second file"""
AXES = {
    INPUT: {0: "batch", -2: "height", -1: "width"},
    "features": {0: "batch"},
    "patches": {0: "batch", -2: "rows", -1: "columns"},
    "registers": {0: "batch"},
}


def write(encoder: Encoder, folder: Path) -> Written:
    """``model.onnx``, with what it is and what it expects of images in its metadata."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        extra(package)
    recorded, size = exported_program(encoder), encoder.preprocessing.size
    with torch.no_grad():
        tokens = encoder(example(encoder, 1, size, size))
    weights = sum(x.numel() * x.element_size() for x in encoder.state_dict().values())
    with quietly():
        made: Any = torch.onnx.export(
            recorded,
            dynamo=True,
            input_names=[INPUT],
            output_names=[name for name in NAMES if name in named_outputs(tokens)],
            external_data=weights > LARGEST,
            verbose=False,
        )
        _name_axes(made.model.graph)
        made.model.metadata_props[KEY] = json.dumps(description(encoder, tokens))
        made.save(folder / FILE, external_data=weights > LARGEST)
    return Written("onnxruntime", snippet(FILE))


def snippet(file: str) -> str:
    """How to run a file."""
    return f"""\
import onnxruntime

session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
(features,) = session.run(["features"], {{"{INPUT}": images.numpy()}})
"""


def description(encoder: Encoder, tokens: Tokens) -> dict[str, Any]:
    """What `visrep.load_encoder` needs besides the graph, as JSON values."""
    return {
        "format": 1,
        "pooling": "mean" if tokens.cls is None else "cls",
        "stride": encoder.stride,
        "preprocessing": to_json(encoder.preprocessing),
        "architecture": to_json(encoder.config),
    }


def _name_axes(graph: Any) -> None:
    """Words for the axes that may have any length, in place of made-up symbols."""
    for value in (*graph.inputs, *graph.outputs):
        for axis, name in AXES[value.name].items():
            if not isinstance(value.shape[axis], int):
                value.shape[axis] = name


def load(folder: Path, file: str = FILE) -> Callable[[Tensor], Tensor]:
    """See `Target.load`."""
    encoder = load_onnx(str(folder / file))
    return lambda images: encoder(images).pool()
