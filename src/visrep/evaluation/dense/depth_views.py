"""Random views of an image and its depth on which DINOv3 (arXiv:2508.10104) trains a head that tells depth.

Turned a little or not, mirrored or not, a crop, other colours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from visrep.evaluation.dense.chance import below, happens, uniform
from visrep.evaluation.dense.frozen import View
from visrep.evaluation.dense.native import Shape, as_wanted
from visrep.method import Preprocessing

TURNED = 0.5
DEGREES = 2.5
MIRRORED = 0.5
COLOURED = 0.5
"""probability of other colours"""
GAMMA = (0.9, 1.1)
"""power of values up to 255"""
COLOURS = (0.9, 1.1)
"""factors of the three"""
BRIGHTNESS = (0.75, 1.25)


def random_view(
    image: Float[Tensor, "3 h w"],
    depth: Float32[Tensor, "h w"],
    crop: Shape,
    how: Preprocessing,
    rng: torch.Generator,
) -> View:
    """A crop of an image of values of 0 to 1 that is no smaller; depth is 0 where turning left no pixel."""
    if happens(rng, TURNED):
        angle = uniform(rng, -DEGREES, DEGREES)
        image, depth = turned(image, angle), turned(depth[None], angle, mode="nearest")[0]
    if happens(rng, MIRRORED):
        image, depth = image.flip(-1), depth.flip(-1)
    y, x = (below(rng, length - side + 1) for length, side in zip(depth.shape, crop, strict=True))
    image, depth = image[:, y : y + crop[0], x : x + crop[1]], depth[y : y + crop[0], x : x + crop[1]]
    if happens(rng, COLOURED):
        colours = [uniform(rng, *COLOURS) for _ in range(3)]
        image = coloured(image, uniform(rng, *GAMMA), uniform(rng, *BRIGHTNESS), colours)
    return as_wanted(image, how), depth


def turned(values: Float[Tensor, "c h w"], degrees: float, mode: str = "bilinear") -> Float[Tensor, "c h w"]:
    """Counterclockwise around the centre. Nothing comes in: 0; pixels at the edge fade twice, as published."""
    h, w = values.shape[1:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    theta = torch.tensor([[cos, -sin * h / w, 0], [sin * w / h, cos, 0]])
    places = F.affine_grid(theta[None], [1, 1, h, w], align_corners=False)
    known = torch.cat([values, torch.ones_like(values[:1])])
    *found, share = F.grid_sample(known[None], places, mode, "zeros", align_corners=False)[0]
    return torch.stack(found) * share


def coloured(
    image: Float[Tensor, "3 h w"], gamma: float, brightness: float, colours: list[float]
) -> Float[Tensor, "3 h w"]:
    """A power of values of 0 to 255, times factors, cut off there."""
    factors = brightness * torch.tensor(colours)[:, None, None]
    return ((255 * image) ** gamma * factors).clamp(0, 255) / 255
