"""What is random in a view: its box, whether it is mirrored, how its colours change.

All of it is drawn from `NUMBERS` uniform numbers an image, with the distributions of the usual
implementations (RandomResizedCrop, ColorJitter and the rest of torchvision's). It is little, so it is always
computed on the CPU: what to do with which row is then known without waiting for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import permutations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from visrep.views.recipes import View

TRIES = 10
"""boxes drawn in search of one that fits into the image"""
NUMBERS = 2 * TRIES + 13
"""uniform numbers an image and view"""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = torch.tensor(
    [(*rest[:place], HUE, *rest[place:]) for place in range(4) for rest in permutations(range(3))]
)
"""All orders of the four changes of colour, "24 4", sorted by the place of the hue"""


@dataclass(frozen=True)
class Parameters:
    """The random choices of some views, one row a view."""

    boxes: Float[Tensor, "n 4"]
    """top, left, height, width as fractions of the image"""
    flipped: Bool[Tensor, " n"]
    jittered: Bool[Tensor, " n"]
    factors: Float[Tensor, "n 4"]
    """of brightness, contrast, saturation; turn of the hue; no change where not jittered"""
    order: Int[Tensor, " n"]
    """of the four changes of colour: index into `ORDERS`"""
    gray: Bool[Tensor, " n"]
    sigma: Float[Tensor, " n"]
    """standard deviation of the blur in pixels of the view, 0 for none"""
    solarized: Bool[Tensor, " n"]

    def rows(self, rows: slice | Int[Tensor, " m"]) -> Parameters:
        """The choices of some of the views."""
        return Parameters(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def undistorted(self) -> Parameters:
        """The same crops, neither blurred nor changed in colour."""
        no = torch.zeros_like(self.flipped)
        return replace(self, jittered=no, gray=no, solarized=no, sigma=torch.zeros_like(self.sigma))


def draw_parameters(view: View, sizes: Float[Tensor, "b 2"], u: Float[Tensor, "b m"]) -> Parameters:
    """Turn uniform numbers ("b NUMBERS") into the choices of one view of each image of true size ``sizes``."""
    u, sizes = u.double(), sizes.double()
    tries, u = u[:, : 2 * TRIES], u[:, 2 * TRIES :]
    jittered = u[:, 3] < view.jitter
    spread = torch.tensor([view.brightness, view.contrast, view.saturation, view.hue], dtype=torch.float64)
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    low = torch.cat([(neutral - spread)[:3].clamp(min=0), -spread[3:]])
    factors = low + u[:, 4:8] * (neutral + spread - low)
    least, greatest = view.blur_sigma
    return Parameters(
        boxes=draw_boxes(view, sizes, tries, u[:, :2]),
        flipped=u[:, 2] < view.flip,
        jittered=jittered,
        factors=torch.where(jittered[:, None], factors, neutral).float(),
        order=(u[:, 8] * len(ORDERS)).long(),
        gray=u[:, 9] < view.gray,
        sigma=torch.where(u[:, 10] < view.blur, least + u[:, 11] * (greatest - least), 0.0).float(),
        solarized=u[:, 12] < view.solarize,
    )


def draw_boxes(
    view: View,
    sizes: Float[Tensor, "b 2"],
    tries: Float[Tensor, "b m"],
    place: Float[Tensor, "b 2"],
) -> Float[Tensor, "b 4"]:
    """Boxes of RandomResizedCrop: the first of `TRIES` (area, log ratio) that fits, else a central one.

    Boxes have whole pixels of the true image; they are returned as fractions of it.
    """
    height, width = sizes.unbind(1)
    area = view.scale[0] + tries[:, :TRIES] * (view.scale[1] - view.scale[0])
    area = area * (height * width)[:, None]
    log_low, log_high = math.log(view.ratio[0]), math.log(view.ratio[1])
    ratio = torch.exp(log_low + tries[:, TRIES:] * (log_high - log_low))
    tall, wide = torch.sqrt(area / ratio).round(), torch.sqrt(area * ratio).round()
    fits = (tall > 0) & (tall <= height[:, None]) & (wide > 0) & (wide <= width[:, None])
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)

    # nothing fits: the largest central box whose ratio is allowed
    most_wide = torch.minimum(width, (height * view.ratio[1]).round())
    most_tall = torch.minimum(height, (width / view.ratio[0]).round())
    tall = torch.where(found, tall.gather(1, first)[:, 0], most_tall)
    wide = torch.where(found, wide.gather(1, first)[:, 0], most_wide)
    free_y, free_x = height - tall, width - wide
    top = torch.where(found, (place[:, 0] * (free_y + 1)).floor(), (free_y / 2).floor())
    left = torch.where(found, (place[:, 1] * (free_x + 1)).floor(), (free_x / 2).floor())
    return torch.stack([top / height, left / width, tall / height, wide / width], dim=1)


def join(parts: Sequence[Parameters]) -> Parameters:
    """The choices of several views, one after the other."""
    names = [f.name for f in fields(Parameters)]
    return Parameters(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})
