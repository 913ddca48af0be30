"""Equal shares: codes in which every prototype is used as much as any other."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.distributed import max_over_ranks, sum_over_ranks
from visrep.functional import widen


@torch.no_grad()
def sinkhorn(scores: Float[Tensor, "m k"], epsilon: float, iterations: int = 3) -> Float[Tensor, "m k"]:
    """Codes that share the rows of all ranks equally among k prototypes: Sinkhorn-Knopp on exp(scores / epsilon).

    Rows sum to 1, columns nearly to (rows of all ranks) / k. Ranks may bring different numbers of rows.
    Caron et al. 2020, arXiv:2006.09882, section 3.1; as in the official SwAV and DINOv2 code.
    """
    scores = widen(scores) / epsilon
    highest = scores.max() if scores.numel() else scores.new_full((), -torch.inf)
    q = torch.exp(scores - max_over_ranks(highest))  # the constant cancels; without it exp overflows
    for _ in range(iterations):
        q = q / sum_over_ranks(q.sum(0)).clamp(min=torch.finfo(q.dtype).tiny)
        q = q / q.sum(1, keepdim=True)
    return q
