"""Encoders: images or clips in, `visrep.method.Tokens` out. A configuration's ``build()`` makes the network."""

from visrep.encoders.aot import AoT
from visrep.encoders.convnet import ConvNet
from visrep.encoders.crate import CRATE
from visrep.encoders.crate_alpha import CRATEAlpha
from visrep.encoders.frames import FrameAverage, applied_to
from visrep.encoders.named import NAMED, EncoderConfig
from visrep.encoders.pretrained import load_encoder
from visrep.encoders.resnet import ResNet
from visrep.encoders.saved import save_encoder
from visrep.encoders.swin import Swin
from visrep.encoders.tost import ToST
from visrep.encoders.video import VideoViT
from visrep.encoders.vit import ViT, ViTLike
from visrep.encoders.wrapped import Wrapped

__all__ = [
    "CRATE",
    "NAMED",
    "AoT",
    "CRATEAlpha",
    "ConvNet",
    "EncoderConfig",
    "FrameAverage",
    "ResNet",
    "Swin",
    "ToST",
    "ViT",
    "ViTLike",
    "VideoViT",
    "Wrapped",
    "applied_to",
    "load_encoder",
    "save_encoder",
]
