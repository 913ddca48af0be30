"""Colour jitter, grey, solarisation and normalisation of a batch, in place.

Each image has its own factors and its own order of the four changes. The caller sorts the images by order, so that
those that undergo the same change at the same time lie side by side and nothing is computed for the others.
"""

from __future__ import annotations

from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.2989, 0.587, 0.114)
"""weights of red, green and blue in grey, as in PIL and torchvision"""


def gray(image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """The luma of each pixel."""
    red, green, blue = image.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def jitter_(image: Float[Tensor, "n 3 h w"], factors: Float[Tensor, "n 4"], order: list[list[int]]) -> None:
    """Change brightness, contrast, saturation and hue of each image in its own ``order``.

    ``factors`` are those of brightness, contrast and saturation and the turn of the hue. Fast if ``order`` is sorted.
    """
    factors = factors[:, :, None, None, None]
    for k in range(4):
        start = 0
        for change, run in groupby(order, key=lambda of_image: of_image[k]):
            end = start + sum(1 for _ in run)
            apply_(image[start:end], change, factors[start:end, change])
            start = end
        image.clamp_(0, 1)


def apply_(image: Float[Tensor, "n 3 h w"], change: int, factor: Float[Tensor, "n 1 1 1"]) -> None:
    """One change of colour, not yet clamped: blends with black, the image's mean grey or grey, or turns the hue."""
    if change == BRIGHTNESS:
        image.mul_(factor)
    elif change == CONTRAST:
        luma = torch.tensor(LUMA, device=image.device)
        mean = (image.mean((2, 3)) * luma).sum(1)[:, None, None, None]
        image.mul_(factor).add_((1 - factor) * mean)
    elif change == SATURATION:
        torch.lerp(gray(image), image, factor, out=image)
    else:
        turn_hue_(image, factor[:, 0])


def turn_hue_(image: Float[Tensor, "n 3 h w"], turn: Float[Tensor, "n 1 1"]) -> None:
    """Turn the hue by a share of the colour circle; value and chroma stay.

    With the chroma C = max - min, the hue in turns is +-(1 + (G + B - R - min) / C) / 6, of the sign of G - B. Turned
    and wrapped to [-1/2, 1/2], red is max up to a distance of 1/6 from hue 0 and falls to min at 2/6; green and blue
    are min up to a distance of 1/6 from the hue opposite theirs, -1/6 and 1/6, and rise to max at 2/6.
    """
    red, green, blue = image.unbind(1)
    low, high = torch.minimum(red, green), torch.maximum(red, green)
    torch.minimum(low, blue, out=low)
    torch.maximum(high, blue, out=high)
    chroma = (high - low).clamp_(min=1e-20)  # without any, the hue is of no consequence but must be a number
    low.sub_(chroma)
    high.add_(chroma)
    hue = (green + blue).sub_(red).sub_(low).copysign_(green - blue)
    torch.addcdiv(turn, hue, chroma, value=1 / 6, out=hue)
    hue.sub_(hue.round())
    near, far = 1 / 6, 2 / 6
    torch.addcmul(high, hue.abs().clamp_(near, far), chroma, value=-6, out=red)
    torch.addcmul(low, (hue + near).abs_().clamp_(near, far), chroma, value=6, out=green)
    torch.addcmul(low, hue.sub_(near).abs_().clamp_(near, far), chroma, value=6, out=blue)


def remove_colour_(image: Float[Tensor, "n 3 h w"], which: Tensor) -> None:
    """Make the images ``which`` (int64 "m") grey."""
    image.index_copy_(0, which, gray(image.index_select(0, which)).expand(-1, 3, -1, -1))


def solarize_(image: Float[Tensor, "n 3 h w"], which: Tensor) -> None:
    """Invert values of 0.5 and more of the images ``which`` (int64 "m")."""
    bright = image.index_select(0, which)
    image.index_copy_(0, which, torch.minimum(bright, 1 - bright))


def normalise_(image: Float[Tensor, "n 3 h w"], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Subtract the mean of each channel and divide by its standard deviation."""
    shape = (3, 1, 1)
    image.sub_(torch.tensor(mean, device=image.device).view(shape))
    image.div_(torch.tensor(std, device=image.device).view(shape))
