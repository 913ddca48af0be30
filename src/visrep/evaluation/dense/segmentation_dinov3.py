"""Linear segmentation with the published settings of DINOv3 (arXiv:2508.10104, eval/segmentation) on ADE20K.

The frozen encoder sees random views of the training images (`segmentation_views`), crops of 512 pixels, in batches of
16; its last layer, dropout of channels, BatchNorm and a 1x1 convolution name the class of each pixel. Cross-entropy,
averaged over all pixels, also those that nobody is asked about; AdamW, 40,000 iterations, 1,500 of them to warm up.
Images are judged with their shorter side at 512 pixels through a window of 512 that moves by 341, the mean of whose
scores is enlarged to the size of the answers.

Settings are those of the published code, where paper and code differ those of the code: the loss counts unmarked
pixels, and the learning rate of the warm-up falls as it rises.

Deviations: encoders whose patches are smaller than 16 pixels see as many of them in smaller crops (448 pixels for 14);
an encoder's own mean and deviation of colours; small sets are seen as often as ADE20K's 20,210 images, in 2,000 steps
at least (see `frozen`); without the published mixed precision, in float32; images without colour profile.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from visrep.data.dense import IGNORE, nearest
from visrep.evaluation.dense.exam import DenseSide, Exam, Folds
from visrep.evaluation.dense.examples import class_examples
from visrep.evaluation.dense.frozen import BATCH, Training, View, linear_head, train_head
from visrep.evaluation.dense.miou import Counts
from visrep.evaluation.dense.native import (
    Shape,
    as_wanted,
    check_takes,
    image_of,
    patch_maps,
    planes,
    resized,
)
from visrep.evaluation.dense.segmentation import check_marked, unseen
from visrep.evaluation.dense.segmentation_views import random_view, with_short_side
from visrep.evaluation.examples import Example, some_of, spread
from visrep.evaluation.results import Inapplicable, Measure
from visrep.method import Encoder
from visrep.progress import within

NAME = "segmentation-dinov3"
SIZE = 512
"""of crops and windows"""
STEP = 341
"""from one window to the next"""
PATCH = 16
"""pixels of those patches for which sizes are published"""
LR = 1e-3
BETA1 = 0.9
WARMUP = 1500 / 40_000
"""share of the steps"""
START = 1e-6
"""share of the learning rate where the warm-up begins"""
DROPOUT = 0.1


def pace(step: int, steps: int) -> tuple[float, float]:
    """Learning rate and first beta. The published loop moves its schedule from the second step on."""
    done, warm = max(step - 1, 0), WARMUP * steps
    if done < warm:
        return LR * (1 - (1 - done / warm) * (1 - START)) * (1 - done / steps), BETA1
    return LR * (1 + math.cos(math.pi * (done + 1) / steps)) / 2, BETA1


TRAINING = Training(
    iterations=40_000, images=20_210, weight_decay=1e-3, beta2=0.999, clip=math.inf, part=1, pace=pace
)


def segmentation_dinov3(exam: Exam) -> list[Measure]:
    """mIoU over the test images, with the IoU of each class as details.

    Raises Inapplicable when fewer than two classes are marked in the training images, or for an encoder of one size
    that is not that of the crops.
    """
    assert exam.network is not None, "views are seen by the network"
    size = crop_size(exam.network, exam.asked)
    own = exam.network.preprocessing.size
    instead = f"--size {own} makes crops of its own size; segmentation squashes whole images to that."
    check_takes(NAME, exam.network, (size, size), exam.device, instead)
    exams = exam.folds()
    for fold in exams:
        check_marked(fold.train)
    found = [_judged(fold, size) for fold in exams]
    folds = Folds.of(exams, [])
    patches = size // exam.network.stride
    settings = {
        **folds.settings,
        "lr": LR,
        "batch": min(BATCH, folds.n_train),
        "steps": TRAINING.steps(folds.n_train),
        "image": size,
        "window_step": window_step(size),
        "grid": f"{patches} x {patches}",
    }
    counts = Counts.joined([counts for counts, _ in found])
    how = {"groups": folds.groups, "n_train": folds.n_train}
    measure = counts.measure(NAME, settings, exam.test.names, **how, caution=unseen(exams))
    measure.examples.extend(some_of(examples for _, examples in found))
    return [measure]


def crop_size(encoder: Encoder, asked: int) -> int:
    """Side of crops in pixels: what was asked for, else 512, or as many patches where they are smaller than 16."""
    side = SIZE * min(encoder.stride, PATCH) // PATCH
    return asked or side // encoder.stride * encoder.stride


def window_step(size: int) -> int:
    """From one window to the next, in proportion to its side."""
    return size * STEP // SIZE


def _judged(exam: Exam, size: int) -> tuple[Counts, list[Example]]:
    head = fit(exam, size)
    side, shown = exam.test, spread(len(exam.test))
    counts: list[Counts] = []
    pictures: list[Tensor] = []
    for row in within(range(len(side)), "images"):
        true = torch.from_numpy(_classes(side, row))
        found = answer(head, exam, row, size, (true.shape[0], true.shape[1]))
        counts.append(Counts.of(found[None], true[None], len(side.names)))
        if row in shown:
            pictures.append(torch.from_numpy(nearest(found.numpy(), (side.size, side.size))))
    return Counts.joined(counts), class_examples(side.at(torch.tensor(shown)), torch.stack(pictures))


def fit(exam: Exam, size: int) -> nn.Module:
    """A head trained on views of the training images."""
    assert exam.network is not None
    how, side = exam.network.preprocessing, exam.train
    head = linear_head(side.tokens.shape[-1], len(side.names), exam.seed, dropout=DROPOUT)

    def draw(row: int, rng: torch.Generator) -> View:
        return random_view(image_of(side, row), _classes(side, row), size, how, rng)

    train_head(head, exam, draw, cross_entropy, TRAINING, steps=TRAINING.steps(len(side)))
    return head


def cross_entropy(maps: Float[Tensor, "b k _ _"], classes: Int64[Tensor, "b h w"], step: int) -> Tensor:
    """Mean over all pixels, to which those that nobody is asked about add nothing."""
    logits = F.interpolate(maps, classes.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, classes, ignore_index=IGNORE, reduction="sum") / classes.numel()


@torch.no_grad()
def answer(head: nn.Module, exam: Exam, row: int, size: int, shape: Shape) -> Int64[Tensor, "h w"]:
    """The class of each pixel of a test image, of its own ``shape``, on the CPU."""
    assert exam.network is not None
    image = image_of(exam.test, row)
    image = resized(image, with_short_side(image.shape[:2], size))
    pixels = as_wanted(planes(image).to(exam.device) / 255, exam.network.preprocessing)
    windows = windows_of((pixels.shape[1], pixels.shape[2]), size)
    crops = torch.stack([pixels[:, y : y + size, x : x + size] for y, x in windows])
    maps = head(patch_maps(exam.network, crops, exam.layer))
    return most_likely(joined(maps, windows, size, (pixels.shape[1], pixels.shape[2])), shape).cpu()


def windows_of(shape: Shape, size: int) -> list[tuple[int, int]]:
    """Top and left of windows that cover an image; the last ones end where it ends."""
    step = window_step(size)
    tops, lefts = (
        [min(step * i, length - size) for i in range(math.ceil(max(length - size, 0) / step) + 1)]
        for length in shape
    )
    return [(y, x) for y in tops for x in lefts]


def joined(
    maps: Float[Tensor, "n k _ _"], windows: list[tuple[int, int]], size: int, shape: Shape
) -> Float[Tensor, "k h w"]:
    """The mean of the scores of all windows that see a pixel."""
    total = maps.new_zeros(maps.shape[1], *shape)
    seen = maps.new_zeros(shape)
    for one, (y, x) in zip(maps, windows, strict=True):
        total[:, y : y + size, x : x + size] += F.interpolate(
            one[None], (size, size), mode="bilinear", align_corners=False
        )[0]
        seen[y : y + size, x : x + size] += 1
    return total / seen


def most_likely(scores: Float[Tensor, "k _ _"], shape: Shape) -> Int64[Tensor, "h w"]:
    """The class of the greatest of the enlarged scores; one class at a time, as large images of many do not fit."""
    best = scores.new_full(shape, -torch.inf)
    found = torch.zeros(shape, dtype=torch.int64, device=scores.device)
    for number, of_one in enumerate(scores):
        large = F.interpolate(of_one[None, None], shape, mode="bilinear", align_corners=False)[0, 0]
        found[large > best] = number
        best = torch.maximum(best, large)
    return found


def _classes(side: DenseSide, row: int) -> Int64[np.ndarray, "h w"]:
    """At their own size."""
    classes = side.source.answers(int(side.index[row])).classes
    if classes is None:
        raise Inapplicable(f"{side.source.name} has no masks of classes.")
    return classes
