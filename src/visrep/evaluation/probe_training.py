"""Training a probe by the schedule of a paper.

Papers state it for ImageNet: so many passes over 1.28 million images in large batches. Passes, learning rate, warm-up
and decay stay as published here. Only the batch shrinks, where the published one would leave fewer than 2,000 steps:
to as many images as make 2,000 steps, 16 at least. The learning rate is then still that of the published batch. From
20,480 images (DINO) to 364,089 (MAE) on, for ImageNet therefore, nothing differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from visrep.evaluation.results import Inapplicable, Prediction, Setting
from visrep.progress import within

M = TypeVar("M", bound=nn.Module)

LEAST_STEPS = 2000
LEAST_BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Published:
    """The schedule of a linear or attentive probe."""

    epochs: int
    batch: int
    lr: float
    """peak, of this batch"""
    last_lr: float = 0.0
    warmup: float = 0.0
    """epochs"""
    start: float = 0.0
    """learning rate where the warm-up begins"""
    by_epoch: bool = False
    """whether the learning rate moves only between epochs"""
    weight_decay: float = 0.0
    """of matrices at the start; falls to ``last_weight_decay`` along half a cosine"""
    last_weight_decay: float = 0.0

    def batch_for(self, n: int) -> int:
        """Of a set of ``n`` images."""
        return min(n, self.batch, max(LEAST_BATCH, math.ceil(n * self.epochs / LEAST_STEPS)))

    def steps(self, n: int) -> int:
        return self.epochs * math.ceil(n / self.batch_for(n))

    def lr_at(self, epoch: float) -> float:
        """After so many epochs."""
        epoch = math.floor(epoch) if self.by_epoch else epoch
        if epoch < self.warmup:
            return self.start + (self.lr - self.start) * epoch / self.warmup
        falls = 1 + math.cos(math.pi * (epoch - self.warmup) / (self.epochs - self.warmup))
        return self.last_lr + (self.lr - self.last_lr) * falls / 2

    def settings(self, n: int) -> dict[str, Setting]:
        """What a result says of the schedule, for a set of ``n`` images."""
        return {"lr": self.lr, "epochs": self.epochs, "batch": self.batch_for(n), "steps": self.steps(n)}

    def weight_decay_at(self, epoch: float) -> float:
        falls = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.last_weight_decay + (self.weight_decay - self.last_weight_decay) * falls


def batches(n: int, schedule: Published, rng: torch.Generator) -> Iterator[tuple[float, Int64[Tensor, " b"]]]:
    """For each step the epochs before it and the rows of its batch; each epoch in a new order."""
    steps = math.ceil(n / schedule.batch_for(n))
    for epoch in within(range(schedule.epochs), "passes"):
        # parts of almost equal size: a last batch of one image would give BatchNorm nothing to normalise by
        for number, rows in enumerate(torch.randperm(n, generator=rng).tensor_split(steps)):
            yield epoch + number / steps, rows


def train(
    probe: nn.Module,
    x: Tensor,
    y: Int64[Tensor, " n"],
    optimiser: torch.optim.Optimizer,
    schedule: Published,
    rng: torch.Generator,
) -> None:
    """Minimise the cross-entropy to the end of the schedule and put the probe in evaluation mode.

    Groups of the optimiser with ``weight_decay`` other than 0 follow the schedule's.
    """
    for _ in training(probe, x, y, optimiser, schedule, rng):
        pass
    probe.eval()


def best_epoch(
    probe: nn.Module,
    x: Tensor,
    y: Int64[Tensor, " n"],
    optimiser: torch.optim.Optimizer,
    schedule: Published,
    rng: torch.Generator,
    test: Tensor,
    right: Int64[Tensor, " m"],
) -> tuple[int, Int64[Tensor, " m"]]:
    """As `train`, and judges every epoch on the test images: the best one, counted from 1, and its answers.

    ``right`` are the numbers of their classes, -1 for what is no class of the training images. Of equal epochs the
    first. Raises Inapplicable when the answers of no epoch are finite.
    """
    best, most, chosen = 0, -1, right
    finite = torch.zeros(len(test), dtype=torch.bool)
    for epoch in training(probe, x, y, optimiser, schedule, rng):
        probe.eval()
        logits = logits_of(probe, test)
        finite = logits.isfinite().all(-1)
        found = logits.argmax(-1)
        hits = int((found == right).sum())
        if finite.all() and hits > most:
            best, most, chosen = epoch, hits, found
    if not best:
        check_answered(finite)
    return best, chosen


def training(
    probe: nn.Module,
    x: Tensor,
    y: Int64[Tensor, " n"],
    optimiser: torch.optim.Optimizer,
    schedule: Published,
    rng: torch.Generator,
) -> Iterator[int]:
    """Trains in `train`'s way; after each epoch its number from 1. The probe may be put in evaluation mode then."""
    decaying = [group for group in optimiser.param_groups if group["weight_decay"]]
    steps = math.ceil(len(x) / schedule.batch_for(len(x)))
    for step, (epoch, rows) in enumerate(batches(len(x), schedule, rng), start=1):
        probe.train()
        rows = rows.to(x.device)
        for group in optimiser.param_groups:
            group["lr"] = schedule.lr_at(epoch)
        for group in decaying:
            group["weight_decay"] = schedule.weight_decay_at(epoch)
        loss = F.cross_entropy(probe(read_rows(x, rows)), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % steps == 0:
            yield step // steps


def read_rows(x: Tensor, rows: Int64[Tensor, " b"]) -> Tensor:
    """A batch of stored features in single precision; ``x[rows]`` would take six times as long on a CPU."""
    return x.index_select(0, rows).float()


def seeded(build: Callable[[], M], seed: int) -> M:
    """A module built with torch's generator at ``seed``, which is then as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


@torch.no_grad()
def predict(probe: nn.Module, x: Float[Tensor, "m *d"]) -> Int64[Tensor, " m"]:
    """The number of the most likely class of each image. Raises Inapplicable for a probe whose training diverged."""
    logits = logits_of(probe, x)
    check_answered(logits.isfinite().all(-1))
    return logits.argmax(-1)


@torch.no_grad()
def logits_of(probe: nn.Module, x: Float[Tensor, "m *d"]) -> Float[Tensor, "m k"]:
    """A few images at a time."""
    return torch.cat([probe(rows.float()) for rows in x.split(1024)])


def numbers_of(answers: Int64[Tensor, " m"], classes: Int64[Tensor, " k"]) -> Int64[Tensor, " m"]:
    """Positions of labels among the sorted classes, -1 where there is none."""
    found = torch.searchsorted(classes, answers).clamp(max=len(classes) - 1)
    return found.where(classes[found] == answers, -1)


def best_on_test(
    protocol: str,
    probe: nn.Module,
    x: Tensor,
    labels: Int64[Tensor, " n"],
    optimiser: torch.optim.Optimizer,
    schedule: Published,
    rng: torch.Generator,
    test: Tensor,
    answers: Int64[Tensor, " m"],
    settings: dict[str, Setting],
) -> list[Prediction]:
    """The prediction of a ``...@paper`` protocol: that of `best_epoch`, with what else its ``settings`` say."""
    classes, targets = labels.unique(return_inverse=True)
    right = numbers_of(answers, classes)
    epoch, found = best_epoch(probe, x, targets, optimiser, schedule, rng, test, right)
    caution = (
        f"{protocol}: the best of {schedule.epochs} epochs was chosen on the reported test images, as in the paper: "
        f"the value is optimistic. {protocol.removesuffix('@paper')} takes the last epoch."
    )
    chosen = {"epoch": epoch, "chosen_on": "test images"}
    return [Prediction(protocol, classes[found], settings | chosen, caution)]


def choose(answers: Int64[Tensor, "m h"], truth: Int64[Tensor, " m"]) -> tuple[int, dict[str, Setting]]:
    """Which of h probes is right of most held-out images, the first among equals, and what a result says of that."""
    right = (answers == truth[:, None]).double().mean(0)
    best = int(right.argmax())
    return best, {"held_out": len(truth), "held_out_top1": 100 * float(right[best])}


def check_answered(finite: Bool[Tensor, " m"]) -> None:
    """Raises Inapplicable unless the answers for all images are finite."""
    if not finite.all():
        raise Inapplicable(
            f"the probe's training diverged: its answers for {int((~finite).sum())} of {len(finite)} images are not "
            "finite. The published learning rate is too high for features as large as these. Use linear: it has none."
        )


def check_two_classes(classes: Tensor) -> None:
    """Raises ValueError for a single class."""
    if len(classes) < 2:
        raise ValueError("a probe needs at least 2 classes among the training images, there is 1.")
