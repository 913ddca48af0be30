"""Reading a checkpoint file down to the weights of one encoder."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from visrep.encoders.pretrained.convert_crate import ANCHORS as CRATES
from visrep.encoders.pretrained.convert_vit import Weights

NESTS = ("teacher", "target_encoder", "model_ema", "model", "state_dict", "encoder", "student")
"""where training code keeps weights in a checkpoint; the first that is there counts"""
ANCHORS = ("patch_embed.proj.weight", "layer1.0.conv1.weight", *CRATES)
"""one weight that every vision transformer, every ResNet and every CRATE has"""
BESIDE = ("momentum_encoder", "encoder_k", "student", "predictor", "decoder")
"""names of networks that are not the one to take, where there are several"""


def read_checkpoint(path: Path) -> Weights:
    """The weights of the encoder in a .pth, .pt, .ckpt or .safetensors file, without the prefixes of training code.

    No code in the file is run. Raises ValueError when the file cannot be read or holds no weights.
    """
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or ["?"])[0]
        raise ValueError(
            f"{path} cannot be read ({reason}). If it is whole, it holds Python objects besides weights, which may "
            "run code: if you trust it, save only its weights with torch.save."
        ) from error
    return without_prefix(weights_in(content, path))


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
