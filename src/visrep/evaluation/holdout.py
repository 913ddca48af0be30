"""Settings are chosen on a held-out part of the training images, never on the test images."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from visrep.data.split import stratified_split


def hold_out(labels: Int64[Tensor, " n"], seed: int) -> tuple[Int64[Tensor, " f"], Int64[Tensor, " h"]]:
    """Positions to fit on and positions held out: a tenth of each class, a fifth below 5,000 images.

    Raises ValueError when there are fewer than two classes.
    """
    if len(labels.unique()) < 2:
        raise ValueError("a probe needs at least 2 classes among the training images, there is 1.")
    fraction = 0.2 if len(labels) < 5000 else 0.1
    fitted, held_out = stratified_split(labels.cpu().numpy(), fraction, seed)
    return torch.as_tensor(fitted, device=labels.device), torch.as_tensor(held_out, device=labels.device)
