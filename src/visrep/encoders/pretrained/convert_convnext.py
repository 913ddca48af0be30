"""ConvNeXts by the names of DINOv3's official code, as transformers' model, which has its last norm and cls token."""

from __future__ import annotations

import json
import re
from typing import Any

from visrep.encoders.pretrained.convert_vit import BY_NAME, Weights, filled
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.hf_wrapped import HfEncoder, HfModel
from visrep.method import Preprocessing

STEM = "downsample_layers.0.0.weight"
"""one weight that every ConvNeXt has"""
RENAMED = (
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample_layers."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.layers.\2."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv([12])\.", r".pointwise_conv\1."),
    (r"(layers\.\d+\.)norm\.", r"\1layer_norm."),
    (r"^norm\.", "layer_norm."),
)
LEFT_OUT = ("norms.", "head.")
"""a second name of the last norm, and classifiers"""


def to_convnext(weights: Weights) -> HfEncoder:
    """transformers' network with these weights, wrapped, in evaluation mode.

    Raises ImportError without the extra, ValueError for names that it does not have and shapes that do not fit.
    """
    depths = [_blocks(weights, stage) for stage in range(4)]
    sizes = [len(weights.get(f"downsample_layers.{i}.{int(i > 0)}.bias", ())) for i in range(4)]
    if 0 in (*depths, *sizes):
        raise ValueError(
            f"a ConvNeXt with {' + '.join(map(str, depths))} blocks of widths {', '.join(map(str, sizes))}: it needs "
            f"four stages by the names of DINOv3's code. {BY_NAME}"
        )
    transformers = extra("transformers")
    config = transformers.AutoConfig.for_model(
        "dinov3_convnext", depths=depths, hidden_sizes=sizes, num_channels=weights[STEM].shape[1]
    )
    model: Any = transformers.DINOv3ConvNextModel(config)
    own = {name.removeprefix("model."): name for name in model.state_dict()}
    renamed = {_name(name): x.float() for name, x in weights.items() if not name.startswith(LEFT_OUT)}
    filled(model, {own.get(name, name): x for name, x in renamed.items()})
    encoder = HfEncoder(HfModel(json.dumps(config.to_dict(), sort_keys=True)), model).eval()
    encoder.preprocessing = Preprocessing(224, ratio=0.875)
    return encoder


def _name(name: str) -> str:
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name


def _blocks(weights: Weights, stage: int) -> int:
    numbers = [int(m[1]) for name in weights if (m := re.match(rf"stages\.{stage}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1
