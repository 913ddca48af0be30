"""What an ONNX file of another tool takes and gives, read off its shapes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from visrep.encoders.pretrained.hf import read_preprocessing
from visrep.method import Preprocessing

USUAL = ("last_hidden_state", "features", "image_embeds", "embeddings", "embedding", "pooler_output")
"""names of outputs that are features, the first that is there counts"""
NUMBERS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
MOST_FRONT = 9
"""cls and register tokens that are looked for in front of a square grid"""


def the_input(session: Any, path: Path) -> Any:
    """The one input of images. Raises ValueError for others."""
    inputs = session.get_inputs()
    shapes = ", ".join(f"{x.name} {x.shape} {x.type}" for x in inputs)
    if len(inputs) != 1 or inputs[0].type not in NUMBERS or len(inputs[0].shape) not in (4, 5):
        raise ValueError(
            f"{path} has the inputs: {shapes}. An encoder needs a single one, of images 'b 3 h w' of floats. "
            "Export the image encoder alone, without resizing and normalising."
        )
    channels = inputs[0].shape[-3]
    if isinstance(channels, int) and channels != 3:
        raise ValueError(
            f"{path} has the input {shapes}: images need 3 channels at the third place from the end ('b 3 h w')."
        )
    return inputs[0]


def the_output(seen: dict[str, Tensor], asked: str, path: Path) -> str:
    """The output that features are. Raises ValueError where it is not clear."""
    shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in seen.items())
    usable = [name for name, x in seen.items() if x.ndim in (2, 3, 4)]
    if asked:
        if asked not in usable:
            raise ValueError(f"{path} has no output {asked!r} of features. It has: {shapes}.")
        return asked
    if len(usable) == 1:
        return usable[0]
    named = [name for name in USUAL if name in usable]
    if not named:
        raise ValueError(f"{path} has several outputs: {shapes}. Say which are the features: {path}@OUTPUT.")
    return named[0]


def front_tokens(x: Tensor, path: Path) -> int:
    """How many tokens stand before those of a square grid, of an output for one square image.

    Raises ValueError where there is no such grid, and for a map whose channels are not second.
    """
    if x.ndim == 4 and x.shape[2] != x.shape[3]:
        raise ValueError(
            f"{path} gives a map of shape {tuple(x.shape)} for a square image; 'b d rows columns' is needed."
        )
    if x.ndim != 3:
        return 0
    n = x.shape[1]
    for front in range(min(n, MOST_FRONT + 1)):
        if math.isqrt(n - front) ** 2 == n - front:
            return front
    raise ValueError(
        f"{path} gives {n} tokens for a square image: no square grid with up to {MOST_FRONT} tokens before it."
    )


def expected(images: Any, path: Path) -> Preprocessing:
    """What a file of another tool expects: by its shape, and by a ``preprocessor_config.json`` beside it.

    Raises ValueError for images that are not square, and for clips.
    """
    height, width = images.shape[-2:]
    if len(images.shape) == 5 or (isinstance(height, int) and isinstance(width, int) and height != width):
        raise ValueError(
            f"{path} takes images of shape {images.shape}; square images 'b 3 h w' can be judged."
        )
    size = next((side for side in (height, width) if isinstance(side, int)), Preprocessing.size)
    beside = path.parent / "preprocessor_config.json"
    if not beside.is_file():
        return Preprocessing(size)
    said = read_preprocessing(json.loads(beside.read_text()), size)
    fixed = isinstance(height, int) or isinstance(width, int)
    return replace(said, size=size) if fixed else said
