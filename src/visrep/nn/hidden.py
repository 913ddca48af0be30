"""Which patches of the global crops a student does not see, in methods that predict a teacher's features of them."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from visrep.distributed import gather, rank
from visrep.masking import ATTEMPTS, block_mask, spread_ratios
from visrep.method import At


def hidden_blocks(
    at: At, b: int, g: int, grid: tuple[int, int], *, probability: float, ratio: tuple[float, float]
) -> Bool[Tensor, "i n"]:
    """DINOv2's masks (arXiv:2304.07193) of g crops of b images, one row a crop, crop by crop: rectangles.

    Of the crops of all ranks together exactly the share ``probability`` is masked; of those, the masked shares are
    spread evenly over ``ratio``. Raises ValueError where no crop would be masked or no rectangle fits.
    """
    noise = gather(at.rand(b, g, 2)).flatten(0, 1)
    shares = spread_ratios(noise, probability, ratio).unflatten(0, (-1, g))
    counts = shares[rank() * b :][:b].T.flatten() * grid[0] * grid[1]
    tries = at.rand(b, g, ATTEMPTS, 4).transpose(0, 1).flatten(0, 1)
    return block_mask(tries, counts.floor(), grid, smallest=4)
