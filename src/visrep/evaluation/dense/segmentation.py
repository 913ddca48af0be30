"""Linear segmentation: a linear head on the frozen patches of one layer names the class of every pixel.

Settings are those of DINOv3 (arXiv:2508.10104) on ADE20K: last layer, BatchNorm and a 1x1 convolution, cross-entropy,
AdamW with weight decay 1e-3, batches of 16 images, 40,000 steps for 20,210 images, 1,500 of them to warm up.

With the published views and steps it is `segmentation_dinov3`.

Deviations: images are seen once, whole, as squares, without random crops, sizes and flips and without sliding
windows, because features are extracted once; a step looks at 512 pixels of each image, not at all; no dropout, and no
scale and shift in BatchNorm, which the convolution holds; the learning rate is chosen on held-out training images, of
3e-4, the published 1e-3, 3e-3, 1e-2 and 3e-2; at least 500 steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from visrep.data.dense import IGNORE
from visrep.evaluation.dense.exam import DenseSide, Exam, Folds
from visrep.evaluation.dense.examples import class_examples
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
from visrep.evaluation.dense.miou import Counts
from visrep.evaluation.examples import Example, some_of, spread
from visrep.evaluation.results import Inapplicable, Measure

SCHEDULE = Schedule(passes=32, warmup=1500 / 40_000, weight_decay=1e-3)
JUDGED = 8
"""images judged at a time, which bounds memory"""


def segmentation(exam: Exam) -> list[Measure]:
    """mIoU over the test images, with the IoU of each class as details.

    Raises Inapplicable when fewer than two classes are marked in the training images.
    """
    exams = exam.folds()
    found = [_judged(fold) for fold in exams]
    folds = Folds.of(exams, [rate for rate, _, _ in found])
    settings = {**folds.settings, "image": exam.image, "steps": SCHEDULE.steps(folds.n_train)}
    counts = Counts.joined([counts for _, counts, _ in found])
    how = {"groups": folds.groups, "n_train": folds.n_train}
    measure = counts.measure("segmentation", settings, exam.test.names, **how, caution=unseen(exams))
    return [replace(measure, examples=some_of(examples for _, _, examples in found))]


def _judged(exam: Exam) -> tuple[float, Counts, list[Example]]:
    """The learning rate chosen on held-out training images; what a head trained with it on all says; some of it."""
    check_marked(exam.train)
    fitted, held_out = hold_out(exam.train, exam.seed)
    tried = judge(fit(exam, fitted, RATES, choosing=True), held_out, exam.device)
    rate = max(zip(RATES, tried, strict=True), key=lambda pair: float(pair[1].iou().nanmean()))[0]
    heads = fit(exam, exam.train, (rate,))
    (counts,) = judge(heads, exam.test, exam.device)
    return rate, counts, _examples(heads, exam)


def fit(exam: Exam, side: DenseSide, rates: tuple[float, ...], *, choosing: bool = False) -> LinearHeads:
    """Heads trained on these images at these learning rates, in few steps where they only serve to choose one."""
    heads = LinearHeads(side.tokens.shape[-1], len(side.names), len(rates), seed=exam.seed)
    steps = SCHEDULE.steps(len(side))
    train_heads(
        heads,
        side,
        side.classes,
        cross_entropy,
        SCHEDULE,
        rates,
        steps=min(steps, CHOOSING_STEPS) if choosing else steps,
        device=exam.device,
        seed=exam.seed,
    )
    return heads


def cross_entropy(logits: Float[Tensor, "b p k"], classes: UInt8[Tensor, "b p"], step: int) -> Tensor:
    """Over the pixels that are marked; 0 when none is."""
    loss = F.cross_entropy(
        logits.flatten(0, 1), classes.flatten().long(), ignore_index=IGNORE, reduction="sum"
    )
    return loss / (classes != IGNORE).sum().clamp(min=1)


@torch.no_grad()
def judge(heads: LinearHeads, side: DenseSide, device: torch.device) -> list[Counts]:
    """Each head's most likely class of each pixel against the answers."""
    parts: list[list[Counts]] = []
    for rows in torch.arange(len(side)).split(JUDGED):
        some = side.at(rows)
        maps, classes = heads(maps_of(some, slice(None), device)), some.classes
        parts.append(
            [Counts.of(named(of_one, side.size), classes, len(side.names)) for of_one in maps.unbind(1)]
        )
    return [Counts.joined(list(of_one)) for of_one in zip(*parts, strict=True)]


@torch.no_grad()
def _examples(heads: LinearHeads, exam: Exam) -> list[Example]:
    """Of the only head."""
    some = exam.test.at(torch.tensor(spread(len(exam.test))))
    return class_examples(some, named(heads(maps_of(some, slice(None), exam.device))[:, 0], some.size))


def named(scores: Float[Tensor, "b k h w"], size: int) -> Int64[Tensor, "b s s"]:
    """The class of the greatest of the enlarged scores, on the CPU."""
    return enlarged(scores, size).argmax(1).cpu()


def unseen(exams: Sequence[Exam]) -> str:
    """A caution where test masks have classes that no training mask has, in some fold."""
    names = [exams[0].test.names[number] for number in sorted(set().union(*map(_unseen, exams)))]
    if not names:
        return ""
    return (
        f"{', '.join(names[:5])}{f' and {len(names) - 5} more classes' if len(names) > 5 else ''}: in masks of test "
        "images and of no training image, so that nothing can name them; their IoU of 0 counts in the mean."
    )


def _unseen(exam: Exam) -> set[int]:
    known, asked = (set(side.classes.unique().tolist()) - {IGNORE} for side in (exam.train, exam.test))
    return asked - known


def check_marked(train: DenseSide) -> None:
    """Raises Inapplicable when there is nothing to tell apart."""
    marked = train.classes.unique()
    marked = marked[marked != IGNORE]
    if len(marked) < 2:
        found = f"only {train.names[int(marked[0])]!r}" if len(marked) else "no class"
        raise Inapplicable(
            f"segmentation needs at least 2 classes in the masks of the training images; {found} is marked in those of "
            f"{train.source.name}."
        )
