"""Masks of one length for a whole batch, so that what they keep is a tensor."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from visrep.distributed import gather
from visrep.masking import exact_mask


def cut_to_fewest(
    noise: Float[Tensor, "b n"], mask: Bool[Tensor, "b n"], least: int = 0
) -> Bool[Tensor, "b n"]:
    """As many patches of each mask, drawn by noise, as that has which has fewest, of all images on all ranks.

    Never fewer than ``least``, which takes patches outside of a mask where it must.
    """
    count = gather(mask.sum(1)).min().clamp(min=least)
    return exact_mask(noise, count.expand(len(mask)).to(noise), mask)
