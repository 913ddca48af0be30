"""A queue of vectors of earlier batches, in which today's batch looks for negatives or neighbours."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.distributed import gather


@final
class Queue(nn.Module):
    """The last ``size`` vectors, first in, first out: state of the run, the same on every rank.

    Filled with random unit vectors at first, as in the official MoCo code; `filled` tells how many are real.
    """

    rows: Tensor
    next: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"A queue of {size} vectors cannot be. Use at least one.")
        self.register_buffer("rows", F.normalize(torch.randn(size, width), dim=1))
        self.register_buffer("next", torch.zeros((), dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def push(self, rows: Float[Tensor, "b d"]) -> None:
        """Put the rows of all ranks in the place of the oldest. Call it in `after_step`.

        Raises ValueError when they do not divide the queue: it would then hold parts of batches.
        """
        rows = gather(rows.detach())
        size, b = len(self.rows), len(rows)
        if size % b:
            near = max(b, round(size / b) * b)
            raise ValueError(
                f"A batch brings {b} vectors, which does not divide a queue of {size}. "
                f"Set the queue to {near}, or choose a batch that divides it."
            )
        start = int(self.next)
        self.rows[start : start + b] = rows.to(self.rows.dtype)
        self.next.fill_((start + b) % size)
        self.filled.fill_(min(int(self.filled) + b, size))
