"""Feature inversion (arXiv:1412.0035): which picture has these features? What comes back is what they still know.

    minimise over x   |phi(x) - phi_0|² / |phi_0|²  +  a mean |x / B|^6  +  t mean (|dx/du|² + |dx/dv|²)

with phi the patch tokens of a layer, x normalised as the encoder expects, an alpha-norm that keeps colours possible and
total variation with beta = 2, which prefers smooth pictures. Adam from faint noise. Two errors are reported, each
divided by the energy of what it is compared with: of pixels, and of features after the picture was clamped to colours
that exist and rounded to 8 bits ("re-encoded").

*Deviations*: Adam with a cosine instead of gradient descent with momentum; weights of the two priors for this scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from visrep.evaluation.features import evaluation_mode
from visrep.method import Encoder, Preprocessing

ALPHA, BOUND = 6, 2.5
"""power of the first prior, and how far from the mean colours may lie in deviations"""
WEIGHTS = (0.1, 0.02)
"""of alpha-norm and total variation"""
LR = 0.1
START = 0.01


@dataclass(frozen=True, eq=False)
class Inversion:
    """A picture with nearly the features of another one."""

    layer: int
    picture: UInt8[Tensor, "h w 3"]
    features: float
    """error of the picture's features where the optimisation ended"""
    reencoded: float
    """the same of the picture in 8 bits"""
    pixels: float
    """error of its pixels, divided by the variance of the image's: 1 is as far off as an even colour"""
    start: float
    """error of the features before the first step"""


def invert(
    encoder: Encoder, image: Float[Tensor, "c h w"], layer: int, *, steps: int = 200, seed: int = 0
) -> Inversion:
    """A picture whose patch tokens of ``layer`` are those of ``image``, found in so many steps.

    Raises ValueError for fewer than one step; `Encoder.forward` for layers that do not exist.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: inversion needs at least 1, say 200.")
    rng = torch.Generator().manual_seed(seed)
    x = (START * torch.randn(image.shape, generator=rng)).to(image)[None].requires_grad_()
    with evaluation_mode(encoder), torch.enable_grad():
        wanted = _features(encoder, image[None], layer).detach()
        start = float(_error(_features(encoder, x, layer), wanted).detach())
        optimiser = torch.optim.Adam([x], lr=LR)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / steps))
            loss = _error(_features(encoder, x, layer), wanted)
            loss = loss + WEIGHTS[0] * alpha_norm(x) + WEIGHTS[1] * total_variation(x)
            (x.grad,) = torch.autograd.grad(loss, x)
            optimiser.step()
        with torch.no_grad():
            ended = float(_error(_features(encoder, x, layer), wanted))
            picture = to_bytes(x[0], encoder.preprocessing)
            again = from_bytes(picture, encoder.preprocessing).to(image)
            reencoded = float(_error(_features(encoder, again[None], layer), wanted))
    spread = (image - image.mean((1, 2), keepdim=True)).square().sum().clamp_min(1e-12)
    pixels = float((again - image).square().sum() / spread)
    return Inversion(layer, picture, ended, reencoded, pixels, start)


def alpha_norm(x: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Small inside the range that colours have, steep beyond."""
    return (x / BOUND).abs().pow(ALPHA).mean()


def total_variation(x: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean squared difference to the right and lower neighbours, beta = 2."""
    right, down = x.diff(dim=-1)[..., :-1, :], x.diff(dim=-2)[..., :-1]
    return (right.square() + down.square()).mean()


def to_bytes(x: Float[Tensor, "3 h w"], expects: Preprocessing) -> UInt8[Tensor, "h w 3"]:
    """Normalised colours to 8 bits; what lies outside is clamped."""
    mean, std = (torch.tensor(values).to(x)[:, None, None] for values in (expects.mean, expects.std))
    return ((x * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu()


def from_bytes(picture: UInt8[Tensor, "h w 3"], expects: Preprocessing) -> Float[Tensor, "3 h w"]:
    """8 bits to normalised colours."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (expects.mean, expects.std))
    return (picture.permute(2, 0, 1).float() / 255 - mean) / std


def _features(encoder: Encoder, x: Float[Tensor, "b c h w"], layer: int) -> Tensor:
    return encoder(x, layers=(layer,)).layers[0].patches


def _error(found: Tensor, wanted: Tensor) -> Float[Tensor, ""]:
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)
