"""Encoders: images in, `visrep.method.Tokens` out. A configuration's ``build()`` makes the network."""

from visrep.encoders.convnet import ConvNet
from visrep.encoders.named import NAMED, EncoderConfig
from visrep.encoders.resnet import ResNet
from visrep.encoders.saved import load_encoder, save_encoder
from visrep.encoders.vit import ViT

__all__ = ["NAMED", "ConvNet", "EncoderConfig", "ResNet", "ViT", "load_encoder", "save_encoder"]
