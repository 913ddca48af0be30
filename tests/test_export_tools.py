"""Folders for timm and transformers: they load there, give the same features, and come back as they went."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from torch import nn

import visrep
from _exports import SMALL, card_features, cosine, photo, saved, seen_by_us
from _extras import needs, randomised
from visrep.encoders import ConvNet, ResNet, Swin, ViT, save_encoder
from visrep.encoders.pretrained.hf_wrapped import HfEncoder, HfModel
from visrep.encoders.pretrained.packages import PACKAGES
from visrep.encoders.vit import VisionTransformer
from visrep.exports.hf_forms import chosen, integer_ratio
from visrep.exports.licence import known
from visrep.method import Preprocessing

timm = needs("timm")
transformers = needs("transformers")

CLASSES: dict[str, tuple[ViT | ResNet, bool]] = {
    "Dinov2WithRegistersModel": (replace(SMALL, registers=2, layer_scale=0.5), True),
    "Dinov2Model": (replace(SMALL, layer_scale=0.5, mlp="swiglu", position_antialias=False), True),
    "ViTModel": (replace(SMALL, position_antialias=False, mlp_ratio=2.5, layer_scale=0.5), True),
    "IJepaModel": (replace(SMALL, cls=False, position="sincos", layer_scale=0.5), False),
    "DINOv3ViTModel": (replace(SMALL, position="rope", registers=1, mlp="swiglu", norm_eps=1e-5), True),
    "ResNetModel": (ResNet(50, width=8), True),
}
"""an encoder for each class of transformers, and whether features are the same at every size"""
OF_TIMM: dict[str, tuple[ViT | ResNet, bool]] = {
    "registers": (replace(SMALL, registers=2, layer_scale=0.5, mask_token=True), True),
    "gated": (replace(SMALL, mlp="swiglu", mlp_ratio=2.5, qkv_bias=False), True),
    "no cls": (replace(SMALL, cls=False, position="sincos"), False),
    "another eps": (replace(SMALL, norm_eps=1e-5, position_offset=0.1), False),
    "ResNet": (ResNet(18), True),
}


@pytest.mark.parametrize("name", CLASSES)
def test_transformers(name: str, tmp_path: Path) -> None:
    config, everywhere = CLASSES[name]
    run, encoder = saved(tmp_path / "run", config)
    result = visrep.export(run, "hf", tmp_path / "out")
    assert result.tool == f"transformers, {name}"
    own, other = result.agreement
    assert own.cosine > 0.99999 and own.error < 1e-4 * own.scale
    assert (other.error < 1e-4 * other.scale) == everywhere
    assert any("At other sizes" in note for note in result.notes) != everywhere
    features, images = card_features(tmp_path / "out")
    with torch.no_grad():
        assert cosine(features, encoder(images).pool()) > 0.9999

    back = visrep.load_encoder(f"hf:{tmp_path / 'out'}")
    seen = encoder.preprocessing
    assert replace(back.preprocessing, ratio=0) == replace(seen, ratio=0)
    assert back.preprocessing.ratio == pytest.approx(
        seen.ratio, abs=0.02
    )  # the side before cropping is whole
    with torch.no_grad():
        tokens, expected = back(images), encoder(images)
    torch.testing.assert_close(tokens.patches, expected.patches, atol=1e-4, rtol=1e-4)
    if isinstance(config, ViT):
        assert isinstance(back, VisionTransformer)  # converted, not wrapped
        assert tokens.registers is None or expected.registers is not None
    pooled = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    if name in ("ViTModel", "Dinov2Model"):
        options = {"interpolate_pos_encoding": True} if name == "ViTModel" else {}
        with torch.no_grad():  # no random pooler
            torch.testing.assert_close(
                pooled(images, **options).pooler_output, features, atol=1e-5, rtol=1e-5
            )


def test_the_processor_of_transformers_sees_what_we_see(tmp_path: Path) -> None:
    run, encoder = saved(tmp_path / "run", SMALL)
    visrep.export(run, "hf", tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    found = processor(Image.fromarray(photo()), return_tensors="pt")["pixel_values"]
    ours = seen_by_us(photo(), encoder.preprocessing)
    assert found.shape == ours.shape
    assert (found - ours).abs().mean() < 0.1  # of about 1: it crops whole pixels


@pytest.mark.parametrize("name", OF_TIMM)
def test_timm(name: str, tmp_path: Path) -> None:
    config, everywhere = OF_TIMM[name]
    run, encoder = saved(tmp_path / "run", config)
    result = visrep.export(run, "timm", tmp_path / "out")
    own, other = result.agreement
    assert own.cosine > 0.99999 and own.error < (1e-3 if name == "another eps" else 1e-4) * own.scale
    assert (other.error < 1e-4 * other.scale) == everywhere
    features, images = card_features(tmp_path / "out")
    with torch.no_grad():
        assert cosine(features, encoder(images).pool()) > 0.9999

    back = visrep.load_encoder(f"timm:local-dir:{tmp_path / 'out'}")
    assert type(back) is type(encoder) and back.preprocessing == encoder.preprocessing
    with torch.no_grad():
        assert cosine(back(images).pool(), features) > 0.99999
    with pytest.raises(FileNotFoundError, match="timm:local-dir:"):
        visrep.load_encoder(tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    plain = timm.create_model(said["architecture"], num_classes=0, **said["model_args"])
    timm.models.load_checkpoint(plain, str(tmp_path / "out" / "model.safetensors"))
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), model(images))
    data = timm.data.resolve_data_config({}, model=model)
    seen = encoder.preprocessing
    assert (*data["mean"], *data["std"]) == (*seen.mean, *seen.std)
    assert data["crop_pct"] == seen.ratio and [*data["input_size"]] == [3, seen.size, seen.size]
    assert data["interpolation"] == "bicubic"
    transform = timm.data.create_transform(**data, is_training=False)
    ours = seen_by_us(photo(), seen)
    assert (transform(Image.fromarray(photo()))[None] - ours).abs().mean() < 0.1


def test_what_came_from_transformers_goes_back(tmp_path: Path) -> None:
    stages = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32], "image_size": 64}
    config = transformers.AutoConfig.for_model("convnext", **stages)
    description = json.dumps(config.to_dict(), sort_keys=True)
    encoder = HfEncoder(HfModel(description), randomised(transformers.ConvNextModel(config))).eval()
    encoder.preprocessing = Preprocessing(64, ratio=1.0)
    save_encoder(tmp_path / "run", encoder)
    result = visrep.export(tmp_path / "run", "hf", tmp_path / "out")
    assert result.tool == "transformers, ConvNextModel" and result.agreement[0].error == 0
    features, images = card_features(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(features, encoder(images).pool())


FROM_TIMM = {
    "timm:test_convnext@random": "tokens.mean((2, 3))",  # timm's norm comes after pooling
    "timm:test_efficientnet@random": "encoder(images)",
    "timm:mobilenetv3_small_050@random": "tokens.mean((2, 3))",  # a further layer comes after pooling
    "timm:test_vit2@random": "tokens[:, 1:].mean(1)",  # a norm after pooling, and a register
    "timm:beit_base_patch16_224@random": "tokens[:, 0]",
    "timm:swin_tiny_patch4_window7_224@random": "encoder(images)",
    "pip:mobilenet_v2": "encoder(images)",
}
"""a name of each kind of wrapped model, and how its card reads features"""
SMALLER: dict[str, dict[str, Any]] = {
    "timm:beit_base_patch16_224@random": {"embed_dim": 48, "depth": 2, "num_heads": 2},
    "timm:swin_tiny_patch4_window7_224@random": {
        "embed_dim": 16,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 2, 2, 2),
    },
}


@pytest.mark.parametrize("name", FROM_TIMM)
def test_what_came_from_timm_goes_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("pip:") and importlib.util.find_spec(PACKAGES["mobilenet_v2"].module) is None:
        pytest.skip("the package is not installed")
    if smaller := SMALLER.get(name):  # and so faster
        monkeypatch.setattr(timm, "create_model", partial(timm.create_model, **smaller))
    encoder: Any = visrep.load_encoder(name)
    own: nn.Module = randomised(encoder.model)
    save_encoder(tmp_path / "run", encoder)
    result = visrep.export(tmp_path / "run", "timm", tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert result.tool == f"timm, {said['architecture']}" and encoder.config.name == said["architecture"]
    assert result.agreement[0].error < 1e-5 * result.agreement[0].scale
    features, images = card_features(tmp_path / "out")
    assert f"features = {FROM_TIMM[name]}\n" in (tmp_path / "out" / "README.md").read_text()
    with torch.no_grad():
        assert cosine(features, encoder(images).pool()) > 0.99999
        model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        torch.testing.assert_close(model(images), own(images), rtol=1e-4, atol=1e-5)

    back = visrep.load_encoder(f"timm:local-dir:{tmp_path / 'out'}")  # and from there once more
    assert back.preprocessing == encoder.preprocessing
    again = visrep.export(f"timm:local-dir:{tmp_path / 'out'}", "timm", tmp_path / "again")
    assert again.tool == result.tool


def test_timms_registry_knows_licences() -> None:
    assert known("timm:vit_small_patch14_dinov2.lvd142m") == "apache-2.0"
    assert known("timm:convnextv2_atto.fcmae") == "cc-by-nc-4.0"
    for unknown in ("timm:resnet18@weights.pth", "timm:hf-hub:somebody/model", "timm:no_such_model", "hf:x"):
        assert known(unknown) == ""


def test_our_swin_goes_to_timm(tmp_path: Path) -> None:
    config = Swin(
        image=32, patch=2, width=16, depths=(1, 2, 1), heads=(1, 2, 4), window=4, mask_token=True, drop_path=0.1
    )  # fmt: skip
    run, encoder = saved(tmp_path / "run", config)
    result = visrep.export(run, "timm", tmp_path / "out")
    assert result.tool == "timm, swin_tiny_patch4_window7_224"
    assert all(one.error < 1e-5 * one.scale for one in result.agreement)
    assert ["mask token" in note for note in result.notes] == [True]
    features, images = card_features(tmp_path / "out")
    with torch.no_grad():
        assert cosine(features, encoder(images).pool()) > 0.99999


@pytest.mark.parametrize("to", ["hf", "timm"])
@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_a_table_of_another_size_is_written_for_the_one_that_images_are_prepared_to(
    to: str, position: Literal["learned", "sincos"], tmp_path: Path
) -> None:
    """DINOv2's official files: 37 x 37 positions, and images of 224; loud positions show every difference."""
    offset = 0.1 if position == "learned" else 0.0
    config = replace(SMALL, image=518, patch=14, layer_scale=1.0, position=position, position_offset=offset)
    vit = config.build().eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in vit.named_parameters():
            x.copy_((1.0 if name == "position" else 0.15) * torch.randn(x.shape, generator=rng))
    vit.preprocessing = replace(vit.preprocessing, size=224)
    save_encoder(tmp_path / "run", vit)
    result = visrep.export(tmp_path / "run", to, tmp_path / "out")
    own = result.agreement[0]
    assert (own.height, own.width) == (224, 224) and own.error < 1e-4 * own.scale
    assert "Positions are written for 224 x 224" in result.notes[0] and "518 x 518" in result.notes[0]
    assert "At other sizes than 224 x 224" in result.notes[1]
    assert all(note in (tmp_path / "out" / "README.md").read_text() for note in result.notes)
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (said["image_size"] if to == "hf" else said["model_args"]["img_size"]) == 224
    back = visrep.load_encoder(f"{'timm:local-dir' if to == 'timm' else 'hf'}:{tmp_path / 'out'}")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(back(images).pool(), vit(images).pool(), atol=1e-4, rtol=1e-4)


def test_the_class_that_is_equal_at_every_size_comes_first() -> None:
    assert chosen(SMALL).model == "Dinov2WithRegistersModel"  # positions with antialiasing
    assert chosen(replace(SMALL, position_antialias=False)).model == "ViTModel"
    assert chosen(replace(SMALL, position_antialias=False, layer_scale=1.0)).model == "Dinov2Model"
    assert chosen(replace(SMALL, position="sincos")).model == "ViTModel"
    assert integer_ratio(replace(SMALL, mlp_ratio=2.5)) is None
    assert integer_ratio(ViT(width=1536, heads=24, mlp="swiglu")) == 4


@pytest.mark.parametrize(
    ("to", "config", "message"),
    [
        ("hf", ConvNet(width=8), "no class of transformers expresses a ConvNet.*--to onnx"),
        ("hf", ResNet(18, width=8, stem="small"), "stem='small' has no place in it.*--to onnx"),
        ("hf", replace(SMALL, cls=False, registers=2), "IJepaModel lacks register tokens.*--to onnx"),
        ("hf", replace(SMALL, cls=False, position="rope"), "needs a cls token.*--to onnx"),
        ("timm", replace(SMALL, position="rope"), "no rotary positions.*--to hf.*--to onnx"),
        ("timm", ResNet(18, width=8), "width=8.*--to onnx"),
        ("timm", ConvNet(width=8), "no model of timm expresses a ConvNet.*--to onnx"),
    ],
)
def test_what_cannot_be_expressed(
    to: str, config: ViT | ResNet | ConvNet, message: str, tmp_path: Path
) -> None:
    run, _ = saved(tmp_path / "run", config)
    with pytest.raises(ValueError, match=message):
        visrep.export(run, to, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
