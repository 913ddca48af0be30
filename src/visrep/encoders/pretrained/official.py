"""Checkpoint files of the official code: DINO, iBOT, DINOv2 and 3, MAE, MoCo v3, I-JEPA, V-JEPA, CRATE, ResNets."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from visrep.encoders.patches import patch_grid
from visrep.encoders.pretrained.checkpoint import read_checkpoint
from visrep.encoders.pretrained.convert_convnext import STEM, to_convnext
from visrep.encoders.pretrained.convert_crate import is_crate, to_crate
from visrep.encoders.pretrained.convert_resnet import to_resnet
from visrep.encoders.pretrained.convert_vit import Weights
from visrep.encoders.pretrained.official_vit import to_official_vit
from visrep.encoders.pretrained.official_vjepa import to_vjepa
from visrep.method import Encoder

CHUNKED = re.compile(r"^blocks\.\d+\.(\d+)\.")
"""a block of DINOv2 in training, whose second number counts through all chunks"""


def load_checkpoint(
    path: str | Path,
    heads: int = 0,
    rotary: bool | None = None,
    position_offset: float | None = None,
    antialias: bool | None = None,
    size: int = 0,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
) -> Encoder:
    """The encoder in an official checkpoint file, recognised by the names of its weights, as ours.

    A ConvNeXt is transformers', wrapped.
    ``heads``: attention heads, which weights do not tell; 0 takes those of the published model of that width.
    ``rotary``: of an encoder of clips, whether it is V-JEPA 2's; None where a published size tells.
    ``position_offset``, ``antialias``: how learned positions are resampled for other sizes (see `ViT`), where it is not
    as in the published models. DINOv2's code has an offset of 0.1 unless its configuration says otherwise.
    ``size``, ``mean``, ``std``: of the images, which weights do not tell either; 0 takes the size of the position table
    (224 for DINOv2's of 518, and where there is none), None ImageNet's values.
    Raises FileNotFoundError, ImportError for a ConvNeXt without the extra, and ValueError for files that are not
    understood, with what was found in them, for resampling asked of an encoder that has no learned positions, or asked
    for with an offset and antialiasing, and for sizes that patches do not divide.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}. Fetch the checkpoint and give its path.")
    weights = unchunked(read_checkpoint(path))
    try:
        encoder = _encoder(weights, heads, rotary, position_offset, antialias)
        if size and is_of_patches(weights):
            patch_grid(size, size, encoder.stride)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    seen = encoder.preprocessing
    encoder.preprocessing = replace(seen, size=size or seen.size, mean=mean or seen.mean, std=std or seen.std)
    return encoder


def unchunked(weights: Weights) -> Weights:
    """The weights of a DINOv2 from the middle of a training, whose blocks stand in chunks, by the usual names."""
    renamed = {CHUNKED.sub(r"blocks.\1.", name): x for name, x in weights.items()}
    return renamed if len(renamed) == len(weights) else weights  # others number blocks chunk by chunk


def _encoder(
    weights: Weights, heads: int, rotary: bool | None, position_offset: float | None, antialias: bool | None
) -> Encoder:
    of_maps = "layer1.0.conv1.weight" in weights or STEM in weights
    of_crate, of_clips = is_crate(weights), is_of_clips(weights)
    if (position_offset, antialias) != (None, None) and (of_maps or of_crate or of_clips):
        raise ValueError(
            "position_offset= and antialias= are for vision transformers of images. Leave them out."
        )
    if of_maps:
        return to_convnext(weights) if STEM in weights else to_resnet(weights)
    if of_crate:
        return to_crate(weights, heads)
    if of_clips:
        return to_vjepa(weights, heads, rotary)
    return to_official_vit(weights, heads, position_offset, antialias)


def is_of_clips(weights: Weights) -> bool:
    """Whether its patches reach over several frames."""
    return "patch_embed.proj.weight" in weights and weights["patch_embed.proj.weight"].ndim == 5


def is_of_patches(weights: Weights) -> bool:
    """Whether it cuts its images into patches, whose side must divide that of the image."""
    return "patch_embed.proj.weight" in weights or is_crate(weights)
