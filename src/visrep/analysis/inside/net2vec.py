"""Net2Vec (arXiv:1801.03454), its part on segmentation: which concepts do channels show together, and not alone?

Of each channel the places above its threshold (as in `dissection`) are ones, all others zeros. For each concept one
weight a channel is learned: the weighted sum, enlarged to the masks and put through a sigmoid, is the probability of
the concept at each pixel. The loss is the binary cross-entropy over pixels, in which the concept's pixels weigh one
minus their share, and the others that share. A probability above a half, so a sum above zero, shows the concept. As in
the paper there is no bias, and a concept is learned and judged on the images that show it.

Beside it stands the best single channel, thresholded as in `dissection`. Thresholds, weights and the best channel come
from images to fit on; IoU is counted on others. Two things differ from the authors' code, which stops gradient descent
after 30 passes and sums probabilities without logarithms: with the logarithms and a small ridge the loss has one
minimum, and L-BFGS finds it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from visrep.analysis.inside.dissection import overlaps, ratio, top_threshold

RIDGE = 1e-4
"""times half the squared length of the weights, added to the mean loss of a pixel"""
ITERATIONS = 100


@dataclass(frozen=True, eq=False)
class Combination:
    """What all channels together, and the best of them alone, show of a concept."""

    name: str
    weights: Float[np.ndarray, " d"]
    combined: float
    """intersection over union on the images held out that show the concept"""
    channel: int
    """the best one, on the images to fit on"""
    single: float
    """its intersection over union on the same images held out"""
    everywhere: float
    """that of all pixels of these images"""
    fitted_on: int
    judged_on: int
    """images"""


def combinations(
    activations: Float[Tensor, "n d rows columns"],
    masks: Bool[Tensor, "n k h w"],
    names: tuple[str, ...],
    fitted: Int64[np.ndarray, " f"],
    held_out: Int64[np.ndarray, " m"],
    *,
    least: int = 1,
) -> list[Combination]:
    """Of each concept that ``least`` images on either side show, in the order of ``names``."""
    inside, outside = torch.from_numpy(fitted), torch.from_numpy(held_out)
    threshold = top_threshold(activations[inside])
    ones = (activations > threshold[:, None, None]).float()
    shows = masks.any(-1).any(-1)
    both, active = overlaps(activations, threshold, masks)
    area = masks.sum((2, 3)).double()
    found = []
    for k, name in enumerate(names):
        fit_on, judge_on = (rows[shows[rows, k]] for rows in (inside, outside))
        if min(len(fit_on), len(judge_on)) < least:
            continue
        weights = fit(ones[fit_on], masks[fit_on, k])
        alone = [
            ratio(both[rows, :, k].sum(0), active[rows].sum(0) + area[rows, k].sum())
            for rows in (fit_on, judge_on)
        ]
        channel = int(alone[0].argmax())
        mask = masks[judge_on, k]
        shown = summed(ones[judge_on], weights, mask.shape[-2:]) > 0
        together = float((shown & mask).sum() / (shown | mask).sum())
        found.append(
            Combination(name, weights.double().numpy(), together, channel, float(alone[1][channel]),
                        float(mask.double().mean()), len(fit_on), len(judge_on))
        )  # fmt: skip
    return found


def fit(ones: Float[Tensor, "n d rows columns"], mask: Bool[Tensor, "n h w"]) -> Float[Tensor, " d"]:
    """The weights of least loss. Every image shows the concept."""
    target = mask.to(ones.dtype)
    share = target.mean()
    pixel = torch.where(mask, 1 - share, share)
    weights = ones.new_zeros(ones.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=ITERATIONS, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimiser.zero_grad()
        logits = summed(ones, weights, mask.shape[-2:])
        loss = F.binary_cross_entropy_with_logits(logits, target, weight=pixel)
        loss = loss + RIDGE / 2 * weights.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(objective)
    return weights.detach()


def summed(
    ones: Float[Tensor, "n d rows columns"], weights: Float[Tensor, " d"], size: torch.Size
) -> Float[Tensor, "n h w"]:
    """The weighted sum of all channels, enlarged."""
    small = torch.einsum("ndrc,d->nrc", ones, weights)
    return F.interpolate(small[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
