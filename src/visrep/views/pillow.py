"""Pillow's changes of colour, to the same whole numbers, a batch at a time: each image has its own argument.

Most are a table: the new value of each of the 256 values, for all colours alike ("n 1 256") or for each ("n 3 256").
Tables and arguments are made on the CPU, in double precision where Pillow has it; images stay on their device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Image = UInt8[Tensor, "n 3 h w"]
Whole = Int[Tensor, " n"]
Factor = Float[Tensor, " n"]


def look_up(image: Image, table: Int[Tensor, "n c 256"]) -> Image:
    """Each value replaced by its entry."""
    table = table.to(image.device, torch.uint8).expand(-1, 3, -1)
    return table.gather(2, image.flatten(2).long()).view_as(image)


def autocontrast(image: Image) -> Image:
    """Each colour stretched: its least value becomes 0, its greatest 255."""
    flat = image.flatten(2)
    low, high = (x.cpu().double()[..., None] for x in (flat.amin(2), flat.amax(2)))
    scale = high.new_tensor(255).div(
        (high - low).clamp(min=1)
    )  # 255 / x would be 255 * (1 / x), which rounds twice
    value = torch.arange(256, dtype=torch.float64)
    stretched = (value * scale - low * scale).clamp(0, 255)
    return look_up(image, torch.where(high > low, stretched, value).long())


def equalize(image: Image) -> Image:
    """Each colour's values spread so that all are about as frequent: a value becomes the share of pixels below it."""
    flat = image.flatten(2).long()
    count = torch.zeros(*flat.shape[:2], 256, dtype=torch.long, device=flat.device)
    count.scatter_add_(2, flat, torch.ones_like(flat))
    step = (flat.shape[2] - count.gather(2, flat.amax(2, keepdim=True))) // 255
    below = count.cumsum(2) - count
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return look_up(image, torch.where(step > 0, table, torch.arange(256, device=flat.device)))


def posterize(image: Image, bits: Whole) -> Image:
    """Only the first ``bits`` bits of each value."""
    unit = 2 ** (8 - bits)[:, None, None]
    return look_up(image, torch.arange(256) // unit * unit)


def solarize(image: Image, threshold: Whole) -> Image:
    """Values inverted from a threshold on."""
    value = torch.arange(256)
    return look_up(image, torch.where(value < threshold[:, None, None], value, 255 - value))


def solarize_add(image: Image, add: Whole) -> Image:
    """Something added to the dark half of the values."""
    value = torch.arange(256)
    return look_up(image, torch.where(value < 128, (value + add[:, None, None]).clamp(max=255), value))


def brightness(image: Image, factor: Factor) -> Image:
    """Nearer to black, or further from it."""
    return look_up(image, blend(torch.arange(256.0), torch.zeros(()), factor[:, None, None]).long())


def contrast(image: Image, factor: Factor) -> Image:
    """Nearer to the image's mean grey, or further from it."""
    mean = luma(image).flatten(1).sum(1).cpu().double() / image[0, 0].numel()
    other = (mean + 0.5).floor().float()[:, None, None]
    return look_up(image, blend(torch.arange(256.0), other, factor[:, None, None]).long())


def colour(image: Image, factor: Factor) -> Image:
    """Nearer to grey, or further from it."""
    return blend(image, luma(image)[:, None], factor[:, None, None, None]).to(torch.uint8)


def sharpness(image: Image, factor: Factor) -> Image:
    """Nearer to a smoothed image, or further from it. Pixels at the edge stay."""
    smooth = image.float()
    inside = smooth[..., 1:-1, 1:-1]
    total = F.avg_pool2d(smooth, 3, stride=1, divisor_override=1) + 4 * inside  # 1 1 1, 1 5 1, 1 1 1
    inside.copy_((total / 13 + 0.5).floor())
    return blend(image, smooth, factor[:, None, None, None]).to(torch.uint8)


def luma(image: Image) -> Int[Tensor, "n h w"]:
    """Grey in whole numbers."""
    red, green, blue = image.int().unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 2**15) >> 16


def blend(value: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """``other + factor (value - other)`` within [0, 255]; whoever takes it cuts off what is not whole."""
    difference = value.float() - other
    return (other + factor.float().to(difference.device) * difference).clamp_(0, 255)
