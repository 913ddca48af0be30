"""Maps of several resolutions: what they are of hierarchical and of plain encoders, and dense probes that read them."""

from __future__ import annotations

import re
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F

from _extras import needs, randomised
from visrep.data.dense_playground import DensePlayground
from visrep.encoders import ResNet, ViT
from visrep.encoders.pretrained.timm import TimmModel
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder
from visrep.encoders.pyramid import Pyramid, joined, resampled
from visrep.encoders.video import VideoViT
from visrep.evaluation.dense import heads
from visrep.evaluation.evaluate import evaluate
from visrep.method import Encoder, Preprocessing, Tokens


def vit(image: int = 32, patch: int = 8) -> Encoder:
    torch.manual_seed(0)
    return ViT(image=image, patch=patch, width=24, depth=4, heads=2).build().eval()


def test_maps_of_a_hierarchical_encoder_are_its_stages() -> None:
    torch.manual_seed(0)
    encoder = ResNet(18, width=8, stem="small").build().eval()
    pyramid, images = Pyramid(encoder), torch.randn(2, 3, 64, 48)
    maps, stages = pyramid.maps(images), encoder(images, layers=(1, 2, 3, 4)).layers
    assert [tokens.grid for tokens in maps] == [(64, 48), (32, 24), (16, 12), (8, 6)]
    for found, stage in zip(maps, stages, strict=True):
        assert torch.equal(found.patches, stage.patches)
    assert (pyramid.depth, pyramid.width, pyramid.stride) == (1, 8 + 16 + 32 + 64, 2)
    tokens = pyramid(images, layers=(1,))
    assert tokens.grid == (32, 24) and tokens.patches.shape == (2, 32 * 24, 120)
    assert torch.equal(tokens.layers[0].patches, tokens.patches)
    naive = [x.patches.mT.unflatten(2, x.grid) for x in stages]
    enlarged = [F.interpolate(naive[n], scale_factor=2 ** (n - 1), mode="bilinear") for n in (1, 2, 3)]
    found = tokens.patches.mT.unflatten(2, (32, 24))  # the finest is averaged: see the next test
    torch.testing.assert_close(found[:, 8:], torch.cat(enlarged, dim=1), rtol=1e-5, atol=1e-5)


def test_coarser_grids_average() -> None:
    """Bilinear weights of the four nearest cells a side (1, 3, 3, 1) / 8, and constants stay."""
    values = torch.randn(1, 36, 5)
    tokens = resampled(Tokens(values, (6, 6)), (3, 3))
    x = values.unflatten(1, (6, 6))
    weights = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    middle = torch.einsum("i,j,ijd->d", weights, weights, x[0, 1:5, 1:5])
    torch.testing.assert_close(tokens.patches[0, 4], middle)
    constant = joined(tuple(Tokens(torch.full((1, n * n, 2), 3.0), (n, n)) for n in (8, 4, 2, 1)))
    assert constant.grid == (4, 4)
    torch.testing.assert_close(constant.patches, torch.full((1, 16, 8), 3.0))


def test_maps_of_a_plain_encoder_are_layers_at_four_scales() -> None:
    encoder = vit()
    pyramid, images = Pyramid(encoder), torch.randn(2, 3, 32, 64)
    maps, layers = pyramid.maps(images), encoder(images, layers=(1, 2, 3, 4)).layers
    assert [tokens.grid for tokens in maps] == [(16, 32), (8, 16), (4, 8), (2, 4)]
    assert torch.equal(maps[2].patches, layers[2].patches)
    own = [x.patches.mT.unflatten(2, x.grid) for x in layers]
    for found, x, scale in ((maps[0], own[0], 4), (maps[1], own[1], 2)):
        expected = F.interpolate(x, scale_factor=scale, mode="bilinear").flatten(2).mT
        torch.testing.assert_close(found.patches, expected, rtol=1e-5, atol=1e-5)
    assert (pyramid.depth, pyramid.width, pyramid.stride) == (4, 96, 4)
    tokens = pyramid(images, layers=(2,))
    assert tokens.grid == (8, 16) and torch.equal(tokens.patches, joined(maps).patches)
    assert torch.equal(tokens.layers[0].patches, joined(pyramid.maps(images, 2)).patches)
    assert pyramid.sources(2) == (1, 1, 2, 2) and pyramid.sources(1) == (1, 1, 1, 1)
    shown: Any = pyramid.config.build().eval()
    assert isinstance(shown, Pyramid) and shown(images).patches.shape == tokens.patches.shape


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "test_convnext"])
def test_timm_has_the_same_maps(name: str) -> None:
    timm = needs("timm")
    small = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 2}
    options = {**small, "img_size": 64} if "swin" in name else {}
    own: Any = randomised(timm.create_model(name, num_classes=0, **options))
    features: Any = timm.create_model(name, features_only=True, **options).eval()
    weights = {bare(key): x for key, x in own.state_dict().items()}
    features.load_state_dict({key: weights[bare(key)] for key in features.state_dict()})
    images = torch.randn(2, 3, 64, 64)
    encoder = TimmEncoder(TimmModel(name), own).eval()
    encoder.preprocessing = Preprocessing(64)
    pyramid = Pyramid(encoder)
    with torch.no_grad():
        maps, expected = pyramid.maps(images), features(images)
    assert len(maps) == len(expected) == 4
    for found, x in zip(
        maps[:-1], expected[:-1], strict=True
    ):  # the last is through the model's own norm here
        x = x if x.shape[1] == found.patches.shape[-1] else x.permute(0, 3, 1, 2)
        assert found.grid == tuple(x.shape[2:])
        torch.testing.assert_close(found.patches, x.flatten(2).mT, rtol=1e-5, atol=1e-5)


def bare(name: str) -> str:
    """Of a weight: ``layers.0`` is ``layers_0`` where timm returns maps only."""
    return re.sub(r"^model\.|[._]", "", name)


def test_what_a_pyramid_cannot_do() -> None:
    pyramid = Pyramid(vit())
    with pytest.raises(ValueError, match="cannot do attention="):
        pyramid(torch.zeros(1, 3, 32, 32), attention=True)
    with pytest.raises(ValueError, match="layer 5; this encoder has layers 1 to 4"):
        pyramid.maps(torch.zeros(1, 3, 32, 32), 5)
    clips = VideoViT(frames=2, image=16, patch=8, width=24, depth=1, heads=2).build()
    with pytest.raises(ValueError, match="takes clips"):
        Pyramid(clips)


def test_dense_probes_read_pyramids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LEAST_STEPS", 20)
    monkeypatch.setattr(heads, "CHOOSING_STEPS", 10)
    encoder, data = vit(16, 4), DensePlayground(n=24, size=16)

    def judged(read_out: Literal["tokens", "pyramid"], *protocols: str) -> Any:
        return evaluate(
            encoder, data, protocols=protocols, size=16, read_out=read_out, baselines=read_out == "pyramid"
        )

    found = judged("pyramid", "segmentation").results
    own, twin, pixels = (
        next(r for r in found if r.encoder == who) for who in ("trained", "untrained", "pixels")
    )
    assert own.settings["grid"] == "8 x 8" and (own.pooling, twin.pooling) == ("pyramid", "pyramid")
    assert pixels.settings["grid"] == "8 x 8"
    (plain,) = (r for r in judged("tokens", "segmentation").results if r.encoder == "trained")
    assert plain.settings["grid"] == "4 x 4" and plain.pooling == "tokens" and plain.value != own.value
    with pytest.raises(ValueError, match="attention-masks needs the network itself, not a pyramid"):
        judged("pyramid", "attention-masks")
