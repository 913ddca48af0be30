"""ONNX files in 8 bits by onnxruntime, and what that costs in kNN accuracy.

Only products with weights, on the way from the images to the features, are quantised: convolutions and linear layers.
Weights get one scale a channel and 7 bits, so that no CPU overflows: the accuracy measured here is then that of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visrep.data import Source, open_splits
from visrep.data.canvas import CanvasSet, canvas_size
from visrep.data.source import Subset
from visrep.data.split import stratified_split
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.onnx import load_onnx
from visrep.evaluation.evaluate import evaluate
from visrep.evaluation.features import centred
from visrep.evaluation.results import Result, from_headline
from visrep.evaluation.sides import TEST_SHARE
from visrep.exports.card_parts import anonymous
from visrep.exports.onnx import FILE, INPUT
from visrep.exports.traced import quietly
from visrep.method import Preprocessing

Kind = Literal["", "int8", "int8-dynamic"]
KINDS: tuple[Kind, ...] = ("", "int8", "int8-dynamic")
SMALL_FILE = "model_int8.onnx"
CALIBRATION_IMAGES = 256
WEIGHTED = {"int8": ("Conv", "Gemm", "MatMul"), "int8-dynamic": ("Gemm", "MatMul")}
"""operations that are quantised; onnxruntime's dynamic convolutions are slower than those of floats"""
SHAPES = ("Shape", "Size")
"""operations that see only the shape of an image"""


@dataclass(frozen=True)
class Cost:
    """kNN accuracy in percent, before and after."""

    data: str
    float32: Result
    int8: Result

    @property
    def change(self) -> float:
        """In points of percent, negative for a loss."""
        return self.int8.value - self.float32.value


@dataclass(frozen=True)
class Sides:
    """Images to calibrate on and fit kNN with, and those to judge, of one data set."""

    train: Source
    test: Source | None
    """None without labels"""


def sides(data: str | Path | Source) -> Sides:
    """The data's own split, else a stratified fifth to judge on; without labels all images are for calibration."""
    train, test = open_splits(data)
    if train.labels is None or (train.labels < 0).any():
        return Sides(train, None)
    if test is None:
        fitted, judged = stratified_split(train.labels, TEST_SHARE, 0, train.groups)
        train, test = Subset(train, fitted), Subset(train, judged)
    return Sides(train, test)


def quantise(folder: Path, kind: Kind, images: Source | None, seen: Preprocessing) -> None:
    """Write ``model_int8.onnx`` beside ``model.onnx``; ``images`` are needed to calibrate unless ``kind`` is dynamic.

    Raises ValueError where nothing of the network can be quantised.
    """
    tools = extra("onnxruntime.quantization")
    source, target = folder / FILE, folder / SMALL_FILE
    nodes = weighted_nodes(extra("onnx").load(str(source)).graph, WEIGHTED[kind])
    if not nodes:
        raise ValueError(
            f"--quantize {kind}: this encoder has nothing that could be quantised so. Use --quantize int8 with --data."
        )
    settings = {
        "nodes_to_quantize": nodes,
        "op_types_to_quantize": [*WEIGHTED[kind]],
        "per_channel": True,
        "reduce_range": True,
        "weight_type": tools.QuantType.QInt8,
    }
    with quietly():
        if kind == "int8-dynamic":
            tools.quantize_dynamic(source, target, **settings)
        elif images is not None:
            reader = Calibration(images, seen)
            tools.quantize_static(source, target, reader, activation_type=tools.QuantType.QUInt8, **settings)


def weighted_nodes(graph: Any, kinds: tuple[str, ...]) -> list[str]:
    """Names of the operations that multiply what comes from the images' pixels with weights."""
    constants = {x.name for x in graph.initializer}
    pixels, found = {INPUT}, []
    for node in graph.node:
        if node.op_type in SHAPES or not pixels.intersection(node.input):
            continue
        pixels.update(node.output)
        if node.op_type in kinds and constants.intersection(node.input[:2]):
            found.append(node.name)
    return found


class Calibration:
    """Some images, evenly spaced in their source, one batch after another, as onnxruntime asks for them."""

    def __init__(self, source: Source, seen: Preprocessing) -> None:
        chosen = np.linspace(0, len(source) - 1, min(CALIBRATION_IMAGES, len(source))).astype(np.int64)
        canvases = CanvasSet(source, canvas_size(source, seen.size), cache="off")
        self.batches: Iterator[tuple[Tensor, Tensor | None, Tensor]] = centred(
            canvases, chosen, seen, batch=32
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch by the name of the input; None at the end."""
        pixels = next((pixels for pixels, *_ in self.batches), None)
        return None if pixels is None else {INPUT: pixels.numpy()}


def cost(folder: Path, between: Sides, *, limit: int = 0, progress: bool = False) -> Cost | None:
    """kNN accuracy of both files on the same images; None without labels."""
    if between.test is None:
        return None
    found = [
        evaluate(
            load_onnx(str(folder / file)),
            between.train,
            between.test,
            protocols=("knn",),
            baselines=False,
            limit=limit,
            test_limit=limit,
            device=torch.device("cpu"),
            progress=progress,
        ).results
        for file in (FILE, SMALL_FILE)
    ]
    before, after = (min(results, key=lambda result: from_headline(result.settings)) for results in found)
    return Cost(between.test.name, before, after)


def measured(folder: Path, kind: Kind, paid: Cost | None, command: str) -> dict[str, Any]:
    """What 8 bits save and cost, as JSON values: bytes of both files and, where it was measured, kNN of both.

    As in the card, paths are cut to their last name.
    """
    knn = None
    if paid is not None:
        both = {"float32": asdict(paid.float32), "int8": asdict(paid.int8)}
        knn = {"data": anonymous(paid.data), **both, "change": paid.change}
    sizes = {file: (folder / file).stat().st_size for file in (FILE, SMALL_FILE)}
    return {"command": anonymous(command), "kind": kind, "bytes": sizes, "knn": knn}
