"""What methods share that predict or show the tokens of images: the codes of their patches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from visrep.distributed import mean_over_ranks
from visrep.masking import ATTEMPTS, block_mask
from visrep.method import At

RESIDUALS = ("attn.proj.weight", "mlp.fc2.weight", "ista.decoder")
"""the last weights on the residual branches of a block, of which not every architecture has all"""


def expected_hidden(mask: Bool[Tensor, "b n"]) -> Float[Tensor, ""]:
    """Patches that each rank hides on average: sums over hidden patches divided by it make the mean over all ranks."""
    return mean_over_ranks(mask.sum().float()).clamp(min=1)


def hidden_rectangles(
    at: At, b: int, grid: tuple[int, ...], ratio: float, smallest: int
) -> Bool[Tensor, "b n"]:
    """BEiT's masks (arXiv:2106.08254): rectangles that hide at most the share ``ratio`` of the patches.

    Raises ValueError when that leaves no room for a rectangle of ``smallest`` patches.
    """
    rows, columns = grid
    count = int(ratio * rows * columns)
    if not smallest <= count < rows * columns:
        raise ValueError(
            f"mask_ratio={ratio} hides {count} of {rows} x {columns} patches, in rectangles of at least "
            f"smallest_block={smallest}. Set method.smallest_block to at most {count} and mask_ratio below 1."
        )
    noise = at.rand(b, ATTEMPTS, 4)
    return block_mask(noise, noise.new_full((b,), count), (rows, columns), smallest=smallest)


@torch.no_grad()
def shrink_residuals(blocks: nn.Module, first: int = 1) -> None:
    """BEiT's start: what block l adds is made sqrt(2 l) times smaller. ``first`` is the number of the first block."""
    for layer, block in enumerate(blocks.children(), start=first):
        for name, weight in block.named_parameters():
            if name in RESIDUALS:
                weight.div_(math.sqrt(2 * layer))


def code_colours(vectors: Float[Tensor, "k d"]) -> Float[Tensor, "k 3"]:
    """A colour in [0, 1] for each code: its ranks along the three main directions, so that similar codes look alike."""
    centred = (vectors - vectors.mean(0)).float()
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    ranks = (centred @ directions.T).argsort(0).argsort(0) / max(1, len(vectors) - 1)
    return F.pad(ranks, (0, 3 - ranks.shape[1]), value=0.5)


def token_map(
    tokens: Int[Tensor, "b n"],
    colours: Float[Tensor, "k 3"],
    grid: tuple[int, ...],
    images: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """Each patch in the colour of its code, in the size of the images."""
    cells = colours[tokens].transpose(1, 2).unflatten(2, grid)
    return F.interpolate(cells, size=images.shape[2:], mode="nearest")


PREDICTED = (
    "Columns: the image; what the encoder sees of it; its tokens, each code in its colour; these, with predictions in "
    "place of those of hidden patches. Similar codes have similar colours."
)
"""what `prediction_picture` draws"""


def prediction_picture(
    images: Float[Tensor, "b c h w"],
    tokens: Int[Tensor, "b n"],
    predicted: Int[Tensor, "b n"],
    hidden: Bool[Tensor, "b n"],
    colours: Float[Tensor, "k 3"],
    grid: tuple[int, ...],
) -> Float[Tensor, "b 4 c h w"]:
    """Columns: the image, what is seen of it, its tokens, and its tokens with those of hidden patches as predicted."""
    cover = F.interpolate(
        hidden.to(images).unflatten(1, grid).unsqueeze(1), size=images.shape[2:], mode="nearest"
    )
    seen = images * (1 - cover) + 0.5 * cover
    maps = [token_map(t, colours, grid, images) for t in (tokens, torch.where(hidden, predicted, tokens))]
    return torch.stack([images, seen, *(x.to(images) for x in maps)], dim=1).clamp(0, 1)
