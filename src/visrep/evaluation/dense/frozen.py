"""Training a linear head on random views of images, which the frozen encoder sees anew in each step, as DINOv3 does.

Papers state iterations for one data set. They are kept from as many images on as it has; smaller sets are seen as often
as it is, 2,000 steps at least, as in the other published presets (`visrep.evaluation.probe_training`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from visrep.data.workers import default_workers
from visrep.evaluation.dense.exam import Exam
from visrep.evaluation.dense.native import padded, patch_maps
from visrep.evaluation.probe_training import LEAST_STEPS
from visrep.progress import within

BATCH = 16
"""images, all of them where there are fewer"""
DEVIATION = 0.01
"""of the initial weights"""
AHEAD = 2
"""batches of views that are made while the encoder sees another"""
View = tuple[Float[Tensor, "3 _ _"], Shaped[Tensor, "_ _"]]
"""an image as the encoder wants it, and the answers"""
Draw = Callable[[int, torch.Generator], View]
"""a random view of the training image of this row"""
Loss = Callable[[Float[Tensor, "b k rows columns"], Shaped[Tensor, "b h w"], int], Tensor]
"""what a head says of a part of the batch, the answers, and the number of the step, to a scalar"""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A published training but for its learning rate, which ``pace`` gives."""

    iterations: int
    images: int
    """of the data set that the iterations are stated for"""
    weight_decay: float
    beta2: float
    clip: float
    """greatest norm of the gradient; infinite for none"""
    part: int
    """images of the batch that have a loss of their own, of which the batch's is the mean"""
    pace: Callable[[int, int], tuple[float, float]]
    """learning rate and first beta of AdamW in a step, counted from 0, of so many"""

    def steps(self, n: int) -> int:
        """For ``n`` images."""
        return min(self.iterations, max(LEAST_STEPS, math.ceil(self.iterations * n / self.images)))


class Dropout(nn.Module):
    """Whole channels of an image are dropped with probability ``p``, the others enlarged; by its own generator."""

    def __init__(self, p: float, seed: int) -> None:
        super().__init__()
        self.p, self.rng = p, torch.Generator().manual_seed(seed)

    def forward(self, maps: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        if not self.training:
            return maps
        kept = torch.rand(*maps.shape[:2], 1, 1, generator=self.rng) >= self.p
        return maps * (kept / (1 - self.p)).to(maps.device)


def linear_head(width: int, outputs: int, seed: int, *, dropout: float = 0.0) -> nn.Sequential:
    """Dropout, BatchNorm with scale and shift, and a 1x1 convolution."""
    conv = nn.Conv2d(width, outputs, 1)
    with torch.no_grad():
        drawn = torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(seed))
        conv.weight.copy_(DEVIATION * drawn)
        assert conv.bias is not None
        conv.bias.zero_()
    return nn.Sequential(Dropout(dropout, seed), nn.BatchNorm2d(width), conv)


def train_head(
    head: nn.Module, exam: Exam, draw: Draw, loss: Loss, training: Training, *, steps: int
) -> None:
    """Minimise ``loss`` over views of the training images; then evaluation mode. The encoder does not change."""
    assert exam.network is not None, "views are seen by the network"
    head.to(exam.device).train()
    optimiser = torch.optim.AdamW(head.parameters(), weight_decay=training.weight_decay, fused=True)
    batches = views(len(exam.train), draw, torch.Generator().manual_seed(exam.seed))
    for step, (pixels, answers) in zip(within(range(steps), "steps"), batches, strict=False):
        seen = padded(pixels.to(exam.device), exam.network.stride, centre=True)
        maps = head(patch_maps(exam.network, seen, exam.layer))
        optimiser.zero_grad()
        maps.backward(gradient(maps, answers, loss, training.part, step))
        nn.utils.clip_grad_norm_(head.parameters(), training.clip)
        rate, beta1 = training.pace(step, steps)
        optimiser.param_groups[0].update(lr=rate, betas=(beta1, training.beta2))
        optimiser.step()
    head.eval()


def gradient(
    maps: Float[Tensor, "b k rows columns"],
    answers: Shaped[Tensor, "b h w"],
    loss: Loss,
    part: int,
    step: int,
) -> Float[Tensor, "b k rows columns"]:
    """Of the mean of the losses of the parts; a part at a time, as maps enlarged to all pixels are large."""
    leaf = maps.detach().requires_grad_()
    parts = list(zip(leaf.split(part), answers.split(part), strict=True))
    for some, true in parts:
        (loss(some, true.to(maps.device), step) / len(parts)).backward()
    assert leaf.grad is not None
    return leaf.grad


def views(
    n: int, draw: Draw, rng: torch.Generator
) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Shaped[Tensor, "b h w"]]]:
    """Batches without end; threads make some ahead. Every view has a seed of its own, whoever makes it."""

    def made(row: int, seed: int) -> View:
        return draw(row, torch.Generator().manual_seed(seed))

    with ThreadPoolExecutor(max(1, default_workers())) as pool:

        def asked() -> Iterator[list[Future[View]]]:
            for rows in _rows(n, rng):
                seeds = torch.randint(2**62, (len(rows),), generator=rng).tolist()
                yield [pool.submit(made, row, seed) for row, seed in zip(rows.tolist(), seeds, strict=True)]

        batches = asked()
        waiting = deque(islice(batches, AHEAD))
        while True:
            found = [view.result() for view in waiting.popleft()]
            waiting.append(next(batches))
            yield torch.stack([pixels for pixels, _ in found]), torch.stack([answers for _, answers in found])


def _rows(n: int, rng: torch.Generator) -> Iterator[Int64[Tensor, " b"]]:
    """Of batches: each pass over the images in a new order, without the rest that fills no batch, as published."""
    size = min(n, BATCH)
    while True:
        yield from torch.randperm(n, generator=rng)[: n - n % size].split(size)
