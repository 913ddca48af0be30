"""Vision models of transformers: as ours with the same tokens where ours can express them, else wrapped."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import visrep
from _extras import joined, largest_error, needs, randomised
from visrep import cli
from visrep.encoders import save_encoder
from visrep.encoders.pretrained import hf, hub
from visrep.encoders.pretrained.agreement import disagreement
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.hf_families import FAMILIES
from visrep.encoders.pretrained.hf_wrapped import HfEncoder, HfModel
from visrep.encoders.resnet import ResidualNetwork
from visrep.encoders.video import VideoTransformer
from visrep.encoders.vit import VisionTransformer
from visrep.method import Encoder, Preprocessing

transformers = needs("transformers")
ORACLES = (
    Path(os.environ.get("VISREP_SHARED", Path(__file__).parents[2] / "shared")) / "reference" / "oracles"
)

TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
PLAIN = {**TINY, "intermediate_size": 112}
CLIP = {"model_type": "clip", "vision_config": {**PLAIN, "model_type": "clip_vision_model"}}
VIDEO = {**PLAIN, "num_frames": 4, "tubelet_size": 2}
STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
WINDOWS = {"image_size": 64, "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [2, 2, 2], "window_size": 4}

CONVERTED: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", PLAIN),
    "vit without biases": ("vit", {**PLAIN, "qkv_bias": False}),
    "vit_mae": ("vit_mae", PLAIN),
    "dinov2": ("dinov2", {**TINY, "mlp_ratio": 2}),
    "dinov2 gated": ("dinov2", {**TINY, "mlp_ratio": 2, "use_swiglu_ffn": True}),
    "dinov2 with registers": ("dinov2_with_registers", {**TINY, "mlp_ratio": 2, "num_register_tokens": 3}),
    "dinov3": ("dinov3_vit", {**PLAIN, "num_register_tokens": 3}),
    "dinov3 gated": ("dinov3_vit", {**PLAIN, "use_gated_mlp": True, "hidden_act": "silu", "key_bias": True}),
    "ijepa": ("ijepa", PLAIN),
}
WRAPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "vit with another activation": ("vit", {**PLAIN, "hidden_act": "gelu_pytorch_tanh"}),
    "dinov3 with another base": ("dinov3_vit", {**PLAIN, "rope_theta": 10.0}),
    "beit": ("beit", {**PLAIN, "use_relative_position_bias": True}),
    "data2vec": ("data2vec-vision", {**PLAIN, "use_shared_relative_position_bias": True}),
    "clip": ("clip_vision_model", PLAIN),
    "siglip": ("siglip_vision_model", PLAIN),
    "siglip2": ("siglip2_vision_model", {**PLAIN, "num_patches": 16}),
    "aimv2": ("aimv2_vision_model", PLAIN),
    "swin": ("swin", WINDOWS),
    "swinv2": ("swinv2", WINDOWS),
    "convnext": ("convnext", STAGES),
    "dinov3 convnext": ("dinov3_convnext", STAGES),
    "resnet": ("resnet", {**STAGES, "embedding_size": 8, "layer_type": "basic"}),
    "videomae without a norm": ("videomae", {**VIDEO, "use_mean_pooling": True}),
}


def model(kind: str, values: dict[str, Any]) -> Any:
    config = transformers.AutoConfig.for_model(kind, **values)
    return randomised(getattr(transformers, FAMILIES[kind].model)(config))


def wrapped(own: Any) -> HfEncoder:
    return HfEncoder(HfModel(json.dumps(own.config.to_dict())), own).eval()


def loaded(own: Any) -> Encoder:
    return hf.encoder_of(own, wrapped(own).preprocessing)


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_models_have_the_same_tokens(name: str) -> None:
    own = model(*CONVERTED[name])
    ours = loaded(own)
    assert isinstance(ours, VisionTransformer)
    for height, width in ((32, 32), (48, 40)):
        assert largest_error(ours, wrapped(own), 2, 3, height, width) < 1e-4
    kept = ours(torch.zeros(2, 3, 32, 32), keep=torch.tensor([[3, 1], [0, 2]]))
    assert kept.patches.shape == (2, 2, 48)


@pytest.mark.parametrize(
    ("kind", "values", "shapes"),
    [
        ("videomae", {**VIDEO, "use_mean_pooling": False}, [(4, 32, 32)]),
        (
            "vjepa2",
            {
                **TINY,
                "crop_size": 32,
                "frames_per_clip": 4,
                "tubelet_size": 2,
                "mlp_ratio": 2,
                "pred_hidden_size": 24,
            }
            | {"pred_num_attention_heads": 2, "pred_num_hidden_layers": 1},
            [(4, 32, 32), (8, 32, 32)],
        ),
    ],
)
def test_converted_models_of_clips(
    kind: str, values: dict[str, Any], shapes: list[tuple[int, int, int]]
) -> None:
    own = model(kind, values)
    ours = loaded(own)
    assert isinstance(ours, VideoTransformer) and ours.preprocessing.frames == 4
    for t, height, width in shapes:
        assert largest_error(ours, wrapped(own), 1, t, 3, height, width) < 1e-4


@pytest.mark.parametrize(("depths", "kind"), [([2, 2, 2, 2], "basic"), ([3, 4, 6, 3], "bottleneck")])
def test_converted_residual_networks(depths: list[int], kind: str) -> None:
    sizes = [32, 64, 128, 256] if kind == "bottleneck" else [8, 16, 32, 64]
    values = {"depths": depths, "hidden_sizes": sizes, "embedding_size": 8, "layer_type": kind}
    own = model("resnet", values)
    ours = loaded(own)
    assert isinstance(ours, ResidualNetwork) and ours.config.depth == {"basic": 18, "bottleneck": 50}[kind]
    for height, width in ((64, 64), (96, 64)):
        assert largest_error(ours, wrapped(own), 2, 3, height, width) < 1e-4


def test_residual_networks_that_are_no_torchvisions_are_wrapped() -> None:
    sizes = {"hidden_sizes": [32, 64, 128, 256], "embedding_size": 8, "layer_type": "bottleneck"}
    for other in (
        {"downsample_in_bottleneck": True},
        {"downsample_in_first_stage": True},
        {"hidden_act": "gelu"},
    ):
        assert isinstance(loaded(model("resnet", {**sizes, "depths": [3, 4, 6, 3], **other})), HfEncoder)


@pytest.mark.parametrize("name", WRAPPED)
def test_other_models_are_wrapped(name: str) -> None:
    kind, values = WRAPPED[name]
    encoder = loaded(model(kind, values))
    assert isinstance(encoder, HfEncoder)
    video, size = encoder.frames, 64 if encoder.family.maps else 32
    shape = (1, video, 3, size, size) if video else (2, 3, size, size)
    layers = tuple(range(1, encoder.depth + 1))
    tokens = encoder(torch.randn(shape), layers=layers)
    n = int(np.prod(tokens.grid))
    assert tokens.patches.shape == (shape[0], n, encoder.width)
    assert tokens.grid[-2:] == (size // encoder.stride, size // encoder.stride)
    assert len(tokens.layers) == encoder.depth and torch.equal(tokens.layers[-1].patches, tokens.patches)
    assert not torch.equal(tokens.layers[-2].pool(), tokens.pool())
    tokens.pool().sum().backward()  # wrapped models can be trained
    with pytest.raises(ValueError, match=r"wrapped \w+ cannot do attention="):
        encoder(torch.zeros(shape), attention=True)


@pytest.mark.parametrize("name", ["clip", "siglip", "aimv2", "dinov3 convnext", "convnext"])
def test_wrapped_tokens_are_what_the_model_returns(name: str) -> None:
    kind, values = WRAPPED[name]
    own, pixels = model(kind, values), torch.randn(2, 3, 64 if "conv" in name else 32, 32)
    tokens = loaded(own)(pixels)
    with torch.no_grad():
        out = own(pixels) if "conv" in name else own(pixels, **extra_arguments(kind))
    if name == "clip":
        torch.testing.assert_close(tokens.cls, out.pooler_output)
    elif name == "convnext":
        torch.testing.assert_close(tokens.patches, out.last_hidden_state.flatten(2).mT)
    else:
        torch.testing.assert_close(joined(tokens), out.last_hidden_state)


def extra_arguments(kind: str) -> dict[str, bool]:
    return {"interpolate_pos_encoding": True} if FAMILIES[kind].resizes else {}


@pytest.mark.skipif(not ORACLES.is_dir(), reason=f"no stored outputs of transformers in {ORACLES}")
@pytest.mark.parametrize("file", sorted(path.name for path in ORACLES.glob("hf_*.npz")))
def test_stored_outputs(file: str) -> None:
    with np.load(ORACLES / file) as arrays:
        stored = dict(arrays)
    values = json.loads(str(stored["config"]))
    prefix = "w.vit." if values["model_type"] == "vit_mae" else "w."
    own = model(values.pop("model_type"), values)
    weights = {n.removeprefix(prefix): torch.from_numpy(x) for n, x in stored.items() if n.startswith(prefix)}
    own.load_state_dict(weights)
    encoder = loaded(own)
    norm = dict(own.named_modules()).get(wrapped(own).family.norm, torch.nn.Identity())
    if "latent_32x32" in stored:  # MAE: only the patches it keeps
        keep = torch.from_numpy(stored["noise_32x32"]).argsort(dim=1)[:, :8]
        tokens = encoder(torch.from_numpy(stored["pixel_values_32x32"]), keep=keep)
        close(joined(tokens), stored["latent_32x32"])
        return
    sizes = [name.removeprefix("pixel_values_") for name in stored if name.startswith("pixel_values_")]
    if "vjepa2" in file:
        # At other sizes transformers still counts rows and columns as in the trained grid, unlike the official code.
        sizes.remove("8x48x40")
    for size in sizes:
        tokens = encoder(torch.from_numpy(stored[f"pixel_values_{size}"]), layers=(1,))
        expected = stored[f"last_hidden_state_{size}"]
        unnormed = "clip" in file  # transformers leaves the norm to the pooled output
        close(joined(tokens), normed(norm, expected) if unnormed else expected)
        if f"hidden_state_1_{size}" in stored:
            close(joined(tokens.layers[0]), normed(norm, stored[f"hidden_state_1_{size}"]))


def normed(norm: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return norm(torch.from_numpy(x).float()).numpy()


def close(ours: Tensor, theirs: np.ndarray) -> None:
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), rtol=1e-5, atol=1e-5)


# From folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny DINOv2 as transformers saves it."""
    own = model(*CONVERTED["dinov2"])
    own.save_pretrained(tmp_path / "dinov2")
    said = {
        "size": {"shortest_edge": 40},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
    }
    (tmp_path / "dinov2" / "preprocessor_config.json").write_text(json.dumps(said))
    return tmp_path / "dinov2"


def test_a_folder_becomes_an_encoder(folder: Path) -> None:
    encoder = visrep.load_encoder(f"hf:{folder}")
    assert isinstance(encoder, VisionTransformer) and not encoder.training
    assert encoder.preprocessing == Preprocessing(32, 0.8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    own = transformers.Dinov2Model.from_pretrained(folder)
    assert largest_error(encoder, wrapped(own), 2, 3, 32, 40) < 1e-4


def test_the_vision_tower_of_a_model_of_images_and_text(tmp_path: Path) -> None:
    values = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    both = transformers.CLIPModel(
        transformers.CLIPConfig(vision_config=CLIP["vision_config"], text_config=values)
    )
    both.save_pretrained(tmp_path)
    encoder = visrep.load_encoder(f"hf:{tmp_path}")
    assert isinstance(encoder, HfEncoder) and encoder.width == 48 and encoder.preprocessing.size == 32
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = both.vision_model(pixels).pooler_output
        torch.testing.assert_close(encoder(pixels).pool(), expected)


def test_wrapped_encoders_are_saved_and_built_anew(tmp_path: Path) -> None:
    encoder = loaded(model(*WRAPPED["clip"]))
    save_encoder(tmp_path, encoder)
    back, pixels = visrep.load_encoder(tmp_path), torch.randn(1, 3, 32, 32)
    assert torch.equal(back(pixels).pool(), encoder(pixels).pool())
    assert not torch.equal(encoder.config.build().eval()(pixels).pool(), encoder(pixels).pool())


def test_evaluate_and_embed_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "playground:n=40,size=32"]
    monkeypatch.setattr(sys, "argv", ["visrep", "evaluate", f"hf:{folder}", *data, "--protocols", "knn"])
    cli.main()
    assert "knn" in capsys.readouterr().out.lower()
    out = folder.parent / "vectors.npz"
    monkeypatch.setattr(sys, "argv", ["visrep", "embed", f"hf:{folder}", *data, "--out", str(out)])
    cli.main()
    with np.load(out) as vectors:
        assert vectors["vector"].shape == (40, 48)


# Preprocessing and errors


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"size": {"height": 384, "width": 384}}, Preprocessing(384, 1.0, squash=True)),
        ({"size": 224}, Preprocessing(224, 1.0, squash=True)),
        (
            {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True},
            Preprocessing(224, 0.875),
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, Preprocessing(224, 0.875)),
        ({"image_mean": 0.5, "image_std": [0.5]}, Preprocessing(32, 1.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
        ({"do_normalize": False}, Preprocessing(32, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
    ],
)
def test_preprocessing(said: dict[str, Any], expected: Preprocessing) -> None:
    assert hf.read_preprocessing(said, image=32) == expected


def test_another_network_does_not_agree() -> None:
    own = model(*CONVERTED["vit"])
    ours, theirs = loaded(own), wrapped(own)
    assert disagreement(ours, theirs) < 1e-4
    with torch.no_grad():
        own.layers[2].mlp.fc2.bias[7] += 0.1
    assert disagreement(ours, theirs) > 1e-2
    assert disagreement(loaded(model("vit", {**PLAIN, "num_hidden_layers": 4})), theirs) == float("inf")
    other = loaded(model(*CONVERTED["ijepa"]))
    other.preprocessing = replace(other.preprocessing)
    assert disagreement(other, theirs) == float("inf")  # no cls token


def test_weights_that_do_not_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.1.norm1.weight"))
    save_file({n: x for n, x in weights.items() if n != name}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 weights of Dinov2Model, first 'encoder\.layer\.1\.norm1\.weight'"
    ):
        visrep.load_encoder(f"hf:{folder}")
    capsys.readouterr()
    save_file(weights | {name: torch.ones(40)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"'encoder\.layer\.1\.norm1\.weight' is \(40,\), .*json \(48,\)\. Fetch"
    ):
        visrep.load_encoder(f"hf:{folder}")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"patch_size": 4}))
    with pytest.raises(
        ValueError, match=r"is \(48, 3, 8, 8\), .* \(48, 3, 4, 4\)\. Set patch_size to 8 in config\.json"
    ):
        visrep.load_encoder(f"hf:{folder}")
    assert "REPORT" not in capsys.readouterr().err  # transformers' table
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"hf:\S+ cannot be read .*Fetch its files again"):
        visrep.load_encoder(f"hf:{folder}")


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    for lacking in ("config.json, which says", "config.json but holds no weights"):
        with pytest.raises(FileNotFoundError, match=rf"^{tmp_path} (holds no|has) {lacking}"):
            visrep.load_encoder(f"hf:{tmp_path}")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"type 'bert' are not known here\. Known: vit, vit_mae"):
        visrep.load_encoder(f"hf:{tmp_path}")
    for name in (f"{tmp_path}/mistyped", "./mistyped", "~/mistyped", "one/two/mistyped"):
        with pytest.raises(FileNotFoundError, match=r"^No folder \S*mistyped\. Give hf:FOLDER"):
            visrep.load_encoder(f"hf:{name}")
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    monkeypatch.setattr(hub, "silent", lambda: "")
    with pytest.raises(
        ConnectionError, match=r"fetch config\.json, model\.safetensors .*some/model/tree.*hf:FOLDER"
    ):
        visrep.load_encoder("hf:some/model")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "visrep\[hf\]"'):
        visrep.load_encoder("hf:some/model")


def test_a_hub_that_does_not_answer_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library, asked = extra("huggingface_hub"), []

    def unanswered(url: str, timeout: float) -> None:
        asked.append((url, timeout))
        raise OSError("no route")

    monkeypatch.setattr(library, "get_hf_file_metadata", unanswered)
    monkeypatch.setattr(library.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ConnectionError, match=r"some/model cannot be loaded \(\S+ does not answer: no route\)"
    ):
        visrep.load_encoder("hf:some/model")
    assert asked == [(library.constants.ENDPOINT, hub.PATIENCE)]
    assert not caplog.records and library.constants.HF_HUB_OFFLINE is False
