"""Linear heads on frozen patches: BatchNorm and a 1x1 convolution, trained on pixels as the published heads are.

Heads that differ in their learning rate alone are trained at once, on the same pixels: the patches are read once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from visrep.evaluation.dense.exam import DenseSide
from visrep.progress import within

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""learning rates to choose from: published ones (3e-4 for depth, 1e-3 for classes) and greater ones, for few steps"""
CLIP = 35.0
"""greatest norm of the gradient"""
BATCH = 16
"""images"""
PIXELS = 512
"""of each image in a step, drawn anew each time: the loss is an unbiased estimate of that of all pixels"""
LEAST_STEPS = 500
CHOOSING_STEPS = 1000
"""at most, of heads that only serve to choose a learning rate"""
HELD_OUT = 0.2
"""share of the training images, or of their videos, that settings are chosen on"""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Published passes over the images and settings of AdamW; the rate warms up and falls along half a cosine."""

    passes: int
    warmup: float
    """share of the steps"""
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    """of AdamW"""

    def steps(self, n: int) -> int:
        """For so many images: the published passes, and 500 steps at least."""
        return max(LEAST_STEPS, math.ceil(n * self.passes / BATCH))

    def share(self, step: int, steps: int) -> float:
        """Of the peak rate."""
        warm = self.warmup * steps
        if step < warm:
            return (step + 1) / warm
        return (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


class LinearHeads(nn.Module):
    """Equal heads for maps "b d h w": BatchNorm, whose scale and shift each convolution holds, and 1x1 convolutions.

    Weights are drawn with a deviation of 0.01, biases are 0.
    """

    def __init__(self, width: int, outputs: int, n: int, *, seed: int) -> None:
        super().__init__()
        drawn = 0.01 * torch.randn(outputs, width, generator=torch.Generator().manual_seed(seed))
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.weights = nn.ParameterList([drawn.clone() for _ in range(n)])
        self.biases = nn.ParameterList([torch.zeros(outputs) for _ in range(n)])

    def forward(self, maps: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n k h w"]:
        weight, bias = torch.cat(list(self.weights)), torch.cat(list(self.biases))
        found = F.conv2d(self.norm(maps), weight[:, :, None, None], bias)
        return found.unflatten(1, (len(self.weights), -1))

    def parts(self) -> list[list[nn.Parameter]]:
        """The parameters of each head."""
        return [list(pair) for pair in zip(self.weights, self.biases, strict=True)]


def at_pixels(
    maps: Float[Tensor, "b k h w"], place: Int64[Tensor, "b p"], size: int
) -> Float[Tensor, "b p k"]:
    """Values at some pixels of the maps enlarged to ``size`` x ``size``, bilinearly; ``place`` counts them by rows."""
    y, x = place // size, place % size
    points = torch.stack([x, y], dim=-1).float().add_(0.5).mul_(2 / size).sub_(1)
    found = F.grid_sample(maps, points[:, None], padding_mode="border", align_corners=False)  # b k 1 p
    return found[:, :, 0].transpose(1, 2)


def enlarged(maps: Float[Tensor, "b k h w"], size: int) -> Float[Tensor, "b k s s"]:
    """All pixels."""
    return F.interpolate(maps, (size, size), mode="bilinear", align_corners=False)


def maps_of(
    side: DenseSide, rows: Int64[Tensor, " b"] | slice, device: torch.device
) -> Float[Tensor, "b d h w"]:
    """Tokens of some images as heads read them."""
    return side.tokens[rows].to(device).float().permute(0, 3, 1, 2).contiguous()


Loss = Callable[[Float[Tensor, "b p k"], Tensor, int], Tensor]
"""What one head says of some pixels, their answers "b p", and the number of the step, to a scalar"""


def train_heads(
    heads: LinearHeads,
    side: DenseSide,
    answers: Tensor,
    loss: Loss,
    schedule: Schedule,
    rates: tuple[float, ...],
    *,
    steps: int,
    device: torch.device,
    seed: int,
) -> None:
    """Each head minimises ``loss`` over pixels of ``answers`` "n s s" by AdamW at its rate; then evaluation mode."""
    heads.to(device).train()
    rng = torch.Generator().manual_seed(seed)
    groups = [{"params": part, "peak": rate} for part, rate in zip(heads.parts(), rates, strict=True)]
    optimiser = torch.optim.AdamW(
        groups, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True
    )
    size, flat = side.size, answers.flatten(1)
    for step, rows in zip(within(range(steps), "steps"), _batches(len(side), rng), strict=False):
        place = torch.randint(size * size, (len(rows), PIXELS), generator=rng)
        wanted = flat[rows].gather(1, place).to(device)
        maps = heads(maps_of(side, rows, device))
        found = at_pixels(maps.flatten(1, 2), place.to(device), size).unflatten(-1, maps.shape[1:3])
        total = torch.stack([loss(of_one, wanted, step) for of_one in found.unbind(2)]).sum()
        optimiser.zero_grad()
        total.backward()
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * schedule.share(step, steps)
            nn.utils.clip_grad_norm_(group["params"], CLIP)
        optimiser.step()
    heads.eval()


def hold_out(side: DenseSide, seed: int) -> tuple[DenseSide, DenseSide]:
    """Images to fit on and images to choose settings on; frames of a video stay together.

    Where there is one image, or one video, it is both.
    """
    rng = torch.Generator().manual_seed(seed)
    _, group = torch.unique(torch.from_numpy(side.groups), return_inverse=True)
    n = int(group.max()) + 1
    if n < 2:
        return side, side
    chosen = torch.randperm(n, generator=rng)[: max(1, round(HELD_OUT * n))]
    held = torch.isin(group, chosen)
    return side.at(torch.nonzero(~held).flatten()), side.at(torch.nonzero(held).flatten())


def _batches(n: int, rng: torch.Generator) -> Iterator[Int64[Tensor, " b"]]:
    """Without end; each pass in a new order, in parts of almost equal size."""
    while True:
        yield from torch.randperm(n, generator=rng).tensor_split(math.ceil(n / BATCH))
