"""Which patches an encoder sees. Vectorised, on the device, from random numbers that the caller draws.

One row of random numbers an image: masks do not depend on the order of the batch, nor on how many ranks share it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ATTEMPTS = 64
"""blocks to try: random numbers "b ATTEMPTS 4" settle more than 999 of 1000 masks of `block_mask`"""


def random_split(
    noise: Float[Tensor, "b n"], mask_ratio: float
) -> tuple[Int[Tensor, "b m"], Int[Tensor, "b q"]]:
    """Indices of kept and of hidden patches, image by image: those with the smallest noise are kept.

    ``int(n * (1 - mask_ratio))`` patches are kept, as in the official MAE code.
    Raises ValueError when that leaves nothing to see or nothing to predict.
    """
    n = noise.shape[1]
    n_keep = int(n * (1 - mask_ratio))
    if not 0 < n_keep < n:
        kept = "keeps none" if n_keep < 1 else "hides none"
        raise ValueError(
            f"mask_ratio={mask_ratio} {kept} of the {n} patches. Choose method.mask_ratio between "
            f"{1 / n:.3g} and {1 - 1 / n:.3g}, or use a smaller patch."
        )
    order = noise.argsort(dim=1)
    return order[:, :n_keep], order[:, n_keep:]


def block_mask(
    noise: Float[Tensor, "b t 4"],
    count: Float[Tensor, " b"],
    grid: tuple[int, int],
    *,
    smallest: float,
    aspect: float = 0.3,
) -> Bool[Tensor, "b n"]:
    """Hide rectangles, one after the other, until at most ``count`` patches of each image are hidden.

    Each of t attempts uses four random numbers: the area, uniform between ``smallest`` and what is left to hide; the
    ratio of height to width, log-uniform between ``aspect`` and its inverse; the place. A rectangle counts if it is
    smaller than the grid and hides something new, but not too much; after ten that do not, an image gets no more.
    `exact_mask` makes up what is missing. As in the official code of BEiT (arXiv:2106.08254), iBOT and DINOv2.
    Raises ValueError for a grid without room for a rectangle.
    """
    rows, columns = grid
    if min(grid) < 2:
        raise ValueError(
            f"A grid of {rows} x {columns} patches has no room for blocks, which are smaller than the grid. "
            "Use larger views or a smaller patch."
        )
    u = noise.movedim(1, 0)  # t b 4
    ratio = (math.log(aspect) * (1 - 2 * u[..., 1])).exp()  # t b
    mask = torch.zeros(len(count), rows, columns, dtype=torch.bool, device=count.device)
    failed = torch.zeros_like(count)  # attempts since the last rectangle that counted
    for i in range(len(u)):
        left_to_hide = count - mask.sum((1, 2))
        area = smallest + u[i, :, 0] * (left_to_hide - smallest)
        h, w = (area * ratio[i]).sqrt().round(), (area / ratio[i]).sqrt().round()
        down = _between(u[i, :, 2], h, rows).unsqueeze(2)  # b rows 1
        across = _between(u[i, :, 3], w, columns).unsqueeze(1)  # b 1 columns
        new = down & across & ~mask
        hides = new.sum((1, 2))
        counts = (h < rows) & (w < columns) & (0 < hides) & (hides <= left_to_hide) & (failed < 10)
        mask |= new & counts[:, None, None]
        failed = torch.where(counts, 0, failed + 1)
    return mask.flatten(1)


def _between(u: Float[Tensor, " b"], length: Float[Tensor, " b"], n: int) -> Bool[Tensor, "b n"]:
    """Which of n cells lie in a stretch of ``length`` cells; ``u`` says where it starts, each place as likely."""
    start = (u * (n - length + 1)).floor().unsqueeze(1)
    cell = torch.arange(n, device=u.device)
    return (cell >= start) & (cell < start + length.unsqueeze(1))


def exact_mask(
    noise: Float[Tensor, "b n"], count: Float[Tensor, " b"], mask: Bool[Tensor, "b n"] | None = None
) -> Bool[Tensor, "b n"]:
    """Hide exactly ``int(count)`` patches of each image: those of ``mask`` first, then those with the least noise.

    Where ``mask`` hides more, those of it with the least noise stay hidden.
    """
    order = noise if mask is None else noise - mask.to(noise)
    return order.argsort(1).argsort(1) < count.floor().unsqueeze(1)


def spread_ratios(
    noise: Float[Tensor, "m 2"], probability: float, ratio: tuple[float, float]
) -> Float[Tensor, " m"]:
    """How much of each crop to hide: 0, except for exactly ``int(m * probability)`` crops chosen at random.

    Their shares are spread over the range ``ratio``: one in each of as many equal parts of it. As in the official
    DINOv2 code. Raises ValueError when no crop would be masked.
    """
    n_masked = int(len(noise) * probability)
    if n_masked < 1:
        raise ValueError(
            f"mask_probability={probability} masks none of {len(noise)} crops. Use at least {1 / len(noise):.3g}."
        )
    place = noise[:, 0].argsort().argsort()
    low, high = ratio
    return torch.where(place < n_masked, low + (high - low) * (place + noise[:, 1]) / n_masked, 0.0)


def check_ratios(probability: float, ratio: tuple[float, float]) -> None:
    """Raises ValueError unless ``mask_probability`` and ``mask_ratio`` hide something and leave something."""
    if not 0 < probability <= 1:
        raise ValueError(
            f"mask_probability={probability} must lie in (0, 1]. Lower w_patch for less masking."
        )
    low, high = ratio
    if not 0 < low <= high < 1:
        raise ValueError(f"mask_ratio=({low}, {high}) is not a range. Use 0 < low <= high < 1.")
