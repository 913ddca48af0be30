"""Official files beside the code that wrote them: stored outputs, and other libraries under the official names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import visrep
from _extras import joined, randomised
from visrep.cli.pretrain import pretrain
from visrep.encoders import ResNet, ViT
from visrep.encoders.pretrained import load_checkpoint
from visrep.encoders.pretrained.checkpoint import read_checkpoint
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.hf_names import official_names
from visrep.encoders.pretrained.hf_wrapped import HfEncoder
from visrep.encoders.pretrained.official_vit import recognise
from visrep.encoders.resnet import ResidualNetwork
from visrep.encoders.vit import VisionTransformer
from visrep.method import Preprocessing

GOLDEN = Path(__file__).parent / "golden"
SIZES = ("32x32", "48x40")

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name in ("encoders", "official_files"):
        with np.load(GOLDEN / f"{name}.npz") as file:
            found |= dict(file)
    return found


def official(golden: dict[str, np.ndarray], name: str) -> Weights:
    start = f"{name}.w."
    return {
        key.removeprefix(start): torch.from_numpy(x).float()
        for key, x in golden.items()
        if key.startswith(start)
    }


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def pixels(golden: dict[str, np.ndarray], name: str) -> Tensor:
    return torch.from_numpy(golden[name]).float()


def error(ours: Tensor, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours.detach().numpy() - theirs).max())


# stored outputs


@pytest.mark.parametrize(
    ("name", "options", "registers"),
    [
        ("noreg", {}, "x_norm_regtokens"),
        ("dinov2", {}, "x_norm_regtokens"),
        ("swiglu", {"position_offset": 0.1}, "x_norm_regtokens"),
        ("dinov3", {}, "x_storage_tokens"),
    ],
)
def test_before_and_after_the_last_norm_at_two_sizes(
    golden: dict[str, np.ndarray], tmp_path: Path, name: str, options: dict[str, Any], registers: str
) -> None:
    encoder = load_checkpoint(saved(tmp_path, official(golden, name)), heads=4, **options)
    assert isinstance(encoder, VisionTransformer)
    for size in SIZES:
        images = pixels(golden, f"{name}.x_{size}")
        tokens = encoder(images, layers=(2,), layer_kind="raw")
        expected = np.concatenate(
            [
                golden[f"{name}.x_norm_clstoken_{size}"][:, None],
                golden[f"{name}.{registers}_{size}"],
                golden[f"{name}.x_norm_patchtokens_{size}"],
            ],
            axis=1,
        )
        assert error(joined(tokens), expected) < 1e-5
        assert error(joined(tokens.layers[0]), golden[f"{name}.x_prenorm_{size}"]) < 1e-5


def test_dinov2_without_registers(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    """As its trainings save it, with a chunk a block; the second number counts through."""
    weights = prefixed("backbone.", named(official(golden, "noreg"), r"^blocks\.(\d+)\.", r"blocks.\1.\1."))
    path = saved(tmp_path, {"teacher": weights | {"dino_head.mlp.0.weight": torch.zeros(3, 3)}})
    encoder = load_checkpoint(path, heads=4)
    assert isinstance(encoder, VisionTransformer) and encoder.config.position_offset == 0.1
    masks = torch.from_numpy(golden["noreg.masks"])
    masked = encoder(pixels(golden, "noreg.x_32x32"), mask=masks)
    assert error(masked.patches, golden["noreg.masked_x_norm_patchtokens_32x32"]) < 1e-5
    other = load_checkpoint(path, heads=4, position_offset=0.0)
    images = pixels(golden, "noreg.x_48x40")
    assert error(other(images).patches, golden["noreg.x_norm_patchtokens_48x40"]) > 1e-3


def test_how_positions_are_resampled_can_be_said(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = saved(tmp_path, official(golden, "noreg"))
    ways: tuple[tuple[dict[str, Any], float, bool], ...] = (
        ({}, 0.1, True),
        ({"antialias": False}, 0.1, False),
        ({"antialias": True}, 0.0, True),
        ({"position_offset": 0.0, "antialias": False}, 0.0, False),
    )
    for options, offset, antialias in ways:
        config = load_checkpoint(path, heads=4, **options).config
        assert (config.position_offset, config.position_antialias) == (offset, antialias), options
    with pytest.raises(ValueError, match=r"0\.1 is resampled without antialiasing .*Give antialias=False"):
        load_checkpoint(path, heads=4, position_offset=0.1, antialias=True)
    with pytest.raises(ValueError, match=r"rotary, so that position_offset="):
        load_checkpoint(saved(tmp_path, official(golden, "dinov3")), heads=4, antialias=True)
    with pytest.raises(ValueError, match=r"are for vision transformers of images\. Leave them out"):
        load_checkpoint(saved(tmp_path, ResNet(18, width=4).build().state_dict()), position_offset=0.1)


def test_ijepa(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    weights = official(golden, "ijepa")
    others = {name: torch.zeros_like(x) for name, x in weights.items()}
    nests = {
        kind: {f"module.{name}": x for name, x in of.items()}
        for kind, of in (("encoder", others), ("predictor", others), ("target_encoder", weights))
    }
    encoder = load_checkpoint(saved(tmp_path, nests), heads=4)
    assert isinstance(encoder, VisionTransformer) and not encoder.config.cls
    tokens = encoder(pixels(golden, "ijepa.x_32x32"))
    assert error(tokens.patches, golden["ijepa.target_full_32x32"]) < 1e-5


def test_ibot_has_dinos_network_and_a_mask_token(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    weights = official(golden, "dino") | {"masked_embed": torch.ones(1, 48)}
    teacher = {f"backbone.{name}": x for name, x in weights.items()}
    path = saved(tmp_path, {"teacher": teacher | {"head.mlp.0.weight": torch.zeros(3, 3)}, "epoch": 1})
    encoder = load_checkpoint(path, heads=4)
    assert isinstance(encoder, VisionTransformer) and encoder.config.mask_token
    for size in (*SIZES, "24x24"):
        tokens = encoder(pixels(golden, f"dino.x_{size}"), layers=(1,))
        assert error(joined(tokens), golden[f"dino.last_tokens_normed_{size}"]) < 1e-5
        assert error(joined(tokens.layers[0]), golden[f"dino.block1_tokens_normed_{size}"]) < 1e-5


def seeded(state: Weights, depth: int) -> Weights:
    """The weights that the stored maps were made with."""
    rng, weights = np.random.default_rng(depth), Weights()
    for name in sorted(state):
        shape = tuple(state[name].shape)
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
            continue
        x = 0.1 * rng.normal(size=shape)
        if name.endswith("running_var"):
            x = np.abs(x) + 2
        elif len(shape) == 4:
            x = 10 * x * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith("weight"):
            x = x + 1
        weights[name] = torch.from_numpy(np.asarray(x)).float()
    return weights


@pytest.mark.parametrize("depth", [18, 50])
def test_stages_of_torchvisions_resnets(golden: dict[str, np.ndarray], depth: int, tmp_path: Path) -> None:
    """As SwAV and BYOL's ports write them: the network under ``module.``, with heads beside it."""
    weights = seeded(ResNet(depth).build().state_dict(), depth)  # pyright: ignore[reportArgumentType]
    content = {f"module.{name}": x for name, x in weights.items()}
    content |= {"module.projection_head.0.weight": torch.ones(3), "module.prototypes.weight": torch.ones(3)}
    encoder = visrep.load_encoder(saved(tmp_path, {"state_dict": content}))
    assert isinstance(encoder, ResidualNetwork)
    for height, width in ((32, 32), (64, 48)):
        images = np.random.default_rng(height).normal(size=(1, 3, height, width)).astype(np.float32)
        tokens = encoder(torch.from_numpy(images), layers=(1, 2, 3, 4))
        for number, layer in enumerate(tokens.layers, start=1):
            expected = golden[f"resnet{depth}.layer{number}_{height}x{width}"]
            found = layer.patches.mT.unflatten(2, layer.grid)[:, ::16]
            assert error(found, expected) < 1e-4


def test_dinov3s_convnext(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    extra_or_skip("transformers")
    weights = official(golden, "convnext")
    encoder = load_checkpoint(saved(tmp_path, {"teacher": prefixed("backbone.", weights)}))
    assert isinstance(encoder, HfEncoder) and encoder.preprocessing == Preprocessing(224)
    for height, width in ((64, 64), (96, 64)):
        images = np.random.default_rng(height).normal(size=(1, 3, height, width)).astype(np.float32)
        tokens = encoder(torch.from_numpy(images), layers=(1, 2, 3))
        assert error(joined(tokens), golden[f"convnext.tokens_{height}x{width}"]) < 1e-5
        for number, layer in enumerate(tokens.layers, start=1):
            expected = golden[f"convnext.layer{number}_{height}x{width}"]
            assert error(layer.patches, expected) < 1e-5
    for lacking, message in (
        (
            "stages.3.0.gamma",
            r"fit the DINOv3ConvNextModel: \S+3\.layers\.0\.gamma should be \(16,\) and is absent",
        ),
        ("downsample_layers.2.1.bias", r"1 \+ 1 \+ 2 \+ 1 blocks of widths 4, 8, 0, 16: .*four stages"),
    ):
        rest = {name: x for name, x in weights.items() if name != lacking}
        with pytest.raises(ValueError, match=message):
            load_checkpoint(saved(tmp_path, rest))


@pytest.mark.parametrize(
    ("kind", "side", "patch", "size"),
    [("I-JEPA", 28, 16, 448), ("DINO", 24, 16, 384), ("DINOv2", 37, 14, 224), ("DINOv2", 16, 14, 224)],
)
def test_images_have_the_size_of_the_position_table(
    kind: str, side: int, patch: int, size: int, tmp_path: Path
) -> None:
    config = ViT(image=side * patch, patch=patch, width=64, depth=1, heads=1, cls=kind != "I-JEPA")
    v2 = kind == "DINOv2"
    ours = replace(config, mask_token=v2, layer_scale=float(v2)).build()
    path = saved(tmp_path, published(ours))
    assert load_checkpoint(path).preprocessing == Preprocessing(size)
    mean, std = (0.43, 0.411, 0.296), (0.213, 0.156, 0.143)
    said = load_checkpoint(path, size=4 * patch, mean=mean, std=std).preprocessing
    assert said == Preprocessing(4 * patch, mean=mean, std=std)
    with pytest.raises(
        ValueError, match=rf"100 x 100 pixels does not divide into patches of {patch} x {patch}"
    ):
        load_checkpoint(path, size=100)


# other libraries' networks under the official names, all layers at two sizes

SMALL = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 4,
    "dynamic_img_size": True,
}
OF_TIMM: dict[str, tuple[dict[str, Any], Callable[[Weights], Any], dict[str, Any], str]] = {
    "MAE": (
        {},
        lambda w: {
            "model": fixed(w) | {"decoder_pos_embed": torch.ones(3), "mask_token": torch.ones(1, 1, 32)}
        },
        {},
        "MAE or MoCo v3",
    ),
    "MoCo v3": (
        {},
        lambda w: {
            "state_dict": prefixed("module.momentum_encoder.", {})
            | prefixed("module.base_encoder.", fixed(w))
        },
        {},
        "MAE or MoCo v3",
    ),
    "DINO": ({}, lambda w: {"teacher": prefixed("backbone.", w)}, {"position_offset": 0.0}, "DINO or iBOT"),
    "iBOT": (
        {"init_values": 1e-5},
        lambda w: {
            "state_dict": named(w, r"\.ls([12])\.gamma", r".gamma_\1") | {"masked_embed": torch.ones(1, 48)}
        },
        {"position_offset": 0.0},
        "DINO or iBOT",
    ),
    "DINOv2": ({"init_values": 1e-5}, lambda w: mask_token(w), {"position_offset": 0.0}, "DINOv2"),
    "DINOv2 with registers": (
        {"init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True},
        lambda w: (
            mask_token(named(w, "^reg_token$", "register_tokens")) | {"pos_embed": with_cls(w["pos_embed"])}
        ),
        {},
        "DINOv2",
    ),
    "I-JEPA": (
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        lambda w: {"target_encoder": prefixed("module.", w)},
        {},
        "I-JEPA",
    ),
}


def prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: x for name, x in weights.items()}


def named(weights: Weights, old: str, new: str) -> Weights:
    return {re.sub(old, new, name): x for name, x in weights.items()}


def fixed(weights: Weights) -> Weights:
    """With a position table that leaves the cls token out, as fixed ones do."""
    return weights | {"pos_embed": weights["pos_embed"].index_fill(1, torch.tensor(0), 0.0)}


def with_cls(table: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)


def mask_token(weights: Weights) -> Weights:
    return weights | {"mask_token": torch.ones(1, 48)}


@torch.no_grad()
def all_layers(own: Any, blocks: Any, images: Tensor, norm: Any) -> list[Tensor]:
    """What each block gives, through the last norm, as hooks see it."""
    states: list[Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda _m, _x, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in blocks
    ]
    own(images)
    for hook in hooks:
        hook.remove()
    return [norm(state) for state in states]


def agree(encoder: Any, own: Any, blocks: Any, norm: Any) -> None:
    assert isinstance(encoder, VisionTransformer) and encoder.depth == len(blocks)
    for height, width in ((32, 32), (48, 40)):
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            tokens = encoder(images, layers=tuple(range(1, encoder.depth + 1)))
        for layer, expected in zip(tokens.layers, all_layers(own, blocks, images, norm), strict=True):
            assert error(joined(layer), expected.numpy()) < 1e-5


@pytest.mark.parametrize("name", OF_TIMM)
def test_timms_network_under_official_names(name: str, tmp_path: Path) -> None:
    timm = extra_or_skip("timm")
    config, content, options, kind = OF_TIMM[name]
    own: Any = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL, **config))
    weights = own.state_dict()
    if kind == "MAE or MoCo v3":
        own.load_state_dict(fixed(weights))
    path = saved(tmp_path, content(weights))
    assert recognise(read_checkpoint(path)) == kind
    agree(load_checkpoint(path, heads=4, **options), own, own.blocks, own.norm)


@pytest.mark.parametrize("gated", [False, True])
def test_transformers_dinov3_under_official_names(gated: bool, tmp_path: Path) -> None:
    transformers = extra_or_skip("transformers")
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.DINOv3ViTConfig(
        **sizes, image_size=32, patch_size=8, num_register_tokens=3, key_bias=True
    )
    config.use_gated_mlp, config.hidden_act = gated, "silu" if gated else "gelu"
    own: Any = randomised(transformers.DINOv3ViTModel(config))
    weights = named(fused(official_names(own.state_dict()), 3), "^register_tokens$", "storage_tokens")
    weights |= {"mask_token": weights["mask_token"].reshape(1, 48)}
    encoder = load_checkpoint(saved(tmp_path, weights), heads=4)
    agree(encoder, own, own.model.layer, own.norm)


def fused(weights: Weights, depth: int) -> Weights:
    """Queries, keys and values as one matrix, as the official code has them."""
    weights = dict(weights)
    for i in range(depth):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"blocks.{i}.attn.{part}.{kind}") for part in "qkv"]
            weights[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    return weights


# the whole way


def published(encoder: VisionTransformer) -> Weights:
    """Weights of ours by official names."""
    weights, patch, width = dict(encoder.state_dict()), encoder.config.patch, encoder.config.width
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].unflatten(1, (3, patch, patch))
    cls = torch.full((1, int(encoder.config.cls), width), 0.1)
    weights["pos_embed"] = torch.cat([cls, weights.pop("position")], dim=1)
    if encoder.config.mask_token:
        weights["mask_token"] = weights["mask_token"][0]
    return weights


def tiny_file(folder: Path) -> Path:
    """A file like ``dinov2_vits14_pretrain.pth``, of 64 channels, so that the number of heads is known."""
    torch.manual_seed(0)
    encoder = ViT(image=28, patch=14, width=64, depth=2, heads=1, mask_token=True, layer_scale=1.0).build()
    weights = published(encoder)
    assert recognise(weights) == "DINOv2"
    torch.save(weights, folder / "dinov2_tiny.pth")
    return folder / "dinov2_tiny.pth"


def test_dinov2_goes_on_from_an_official_file(tmp_path: Path) -> None:
    """README: ``visrep pretrain dinov2 --init dinov2_vits14_pretrain.pth --data photos/``."""
    goes_on(tmp_path, str(tiny_file(tmp_path)), "--adapt.size", "28")


def goes_on(folder: Path, init: str, *flags: str, method: str = "dinov2") -> None:
    """Pretrain from ``init`` on the command line; the encoder is that of the weights, and has moved."""
    arguments = [
        f"{method}:tiny",
        "--init",
        init,
        "--data",
        "playground:n=40,size=32",
        "--out",
        str(folder / "run"),
    ]
    pretrain([*arguments, "--epochs", "1", "--monitor-images", "40", "--precision", "32-true", *flags])
    source, trained = visrep.load_encoder(init), visrep.load_encoder(folder / "run")
    assert isinstance(source, VisionTransformer) and isinstance(trained, VisionTransformer)
    before, after = source.state_dict(), trained.state_dict()
    shapes = {name: x.shape for name, x in after.items() if name in before}
    assert shapes == {name: x.shape for name, x in before.items()}
    assert trained.preprocessing.mean == source.preprocessing.mean
    moved = [float((after[name] - x).abs().max()) for name, x in before.items()]
    assert 0 < max(moved) < 0.1, "it goes on from the weights"


def test_dinov2_goes_on_from_a_folder_of_transformers(tmp_path: Path) -> None:
    transformers = extra_or_skip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = transformers.Dinov2Config(**sizes, image_size=32, patch_size=8)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    goes_on(tmp_path, f"hf:{tmp_path / 'dinov2'}")


def test_dinov2_goes_on_from_a_model_of_timm(tmp_path: Path) -> None:
    timm = extra_or_skip("timm")
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 0}
    timm.models.save_for_hf(
        timm.create_model("vit_tiny_patch16_224", **small), tmp_path / "vit", model_args=small
    )
    goes_on(tmp_path, f"timm:local-dir:{tmp_path / 'vit'}")


def test_dinov3_goes_on_from_timms_dinov3(tmp_path: Path) -> None:
    timm = extra_or_skip("timm")
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 0}
    own = timm.create_model("vit_small_patch16_dinov3", **small)
    timm.models.save_for_hf(own, tmp_path / "vit", model_args=small)
    goes_on(tmp_path, f"timm:local-dir:{tmp_path / 'vit'}", "--adapt.size", "32", method="dinov3")


def extra_or_skip(package: str) -> ModuleType:
    """An optional package; without it only this test is skipped."""
    try:
        return extra(package)
    except ImportError as error:
        pytest.skip(str(error))
