"""A folder for timm: ``create_model("local-dir:FOLDER", pretrained=True)`` reads it, or its files from a hub."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from visrep.config import save_json
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.timm import TimmModel
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder
from visrep.encoders.resnet import ResidualNetwork, ResNet
from visrep.encoders.swin import SwinEncoder
from visrep.encoders.vit import VisionTransformer, ViT
from visrep.exports.hf_forms import ANYTHING, gated_size
from visrep.exports.names import at_own_size, elsewhere, official_weights
from visrep.exports.timm_forms import ITSELF, named, read, reading, swin_arguments
from visrep.exports.traced import quietly
from visrep.exports.written import Written
from visrep.method import Encoder, Preprocessing

SNIPPET = """\
import timm
import torch

encoder = timm.create_model("local-dir:.", pretrained=True).eval()
with torch.no_grad():
    {features}
"""
TOKENS = """\
tokens = encoder.forward_features(images)
    features = """
EPS = 1e-6
"""what timm's LayerNorm adds to the variance"""
GATED = (".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2.")
"""ours and timm's names"""
UNMASKED = "The mask token, which features do not depend on, has no place in timm's {}."


def write(encoder: Encoder, folder: Path) -> Written:
    """``config.json`` and ``model.safetensors``."""
    timm = extra("timm")
    notes: tuple[str, ...] = ()
    if isinstance(encoder, VisionTransformer) and isinstance(encoder.config, ViT):
        check_vit(encoder.config)
        config, weights = vit_weights(encoder, encoder.config)
        architecture, arguments = vit_arguments(config)
        notes = vit_notes(encoder.config, config)
    elif isinstance(encoder, ResidualNetwork):
        check_resnet(encoder.config)
        architecture, arguments = f"resnet{encoder.config.depth}", {"in_chans": encoder.config.channels}
        weights = {name: x.detach().clone() for name, x in encoder.state_dict().items()}
    elif isinstance(encoder, SwinEncoder):
        architecture, arguments = "swin_tiny_patch4_window7_224", swin_arguments(encoder.config)
        weights = encoder.model.state_dict()
        notes = (UNMASKED.format("SwinTransformer"),) if encoder.config.mask_token else ()
    elif isinstance(encoder, TimmEncoder) and isinstance(encoder.config, TimmModel):
        architecture, arguments = named(encoder.config.name, encoder.model)
        weights = encoder.model.state_dict()
    else:
        raise ValueError(
            f"no model of timm expresses a {type(encoder.config).__name__}; what can be written are ViTs with learned "
            "or sin-cos positions, ResNets of the ImageNet stem, Swins and models that came from timm or pip. "
            f"{ANYTHING}."
        )
    with quietly():
        model = timm.create_model(architecture, num_classes=0, **arguments).eval()
    model.load_state_dict(weights)
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, folder / "model.safetensors")
    seen = pretrained_cfg(encoder.preprocessing, arguments.get("in_chans", 3))
    save_json(
        folder / "config.json",
        {
            "architecture": architecture,
            "num_classes": 0,
            "num_features": encoder.width,
            "model_args": arguments,
            "pretrained_cfg": seen,
        },
    )
    how = reading(model, seen["input_size"])
    features = ("features = " if how == ITSELF else TOKENS) + how
    return Written(f"timm, {architecture}", SNIPPET.format(features=features), notes)


def load(folder: Path) -> Callable[[Tensor], Tensor]:
    """See `Target.load`."""
    timm = extra("timm")
    with quietly():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    how = reading(model, model.pretrained_cfg["input_size"])
    return lambda images: read(how, model, images)


def check_vit(c: ViT) -> None:
    """Raises ValueError for rotary positions."""
    if c.position == "rope":
        raise ValueError(
            f"timm's VisionTransformer has no rotary positions. `--to hf` writes a DINOv3ViTModel; {ANYTHING}."
        )


def check_resnet(c: ResNet) -> None:
    """Raises ValueError for another width or stem than torchvision's."""
    if c.stem != "imagenet" or c.width != 64:
        raise ValueError(
            f"timm's ResNets begin with 64 channels of 7 x 7 and pooling; this one has stem={c.stem!r} and "
            f"width={c.width}. {ANYTHING}."
        )


def vit_arguments(c: ViT) -> tuple[str, dict[str, Any]]:
    """Which model of timm to create, with which arguments; those that JSON cannot hold come with the name."""
    hidden = int(c.width * c.mlp_ratio)
    inner = 2 * gated_size(hidden) if c.mlp == "swiglu" else hidden
    ratio = inner / c.width
    return ("vit_giant_patch14_dinov2" if c.mlp == "swiglu" else "vit_base_patch16_224"), {
        "img_size": c.image,
        "patch_size": c.patch,
        "in_chans": c.channels,
        "embed_dim": c.width,
        "depth": c.depth,
        "num_heads": c.heads,
        "mlp_ratio": ratio if int(c.width * ratio) == inner else math.nextafter(ratio, math.inf),
        "qkv_bias": c.qkv_bias,
        "init_values": 1e-5 if has_layer_scale(c) else None,
        "class_token": c.cls,
        "reg_tokens": c.registers,
        "no_embed_class": True,
        "global_pool": "token" if c.cls else "avg",
        "fc_norm": False,
        "dynamic_img_size": True,
    }


def has_layer_scale(c: ViT) -> bool:
    """Whether timm's model has LayerScale: that with gated MLPs always has."""
    return bool(c.layer_scale) or c.mlp == "swiglu"


def resamples_otherwise(c: ViT) -> bool:
    """Whether timm differs from ours at other sizes than that of the table of positions."""
    return c.position == "sincos" or c.position_offset > 0 or not c.position_antialias


def vit_weights(vit: VisionTransformer, c: ViT) -> tuple[ViT, dict[str, Tensor]]:
    """What timm's network must be like, and our weights by its names."""
    written, weights = at_own_size(vit, c) if resamples_otherwise(c) else (c, official_weights(vit))
    renamed = {}
    if has_layer_scale(c) and not c.layer_scale:
        names = (f"blocks.{i}.ls{branch}.gamma" for i in range(c.depth) for branch in (1, 2))
        renamed = {name: torch.ones(c.width) for name in names}
    for name, x in weights.items():
        for ours, theirs in (*GATED, ("register_tokens", "reg_token")):
            name = name.replace(ours, theirs)
        if name != "mask_token":
            renamed[name] = x
    return written, renamed


def vit_notes(c: ViT, written: ViT) -> tuple[str, ...]:
    """Where timm's VisionTransformer differs from an encoder that was written like this."""
    notes = list(elsewhere("timm", c, written)) if resamples_otherwise(c) else []
    if c.norm_eps != EPS:
        notes.append(
            f"timm's LayerNorm adds {EPS:g} to the variance, where the encoder's adds {c.norm_eps:g}."
        )
    if c.mask_token:
        notes.append(UNMASKED.format("VisionTransformer"))
    return tuple(notes)


def pretrained_cfg(seen: Preprocessing, channels: int) -> dict[str, Any]:
    """What timm's ``resolve_data_config`` reads."""
    return {
        "input_size": [channels, seen.size, seen.size],
        "fixed_input_size": False,
        "interpolation": seen.interpolation,
        "crop_pct": seen.ratio,
        "crop_mode": "squash" if seen.squash else "center",
        "mean": list(seen.mean),
        "std": list(seen.std),
        "num_classes": 0,
    }
