"""The vision models of `transformers` that are known here, by the ``model_type`` of their configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Convert = Literal["", "vit", "video", "resnet"]


@dataclass(frozen=True)
class Family:
    """Where a kind of model keeps what `Tokens` need."""

    model: str
    """class in ``transformers``"""
    norm: str = "layernorm"
    """its last norm, "" for none"""
    cls: bool = True
    convert: Convert = ""
    """ours that can express it"""
    antialias: bool = False
    """when positions are resampled"""
    resizes: bool = True
    """``interpolate_pos_encoding=`` must be given for other sizes"""
    maps: bool = False
    """stages of maps instead of tokens"""
    pixels: str = "pixel_values"
    """name of the images among its arguments"""


CLIP = Family("CLIPVisionModel", norm="post_layernorm")
SIGLIP = Family("SiglipVisionModel", norm="post_layernorm", cls=False)
SIGLIP2 = Family("Siglip2VisionModel", norm="post_layernorm", cls=False, resizes=False)
AIMV2 = Family("Aimv2VisionModel", norm="rms_norm", cls=False, resizes=False)

FAMILIES: dict[str, Family] = {
    "vit": Family("ViTModel", convert="vit"),
    "vit_mae": Family("ViTMAEModel", convert="vit"),
    "dinov2": Family("Dinov2Model", convert="vit", resizes=False),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", convert="vit", antialias=True, resizes=False),
    "dinov3_vit": Family("DINOv3ViTModel", norm="norm", convert="vit", resizes=False),
    "ijepa": Family("IJepaModel", cls=False, convert="vit"),
    "videomae": Family("VideoMAEModel", cls=False, convert="video", resizes=False),
    "vjepa2": Family(
        "VJEPA2Model",
        norm="encoder.layernorm",
        cls=False,
        convert="video",
        resizes=False,
        pixels="pixel_values_videos",
    ),
    "beit": Family("BeitModel"),
    "data2vec-vision": Family("Data2VecVisionModel"),
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "siglip_vision_model": SIGLIP,
    "siglip2": SIGLIP2,
    "siglip2_vision_model": SIGLIP2,
    "aimv2": AIMV2,
    "aimv2_vision_model": AIMV2,
    "swin": Family("SwinModel", maps=True),
    "swinv2": Family("Swinv2Model", maps=True),
    "convnext": Family("ConvNextModel", maps=True, resizes=False),
    "convnextv2": Family("ConvNextV2Model", maps=True, resizes=False),
    "dinov3_convnext": Family("DINOv3ConvNextModel", maps=True, resizes=False),
    "resnet": Family("ResNetModel", maps=True, convert="resnet", resizes=False),
    "imagegpt": Family("ImageGPTModel", norm="ln_f", cls=False, resizes=False, pixels="input_ids"),
}


def family(model_type: str) -> Family:
    """The family of a model type. Raises ValueError with those there are."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"transformers models of type {model_type!r} are not known here. Known: {', '.join(FAMILIES)}. "
            "timm may have the same model: timm:NAME."
        )
    return FAMILIES[model_type]
