"""Recorded programs of every family of encoders: the same features for any batch, and size where it is possible."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import visrep
from _exports import SMALL, cosine, unchecked
from _extras import needs, randomised
from visrep.encoders import CRATE, AoT, ConvNet, CRATEAlpha, Swin, ToST, VideoViT, save_encoder
from visrep.encoders.pretrained.hf import encoder_of
from visrep.encoders.pretrained.timm import TimmModel
from visrep.exports import onnx, torch_export
from visrep.exports.traced import example, other_size
from visrep.method import Encoder, Preprocessing

for package in ("onnx", "onnxruntime", "onnxscript", "timm", "transformers"):
    needs(package)

STACK: Any = {"image": 32, "patch": 8, "width": 48, "depth": 2, "heads": 4}


def built(config: Any) -> Encoder:
    return randomised(config.build())  # pyright: ignore[reportReturnType]


def clip() -> Encoder:
    transformers = needs("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=8)
    return encoder_of(randomised(transformers.CLIPVisionModel(config)), Preprocessing(32, 1.0))


def of_timm(name: str) -> Encoder:
    encoder = built(TimmModel(name))
    encoder.preprocessing = Preprocessing(64, 1.0)
    return encoder


@dataclass(frozen=True)
class Family:
    """How to build one, and what its programs can."""

    build: Callable[[], Encoder]
    resizes: bool = True
    """take other sizes"""
    quick: tuple[str, ...] = ()
    """targets that the default suite can afford"""


SWIN = Swin(image=32, patch=2, width=16, depths=(1, 1), heads=(2, 4), window=4)
FAMILIES: dict[str, Family] = {
    "rotary": Family(
        lambda: built(replace(SMALL, position="rope", registers=1)), quick=("onnx", "torch-export")
    ),
    "sin-cos": Family(lambda: built(replace(SMALL, position="sincos", cls=False))),
    "CRATE": Family(lambda: built(CRATE(**STACK))),
    "CRATE-alpha": Family(lambda: built(CRATEAlpha(**STACK)), quick=("torch-export",)),
    "ToST": Family(lambda: built(ToST(**STACK)), quick=("torch-export",)),
    "AoT": Family(lambda: built(AoT(**STACK))),
    "ConvNet": Family(lambda: built(ConvNet(width=8))),
    "a CNN of timm": Family(lambda: of_timm("test_efficientnet")),
    "a CLIP of transformers": Family(clip, resizes=False, quick=("torch-export",)),
    "Swin": Family(lambda: built(SWIN), resizes=False),
    "clips": Family(
        lambda: built(VideoViT(frames=4, image=32, patch=8, width=48, depth=2, heads=4)),
        resizes=False,
        quick=("torch-export",),
    ),
}
READERS = {"onnx": onnx.load, "torch-export": torch_export.load}
CASES = [
    pytest.param(name, to, marks=() if to in family.quick else pytest.mark.slow, id=f"{name}, {to}")
    for name, family in FAMILIES.items()
    for to in READERS
]


@pytest.fixture(autouse=True, scope="module")
def without_checks() -> Iterator[None]:
    with unchecked():
        yield


@torch.no_grad()
@pytest.mark.parametrize(("name", "to"), CASES)
def test_the_same_features_for_any_batch_and_size(name: str, to: str, tmp_path: Path) -> None:
    encoder = FAMILIES[name].build()
    save_encoder(tmp_path / "run", encoder)
    result = visrep.export(tmp_path / "run", to, tmp_path / "out")
    resizes = len(result.agreement) == 2
    assert FAMILIES[name].resizes == resizes
    assert all(one.cosine >= 0.9999 for one in result.agreement)
    features, size = READERS[to](tmp_path / "out"), encoder.preprocessing.size
    sizes = [(size, size), *([other_size(encoder)] if resizes else [])]
    for height, width in sizes:
        for batch in (1, 5):
            images = example(encoder, batch, height, width, seed=batch)
            found, expected = features(images), encoder(images).pool()
            assert found.shape == (batch, encoder.width)
            assert cosine(found, expected) >= 0.9999
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.std()))
    assert json.loads((tmp_path / "out" / "preprocessing.json").read_text())["size"] == size
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("takes no other size" in card) != resizes
