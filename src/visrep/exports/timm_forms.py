"""A model of timm that stays one: under which name it is created there, and how its features are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visrep.encoders.pretrained.extras import extra
from visrep.encoders.swin import Swin
from visrep.exports.traced import quietly

ITSELF = "encoder(images)"
"""features where a model of timm pools as `visrep evaluate` does"""


def named(name: str, own: Any) -> tuple[str, dict[str, Any]]:
    """The architecture and arguments of ``timm.create_model`` that make ``own``, created by this name.

    ``name`` may have a tag, or be that of a hub or of a folder.
    """
    timm = extra("timm")
    source, _, rest = name.partition(":")
    arguments: dict[str, Any] = {}
    if source == "local-dir":
        said = json.loads((Path(rest) / "config.json").read_text())
        architecture, arguments = said["architecture"], dict(said.get("model_args") or {})
    elif source == "hf-hub":
        _, architecture, found = timm.models.load_model_config_from_hf(rest)
        arguments = dict(found or {})
    else:
        architecture = name.partition(".")[0]
    if own.pretrained_cfg.get("fixed_input_size"):  # else tables of positions would have timm's usual size
        arguments.setdefault("img_size", own.pretrained_cfg["input_size"][-1])
    anywhere = {**arguments, "dynamic_img_size": True}
    try:
        with quietly():
            timm.create_model(architecture, num_classes=0, **anywhere)
    except TypeError:  # it takes images of any size, or of its own only, without being told
        return architecture, arguments
    return architecture, anywhere


def swin_arguments(c: Swin) -> dict[str, Any]:
    """What makes timm's Swin-T ours."""
    return {
        "img_size": c.image,
        "patch_size": c.patch,
        "in_chans": c.channels,
        "embed_dim": c.width,
        "depths": list(c.depths),
        "num_heads": list(c.heads),
        "window_size": c.window_size,
        "strict_img_size": False,
    }


def reading(model: Any, shape: Sequence[int]) -> str:
    """The expression of a model's features, of ``images`` of this shape "c h w" or of its ``tokens``.

    Many models of timm end with a norm or a layer after pooling, which our features lack: then tokens are pooled.
    """
    images = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens, found = model.forward_features(images), model(images)
    expression = _pooling(model, tokens)
    pooled = read(expression, model, images)
    alike = pooled.shape == found.shape and torch.allclose(pooled, found, rtol=1e-4, atol=1e-5)
    return ITSELF if alike else expression


def read(expression: str, model: Any, images: Tensor) -> Tensor:
    """Features "b d" as an expression of `reading` says."""
    with torch.no_grad():
        if expression == ITSELF:
            return model(images)
        tokens = model.forward_features(images)
    if expression == "tokens[:, 0]":
        return tokens[:, 0]
    if expression.endswith(".mean(1)"):
        return tokens[:, _before(model) :].mean(1)
    return tokens.mean((1, 2) if "(1, 2)" in expression else (2, 3))


def _pooling(model: Any, tokens: Tensor) -> str:
    """How `Tokens.pool` pools, for the layout of these tokens."""
    if tokens.ndim == 4:
        return f"tokens.mean({(2, 3) if tokens.shape[1] == model.num_features else (1, 2)})"
    if any(name == "cls_token" for name, _ in model.named_parameters()):
        return "tokens[:, 0]"
    return f"tokens[:, {_before(model)}:].mean(1)"


def _before(model: Any) -> int:
    """Tokens before those of the patches."""
    return vars(model).get("num_prefix_tokens", 0)
