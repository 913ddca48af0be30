"""DINOv3's vision transformers as timm has them, in its class Eva, which many unlike networks share."""

from __future__ import annotations

import re
from typing import Any

import torch

from visrep.encoders.pretrained.convert_vit import Weights
from visrep.encoders.pretrained.extras import extra

BASE = 100.0
"""of the periods of DINOv3's rotary positions"""


def is_dinov3(model: Any) -> bool:
    """Whether an Eva has DINOv3's rotary positions and no others; the names of the weights show what else differs."""
    rotary = model.rope
    kind = extra("timm").layers.pos_embed_sincos.RotaryEmbeddingDinoV3
    return (
        isinstance(rotary, kind)
        and (rotary.temperature, rotary.min_period, rotary.max_period) == (BASE, None, None)
        and model.pos_embed is None
    )


def dinov3_names(weights: Weights) -> Weights:
    """The weights by the names of `convert_vit`. Biases of queries and values get one of keys beside them: zero."""
    renamed = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): x for name, x in weights.items()}
    for name in [name for name in renamed if name.endswith(".attn.q_bias")]:
        block = name.removesuffix("q_bias")
        query, value = renamed.pop(name), renamed.pop(f"{block}v_bias")
        renamed[f"{block}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return renamed
