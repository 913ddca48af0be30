"""CIE Lab, in which lightness and colour are apart, and the bins in which both are predicted."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""linear red, green and blue of sRGB in X, Y and Z"""
WHITE = (0.95047, 1.0, 1.08883)
"""X, Y and Z of D65 daylight"""
GAMUT = (
    (50, 90),
    (20, 90),
    (0, 90),
    (-20, 90),
    (-30, 100),
    (-40, 100),
    (-50, 100),
    (-50, 100),
    (-60, 100),
    (-70, 100),
    (-80, 90),
    (-80, 90),
    (-90, 90),
    (-100, 90),
    (-100, 80),
    (-110, 80),
    (-110, 80),
    (-110, 70),
    (-110, 70),
    (-90, 0),
)
"""least and greatest b of the colours of sRGB, in steps of 10, for a = -90, -80, ... 100; as in arXiv:1603.08511"""


def rgb_to_lab(rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """sRGB in [0, 1] as L in [0, 100] and a, b in about [-108, 99], with the constants of scikit-image."""
    with torch.autocast(rgb.device.type, enabled=False):
        linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
        xyz = _mixed(linear, rgb.new_tensor(XYZ)) / rgb.new_tensor(WHITE).view(3, 1, 1)
        x, y, z = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116).unbind(1)
        return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_to_rgb(lab: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Undo `rgb_to_lab`; colours that sRGB lacks are cut off."""
    with torch.autocast(lab.device.type, enabled=False):
        lightness, a, b = lab.unbind(1)
        y = (lightness + 16) / 116
        roots = torch.stack([y + a / 500, y, (y - b / 200).clamp(min=0)], dim=1)
        xyz = torch.where(roots > 0.2068966, roots**3, (roots - 16 / 116) / 7.787)
        xyz = xyz * lab.new_tensor(WHITE).view(3, 1, 1)
        linear = _mixed(xyz, lab.new_tensor(XYZ).inverse()).clamp(0, 1)
        return torch.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear).clamp(
            0, 1
        )


def _mixed(x: Float[Tensor, "b 3 h w"], matrix: Float[Tensor, "3 3"]) -> Float[Tensor, "b 3 h w"]:
    return torch.einsum("dc,bchw->bdhw", matrix, x)


def colour_bins() -> Float[Tensor, "k 2"]:
    """The 313 pairs (a, b), 10 apart, near which all colours of sRGB lie."""
    pairs = [(10 * i - 90, b) for i, (low, high) in enumerate(GAMUT) for b in range(low, high + 1, 10)]
    return torch.tensor(pairs, dtype=torch.float32)


def nearest_colour(ab: Float[Tensor, "b 2 h w"], bins: Float[Tensor, "k 2"]) -> Int[Tensor, "b h w"]:
    """Which bin each colour is nearest to."""
    return (ab.movedim(1, -1).unsqueeze(-2) - bins).square().sum(-1).argmin(-1)


def lightness_bin(lightness: Float[Tensor, "b 1 h w"], k: int) -> Int[Tensor, "b h w"]:
    """Which of k equal parts of [0, 100] each lightness lies in."""
    return (lightness.squeeze(1) / 100 * k).long().clamp(0, k - 1)
