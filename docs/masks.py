"""Draw docs/methods/masks.svg: what each kind of mask hides, on a grid of 14 x 14 patches.

python docs/masks.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from visrep import masking

FILE = Path(__file__).parent / "methods" / "masks.svg"
SIDE, COLUMNS, TIMES = 14, 8, 8
GRID, N = (SIDE, SIDE), SIDE * SIDE
SEEN, HIDDEN, ASKED, UNUSED = range(4)
COLOURS = ("#dfe6ee", "#2b3440", "#d55e00", "#a8b0ba")
"""seen, hidden and predicted, predicted in blocks of their own, neither seen nor predicted"""


def gallery() -> dict[str, Tensor]:
    """``COLUMNS`` grids of states a kind of mask; of clips, the moments of one clip."""
    rng = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng)

    def of_indices(hidden: Tensor, n: int = N) -> Tensor:
        return torch.zeros(len(hidden), n).scatter(1, hidden, HIDDEN)

    count = torch.full((COLUMNS,), 0.4 * N)
    blocks = masking.block_mask(noise(COLUMNS, masking.ATTEMPTS, 4), count, GRID, smallest=16)
    inverse = noise(COLUMNS, N) - masking.squares(noise(COLUMNS, int(N * (0.2 + 0.07) / 9)), GRID, 3).float()
    tubes = masking.tube_split(noise(1, N), 0.9, TIMES)[1]
    cuboids = masking.cube_mask(
        noise(1, masking.CUBES, 6), int(0.4 * TIMES * N), (TIMES, SIDE, SIDE), smallest=16, largest=0.4 * N
    )
    return {
        "random, 75 %\nMAE": of_indices(masking.random_split(noise(COLUMNS, N), 0.75)[1]),
        "units of 2 x 2, 60 %\nSimMIM": HIDDEN * masking.unit_mask(noise(COLUMNS, 7, 7), 0.6, 2).float(),
        "blocks, 40 %\nBEiT, iBOT, DINOv2": HIDDEN
        * masking.exact_mask(noise(COLUMNS, N), count, blocks).float(),
        "squares stay, 80 %\ndata2vec 2.0": of_indices(masking.random_split(inverse, 0.8)[1]),
        "context and four blocks\nI-JEPA": multi_block(noise(COLUMNS, 5, 2)),
        "tubes, 90 %, one clip\nVideoMAE": of_indices(tubes, TIMES * N).view(TIMES, N),
        "cuboids, 40 %, one clip\nMaskFeat": HIDDEN * cuboids.float().view(TIMES, N),
        "long blocks, one clip\nV-JEPA": of_indices(
            masking.place_blocks(noise(1, 2, 2), (11, 12), GRID).flatten(1)
        ).expand(TIMES, N),
    }


def multi_block(noise: Tensor) -> Tensor:
    """I-JEPA's context, a large block without the four that are predicted from it."""
    size = masking.block_size(0.5, 0.5, GRID, scale=(0.15, 0.2), aspect=(0.75, 1.5))
    large = masking.block_size(0.5, 0.5, GRID, scale=(0.85, 1.0), aspect=(1.0, 1.0))
    asked = masking.place_blocks(noise[:, :4], size, GRID)
    context = masking.place_blocks(noise[:, 4:], large, GRID)[:, 0]
    state = torch.full((COLUMNS, N), float(UNUSED)).scatter(1, asked.flatten(1), ASKED)
    return torch.where(masking.outside(context, asked, N), SEEN, state)


def main() -> None:
    rows = gallery()
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "visrep", "font.size": 8.5})
    figure = Figure(figsize=(8.4, 0.86 * len(rows)))
    FigureCanvasSVG(figure)
    axes = figure.subplots(len(rows), COLUMNS)
    figure.subplots_adjust(left=0.19, right=0.995, top=0.995, bottom=0.005, wspace=0.08, hspace=0.08)
    colours = ListedColormap(COLOURS)
    for line, (name, states) in zip(axes, rows.items(), strict=True):
        for axis, state in zip(line, states.numpy().astype(np.uint8), strict=True):
            axis.imshow(state.reshape(GRID), cmap=colours, vmin=0, vmax=len(COLOURS) - 1)
            axis.set_axis_off()
        line[0].text(-1.5, SIDE / 2, name, ha="right", va="center", color="#6b7280")
    figure.savefig(FILE, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
