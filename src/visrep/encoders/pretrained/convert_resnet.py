"""torchvision's ResNet-18, -34 and -50, of any width, as ours; SwAV, MoCo and others train the same network."""

from __future__ import annotations

import re

from visrep.encoders.pretrained.convert_vit import Weights, filled
from visrep.encoders.resnet import BLOCKS, ResidualNetwork, ResNet

DEEPER: dict[tuple[int, ...], str] = {(3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}
"""timm's names of those that ours has not, by their blocks"""
HEADS = ("fc.", "projection_head.", "prototypes.", "projector.", "predictor.")


def to_resnet(weights: Weights) -> ResidualNetwork:
    """Our encoder with these weights, in evaluation mode. Raises ValueError for other depths and other stems."""
    weights = {name: x for name, x in weights.items() if not name.startswith(HEADS)}
    counts = tuple(_blocks(weights, stage) for stage in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in weights
    depths = [d for d, n in BLOCKS.items() if n == counts and (d >= 50) == bottleneck]
    if not depths:
        raise ValueError(
            f"a ResNet with {' + '.join(map(str, counts))} blocks is none of {', '.join(map(str, BLOCKS))}. "
            f"Take timm's network with this file: timm:{DEEPER.get(counts, 'NAME')}@FILE."
        )
    stem = weights.get("conv1.weight")
    if stem is None or stem.shape[-1] not in (3, 7):
        raise ValueError(
            "its first layers are not those of torchvision. Take timm's network: timm:NAME@FILE."
        )
    config = ResNet(
        depth=depths[0],  # pyright: ignore[reportArgumentType] - a key of BLOCKS
        width=len(stem),
        stem="imagenet" if stem.shape[-1] == 7 else "small",
        channels=stem.shape[1],
    )
    return filled(config.build(), weights)


def _blocks(weights: Weights, stage: int) -> int:
    numbers = [int(m[1]) for name in weights if (m := re.match(rf"layer{stage}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1
