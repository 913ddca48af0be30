"""TorchScript, for what still reads it (libtorch, mobile): torch itself now prefers `torch.export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from visrep.exports.traced import example, other_size, quietly, traceable
from visrep.exports.written import Written
from visrep.method import Encoder

FILE = "model.ts"
SNIPPET = f"""\
import torch

encoder = torch.jit.load("{FILE}")
features = encoder(images)["features"]
"""


def write(encoder: Encoder, folder: Path) -> Written:
    """``model.ts``, a recorded program that returns a dictionary; see `visrep.exports.traced`."""
    size = encoder.preprocessing.size
    sides = (size, size) if encoder.preprocessing.frames else other_size(encoder)
    module = traceable(encoder).requires_grad_(False)
    with quietly(), torch.no_grad():
        recorded = torch.jit.trace(module, (example(encoder, 2, *sides),), strict=False, check_trace=False)
        torch.jit.save(recorded, folder / FILE)
    return Written(f"torch {torch.__version__}", SNIPPET)


def load(folder: Path) -> Callable[[Tensor], Tensor]:
    """See `Target.load`."""
    with quietly():
        module = torch.jit.load(folder / FILE)
    return lambda images: module(images)["features"]
