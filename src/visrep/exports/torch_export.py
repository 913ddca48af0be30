"""A program of `torch.export`: torch runs it without this project's code, and compilers take it from there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from visrep.exports.traced import exported_program, quietly
from visrep.exports.written import Written
from visrep.method import Encoder

FILE = "model.pt2"
SNIPPET = f"""\
import torch

encoder = torch.export.load("{FILE}").module()
features = encoder(images)["features"]
"""


def write(encoder: Encoder, folder: Path) -> Written:
    """``model.pt2``, whose program returns a dictionary; see `visrep.exports.traced`."""
    with quietly():
        torch.export.save(exported_program(encoder), folder / FILE)
    return Written(f"torch {torch.__version__}", SNIPPET)


def load(folder: Path) -> Callable[[Tensor], Tensor]:
    """See `Target.load`."""
    with quietly():
        module = torch.export.load(folder / FILE).module()
    return lambda images: module(images)["features"]
