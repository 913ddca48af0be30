"""Images at their own shape, not squashed: read from the source, resized, padded, and their patches."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from PIL import Image
from torch import Tensor

from visrep.data.decode import decode_whole
from visrep.evaluation.dense.exam import DenseSide
from visrep.evaluation.dense.patches import grid_tokens, refusal
from visrep.evaluation.features import AT_ONCE
from visrep.evaluation.results import Inapplicable
from visrep.method import Encoder, Preprocessing

Shape = tuple[int, int]
"""height and width in pixels"""
MOST_PATCHES = 2**14
"""of one image: all of them are compared with each other"""


def image_of(side: DenseSide, row: int) -> UInt8[np.ndarray, "h w 3"]:
    """One of the images at its own size. Raises UnreadableImage."""
    raw = side.source.read(int(side.index[row]))
    assert not isinstance(raw, list), "dense sources hold no clips"
    return decode_whole(raw)


def resized(image: UInt8[np.ndarray, "_ _ 3"], shape: Shape) -> UInt8[np.ndarray, "h w 3"]:
    """Bilinear and antialiased, to whole numbers."""
    if image.shape[:2] == shape:
        return image
    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def resized_answers(answers: Shaped[np.ndarray, "_ _"], shape: Shape) -> Shaped[Tensor, "h w"]:
    """Nearest neighbours as torch takes them: of the upper left corner of each new pixel, not of its centre."""
    found = torch.from_numpy(answers).double()
    return F.interpolate(found[None, None], shape, mode="nearest")[0, 0].to(torch.from_numpy(answers).dtype)


def as_wanted(pixels: Float[Tensor, "*b 3 h w"], how: Preprocessing) -> Float[Tensor, "*b 3 h w"]:
    """Values of 0 to 1 as an encoder expects them."""
    mean, std = (torch.tensor(of, device=pixels.device).view(3, 1, 1) for of in (how.mean, how.std))
    return (pixels - mean) / std


def planes(image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "3 h w"]:
    """Values of 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()


def padded(pixels: Float[Tensor, "*b h w"], stride: int, *, centre: bool) -> Float[Tensor, "*b y x"]:
    """Zeros up to the next multiples of ``stride``: on all sides alike, or below and at the right."""
    missing = [-length % stride for length in (pixels.shape[-1], pixels.shape[-2])]
    before = [number // 2 if centre else 0 for number in missing]
    return F.pad(pixels, (before[0], missing[0] - before[0], before[1], missing[1] - before[1]))


@torch.no_grad()
def patch_maps(
    network: Encoder, pixels: Float[Tensor, "b 3 y x"], layer: int
) -> Float[Tensor, "b d rows columns"]:
    """Patches of one layer; on a CPU no more images at once than its caches hold."""
    some = max(1, AT_ONCE // pixels[0, 0].numel()) if pixels.device.type == "cpu" else len(pixels)
    parts = [grid_tokens(network, part, layer).float() for part in pixels.split(some)]
    return torch.cat(parts).permute(0, 3, 1, 2).contiguous()


def check_takes(
    protocol: str, encoder: Encoder, shape: Shape, device: torch.device | str, instead: str
) -> None:
    """Raises Inapplicable, with what to do ``instead``, for an encoder that cannot see images of this shape."""
    reason = refusal(encoder, shape, device)
    if reason is not None:
        raise Inapplicable(
            f"{protocol} shows images of {shape[0]} x {shape[1]} pixels, which this encoder does not take: {reason} "
            f"{instead}"
        )


def check_any_shape(encoder: Encoder) -> None:
    """Raises Inapplicable for an encoder of one size, to which images at their own shape cannot be given."""
    own = math.ceil(encoder.preprocessing.size / encoder.stride) * encoder.stride
    device = next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))
    instead = "Use discovery-lost, discovery-tokencut or propagation, which squash images to squares."
    what = "a protocol of images at their own shape (@native, propagation-dino)"
    check_takes(what, encoder, (own, own + 2 * encoder.stride), device, instead)


def check_patches(protocol: str, key: str, shape: Shape, stride: int) -> None:
    """Raises Inapplicable for an image of too many patches."""
    n = math.ceil(shape[0] / stride) * math.ceil(shape[1] / stride)
    if n > MOST_PATCHES:
        raise Inapplicable(
            f"{protocol} compares all patches, and {key}, of {shape[0]} x {shape[1]} pixels here, has {n:,} of "
            f"{stride} pixels; at most {MOST_PATCHES:,} are possible, some 1,000 are usual. Make the images smaller, "
            f"or use {protocol.partition('@')[0].removesuffix('-dino')}, which squashes them to squares (--size)."
        )
