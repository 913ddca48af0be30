"""Encoders by name. A variant is ``dataclasses.replace(NAMED["vit_small"], registers=4)``."""

from __future__ import annotations

from visrep.encoders.aot import AoT
from visrep.encoders.convnet import ConvNet
from visrep.encoders.crate import CRATE
from visrep.encoders.crate_alpha import CRATEAlpha
from visrep.encoders.resnet import ResNet
from visrep.encoders.swin import Swin
from visrep.encoders.tost import ToST
from visrep.encoders.vit import ViT, ViTLike
from visrep.encoders.wrapped import Wrapped

EncoderConfig = ViTLike | ResNet | ConvNet | Swin | Wrapped

NAMED: dict[str, EncoderConfig] = {
    "vit_tiny": ViT(width=192, heads=3),
    "vit_small": ViT(width=384, heads=6),
    "vit_base": ViT(width=768, heads=12),
    "resnet18": ResNet(18),
    "resnet34": ResNet(34),
    "resnet50": ResNet(50),
    "resnet18_small": ResNet(18, stem="small"),
    "swin_tiny": Swin(),
    "swin_small": Swin(depths=(2, 2, 18, 2)),
    "swin_base": Swin(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    # white-box encoders in their published sizes; AoT's, which has none for images, near those of ViT
    "crate_tiny": CRATE(width=384, heads=6),
    "crate_small": CRATE(width=576, heads=12),
    "crate_base": CRATE(width=768, heads=12),
    "crate_large": CRATE(width=1024, depth=24, heads=16),
    "crate_alpha_tiny": CRATEAlpha(width=192, heads=3),
    "crate_alpha_small": CRATEAlpha(width=576, heads=12),
    "crate_alpha_base": CRATEAlpha(width=768, heads=12),
    "crate_alpha_large": CRATEAlpha(patch=14, width=1024, depth=24, heads=16),
    "tost_tiny": ToST(width=192, heads=4),
    "tost_small": ToST(width=384, heads=8),
    "tost_medium": ToST(width=512, depth=24, heads=8, layer_scale=1e-5),
    "aot_tiny": AoT(width=384, depth=18, heads=6),
    "aot_small": AoT(width=768, depth=18, heads=12),
    "aot_base": AoT(width=1024, depth=40, heads=16),
    # for two CPU cores and images of about 32 pixels
    "vit_narrow": ViT(image=32, patch=4, width=128, depth=4, heads=4),
    "crate_small32": CRATE(image=32, patch=4, width=256, depth=4, heads=8),
    "crate_alpha_small32": CRATEAlpha(image=32, patch=4, width=128, depth=5, heads=4),
    "tost_small32": ToST(image=32, patch=4, width=128, depth=5, heads=4),
    "aot_small32": AoT(image=32, patch=4, width=256, depth=6, heads=8),
    "resnet_narrow": ResNet(18, width=16, stem="small"),
    "convnet_narrow": ConvNet(width=16),
    "swin_narrow": Swin(image=32, patch=2, width=32, depths=(2, 2, 2), heads=(2, 4, 8)),
}
