"""Which patches an encoder sees. Vectorised, on the device, from random numbers that the caller draws.

One row of random numbers an image: masks do not depend on the order of the batch, nor on how many ranks share it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

ATTEMPTS = 64
"""blocks to try: random numbers "b ATTEMPTS 4" settle more than 999 of 1000 masks of `block_mask`"""
CUBES = 192
"""cuboids to try: random numbers "b CUBES 6" settle nearly all masks of `cube_mask`"""


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


def tube_split(
    noise: Float[Tensor, "b p"], mask_ratio: float, times: int
) -> tuple[Int[Tensor, "b m"], Int[Tensor, "b q"]]:
    """`random_split` of the places of a clip, which are seen, or hidden, at all ``times``.

    ``int(p * mask_ratio)`` places are hidden, as in the official code of VideoMAE (arXiv:2203.12602).
    Raises ValueError when that leaves nothing to see or nothing to predict.
    """
    p = noise.shape[1]
    n_hidden = int(p * mask_ratio)
    if not 0 < n_hidden < p:
        hides = "none" if n_hidden < 1 else "all"
        raise ValueError(
            f"mask_ratio={mask_ratio} hides {hides} of {p} places. Choose method.mask_ratio between {1 / p:.3g} and "
            f"{1 - 1 / p:.3g}, or use a smaller patch."
        )
    order = noise.argsort(dim=1)
    seen, hidden = order[:, : p - n_hidden], order[:, p - n_hidden :]
    return through_time(seen, p, times), through_time(hidden, p, times)


def through_time(places: Int[Tensor, "b m"], p: int, times: int) -> Int[Tensor, "b k"]:
    """The patches of a clip at some of its p places, at all times, the first time first."""
    first = p * torch.arange(times, device=places.device).unsqueeze(1)
    return (first + places.unsqueeze(1)).flatten(1)


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


def cube_mask(
    noise: Float[Tensor, "b t 6"], count: int, grid: tuple[int, int, int], *, smallest: float, largest: float
) -> Bool[Tensor, "b n"]:
    """Hide cuboids, one after the other, until at most ``count`` units of each clip are hidden.

    Each of t attempts uses six random numbers: the area of a face, uniform between ``smallest`` and ``largest``; the
    ratio of height to width, log-uniform between 0.3 and its inverse; how many of the grid's times it lasts, each
    number as likely; the place. A cuboid counts if its face is smaller than the grid's and it hides something new, but
    not too much; after a hundred that do not, a clip gets no more. As in MaskFeat's official code (arXiv:2112.09133).
    Raises ValueError for a grid without room for a face.
    """
    times, rows, columns = grid
    if min(rows, columns) < 2:
        raise ValueError(
            f"A grid of {rows} x {columns} units has no room for cuboids, whose faces are smaller than the grid. "
            "Use larger views, a smaller patch or a smaller method.mask_unit."
        )
    u = noise.flatten(0, 1)  # (b t) 6
    area, ratio = smallest + u[:, 0] * (largest - smallest), (math.log(0.3) * (1 - 2 * u[:, 1])).exp()
    h, w = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    lasts = _between(u[:, 3], (u[:, 2] * times).floor() + 1, times)
    face = _between(u[:, 4], h, rows).unsqueeze(2) & _between(u[:, 5], w, columns).unsqueeze(1)
    face &= ((h < rows) & (w < columns))[:, None, None]  # else none, which hides nothing new
    cuboids = (lasts.unsqueeze(2) & face.flatten(1).unsqueeze(1)).view(*noise.shape[:2], -1)  # b t n
    mask = torch.zeros_like(cuboids[:, 0])
    hidden, failed = torch.zeros_like(noise[:, 0, 0]), torch.zeros_like(noise[:, 0, 0])
    for cuboid in cuboids.unbind(1):
        new = cuboid & ~mask
        hides = new.sum(1)
        counts = (0 < hides) & (hidden + hides <= count) & (failed < 100)
        mask |= new & counts.unsqueeze(1)
        hidden, failed = hidden + hides * counts, (failed + 1) * ~counts
    return mask


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


def unit_mask(noise: Float[Tensor, "b rows columns"], mask_ratio: float, scale: int) -> Bool[Tensor, "b n"]:
    """Hide square units of ``scale`` x ``scale`` patches, ``ceil(units * mask_ratio)`` of each image: the least noise.

    One number a unit. As in the official SimMIM code (arXiv:2111.09886).
    Raises ValueError when that leaves nothing to see or nothing to predict.
    """
    units = noise[0].numel()
    count = math.ceil(units * mask_ratio)
    if not 0 < count < units:
        raise ValueError(
            f"mask_ratio={mask_ratio} hides {count} of {units} units. Choose method.mask_ratio above 0 and at most "
            f"{(units - 1) / units:.3g}, or a smaller method.mask_unit."
        )
    hidden = exact_mask(noise.flatten(1), noise.new_full((len(noise),), count)).view_as(noise)
    return hidden.repeat_interleave(scale, 1).repeat_interleave(scale, 2).flatten(1)


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


def block_size(
    u_scale: float,
    u_aspect: float,
    grid: tuple[int, int],
    *,
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int]:
    """Height and width in patches of I-JEPA's blocks (arXiv:2301.08243), at most those of the grid.

    Two numbers in [0, 1) place the block's share of the grid's area in ``scale`` and its height / width in ``aspect``.
    """
    rows, columns = grid
    area = int(rows * columns * (scale[0] + u_scale * (scale[1] - scale[0])))
    ratio = aspect[0] + u_aspect * (aspect[1] - aspect[0])
    return min(round(math.sqrt(area * ratio)), rows), min(round(math.sqrt(area / ratio)), columns)


def place_blocks(
    noise: Float[Tensor, "b k 2"], size: tuple[int, int], grid: tuple[int, int]
) -> Int[Tensor, "b k m"]:
    """Indices of the patches of k blocks an image, all of one ``size``, each place in the grid as likely."""
    places = noise.new_tensor([n - length + 1 for n, length in zip(grid, size, strict=True)])
    top, left = (noise * places).long().unsqueeze(-1).unbind(2)  # b k 1
    row, column = (
        start + torch.arange(n, device=noise.device) for start, n in zip((top, left), size, strict=True)
    )
    return (row.unsqueeze(-1) * grid[1] + column.unsqueeze(-2)).flatten(2)


def outside(block: Int[Tensor, "b m"], targets: Int[Tensor, "b k q"], n: int) -> Bool[Tensor, "b n"]:
    """Which of n patches lie in the block of each image and in none of its targets."""
    mask = torch.zeros(len(block), n, dtype=torch.bool, device=block.device)
    return mask.scatter(1, block, True).scatter(1, targets.flatten(1), False)


def squares(noise: Float[Tensor, "b k"], grid: tuple[int, int], side: int) -> Bool[Tensor, "b n"]:
    """Which patches lie in one of k squares an image, around patches drawn at random, cut off at the border.

    As in the official code of data2vec 2.0 (arXiv:2212.07525), which shows about these and hides the rest.
    """
    rows, columns = grid
    centre = noise.new_zeros(len(noise), rows * columns).scatter(1, (noise * rows * columns).long(), 1.0)
    reach = (side - 1 - side // 2, side // 2)  # of the squares' centres around a patch
    centre = F.pad(centre.view(-1, 1, rows, columns), reach * 2)
    return F.max_pool2d(centre, side, stride=1).flatten(1) > 0
