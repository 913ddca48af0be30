"""Colour jitter, grey, solarisation and normalisation of a batch, in place.

Each image has its own factors and its own order of the four changes. Brightness, contrast and saturation are one
formula with different coefficients, so that a whole batch takes its first, second, ... change in few operations. The
hue costs most and is turned only where it is its turn: the caller sorts the images by the place of the hue.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from visrep.views.parameters import CONTRAST, HUE, ORDERS, SATURATION

LUMA = (0.2989, 0.587, 0.114)
"""weights of red, green and blue in grey, as in PIL and torchvision"""


def gray(image: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    """The luma of each pixel."""
    red, green, blue = image.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def jitter_(image: Float[Tensor, "n 3 h w"], factors: Float[Tensor, "n 4"], order: Int[Tensor, " n"]) -> None:
    """Change brightness, contrast, saturation and hue of each image in its own ``order``, an index into `ORDERS`.

    ``factors`` are those of brightness, contrast and saturation and the turn of the hue. The order is sorted.
    """
    change = ORDERS[
        order
    ]  # stays on the CPU: where the hue's turns lie is known without waiting for the device
    here = change.to(image.device)
    factor = factors.gather(1, here)
    for k in range(4):
        blend_(image, here[:, k], factor[:, k])
        of_hue = (change[:, k] == HUE).nonzero()[:, 0]
        if len(of_hue):
            first, end = int(of_hue[0]), int(of_hue[-1]) + 1
            turn_hue_(image[first:end], factor[first:end, k, None, None])
        image.clamp_(0, 1)


def blend_(image: Float[Tensor, "n 3 h w"], change: Int[Tensor, " n"], factor: Float[Tensor, " n"]) -> None:
    """Blend each image with black (brightness), its mean grey (contrast) or its grey (saturation); leave it for hue.

    ``factor * image + (1 - factor) * other``, not yet clamped.
    """
    factor, kind = factor[:, None, None, None], change[:, None, None, None]
    keep = torch.where(kind == HUE, 1.0, factor)
    of_gray, of_mean = (1 - factor) * (kind == SATURATION), (1 - factor) * (kind == CONTRAST)
    other = gray(image)
    mean = other.mean((2, 3), keepdim=True)
    image.mul_(keep).add_(other.mul_(of_gray).add_(mean.mul_(of_mean)))


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


def normalise_(image: Float[Tensor, "*n 3 h w"], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Subtract the mean of each channel and divide by its standard deviation."""
    shape = (3, 1, 1)
    image.sub_(torch.tensor(mean, device=image.device).view(shape))
    image.div_(torch.tensor(std, device=image.device).view(shape))
