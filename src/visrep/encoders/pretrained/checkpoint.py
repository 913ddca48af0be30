"""Reading a checkpoint file down to the weights of one encoder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from visrep.encoders.pretrained.convert_convnext import STEM
from visrep.encoders.pretrained.convert_crate import ANCHORS as CRATES
from visrep.encoders.pretrained.convert_vit import Weights
from visrep.encoders.pretrained.unreadable import check_beginning, of_safetensors, of_torch

NESTS = ("teacher", "target_encoder", "model_ema", "model", "state_dict", "encoder", "student")
"""where training code keeps weights in a checkpoint; the first that is there counts"""
ANCHORS = ("patch_embed.proj.weight", "layer1.0.conv1.weight", STEM, *CRATES)
"""one weight that every vision transformer, every ResNet, every ConvNeXt and every CRATE has"""
BESIDE = ("momentum_encoder", "encoder_k", "student", "predictor", "decoder")
"""names of networks that are not the one to take, where there are several"""


def read_checkpoint(path: Path) -> Weights:
    """The weights of the encoder in a .pth, .pt, .ckpt or .safetensors file, without the prefixes of training code.

    No code in the file is run. Raises ValueError when the file cannot be read or holds no weights, saying which.
    """
    check_beginning(path)
    return without_prefix(weights_in(_content(path), path))


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise of_safetensors(path, error) from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise  # of the disk: it names the file
    except Exception as error:  # a file of another kind is read as any opcodes, which fail in any way
        raise of_torch(path, error) from error


def weights_in(content: Any, path: Path) -> Weights:
    """The first flat dictionary of tensors in the usual places of a checkpoint."""
    while isinstance(content, dict):
        nest = next((name for name in NESTS if isinstance(content.get(name), dict)), "")
        if not nest:
            break
        content = content[nest]
    weights = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not weights:
        raise ValueError(
            f"{path} holds no weights: expected a dictionary of tensors, perhaps under one of {', '.join(NESTS)}."
        )
    return weights


def without_prefix(weights: Weights) -> Weights:
    """One network of possibly several, such as ``module.backbone.*``, by its own names."""
    anchored = [
        (name, name.removesuffix(anchor)) for anchor in ANCHORS for name in weights if name.endswith(anchor)
    ]
    if not anchored:
        return weights
    chosen = min((prefix for _, prefix in anchored), key=lambda p: (any(b in p for b in BESIDE), len(p)))
    return {name.removeprefix(chosen): x for name, x in weights.items() if name.startswith(chosen)}
