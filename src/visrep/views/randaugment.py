"""RandAugment (arXiv:1909.13719): each image gets a few operations drawn at random, all about equally strong.

    level ~ N(magnitude, spread) within [0, 10], up or down at random; argument of the operation = its share of a most

By default ``rand-m9-mstd0.5-inc1`` of timm, with which MAE, DeiT and BEiT are trained or fine-tuned: of 15 operations
two are drawn, with replacement, and each is done with probability 1/2. "inc1" means that all of those with a level
grow stronger with it. Images have whole values, as Pillow's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from visrep.method import At
from visrep.views import pillow
from visrep.views.render import at_once
from visrep.views.warp import rotation, shear_x, shear_y, translation, warp

OPERATIONS = (
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize-add", "colour", "contrast",
    "brightness", "sharpness", "shear-x", "shear-y", "translate-x", "translate-y",
)  # fmt: skip
HIGHEST = 10.0


@final
@dataclass(frozen=True)
class RandAugment:
    """How operations are drawn."""

    magnitude: float = 9.0
    """mean level, of `HIGHEST`"""
    spread: float = 0.5
    """standard deviation of the level"""
    count: int = 2
    """operations drawn an image"""
    probability: float = 0.5
    """of doing each of them"""


def rand_augment(
    images: UInt8[Tensor, "b *t 3 h w"], how: RandAugment, fill: tuple[int, ...], at: At
) -> UInt8[Tensor, "b *t 3 h w"]:
    """Images, or clips whose frames are all changed alike; ``fill`` is the colour of what moves in from outside.

    Random numbers come from ``at`` alone, one row an image; what becomes of an image depends on its row only.
    """
    operation, level = choose(how, len(images), at)
    image = images.flatten(0, -4).clone()
    frames = len(image) // len(images)
    for k in range(how.count):
        for number, name in enumerate(OPERATIONS):
            found = (operation[:, k].repeat_interleave(frames) == number).nonzero()[:, 0]
            for rows in found.split(at_once(image)) if len(found) else ():
                here = rows.to(image.device)
                image[here] = operate(name, image[here], level[rows // frames, k], fill)
    return image.view(images.shape)


def choose(how: RandAugment, b: int, at: At) -> tuple[Int[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Index into `OPERATIONS`, -1 for none, and level with its sign, of each image. On the CPU: it is little."""
    u = at.rand(b, how.count, 3).cpu().double()
    level = how.magnitude + how.spread * at.randn(b, how.count).cpu().double()
    number = (u[..., 0] * len(OPERATIONS)).long()
    sign = torch.where(u[..., 2] < 0.5, -1.0, 1.0)
    return torch.where(u[..., 1] < how.probability, number, -1), sign * level.clamp(0, HIGHEST)


def operate(
    name: str, image: UInt8[Tensor, "n 3 h w"], level: Float[Tensor, " n"], fill: tuple[int, ...]
) -> UInt8[Tensor, "n 3 h w"]:
    """One of `OPERATIONS` at levels from -10 to 10; where there is but one way, the sign says nothing."""
    height, width = image.shape[-2:]
    share = level / HIGHEST
    strength, factor, none = share.abs(), (1 + 0.9 * share).clamp(min=0.1), torch.zeros_like(share)
    match name:
        case "autocontrast":
            return pillow.autocontrast(image)
        case "equalize":
            return pillow.equalize(image)
        case "invert":
            return 255 - image
        case "posterize":
            return pillow.posterize(image, 4 - (strength * 4).long())
        case "solarize":
            return pillow.solarize(image, 256 - (strength * 256).long())
        case "solarize-add":
            return pillow.solarize_add(image, (strength * 110).long())
        case "colour":
            return pillow.colour(image, factor)
        case "contrast":
            return pillow.contrast(image, factor)
        case "brightness":
            return pillow.brightness(image, factor)
        case "sharpness":
            return pillow.sharpness(image, factor)
        case "rotate":
            return warp(image, rotation(share * math.radians(30), height, width), fill)
        case "shear-x":
            return warp(image, shear_x(share * 0.3), fill)
        case "shear-y":
            return warp(image, shear_y(share * 0.3), fill)
        case "translate-x":
            return warp(image, translation(share * 0.45 * width, none), fill)
        case "translate-y":
            return warp(image, translation(none, share * 0.45 * height), fill)
    raise ValueError(f"there is no operation {name!r}. Use one of: {', '.join(OPERATIONS)}.")
