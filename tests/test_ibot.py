"""iBOT: the official losses and centres; without patches, DINO."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conformance import Case, doubled, moment, views
from test_golden import arrays, close
from visrep.encoders import ViT
from visrep.functional import dino_loss, masked_patch_loss
from visrep.masking import block_mask
from visrep.methods.distillation import dino, ibot
from visrep.schedules import Constant

MASK = "ibot.npz"


def golden() -> tuple[dict[str, Tensor], Tensor]:
    import numpy as np

    from test_golden import GOLDEN

    with np.load(GOLDEN / "ibot.npz") as stored:
        return arrays("ibot.npz", "ibot."), torch.from_numpy(stored["ibot.mask"])
