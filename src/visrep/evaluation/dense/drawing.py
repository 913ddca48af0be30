"""Answers of dense protocols as small pictures, in the shape of the true image: its longer side has `TILE` pixels."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache

import matplotlib as mpl
import numpy as np
from jaxtyping import Bool, Float, Float64, Integer, Shaped, UInt8
from PIL import Image, ImageDraw

from visrep.data.dense import IGNORE, nearest
from visrep.evaluation.dense.boxes import Box
from visrep.evaluation.dense.exam import DenseSide
from visrep.evaluation.dense.objects import BACKGROUND
from visrep.evaluation.examples import Picture

TILE = 112
Shape = tuple[int, int]
"""height and width"""
NOBODY, DARK = (128, 128, 128), (20, 22, 28)
"""colours of pixels that nobody is asked about, and of the background"""
TRUE, FOUND = (40, 220, 60), (255, 130, 0)
"""colours of boxes"""
TONES = ((0.75, 0.95), (0.95, 0.65), (0.4, 0.95), (0.5, 0.6), (0.95, 0.4))
"""saturation and brightness of colours, which take turns"""
STEP = 0.445
"""of the circle of hues from one class to the next: with these tones 40 classes stay apart"""
GOLDEN = 0.6180339887
"""the same for colours of one tone"""
IN_LEGEND = 0.02
"""share of a picture from which on a class is named"""


def photo(side: DenseSide, row: int) -> Picture:
    """One of the images."""
    canvas = side.canvases.get(side.index[row : row + 1].numpy())
    h, w = (float(length) for length in canvas.sizes[0])
    return scaled(canvas.pixels[0].permute(1, 2, 0).numpy(), (h, w))


def scaled(image: UInt8[np.ndarray, "rows columns 3"], size: tuple[float, float]) -> Picture:
    """An image whose true height and width are these, whatever it was squashed to."""
    h, w = (max(1, round(TILE * length / max(size))) for length in size)
    how = Image.Resampling.LANCZOS if max(image.shape[:2]) > TILE else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((w, h), how))


@cache
def _palette(dark: int) -> UInt8[np.ndarray, "256 3"]:
    """A colour for each number; ``dark`` is the number of the background, -1 for none."""
    colours = _bytes([colorsys.hsv_to_rgb(STEP * k % 1, *TONES[k % len(TONES)]) for k in range(256)])
    if dark >= 0:
        colours[dark] = DARK
    colours[IGNORE] = NOBODY
    return colours


@cache
def _bright() -> UInt8[np.ndarray, "256 3"]:
    return _bytes([colorsys.hsv_to_rgb(GOLDEN * k % 1, *TONES[0]) for k in range(256)])


def _bytes(colours: Sequence[tuple[float, float, float]]) -> UInt8[np.ndarray, "n 3"]:
    return (255 * np.array(colours)).round().astype(np.uint8)


def colours_of(names: Sequence[str]) -> UInt8[np.ndarray, "256 3"]:
    """By the number of a class: the same for all images and encoders. The background is dark."""
    return _palette(names.index(BACKGROUND) if BACKGROUND in names else -1)


def bright(numbers: Integer[np.ndarray, "*any"]) -> UInt8[np.ndarray, "*any 3"]:
    """A colour for each object or point that stands out from a grey image."""
    return _bright()[numbers % 256]


def painted(classes: Integer[np.ndarray, "rows columns"], names: Sequence[str], shape: Shape) -> Picture:
    """Classes as colours."""
    return colours_of(names)[nearest(classes, shape)]


def legend_of(classes: Integer[np.ndarray, "rows columns"], names: Sequence[str]) -> dict[str, str]:
    """The names of the classes that are on a fiftieth of the picture or more, with their colours."""
    numbers, counts = np.unique(classes[classes != IGNORE], return_counts=True)
    shown: list[int] = numbers[counts >= IN_LEGEND * classes.size].tolist()
    return {names[k]: "#{:02x}{:02x}{:02x}".format(*colours_of(names)[k].tolist()) for k in shown}


def depth_painted(depth: Float[np.ndarray, "rows columns"], low: float, high: float, shape: Shape) -> Picture:
    """Dark is near, bright is far; what lies beyond the ends of the scale has the colour of the nearer end."""
    share = np.clip((nearest(depth, shape) - low) / max(high - low, 1e-9), 0, 1)
    return (255 * mpl.colormaps["viridis"](share)[..., :3]).round().astype(np.uint8)


def boxed(picture: Picture, truth: Sequence[Box], found: Box | None = None) -> Picture:
    """The box that was found in orange and true boxes in green over it, thinner, so that neither hides the other."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    if found is not None:
        draw.rectangle(_corners(found, picture), outline=FOUND, width=2)
    for box in truth:
        draw.rectangle(_corners(box, picture), outline=TRUE, width=1)
    return np.asarray(image)


def _corners(box: Box, picture: Picture) -> tuple[int, int, int, int]:
    """Left, top, right and bottom pixel, the last ones included."""
    h, w = picture.shape[:2]
    left, top = round(box.left * w), round(box.top * h)
    return left, top, max(left, round(box.right * w) - 1), max(top, round(box.bottom * h) - 1)


def overlaid(picture: Picture, numbers: Shaped[np.ndarray, "rows columns"]) -> Picture:
    """Objects over the greyed image, each number in its colour; 0 is none."""
    small = nearest(numbers, (picture.shape[0], picture.shape[1]))
    grey = np.repeat(picture.mean(-1, keepdims=True), 3, axis=-1)
    colours = bright(small.astype(np.int64))
    return np.where(small[..., None] > 0, 0.35 * grey + 0.65 * colours, grey).round().astype(np.uint8)


def dotted(
    picture: Picture,
    points: Float64[np.ndarray, "m 2"],
    shape: Shape,
    filled: Bool[np.ndarray, " m"] | None = None,
) -> Picture:
    """Points, rows and columns in an image of ``shape``, as dots over the greyed image, or as rings if not filled."""
    grey = np.repeat(picture.mean(-1, keepdims=True), 3, axis=-1)
    image = Image.fromarray((0.7 * grey).round().astype(np.uint8))
    draw = ImageDraw.Draw(image)
    places = points * (np.array(picture.shape[:2]) / np.array(shape))
    for number, (y, x) in enumerate(places.tolist()):
        colour = tuple(bright(np.array(number)).tolist())
        solid = filled is None or bool(filled[number])
        draw.circle((x, y), 3.5, fill=colour if solid else None, outline=None if solid else colour, width=2)
    return np.asarray(image)
