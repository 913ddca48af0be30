"""Random views of an image and its classes on which DINOv3 (arXiv:2508.10104) trains a head that segments.

Another size, a crop that no single class fills, a mirror image, other colours. Values are whole numbers of 0 to 255
between all changes, as published.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from visrep.data.dense import IGNORE
from visrep.evaluation.dense.chance import below, happens, uniform
from visrep.evaluation.dense.frozen import View
from visrep.evaluation.dense.native import Shape, as_wanted, planes, resized, resized_answers
from visrep.method import Preprocessing
from visrep.views.colour import gray, turn_hue_

SCALES = (0.5, 2.0)
"""the shorter side of the whole image over the side of the crop"""
MOST_OF_ONE = 0.75
"""share of the marked pixels of a crop that one class may have"""
TRIES = 10
"""crops that are looked at; the one after is taken as it is"""
MIRRORED = 0.5
CHANGED = 0.5
"""probability of each change of colours"""
BRIGHTNESS = 32
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = (-0.5, 0.5)
"""of the circle of colours"""


def random_view(
    image: UInt8[np.ndarray, "h w 3"],
    classes: Int64[np.ndarray, "h w"],
    size: int,
    how: Preprocessing,
    rng: torch.Generator,
) -> View:
    """A square of ``size`` pixels; where the image is smaller, 0 and classes that nobody is asked about fill it."""
    shape = with_short_side(image.shape[:2], int(size * uniform(rng, *SCALES)))
    pixels, answers = planes(resized(image, shape)), resized_answers(classes, shape)
    y, x = random_crop(answers, size, rng)
    pixels, answers = pixels[:, y : y + size, x : x + size], answers[y : y + size, x : x + size]
    if happens(rng, MIRRORED):
        pixels, answers = pixels.flip(-1), answers.flip(-1)
    pixels = as_wanted(distorted(pixels, rng) / 255, how)
    missing = (0, size - answers.shape[1], 0, size - answers.shape[0])
    return F.pad(pixels, missing), F.pad(answers, missing, value=IGNORE)


def with_short_side(shape: tuple[int, ...], side: int) -> Shape:
    """Of an image of the same proportions."""
    h, w = shape
    return (int(side * h / w + 0.5), side) if h > w else (side, int(side * w / h + 0.5))


def random_crop(classes: Int64[Tensor, "h w"], size: int, rng: torch.Generator) -> tuple[int, int]:
    """Top and left of a crop, drawn anew while one class fills it or nothing is marked in it."""
    place = _place(classes, size, rng)
    for _ in range(TRIES):
        some = classes[place[0] : place[0] + size, place[1] : place[1] + size]
        counts = some[some != IGNORE].unique(return_counts=True)[1]
        if len(counts) > 1 and float(counts.max() / counts.sum()) < MOST_OF_ONE:
            break
        place = _place(classes, size, rng)
    return place


def _place(classes: Tensor, size: int, rng: torch.Generator) -> tuple[int, int]:
    y, x = (below(rng, max(length - size, 0) + 1) for length in classes.shape)
    return y, x


def distorted(image: Float[Tensor, "3 h w"], rng: torch.Generator) -> Float[Tensor, "3 h w"]:
    """Brightness, contrast, saturation and hue, each of them or not; contrast second or last."""
    if happens(rng, CHANGED):
        image = whole(image + uniform(rng, -BRIGHTNESS, BRIGHTNESS))
    contrast = uniform(rng, *CONTRAST) if happens(rng, CHANGED) else 1.0
    last = happens(rng, 0.5)
    if not last:
        image = whole(image * contrast)
    if happens(rng, CHANGED):
        image = saturated(image, uniform(rng, *SATURATION))
    if happens(rng, CHANGED):
        image = turned(image, uniform(rng, *HUE))
    return whole(image * contrast) if last else image


def whole(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Cut off to 0 to 255 and down to whole numbers."""
    return image.clamp(0, 255).floor()


def saturated(image: Float[Tensor, "3 h w"], factor: float) -> Float[Tensor, "3 h w"]:
    """Away from its grey by this factor."""
    return whole(factor * image + (1 - factor) * gray(image[None])[0].floor())


def turned(image: Float[Tensor, "3 h w"], turn: float) -> Float[Tensor, "3 h w"]:
    """Hues turned by a share of the circle of colours."""
    found = image[None] / 255
    turn_hue_(found, torch.full((1, 1, 1), turn))
    return (found[0] * (256 - 1e-3)).clamp(0, 255).floor()
