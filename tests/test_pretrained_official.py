"""Official checkpoint files become our encoders: golden values, training code's nests and prefixes, errors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import visrep
from _extras import joined
from visrep.encoders import ResNet, ViT
from visrep.encoders.pretrained import load_checkpoint
from visrep.encoders.pretrained.convert_vit import depth
from visrep.encoders.pretrained.official_vit import recognise
from visrep.encoders.resnet import ResidualNetwork
from visrep.encoders.vit import VisionTransformer

GOLDEN = Path(__file__).parent / "golden"
TINY = ViT(image=32, patch=8, width=48, depth=2, heads=4, mlp_ratio=2.0)

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "encoders.npz") as file:
        return dict(file)


def official(golden: dict[str, np.ndarray], name: str) -> Weights:
    return {
        key.removeprefix(f"{name}.w."): torch.from_numpy(x).float()
        for key, x in golden.items()
        if key.startswith(f"{name}.w.")
    }


def under(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: x for name, x in weights.items()}


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def close(ours: Tensor | None, theirs: np.ndarray) -> None:
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), rtol=1e-5, atol=1e-5)


def test_dino_in_the_checkpoint_of_a_training_run(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    weights = official(golden, "dino")
    others = {name: torch.zeros_like(x) for name, x in weights.items()}
    path = saved(
        tmp_path,
        {
            "student": under("module.backbone.", others),
            "teacher": under("backbone.", weights) | {"head.mlp.0.weight": torch.zeros(3, 3)},
            "args": argparse.Namespace(arch="vit_small"),
            "epoch": 100,
        },
    )
    encoder = load_checkpoint(path, heads=4)
    assert isinstance(encoder, VisionTransformer) and encoder.config.position_offset == 0.1
    assert encoder.preprocessing.size == 32 and not encoder.training
    for size in ("32x32", "48x40", "24x24"):
        tokens = encoder(torch.from_numpy(golden[f"dino.x_{size}"]).float(), layers=(1,))
        close(joined(tokens), golden[f"dino.last_tokens_normed_{size}"])
        close(joined(tokens.layers[0]), golden[f"dino.block1_tokens_normed_{size}"])


@pytest.mark.parametrize(
    ("name", "sizes", "registers"),
    [
        ("dinov2", ["32x32", "48x40"], "x_norm_regtokens"),
        ("swiglu", ["32x32"], "x_norm_regtokens"),
        ("dinov3", ["32x32", "48x40"], "x_storage_tokens"),
    ],
)
def test_dinov2_and_dinov3(
    golden: dict[str, np.ndarray], tmp_path: Path, name: str, sizes: list[str], registers: str
) -> None:
    weights = official(golden, name)
    encoder = load_checkpoint(saved(tmp_path, weights), heads=4)
    assert isinstance(encoder, VisionTransformer) and encoder.config.mask_token
    for size in sizes:
        tokens = encoder(torch.from_numpy(golden[f"{name}.x_{size}"]).float())
        close(tokens.cls, golden[f"{name}.x_norm_clstoken_{size}"])
        close(tokens.patches, golden[f"{name}.x_norm_patchtokens_{size}"])
        close(tokens.registers, golden[f"{name}.{registers}_{size}"])
    mask = torch.from_numpy(golden[f"{name}.masks_in" if name == "dinov3" else f"{name}.masks"])
    tokens = encoder(torch.from_numpy(golden[f"{name}.x_32x32"]).float(), mask=mask)
    close(tokens.patches, golden[f"{name}.masked_x_norm_patchtokens_32x32"])


def test_dinov3_without_biases_of_keys(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    weights = official(golden, "dinov3") | {"rope_embed.periods": 100 ** (torch.arange(3) / 3)}
    masked: Weights = {}
    for i in range(2):
        name = f"blocks.{i}.attn.qkv.bias"
        masked[f"{name}_mask"] = torch.ones(144).index_fill(0, torch.arange(48, 96), 0.0)
    without = {n: x * masked.get(f"{n}_mask", torch.ones(1)) for n, x in weights.items()}
    pixels = torch.from_numpy(golden["dinov3.x_32x32"]).float()
    ours = load_checkpoint(saved(tmp_path, weights | masked | {"local_cls_norm.weight": torch.ones(48)}))
    same = load_checkpoint(saved(tmp_path, without))  # heads follow from the periods
    assert torch.equal(joined(ours(pixels)), joined(same(pixels)))
    assert ours.config.heads == 4
    with pytest.raises(ValueError, match="other periods than DINOv3's"):
        load_checkpoint(saved(tmp_path, weights | {"rope_embed.periods": torch.ones(3)}))


def test_mae_without_its_decoder(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    with np.load(GOLDEN / "mae.npz") as file:
        weights = {
            n.removeprefix("w."): torch.from_numpy(file[n]).float() for n in file.files if n.startswith("w.")
        }
        pixels, noise = torch.from_numpy(file["imgs"]).float(), torch.from_numpy(file["noise"])
    weights["pos_embed"] = torch.from_numpy(golden["mae.w.pos_embed"]).float()
    encoder = load_checkpoint(saved(tmp_path, {"model": weights, "optimizer": {"step": 1}}), heads=4)
    assert isinstance(encoder, VisionTransformer) and not encoder.config.mask_token
    close(joined(encoder(pixels, keep=noise.argsort(dim=1)[:, :16])), golden["mae.latent"])
    assert recognise(weights) == "MAE or MoCo v3"


def published(encoder: VisionTransformer) -> Weights:
    """Weights of ours by official names, with a kernel for patches and a row of positions for cls."""
    weights = dict(encoder.state_dict())
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].unflatten(1, (3, 8, 8))
    row = torch.zeros(1, int("cls_token" in weights), 48)
    weights["pos_embed"] = torch.cat([row, weights.pop("position")], dim=1)
    return weights


@pytest.mark.parametrize(
    ("config", "nest", "kind"),
    [
        (
            TINY,
            lambda w, other: {
                "state_dict": under("module.base_encoder.", w | {"head.0.weight": torch.ones(3)})
                | under("module.momentum_encoder.", other)
            },
            "MAE or MoCo v3",
        ),
        (
            ViT(image=32, patch=8, width=48, depth=2, heads=4, mlp_ratio=2.0, cls=False),
            lambda w, other: {"encoder": under("module.", other), "target_encoder": under("module.", w)},
            "I-JEPA",
        ),
        (
            TINY,
            lambda w, other: {
                "state_dict": w | {"masked_embed": torch.ones(1, 48), "head.weight": torch.ones(3)}
            },
            "MAE or MoCo v3",
        ),
    ],
    ids=["MoCo v3", "I-JEPA", "iBOT"],
)
def test_other_vision_transformers(
    tmp_path: Path, config: ViT, nest: Callable[[Weights, Weights], Any], kind: str
) -> None:
    torch.manual_seed(0)
    ours, other = config.build().eval(), config.build()
    encoder = load_checkpoint(saved(tmp_path, nest(published(ours), published(other))), heads=4)
    pixels = torch.randn(2, 3, 48, 40)
    assert isinstance(encoder, VisionTransformer)
    torch.testing.assert_close(joined(encoder(pixels)), joined(ours(pixels)))
    assert recognise(published(ours)) == kind
    assert encoder.config.mask_token is ("masked_embed" in str(nest({}, {})))


@pytest.mark.parametrize(("depth", "width"), [(18, 8), (50, 4)])
@pytest.mark.parametrize("prefix", ["", "module.", "module.encoder_q."])
def test_resnets(tmp_path: Path, depth: int, width: int, prefix: str) -> None:
    torch.manual_seed(0)
    ours = ResNet(depth, width=width).build().eval()  # pyright: ignore[reportArgumentType]
    other = {name: torch.zeros_like(x) for name, x in ours.state_dict().items()}
    content = under(
        prefix, ours.state_dict() | {"fc.weight": torch.ones(3), "prototypes.weight": torch.ones(3)}
    )
    if "encoder_q" in prefix:
        content |= under("module.encoder_k.", other)
    encoder = visrep.load_encoder(saved(tmp_path, {"state_dict": content}))
    assert isinstance(encoder, ResidualNetwork) and encoder.config.width == width
    pixels = torch.randn(2, 3, 64, 32)
    assert torch.equal(encoder(pixels).patches, ours(pixels).patches)


def test_safetensors(tmp_path: Path) -> None:
    ours = ResNet(18, width=4, stem="small").build().eval()
    save_file(ours.state_dict(), tmp_path / "model.safetensors")
    encoder = visrep.load_encoder(str(tmp_path / "model.safetensors"))
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(encoder(pixels).pool(), ours(pixels).pool())


def changed(**changes: Tensor | None) -> Weights:
    """Weights of a tiny ViT, with names changed: ``None`` takes one away, ``__`` stands for a dot."""
    weights = published(TINY.build())
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    return weights


def resnet(*counts: int) -> Weights:
    """One weight of each block."""
    return {
        f"layer{i}.{j}.conv{k}.weight": torch.ones(1)
        for i, n in enumerate(counts, 1)
        for j in range(n)
        for k in (1, 3)
    }


class Custom:
    """What torch.load must not build."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: changed(blocks__0__attn__proj__bias=None),
            r"0\.attn\.proj\.bias should be .48,. and is absent",
        ),
        (lambda: changed(extra__weight=torch.ones(1)), r"extra\.weight should be absent and is \(1,\)"),
        (
            lambda: changed(blocks__1__mlp__fc2__bias=torch.ones(40)),
            r"fc2\.bias should be \(48,\) and is \(40,\)",
        ),
        (
            lambda: changed(pos_embed=torch.ones(1, 18, 48)),
            "18 rows, 1 of them .* no square grid.* timm:NAME@FILE.*resample those rows",
        ),
        (
            lambda: changed(patch_embed__proj__weight=torch.ones(48, 3, 8, 4)),
            r"Patches are 8 x 4 pixels, .* square",
        ),
        (
            lambda: changed(blocks__0__attn__relative_position_bias_table=torch.ones(3)),
            "relative_position.*hf:NAME",
        ),
        (lambda: changed(patch_embed__proj__weight=torch.ones(48, 3, 2, 8, 8)), "encoder of clips.*hf:NAME"),
        (lambda: changed(pos_embed=None), "no pos_embed"),
        (lambda: changed(pos_embed=None, register_tokens=torch.ones(1, 4, 48)), "no pos_embed, the table"),
        (lambda: {"conv.weight": torch.ones(3)}, "no vision transformer or ResNet .* holds conv.weight"),
        (lambda: {"epoch": 3}, "holds no weights: expected .* teacher, target_encoder"),
        (lambda: {"model": Custom()}, r"cannot be read: .*Python objects besides weights \(\S+\.Custom\)"),
        (lambda: {"layer1.0.conv1.weight": torch.ones(3)}, r"1 \+ 0 \+ 0 \+ 0 blocks is none of 18, 34, 50"),
        (lambda: resnet(3, 4, 23, 3), r"3 \+ 4 \+ 23 \+ 3 blocks .*this file: timm:resnet101@FILE"),
    ],
)
def test_errors_say_what_was_found(tmp_path: Path, content: Callable[[], Any], message: str) -> None:
    path = saved(tmp_path, content())
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(path, heads=4)
    assert str(path) in str(error.value)


def test_what_weights_do_not_say_must_be_given(tmp_path: Path) -> None:
    path = saved(tmp_path, changed())
    with pytest.raises(ValueError, match=r"width of 48 .*load_checkpoint\(path, heads"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="heads=5 do not divide the width 48"):
        load_checkpoint(path, heads=5)
    with pytest.raises(FileNotFoundError, match=r"No file .*Fetch"):
        load_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "text.pth",
            b"hello, this is no checkpoint",
            "cannot be read: it is torn, or no checkpoint of torch",
        ),
        ("page.pth", b"\n<!DOCTYPE html><html>", "is a web page, and no checkpoint"),
        ("page.safetensors", b"<html><head>", "is a web page, and no checkpoint"),
        ("pointer.pth", b"version https://git-lfs.github.com/spec/v1\noid", "is a git-lfs pointer"),
        ("picture.pth", b"\xff\xd8\xff\xe0\x00\x10JFIF", "is a picture"),
        ("empty.pth", b"", "is empty"),
        ("bytes.pth", bytes(range(256)), "is torn, or no checkpoint of torch"),
        ("torn.pth", b"PK\x03\x04 and no more", r"\(PytorchStreamReader failed[^.]*\): it is torn"),
        (
            "text.safetensors",
            b"hello, this is no checkpoint",
            r"\(\S.*\): it is torn, or no safetensors file",
        ),
    ],
)
def test_files_that_are_no_checkpoints(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(tmp_path / name)
    assert "Fetch it again" in str(error.value) and name in str(error.value)
    assert not re.search("weights_only|code|Python", str(error.value))


def test_heads_of_published_models() -> None:
    from visrep.encoders.pretrained.official_vit import HEADS, _heads

    assert _heads({}, 384) == 6 and _heads({}, 1024) == 16
    assert HEADS["MAE or MoCo v3", 384] == 12 and HEADS["MAE or MoCo v3", 1280] == 16


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No folder or file .*timm:NAME, hf:NAME, open_clip:NAME"):
        visrep.load_encoder(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="hf:"):
        visrep.load_encoder(tmp_path)


def test_depth_counts_blocks() -> None:
    assert depth({"blocks.11.norm1.weight": torch.ones(1), "norm.weight": torch.ones(1)}) == 12 and not depth(
        {}
    )
    assert isinstance(TINY.build(), nn.Module)
