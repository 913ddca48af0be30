"""Models of timm: as ours with the same tokens where ours can express them, else wrapped."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import visrep
from _extras import joined, largest_error, needs, randomised
from visrep import cli
from visrep.encoders import save_encoder
from visrep.encoders.pretrained import extras, hub
from visrep.encoders.pretrained import timm as ours_of_timm
from visrep.encoders.pretrained.timm import TimmModel, encoder_of
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder
from visrep.encoders.resnet import ResidualNetwork
from visrep.encoders.vit import VisionTransformer
from visrep.method import Encoder, Preprocessing

timm = needs("timm")

TINY = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "dynamic_img_size": True,
}
GATED = {"act_layer": nn.SiLU, "mlp_ratio": 8 / 3}
CONVERTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "DINOv2 with registers": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
    "positions of registers": {"reg_tokens": 2},
    "no cls": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "packed gates": {**GATED, "mlp_layer": timm.layers.SwiGLUPacked, "mlp_ratio": 16 / 3},
    "gates": {**GATED, "mlp_layer": timm.layers.SwiGLU},
    "no biases": {"qkv_bias": False},
}
UNUSUAL: dict[str, dict[str, Any]] = {
    "norm after pooling": {"global_pool": "avg"},
    "norm before the blocks": {"pre_norm": True},
    "norms of queries": {"qk_norm": True},
    "another activation": {"act_layer": "gelu_tanh"},
    "RMSNorm": {"norm_layer": timm.layers.RmsNorm},
}
WRAPPED: dict[str, dict[str, Any]] = {
    "test_convnext": {},
    "test_efficientnet": {},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 2,
        "embed_dim": 16,
        "depths": (1, 1, 1, 1),
    }
    | {"num_heads": (1, 2, 2, 2)},
    "eva02_tiny_patch14_224": {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 2},
    "beit_base_patch16_224": {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 2},
}


def vit(options: dict[str, Any]) -> nn.Module:
    return randomised(timm.create_model("vit_tiny_patch16_224", num_classes=0, **{**TINY, **options}))


def wrapped(own: nn.Module, size: int = 32) -> TimmEncoder:
    encoder = TimmEncoder(TimmModel("a name"), own).eval()
    encoder.preprocessing = Preprocessing(size, ratio=1.0)
    return encoder


def loaded(own: Any, size: int = 32) -> Encoder:
    own.pretrained_cfg = {
        "input_size": (3, size, size),
        "crop_pct": 0.9,
        "mean": (0.5,) * 3,
        "std": (0.4,) * 3,
    }
    return encoder_of(TimmModel("a name"), own)


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_vision_transformers_have_the_same_tokens(name: str) -> None:
    own = vit(CONVERTED[name])
    ours = loaded(own)
    assert isinstance(ours, VisionTransformer)
    assert ours.preprocessing == Preprocessing(32, 0.9, (0.5, 0.5, 0.5), (0.4, 0.4, 0.4))
    for height, width in ((32, 32), (48, 40)):
        assert largest_error(ours, wrapped(own), 2, 3, height, width) < 1e-4


@pytest.mark.parametrize(
    "name", [f"vit_small_{kind}" for kind in ("patch16_dinov3", "plus_patch16_dinov3", "patch16_dinov3_qkvb")]
)
def test_converted_dinov3_has_the_same_tokens(name: str) -> None:
    own = randomised(timm.create_model(name, num_classes=0, img_size=64, embed_dim=48, depth=3, num_heads=4))
    ours = loaded(own, size=64)
    assert isinstance(ours, VisionTransformer)
    assert (ours.config.position, ours.config.registers, ours.config.patch) == ("rope", 4, 16)
    for height, width in ((64, 64), (96, 80)):
        assert largest_error(ours, wrapped(own), 2, 3, height, width) < 1e-4
    kept = ours(torch.zeros(2, 3, 64, 64), keep=torch.tensor([[3, 1], [0, 2]]))
    assert kept.patches.shape == (2, 2, 48)


def test_rotary_positions_of_another_base_are_wrapped() -> None:
    small = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 0}
    own = timm.create_model("vit_small_patch16_dinov3", **small, rope_temperature=1000)
    assert isinstance(loaded(randomised(own), size=64), TimmEncoder)


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_vision_transformers_are_wrapped(name: str) -> None:
    own = vit(UNUSUAL[name])
    encoder = loaded(own)
    assert isinstance(encoder, TimmEncoder)
    tokens = encoder(torch.randn(2, 3, 32, 32), layers=(3, 1))
    assert tokens.grid == (4, 4) and tokens.patches.shape == (2, 16, 48) and tokens.cls is not None
    assert torch.equal(tokens.layers[0].patches, tokens.patches)


@pytest.mark.parametrize(
    ("name", "converts"), [("resnet18", True), ("resnet50", True), ("resnetblur50", False)]
)
def test_resnets(name: str, converts: bool) -> None:
    own = randomised(timm.create_model(name, num_classes=0))
    encoder = loaded(own, size=64)  # blurring has no weights: only the tokens tell
    assert isinstance(encoder, ResidualNetwork if converts else TimmEncoder)
    if converts:
        for height, width in ((64, 64), (96, 64)):
            assert largest_error(encoder, wrapped(own), 2, 3, height, width) < 1e-4 * scale_of(encoder)


@torch.no_grad()
def scale_of(encoder: Encoder) -> float:
    return max(1.0, float(encoder(torch.randn(1, 3, 64, 64)).patches.std()))


@pytest.mark.parametrize("name", WRAPPED)
def test_other_models_are_wrapped(name: str) -> None:
    own = randomised(timm.create_model(name, num_classes=0, **WRAPPED[name]))
    encoder, pixels = loaded(own, size=64), torch.randn(2, 3, 64, 64)
    assert isinstance(encoder, TimmEncoder)
    tokens = encoder(pixels, layers=tuple(range(1, encoder.depth + 1)))
    rows, columns = tokens.grid
    assert rows == columns == 64 // encoder.stride
    assert tokens.patches.shape == (2, rows * columns, encoder.width)
    assert torch.equal(tokens.layers[-1].patches, tokens.patches)
    with torch.no_grad():
        expected = own.forward_features(pixels)  # pyright: ignore[reportCallIssue]
    if expected.ndim == 3:
        torch.testing.assert_close(joined(tokens), expected)
    else:
        torch.testing.assert_close(tokens.pool(), expected.mean((1, 2) if "swin" in name else (2, 3)))
    tokens.pool().sum().backward()
    with pytest.raises(ValueError, match="cannot do keep="):
        encoder(pixels, keep=torch.zeros(2, 1).long())


def test_by_name_and_with_weights_from_a_file(tmp_path: Path) -> None:
    own = randomised(timm.create_model("test_vit"))
    torch.save(own.state_dict(), tmp_path / "weights.pth")
    encoder = visrep.load_encoder(f"timm:test_vit@{tmp_path / 'weights.pth'}")
    assert isinstance(encoder, VisionTransformer) and encoder.preprocessing.size == 160
    pixels = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(joined(encoder(pixels)), own.forward_features(pixels))  # pyright: ignore
    other = visrep.load_encoder("timm:test_vit@random")
    assert not torch.equal(other(pixels).pool(), encoder(pixels).pool())


def test_wrapped_encoders_are_saved_and_built_anew(tmp_path: Path) -> None:
    encoder = visrep.load_encoder("timm:test_convnext@random")
    save_encoder(tmp_path, encoder)
    back, pixels = visrep.load_encoder(tmp_path), torch.randn(1, 3, 64, 64)
    assert torch.equal(back(pixels).pool(), encoder(pixels).pool())
    assert back.preprocessing == encoder.preprocessing
    assert not torch.equal(encoder.config.build().eval()(pixels).pool(), encoder(pixels).pool())


def test_embed_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "vectors.npz"
    arguments = [
        "embed",
        "timm:test_efficientnet@random",
        "--data",
        "playground:n=12,size=32",
        "--out",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", ["visrep", *arguments])
    cli.main()
    with np.load(out) as vectors:
        assert vectors["vector"].shape[0] == 12


def test_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet_18'. Similar: .*resnet18"):
        visrep.load_encoder("timm:resnet_18")
    with pytest.raises(ValueError, match=r"no model 'nonsense_vit'\. See timm\.list_models"):
        visrep.load_encoder("timm:nonsense_vit")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError,
        match=r"other\.pth does not fit .*cls_token should be \(1, 1, 64\) and is absent\. Give the model",
    ):
        visrep.load_encoder(f"timm:test_vit@{tmp_path / 'other.pth'}")
    with pytest.raises(FileNotFoundError, match=r"No file none\.pth"):
        visrep.load_encoder("timm:test_vit@none.pth")

    def offline(name: str, **options: Any) -> nn.Module:
        raise OSError("cannot find the requested files in the local cache")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(hub, "silent", lambda: "")
    with pytest.raises(
        ConnectionError,
        match=r"fetch model\.safetensors from .*co/timm/test_vit\.r160_in1k/.*timm:test_vit@FILE",
    ):
        visrep.load_encoder("timm:test_vit")
    with pytest.raises(
        ConnectionError, match=r"model\.safetensors from .*co/some/one/tree.*local-dir:FOLDER"
    ):
        visrep.load_encoder("timm:hf-hub:some/one")
    with pytest.raises(ConnectionError, match=r"co/timm/resnet50\.a1_in1k/.*timm:resnet50\.a1_in1k@FILE"):
        visrep.load_encoder("timm:resnet50.a1_in1k")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r'pip install "visrep\[timm\]"'):
        visrep.load_encoder("timm:resnet18")


def test_weights_of_other_patches_and_sizes_say_so(tmp_path: Path) -> None:
    own: Any = timm.create_model("test_vit", patch_size=8)
    torch.save(own.state_dict(), tmp_path / "patches.pth")
    with pytest.raises(ValueError, match=r"Its patches are 8 x 8 pixels, the model's 16 x 16.*\*patch8\*"):
        visrep.load_encoder(f"timm:test_vit@{tmp_path / 'patches.pth'}")
    torch.save(timm.create_model("test_vit", img_size=96).state_dict(), tmp_path / "size.pth")
    with pytest.raises(
        ValueError, match=r"positions has 37 rows, the model's 101: take the model of the size"
    ):
        visrep.load_encoder(f"timm:test_vit@{tmp_path / 'size.pth'}")
    weights = {**own.state_dict(), "patch_embed.proj.weight": torch.zeros(64, 3, 8, 4)}
    torch.save(weights, tmp_path / "flat.pth")
    with pytest.raises(ValueError, match=r"flat\.pth: Patches are 8 x 4 pixels.*square.*timm:NAME@FILE"):
        visrep.load_encoder(tmp_path / "flat.pth")


def test_models_without_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no forward_intermediates"):
        TimmEncoder(TimmModel("a name"), nn.Linear(1, 1))
    assert ours_of_timm.preprocessing({}, Preprocessing(7)) == replace(Preprocessing(), size=7)


def test_a_broken_torchvision_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(extras.importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="something else"):
        extras.tolerate_torchvision()
