"""Our own two files: any tool reads the weights, `visrep.load_encoder` builds the encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from visrep.encoders.saved import load_encoder, save_encoder
from visrep.exports.written import Written
from visrep.method import Encoder

SNIPPET = """\
import visrep

encoder = visrep.load_encoder(".")
features = encoder(images).pool()
"""


def write(encoder: Encoder, folder: Path) -> Written:
    """``encoder.safetensors`` and ``encoder.json``."""
    save_encoder(folder, encoder)
    return Written("visrep", SNIPPET)


def load(folder: Path) -> Callable[[Tensor], Tensor]:
    """See `Target.load`."""
    encoder = load_encoder(folder)
    return lambda images: encoder(images).pool()
