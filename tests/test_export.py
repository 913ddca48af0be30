"""Exports: what is recorded equals the encoder at every size, folders are whole or not there, cards tell the truth."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import visrep
from _exports import SMALL, card_features, cosine, encoder_of, photo, run_folder, saved, seen_by_us, unchecked
from visrep import cli
from visrep.encoders import CRATE, AoT, ConvNet, ResNet, ToST, VideoViT, ViTLike, save_encoder
from visrep.encoders.pretrained.packages import PACKAGES
from visrep.exports import positions, safetensors
from visrep.exports.card_parts import anonymous
from visrep.exports.licence import OF_PACKAGES, licence_of
from visrep.exports.names import official_weights, split, without_layer_scale
from visrep.exports.traced import example, traceable
from visrep.method import Encoder
from visrep.nn.positions import resample, rotary_2d, sincos_2d
from visrep.rundir import RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
STACK = {"image": 32, "patch": 8, "width": 48, "depth": 2, "heads": 4}
VITS: dict[str, ViTLike] = {
    "learned": SMALL,
    "registers": replace(SMALL, registers=2, layer_scale=0.5, mlp="swiglu"),
    "sincos without cls": replace(SMALL, cls=False, position="sincos", qkv_bias=False),
    "rotary": replace(SMALL, position="rope", registers=1),
    "as in DINO": replace(SMALL, position_offset=0.1),
    "no antialiasing": replace(SMALL, position_antialias=False, mask_token=True),
    "CRATE": CRATE(**STACK),  # pyright: ignore[reportArgumentType]
    "ToST": ToST(**STACK),  # pyright: ignore[reportArgumentType]
    "AoT": AoT(**STACK),  # pyright: ignore[reportArgumentType]
}
SIZES = ((32, 32), (48, 40), (16, 32), (32, 64))


@pytest.fixture(autouse=True, scope="module")
def without_checks() -> Iterator[None]:
    with unchecked():
        yield


@pytest.mark.parametrize("grid", [(7, 5), (9, 11), (3, 4), (7, 12)])
def test_positions_equal_those_of_the_encoders(grid: tuple[int, int]) -> None:
    trained, table = (7, 5), torch.randn(1, 35, 12, generator=torch.Generator().manual_seed(0))
    for offset, antialias in ((0.0, True), (0.0, False), (0.1, True)):
        expected = resample(table, trained, grid, offset=offset, antialias=antialias)[0]
        found = positions.learned(table[0].unflatten(0, trained), *grid, offset=offset, antialias=antialias)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.equal(positions.sincos(trained, *grid, 16), sincos_2d(grid, 16, trained=trained))
    expected, found = rotary_2d(grid, 16).after(2), positions.rotary(*grid, 16, 2)
    assert torch.equal(found.sin, expected.sin) and torch.equal(found.cos, expected.cos)


@torch.no_grad()
@pytest.mark.parametrize("name", VITS)
def test_what_is_recorded_equals_the_encoder(name: str) -> None:
    encoder = encoder_of(VITS[name])
    module = traceable(encoder)
    for height, width in SIZES:
        images = example(encoder, 2, height, width)
        tokens, found = encoder(images), module(images)
        torch.testing.assert_close(found["features"], tokens.pool(), atol=1e-5, rtol=1e-5)
        assert found["patches"].shape[2:] == tokens.grid
        torch.testing.assert_close(found["patches"].flatten(2).mT, tokens.patches, atol=1e-5, rtol=1e-5)
        assert ("registers" in found) == (tokens.registers is not None)
        if tokens.registers is not None:
            torch.testing.assert_close(found["registers"], tokens.registers, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config", [*VITS.values(), ResNet(18, width=8, stem="small"), ConvNet(width=8)], ids=str
)
def test_torchscript_of_any_size(config: ViTLike | ResNet | ConvNet, tmp_path: Path) -> None:
    run, encoder = saved(tmp_path / "run", config)
    result = visrep.export(run, "torchscript", tmp_path / "out")
    assert len(result.agreement) == 2  # at its own size and at another
    for one in result.agreement:
        assert one.cosine > 0.99999 and one.error < 1e-4 * one.scale
    module = torch.jit.load(tmp_path / "out" / "model.ts")
    images = torch.randn(3, 3, 24, 56)
    with torch.no_grad():
        assert cosine(module(images)["features"], encoder(images).pool()) > 0.9999


def test_clips(tmp_path: Path) -> None:
    run, encoder = saved(tmp_path / "run", VideoViT(frames=4, image=32, patch=8, width=48, depth=2, heads=4))
    result = visrep.export(run, "torchscript", tmp_path / "out")
    assert [(one.height, one.width) for one in result.agreement] == [(32, 32)]
    features, images = card_features(tmp_path / "out")
    assert images.shape == (1, 4, 3, 32, 32)
    with torch.no_grad():
        assert cosine(features, encoder(images).pool()) > 0.9999
    assert "takes no other size" in (tmp_path / "out" / "README.md").read_text()


def test_torch_export_of_any_batch_and_size(tmp_path: Path) -> None:
    run, encoder = saved(tmp_path / "run", SMALL)
    result = visrep.export(run, "torch-export", tmp_path / "out")
    assert all(one.cosine > 0.99999 for one in result.agreement) and len(result.agreement) == 2
    module = torch.export.load(tmp_path / "out" / "model.pt2").module()
    for shape in ((1, 3, 32, 32), (5, 3, 16, 72)):
        images = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(
                module(images)["features"], encoder(images).pool(), atol=1e-5, rtol=1e-5
            )
    odd = torch.randn(1, 3, 35, 32)  # not a multiple of the patch: the last pixels are left out
    assert torch.equal(module(odd)["features"], module(odd[:, :, :32])["features"])
    features, images = card_features(tmp_path / "out")
    with torch.no_grad():
        assert cosine(features, encoder(images).pool()) > 0.9999


def test_safetensors_is_the_encoder_itself(tmp_path: Path) -> None:
    run, encoder = saved(tmp_path / "run", SMALL)
    visrep.export(run, "safetensors", tmp_path / "out")
    back = visrep.load_encoder(tmp_path / "out")
    assert back.preprocessing == encoder.preprocessing and back.config == encoder.config
    for name, x in encoder.state_dict().items():
        assert torch.equal(back.state_dict()[name], x)


def test_the_card_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = run_folder(tmp_path / "run")
    arguments = [
        "export",
        str(tmp_path / "run"),
        "--to",
        "torchscript",
        "--out",
        str(tmp_path / "out"),
        "--heads",
        "--licence",
        "MIT",
    ]
    monkeypatch.setattr(sys, "argv", ["visrep", *arguments])
    cli.main()
    assert "32 x 32" in capsys.readouterr().out
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| knn, k=20 | 4, mean | 71.2 (68.2 to 74.2) | 42.5 (39.5 to 45.5) | 31.8 (28.8 to 34.8) |" in text
    assert "only 40 test images" in text and "simclr" in text and "1 epochs" in text and "seed 0" in text
    assert (
        "somebody" not in text and "fitted on 90 images of photos/train, judged on 40 of photos/test" in text
    )
    assert text.startswith("---\nlicense: mit\n")
    features, images = card_features(tmp_path / "out")
    with torch.no_grad():
        assert cosine(features, encoder(images).pool()) > 0.9999
    plain = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert plain["size"] == encoder.preprocessing.size and plain["mean"] == list(encoder.preprocessing.mean)


def test_results_of_other_weights_are_left_out(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    file = tmp_path / "run" / "evaluation.json"
    evaluation = json.loads(file.read_text())
    evaluation["fingerprint"]["encoder"] = "0123456789abcdef"
    file.write_text(json.dumps(evaluation))
    visrep.export(tmp_path / "run", "safetensors", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "71.2" not in text and "Judged were other weights" in text


def test_the_licence_is_said_or_known_of_public_weights(tmp_path: Path) -> None:
    run_folder(tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    about["run"]["init"] = "pip:mobilenet_v2"
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    visrep.export(tmp_path / "run", "safetensors", tmp_path / "out", licence="CC-BY-NC-4.0")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlicense: cc-by-nc-4.0\n") and "`CC-BY-NC-4.0`, as whoever exported" in text
    assert "Training began from `pip:mobilenet_v2`, which comes under `MIT`; what follows" in text

    unsaid = licence_of("", str(tmp_path / "run"), about)
    assert not unsaid.name and "Not stated" in unsaid.text and "under `MIT`" in unsaid.text
    unchanged = licence_of("", "pip:efficientnet_lite0", {})
    assert unchanged.name == "Apache-2.0" and "whose weights these are, unchanged" in unchanged.text
    other = licence_of("GPL-3.0-only", "pip:mobilenet_v2", {})
    assert other.name == "GPL-3.0-only" and "whose weights these are, comes under `MIT`" in other.text
    assert licence_of("mit", "pip:mobilenet_v2", {}).text == "`mit`, as whoever exported this says."
    assert not licence_of("", "/home/me/dinov2_vits14_pretrain.pth", {}).name
    assert OF_PACKAGES.keys() == PACKAGES.keys()
    with pytest.raises(ValueError, match=r"'free for all' is no SPDX identifier\. Use one of .* MIT"):
        visrep.export(tmp_path / "run", "safetensors", tmp_path / "other", licence="free for all")


def test_the_images_of_the_card_are_those_of_our_views(tmp_path: Path) -> None:
    run, encoder = saved(tmp_path / "run", SMALL)
    visrep.export(run, "safetensors", tmp_path / "out")
    features, images = card_features(tmp_path / "out")
    ours = seen_by_us(photo(), encoder.preprocessing)
    assert images.shape == ours.shape
    assert (images - ours).abs().mean() < 0.05  # of about 1; a photo in JPEG, and a canvas in between
    with torch.no_grad():
        assert torch.equal(features, encoder(images).pool())


def test_heads_are_everything_but_the_encoder(tmp_path: Path) -> None:
    encoder = run_folder(tmp_path / "run")
    visrep.export(tmp_path / "run", "safetensors", tmp_path / "out", heads=True)
    heads = load_file(tmp_path / "out" / "heads.safetensors")
    whole = RunFolder(tmp_path / "run").load_checkpoint()["method"]
    assert heads and not any(name.startswith("backbone.") for name in heads)
    assert len(heads) + len(encoder.state_dict()) == len(whole)
    assert all(torch.equal(x, whole[name]) for name, x in heads.items())
    weights = load_file(tmp_path / "run" / "encoder.safetensors")
    weights["conv1.weight"] = weights["conv1.weight"] + 1
    save_encoder(tmp_path / "run", _with(encoder, weights))
    with pytest.raises(
        ValueError, match=r"of another moment than encoder\.safetensors: conv1\.weight differs"
    ):
        visrep.export(tmp_path / "run", "safetensors", tmp_path / "other", heads=True)
    assert not (tmp_path / "other").exists()


def _with(encoder: Encoder, weights: dict[str, Tensor]) -> Encoder:
    encoder.load_state_dict(weights)
    return encoder


def test_a_layer_scale_can_be_folded() -> None:
    encoder = encoder_of(replace(SMALL, layer_scale=0.5, mlp="swiglu"))
    plain = replace(SMALL, mlp="swiglu").build().eval()
    weights = without_layer_scale(official_weights(encoder))  # pyright: ignore[reportArgumentType]
    weights["position"] = weights.pop("pos_embed")
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].flatten(1)
    plain.load_state_dict(weights)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(images).pool(), encoder(images).pool(), atol=1e-5, rtol=1e-5)


def test_queries_keys_and_values_apart() -> None:
    weights = {"blocks.0.attn.qkv.weight": torch.arange(12.0).view(6, 2)}
    found = split(weights)
    assert torch.equal(found["blocks.0.attn.k.weight"], torch.tensor([[4.0, 5.0], [6.0, 7.0]]))
    assert torch.equal(found["blocks.0.attn.v.weight"], torch.tensor([[8.0, 9.0], [10.0, 11.0]]))


def test_nothing_is_overwritten_and_nothing_half_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = saved(tmp_path / "run", SMALL)
    out = tmp_path / "out"
    out.mkdir()
    visrep.export(run, "safetensors", out)  # an empty folder is free
    before = (out / "README.md").read_text()
    with pytest.raises(ValueError, match="already holds something, and nothing is overwritten"):
        visrep.export(run, "torchscript", out)
    assert (out / "README.md").read_text() == before

    def full(encoder: Encoder, folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    names = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(safetensors, "write", full)
    with pytest.raises(RuntimeError, match=r"the disk has \d+ MiB left .* Nothing was kept"):
        visrep.export(run, "safetensors", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_what_gives_other_features_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, encoder = saved(tmp_path / "run", SMALL)

    def load(folder: Path) -> Callable[[Tensor], Tensor]:
        return lambda images: encoder(images).pool("mean")

    monkeypatch.setattr(safetensors, "load", load)
    with pytest.raises(RuntimeError, match=r"gives other features than yours: cosine .* Nothing was kept"):
        visrep.export(run, "safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes(tmp_path: Path) -> None:
    run, _ = saved(tmp_path / "run", SMALL)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"no target 'onxx'. Export to one of: safetensors, timm, hf, onnx"):
        visrep.export(run, "onxx", out)
    with pytest.raises(ValueError, match="--heads needs a run folder"):
        visrep.export(run, "safetensors", out, heads=True)
    with pytest.raises(ValueError, match="is for --to onnx, not for timm"):
        visrep.export(run, "timm", out, quantize="int8")
    with pytest.raises(ValueError, match="--quantize int8 needs --data"):
        visrep.export(run, "onnx", out, quantize="int8")
    with pytest.raises(ValueError, match="--data is for --quantize"):
        visrep.export(run, "safetensors", out, data="playground:n=8,size=32")
    assert not out.exists()


def test_paths_of_the_machine_are_left_out() -> None:
    assert (
        anonymous("fitted on 3 images of /home/me/photos/train, judged on 2")
        == "fitted on 3 images of photos/train, judged on 2"
    )
    assert anonymous("../shared/cifar/train-0.parquet") == "cifar/train-0.parquet"
    assert anonymous("from /home/me/photos") == "from photos"
    assert anonymous("playground:n=8,size=32") == "playground:n=8,size=32"
