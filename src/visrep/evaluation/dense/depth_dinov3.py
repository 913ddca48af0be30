"""Linear depth with the published settings of DINOv3 (arXiv:2508.10104, eval/depth) on NYU.

The frozen encoder sees random views of the training images (`depth_views`), crops of 416 x 544 pixels, in batches of
16; BatchNorm and a 1x1 convolution on its last layer give 256 bins, whose weighted mean is the depth, as in `depth`.
The scale-invariant logarithmic loss of each two images, as on each of eight devices; AdamW, gradients up to 35,
38,400 iterations, 12,800 of them to warm up. Test images are judged whole, the mean of the answers for the image and
its mirror image enlarged to the true depth.

Settings are those of the published code, where its configuration and code differ those of the code: AdamW's first
beta is not 0.9 but 0 while the rate rises and then goes from 0.85 to 0.95, and the rate falls over all steps.

Deviations: NYU's own crops (of its white frame for training, Eigen's for judging) are not made; images have 480
pixels along the shorter side as NYU's have, or more where the crop would not fit; bins lie between 0.001 and the
greatest depth of the training images in place of 10 metres, and pixels of that depth count; encoders whose patches
are smaller than 16 pixels see as many of them in smaller images; an encoder's own mean and deviation of colours;
small sets are seen as often as NYU's 24,231 images, in 2,000 steps at least (see `frozen`); float32.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from visrep.data.dense import nearest
from visrep.evaluation.dense.depth import (
    BINS,
    NEAREST,
    depth_of,
    errors_of,
    measures_of,
    scale_invariant_loss,
)
from visrep.evaluation.dense.depth_views import random_view
from visrep.evaluation.dense.exam import DenseSide, Exam, Folds
from visrep.evaluation.dense.examples import depth_examples
from visrep.evaluation.dense.frozen import BATCH, Training, View, linear_head, train_head
from visrep.evaluation.dense.native import (
    Shape,
    as_wanted,
    check_takes,
    image_of,
    padded,
    patch_maps,
    planes,
    resized,
    resized_answers,
)
from visrep.evaluation.examples import Example, spread
from visrep.evaluation.results import Inapplicable, Measure
from visrep.method import Encoder
from visrep.progress import within

NAME = "depth-dinov3"
SIDE = 480
"""pixels of the shorter side of NYU's images"""
CROP = (416, 544)
PATCH = 16
"""pixels of those patches for which sizes are published"""
LR = 3e-4
WARMUP = 1 / 3
"""share of the steps"""
FIRST = 1e-3
"""share of the learning rate where the warm-up begins"""
LAST = 1 / 25_000
"""share of it at the end"""
BETAS = (0.85, 0.95)
"""first beta after the warm-up and at the end; 0 before"""


def pace(step: int, steps: int) -> tuple[float, float]:
    """Learning rate and first beta."""
    warm = WARMUP * steps
    if step < warm:
        return LR * (FIRST + (1 + math.cos(math.pi * step / steps)) / 2 * step / warm), 0.0
    falls = (1 + math.cos(math.pi * (step + 1) / steps)) / 2
    beta = BETAS[1] + (BETAS[0] - BETAS[1]) * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
    return LR * (LAST + (1 - LAST) * falls), beta


TRAINING = Training(
    iterations=38_400, images=24_231, weight_decay=1e-4, beta2=0.99, clip=35.0, part=2, pace=pace
)


def depth_dinov3(exam: Exam) -> list[Measure]:
    """RMSE in percent of the greatest depth, relative error, and the share of pixels within a factor of 1.25.

    Each is computed image by image and averaged over images. Raises Inapplicable for an encoder that does not take
    images of other shapes than its own.
    """
    assert exam.network is not None, "views are seen by the network"
    side = short_side(exam.network, exam.asked)
    stride, crop = exam.network.stride, crop_of(side)
    rows, columns = (math.ceil(length / stride) for length in crop)
    instead = "Use depth, which squashes images to squares."
    check_takes(NAME, exam.network, (rows * stride, columns * stride), exam.device, instead)
    exams = exam.folds()
    found = [_judged(fold, side) for fold in exams]
    folds = Folds.of(exams, [])
    settings = {
        **folds.settings,
        "lr": LR,
        "batch": min(BATCH, folds.n_train),
        "steps": TRAINING.steps(folds.n_train),
        "image": side,
        "crop": f"{crop[0]} x {crop[1]}",
        "grid": f"{rows} x {columns}",
    }
    return measures_of(NAME, found, folds, settings, exam)


def short_side(encoder: Encoder, asked: int) -> int:
    """Of images in pixels: what was asked for, else 480, or as many patches where they are smaller than 16."""
    return asked or SIDE * min(encoder.stride, PATCH) // PATCH


def crop_of(side: int) -> Shape:
    """Height and width, in proportion to the shorter side of images."""
    return side * CROP[0] // SIDE, side * CROP[1] // SIDE


def shown_shape(shape: tuple[int, ...], side: int) -> Shape:
    """Of an image: its shorter side has ``side`` pixels, or more where the crop would not fit into it."""
    h, w = shape
    crop = crop_of(side)
    scale = max(side / min(h, w), crop[0] / h, crop[1] / w)
    return max(crop[0], round(h * scale)), max(crop[1], round(w * scale))


def _judged(exam: Exam, side: int) -> tuple[dict[str, Float[Tensor, " n"]], list[Example]]:
    furthest = float(exam.train.depth.max())
    head = fit(exam, side, furthest)
    test, shown = exam.test, spread(len(exam.test))
    errors: list[dict[str, Tensor]] = []
    pictures: list[Tensor] = []
    for row in within(range(len(test)), "images"):
        true = torch.from_numpy(_depth(test, row))
        found = answer(head, exam, row, side, furthest, (true.shape[0], true.shape[1]))
        asked = true > NEAREST
        errors.append(errors_of(found[asked][None, None], true[asked][None, None]))
        if row in shown:
            pictures.append(torch.from_numpy(nearest(found.numpy(), (test.size, test.size))))
    examples = depth_examples(test.at(torch.tensor(shown)), torch.stack(pictures))
    return {name: torch.cat([each[name] for each in errors]) for name in errors[0]}, examples


def fit(exam: Exam, side: int, furthest: float) -> nn.Module:
    """A head trained on views of the training images."""
    assert exam.network is not None
    how, train = exam.network.preprocessing, exam.train
    head = linear_head(train.tokens.shape[-1], BINS, exam.seed)

    def draw(row: int, rng: torch.Generator) -> View:
        image = image_of(train, row)
        shape = shown_shape(image.shape[:2], side)
        pixels, depth = planes(resized(image, shape)) / 255, resized_answers(_depth(train, row), shape)
        return random_view(pixels, depth, crop_of(side), how, rng)

    def loss(maps: Tensor, depth: Tensor, step: int) -> Tensor:
        large = enlarged_depth(maps, furthest, (depth.shape[1], depth.shape[2]))
        return scale_invariant_loss(large[depth > 0], depth[depth > 0], step)

    train_head(head, exam, draw, loss, TRAINING, steps=TRAINING.steps(len(train)))
    return head


def enlarged_depth(
    maps: Float[Tensor, "b k _ _"], furthest: float, shape: Shape, *, mirrored: bool = False
) -> Float[Tensor, "_ h w"]:
    """Depth of each pixel from the outputs for bins; ``mirrored``: of an image and its mirror image, the mean."""
    found = depth_of(maps.movedim(1, -1), furthest)[:, None]
    if mirrored:
        found = (found[:1] + found[1:].flip(-1)) / 2
    return F.interpolate(found, shape, mode="bilinear", align_corners=False)[:, 0]


@torch.no_grad()
def answer(
    head: nn.Module, exam: Exam, row: int, side: int, furthest: float, shape: Shape
) -> Float[Tensor, "h w"]:
    """The depth of each pixel of a test image, of its own ``shape``, on the CPU."""
    assert exam.network is not None
    image = image_of(exam.test, row)
    image = resized(image, shown_shape(image.shape[:2], side))
    pixels = as_wanted(planes(image).to(exam.device) / 255, exam.network.preprocessing)
    both = padded(torch.stack([pixels, pixels.flip(-1)]), exam.network.stride, centre=True)
    maps = head(patch_maps(exam.network, both, exam.layer))
    return enlarged_depth(maps, furthest, shape, mirrored=True)[0].clamp(NEAREST, furthest).cpu()


def _depth(side: DenseSide, row: int) -> Float32[np.ndarray, "h w"]:
    """At its own size."""
    depth = side.source.answers(int(side.index[row])).depth
    if depth is None:
        raise Inapplicable(f"{side.source.name} has no depth.")
    return depth
