"""The untrained twin of an encoder: what the architecture alone is worth."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from visrep.data.canvas import CanvasSet
from visrep.evaluation.features import centred
from visrep.method import Encoder

CALIBRATION_IMAGES = 512
BATCH = 128


def untrained_twin(
    encoder: Encoder,
    canvases: CanvasSet,
    indices: Int64[np.ndarray, " n"],
    *,
    seed: int,
    device: torch.device | str,
) -> Encoder:
    """The same architecture with fresh weights of this seed and the same preprocessing, in evaluation mode.

    A fresh BatchNorm assumes inputs of mean 0 and variance 1, which makes a random network worse than it is.
    Its statistics are therefore estimated on up to 512 of these (training) images, evenly spaced, layer by
    layer in one pass over batches of 128, each batch counting equally. Torch's global random state is left as
    it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin: Encoder = encoder.config.build()
    twin.preprocessing = encoder.preprocessing
    twin.to(device).eval()
    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)]
    if norms:
        chosen = indices[
            np.linspace(0, len(indices) - 1, min(CALIBRATION_IMAGES, len(indices))).astype(np.int64)
        ]
        for norm in norms:
            norm.train()
            norm.momentum = None  # torch's way to ask for a plain average over batches
        # batches of almost equal size: one image alone would have no variance
        batch = math.ceil(len(chosen) / math.ceil(len(chosen) / BATCH))
        with torch.no_grad():
            for pixels, _, _ in centred(canvases, chosen, twin.preprocessing, batch, device):
                twin(pixels)
        twin.eval()
    return twin
