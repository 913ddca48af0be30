"""Linear depth: a linear head on the frozen patches of one layer tells how far away every pixel is.

Settings are those of DINOv3 (arXiv:2508.10104) on NYU: last layer, BatchNorm and a linear layer to 256 bins, whose
share-weighted mean is the depth (shares are outputs, negative ones cut off, plus 0.1, over their sum); the
scale-invariant logarithmic loss; AdamW with weight decay 1e-4 and betas 0.9 and 0.99, gradients cut at 35, batches of
16 images, a third of the steps to warm up, 38,400 steps for 24,231 images. As published: `depth_dinov3`.

Deviations: bins lie evenly between 0.001 and the greatest depth of the training images, in place of 10 metres; images
are seen once, whole, as squares, without crops, changes of brightness and mirror images; a step looks at 512 pixels
of each image, not at all; BatchNorm has no scale and shift, which the layer behind it holds; the learning rate is
chosen on held-out training images, of the published 3e-4, 1e-3, 3e-3, 1e-2 and 3e-2; at least 500 steps.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.evaluation.dense.exam import DenseSide, Exam, Folds
from visrep.evaluation.dense.examples import depth_examples
from visrep.evaluation.dense.heads import (
    CHOOSING_STEPS,
    RATES,
    LinearHeads,
    Schedule,
    enlarged,
    hold_out,
    maps_of,
    train_heads,
)
from visrep.evaluation.dense.intervals import interval
from visrep.evaluation.dense.segmentation import JUDGED
from visrep.evaluation.examples import Example, some_of, spread
from visrep.evaluation.results import Measure, Setting

SCHEDULE = Schedule(passes=25, warmup=1 / 3, weight_decay=1e-4, betas=(0.9, 0.99))
BINS = 256
NEAREST = 1e-3
FLOOR = 0.1
"""added to each output, so that no bin is ever lost"""
EPS = 1e-3
"""added to depths before their logarithm"""
MEAN_WEIGHT = 0.15
"""of the square of the mean in the loss: how much a wrong scale costs beside a wrong shape"""
SCALE_ONLY = 100
"""first steps, in which the loss asks for the scale alone, as published"""
DELTA = 1.25
RMSE, ABS_REL, DELTA_1 = "RMSE", "abs. rel. error", "δ < 1.25"


def depth(exam: Exam) -> list[Measure]:
    """RMSE in percent of the greatest depth, relative error, and the share of pixels within a factor of 1.25.

    Each is computed image by image and averaged over images, as DINOv3 does; pooled over all pixels RMSE would be
    greater.
    """
    exams = exam.folds()
    judged = [_judged(fold) for fold in exams]
    folds = Folds.of(exams, [rate for rate, _, _ in judged])
    settings = {**folds.settings, "image": exam.image, "steps": SCHEDULE.steps(folds.n_train)}
    found = [(errors, examples) for _, errors, examples in judged]
    return measures_of("depth", found, folds, settings, exam)


def measures_of(
    protocol: str,
    judged: list[tuple[dict[str, Float[Tensor, " _"]], list[Example]]],
    folds: Folds,
    settings: dict[str, Setting],
    exam: Exam,
) -> list[Measure]:
    """Means over images of the errors of all folds."""
    found = {name: torch.cat([errors[name] for errors, _ in judged]) for name in judged[0][0]}
    found[RMSE] = found[RMSE] / exam.train.depth.max()
    first, *others = (
        Measure(
            protocol,
            metric,
            float(values.mean()),
            *interval(values.numpy(), folds.groups, seed=exam.seed),
            settings,
            n_train=folds.n_train,
            n_test=len(exam.test),
        )
        for metric, values in found.items()
    )
    return [replace(first, examples=some_of(examples for _, examples in judged)), *others]


def _judged(exam: Exam) -> tuple[float, dict[str, Float[Tensor, " n"]], list[Example]]:
    """The learning rate chosen on held-out training images; errors of a head trained with it on all; some answers."""
    furthest = float(exam.train.depth.max())
    fitted, held_out = hold_out(exam.train, exam.seed)
    tried = judge(fit(exam, fitted, RATES, furthest, choosing=True), held_out, exam.device)
    rate = min(zip(RATES, tried, strict=True), key=lambda pair: float(pair[1][RMSE].mean()))[0]
    heads = fit(exam, exam.train, (rate,), furthest)
    (errors,) = judge(heads, exam.test, exam.device)
    return rate, errors, _examples(heads, exam)


class DepthHeads(LinearHeads):
    """Linear heads whose outputs for bins are made one depth a patch."""

    def __init__(self, width: int, furthest: float, n: int, *, seed: int) -> None:
        super().__init__(width, BINS, n, seed=seed)
        self.furthest = furthest

    def forward(self, maps: Float[Tensor, "b d h w"]) -> Float[Tensor, "b n 1 h w"]:
        return depth_of(super().forward(maps).movedim(2, -1), self.furthest)[:, :, None]


def depth_of(outputs: Float[Tensor, "*any k"], furthest: float) -> Float[Tensor, "*any"]:
    """The mean of the bins, weighted by outputs without negative ones, plus 0.1."""
    positive = outputs.relu() + FLOOR
    bins = torch.linspace(NEAREST, furthest, outputs.shape[-1], device=outputs.device)
    return (positive @ bins) / positive.sum(-1)


def scale_invariant_loss(found: Tensor, true: Tensor, step: int = SCALE_ONLY) -> Tensor:
    """The root of var(g) + 0.15 mean(g)², with g = log(found + 0.001) - log(true + 0.001), over all pixels.

    Without var(g) in the first steps; the variance is the unbiased one.
    """
    g = (found + EPS).log() - (true + EPS).log()
    value = MEAN_WEIGHT * g.mean().square()
    if step >= SCALE_ONLY:
        value = value + g.var()
    return value.clamp(min=1e-12).sqrt()


def fit(
    exam: Exam, side: DenseSide, rates: tuple[float, ...], furthest: float, *, choosing: bool = False
) -> DepthHeads:
    """Heads trained on these images at these learning rates, in few steps where they only serve to choose one."""
    heads = DepthHeads(side.tokens.shape[-1], furthest, len(rates), seed=exam.seed)
    steps = SCHEDULE.steps(len(side))
    train_heads(
        heads,
        side,
        side.depth,
        lambda found, true, step: scale_invariant_loss(found[..., 0], true, step),
        SCHEDULE,
        rates,
        steps=min(steps, CHOOSING_STEPS) if choosing else steps,
        device=exam.device,
        seed=exam.seed,
    )
    return heads


@torch.no_grad()
def judge(heads: DepthHeads, side: DenseSide, device: torch.device) -> list[dict[str, Float[Tensor, " n"]]]:
    """Of each head each image's errors, with its depths enlarged bilinearly to the size of the answers."""
    parts: list[list[dict[str, Tensor]]] = []
    for rows in torch.arange(len(side)).split(JUDGED):
        some = side.at(rows)
        maps, true = heads(maps_of(some, slice(None), device)), some.depth
        parts.append([errors_of(enlarged(of_one, side.size)[:, 0].cpu(), true) for of_one in maps.unbind(1)])
    return [
        {name: torch.cat([part[name] for part in of_one]) for name in of_one[0]}
        for of_one in zip(*parts, strict=True)
    ]


@torch.no_grad()
def _examples(heads: DepthHeads, exam: Exam) -> list[Example]:
    """Of the only head."""
    some = exam.test.at(torch.tensor(spread(len(exam.test))))
    maps = heads(maps_of(some, slice(None), exam.device))[:, 0]
    return depth_examples(some, enlarged(maps, some.size)[:, 0].cpu())


def errors_of(found: Float[Tensor, "b h w"], true: Float[Tensor, "b h w"]) -> dict[str, Float[Tensor, " b"]]:
    """RMSE, mean relative error and share within a factor of 1.25, of each image."""
    found = found.clamp(min=NEAREST)
    ratio = torch.maximum(found / true, true / found)
    return {
        RMSE: (found - true).square().mean((1, 2)).sqrt(),
        ABS_REL: ((found - true).abs() / true).mean((1, 2)),
        DELTA_1: (ratio < DELTA).float().mean((1, 2)),
    }
