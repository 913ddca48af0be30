"""Encoders by name. A variant is ``dataclasses.replace(NAMED["vit_small"], registers=4)``."""

from __future__ import annotations

from visrep.encoders.convnet import ConvNet
from visrep.encoders.resnet import ResNet
from visrep.encoders.vit import ViT

EncoderConfig = ViT | ResNet | ConvNet

NAMED: dict[str, EncoderConfig] = {
    "vit_tiny": ViT(width=192, heads=3),
    "vit_small": ViT(width=384, heads=6),
    "vit_base": ViT(width=768, heads=12),
    "resnet18": ResNet(18),
    "resnet34": ResNet(34),
    "resnet50": ResNet(50),
    "resnet18_small": ResNet(18, stem="small"),
    # for two CPU cores and images of about 32 pixels
    "vit_narrow": ViT(image=32, patch=4, width=128, depth=4, heads=4),
    "resnet_narrow": ResNet(18, width=16, stem="small"),
    "convnet_narrow": ConvNet(width=16),
}
