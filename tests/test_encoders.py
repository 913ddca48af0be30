"""Encoders against published code, against each other, and on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from _extras import needs
from visrep.encoders import NAMED, ResNet, Swin, ViT, load_encoder, save_encoder
from visrep.encoders.checks import check_choice, check_images, check_keep
from visrep.encoders.vit import VisionTransformer
from visrep.method import Encoder, Preprocessing, Tokens
from visrep.nn.positions import resample, rotary_2d, sincos_2d
from visrep.nn.transformer import Block, DropPath

GOLDEN = Path(__file__).parent / "golden"
SMALL = ViT(image=32, patch=8, width=48, depth=2, heads=4, mlp_ratio=2.0)
VARIANTS = {
    "learned": SMALL,
    "rope": replace(SMALL, position="rope", registers=3, mask_token=True, layer_scale=0.1),
    "sincos": replace(SMALL, position="sincos", cls=False, mlp="swiglu", mask_token=True, qkv_bias=False),
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "encoders.npz") as file:
        return dict(file)


@pytest.fixture(params=VARIANTS.values(), ids=list(VARIANTS))
def vit(request: pytest.FixtureRequest) -> VisionTransformer:
    torch.manual_seed(0)
    return request.param.build().double().eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def joined(tokens: Tokens) -> Tensor:
    """All tokens in the order of the official code."""
    front = [] if tokens.cls is None else [tokens.cls.unsqueeze(1)]
    front += [] if tokens.registers is None else [tokens.registers]
    return torch.cat([*front, tokens.patches], dim=1)


def official(config: ViT, arrays: dict[str, np.ndarray], prefix: str) -> VisionTransformer:
    """A network with the weights of an official ViT, in float64.

    Ours has a linear patch embedding, and the cls token's row of the position table is part of the token.
    """
    weights = {
        name.removeprefix(f"{prefix}.w."): torch.from_numpy(array).double()
        for name, array in arrays.items()
        if name.startswith(f"{prefix}.w.")
    }
    weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].flatten(1)
    if "pos_embed" in weights:
        positions = weights.pop("pos_embed")
        weights["cls_token"] = weights["cls_token"] + positions[:, :1]
        if config.position == "learned":
            weights["position"] = positions[:, 1:]
    if "storage_tokens" in weights:
        weights["register_tokens"] = weights.pop("storage_tokens")
    if "mask_token" in weights:
        weights["mask_token"] = weights["mask_token"].unsqueeze(0)
    encoder = config.build().double().eval()
    encoder.load_state_dict(weights)
    return encoder


# Published vision transformers


@pytest.mark.parametrize("size", ["32x32", "48x40", "24x24"])
def test_vit_equals_dino(golden: dict[str, np.ndarray], size: str) -> None:
    encoder = official(replace(SMALL, position_offset=0.1), golden, "dino")
    pixels = torch.from_numpy(golden[f"dino.x_{size}"])
    tokens = encoder(pixels, layers=(2, 1), attention=True)
    last, first = tokens.layers
    assert tokens.attention is not None
    for ours, name in (
        (joined(tokens), "last_tokens_normed"),
        (joined(last), "last_tokens_normed"),
        (joined(first), "block1_tokens_normed"),
        (tokens.attention[-1], "last_attention"),
        (joined(encoder(pixels)), "last_tokens_normed"),  # without maps: another code path
    ):
        theirs = torch.from_numpy(golden[f"dino.{name}_{size}"])
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_vit_equals_the_encoder_of_mae(golden: dict[str, np.ndarray]) -> None:
    table = torch.from_numpy(golden["mae.w.pos_embed"])
    assert torch.equal(sincos_2d((8, 8), 48), table[0, 1:])

    with np.load(GOLDEN / "mae.npz") as file:
        names = ("w.cls", "w.patch", "w.blocks", "w.norm")
        mae = {f"mae.{name}": file[name] for name in file.files if name.startswith(names)}
        pixels, noise = torch.from_numpy(file["imgs"]), torch.from_numpy(file["noise"])
    encoder = official(ViT(image=32, patch=4, width=48, depth=2, heads=4, position="sincos"), mae, "mae")
    tokens = encoder(pixels, keep=noise.argsort(dim=1)[:, :16])
    torch.testing.assert_close(joined(tokens), torch.from_numpy(golden["mae.latent"]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "config", "sizes", "registers"),
    [
        ("dinov2", replace(SMALL, registers=4), ["32x32", "48x40"], "x_norm_regtokens"),
        ("swiglu", replace(SMALL, registers=2, mlp="swiglu"), ["32x32"], "x_norm_regtokens"),
        ("dinov3", replace(SMALL, registers=3, position="rope"), ["32x32", "48x40"], "x_storage_tokens"),
    ],
)
def test_vit_equals_dinov2_and_dinov3(
    golden: dict[str, np.ndarray], name: str, config: ViT, sizes: list[str], registers: str
) -> None:
    encoder = official(replace(config, mask_token=True, layer_scale=0.5), golden, name)
    if name == "dinov3":
        for norm in (m for m in encoder.modules() if isinstance(m, torch.nn.LayerNorm)):
            norm.eps = 1e-5

    def check(tokens: Tokens, theirs: str, size: str) -> None:
        for ours, kind in ((tokens.cls, "clstoken"), (tokens.patches, "patchtokens")):
            expected = torch.from_numpy(golden[f"{name}.{theirs}_{kind}_{size}"]).double()
            torch.testing.assert_close(ours, expected, rtol=2e-6, atol=2e-6)

    for size in sizes:
        tokens = encoder(torch.from_numpy(golden[f"{name}.x_{size}"]).double())
        check(tokens, "x_norm", size)
        expected = torch.from_numpy(golden[f"{name}.{registers}_{size}"]).double()
        torch.testing.assert_close(tokens.registers, expected, rtol=2e-6, atol=2e-6)
    mask = torch.from_numpy(golden[f"{name}.masks_in" if name == "dinov3" else f"{name}.masks"])
    check(encoder(torch.from_numpy(golden[f"{name}.x_32x32"]).double(), mask=mask), "masked_x_norm", "32x32")


def test_rotary_equals_dinov3(golden: dict[str, np.ndarray]) -> None:
    rotary = rotary_2d((7, 5), 32, dtype=torch.float64)
    queries = torch.from_numpy(golden["rope.q"])
    for ours, name in ((rotary.sin, "sin"), (rotary.cos, "cos"), (rotary(queries), "q_rotated")):
        torch.testing.assert_close(ours, torch.from_numpy(golden[f"rope.{name}"]), rtol=1e-9, atol=1e-9)


# torchvision's residual networks


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_resnet_equals_torchvision(golden: dict[str, np.ndarray], depth: int) -> None:
    rng = np.random.default_rng(depth)
    weights: dict[str, Tensor] = {}
    for name, text in zip(golden[f"resnet{depth}.names"], golden[f"resnet{depth}.shapes"], strict=True):
        shape = tuple(int(n) for n in str(text).split(",") if n)
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(0)
            continue
        noise = rng.standard_normal(shape)
        if len(shape) == 4:
            noise *= np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("weight", "running_var")):
            noise = 1 + 0.1 * np.abs(noise)
        else:
            noise *= 0.1
        weights[str(name)] = torch.from_numpy(noise)
    pixels = torch.from_numpy(rng.standard_normal((2, 3, 38, 32)))

    encoder = ResNet(depth).build().double()  # pyright: ignore[reportArgumentType] - parametrised literal
    encoder.load_state_dict(weights)
    with torch.no_grad():
        for mode in ("eval", "train"):
            pooled = encoder.train(mode == "train")(pixels).pool()
            expected = torch.from_numpy(golden[f"resnet{depth}.{mode}"])
            torch.testing.assert_close(pooled, expected, rtol=1e-9, atol=1e-9)
    moved = encoder.state_dict()[f"layer4.{2 if depth > 18 else 1}.bn2.running_mean"]
    torch.testing.assert_close(moved, torch.from_numpy(golden[f"resnet{depth}.running_mean"]))


def test_resnet_stages_are_layers() -> None:
    encoder = replace(NAMED["resnet_narrow"]).build()
    tokens = encoder(images(2, 3, 32, 24).float(), layers=(4, 1))
    assert tokens.grid == (4, 3) and tokens.patches.shape == (2, 12, encoder.width)
    assert torch.equal(tokens.layers[0].patches, tokens.patches)
    assert tokens.layers[1].grid == (32, 24) and tokens.layers[1].patches.shape == (2, 32 * 24, 16)
    # row by row, as in every encoder
    one = torch.zeros(1, 3, 32, 24)
    one[..., :8, -8:] = 1
    moved = (encoder.eval()(one).patches - encoder(torch.zeros_like(one)).patches).abs().sum(-1)[0]
    assert moved[2] > moved[-3]


def test_zero_init_makes_residual_blocks_the_identity() -> None:
    x = images(2, 16, 8, 8).float().relu()
    for zero in (True, False):
        encoder = ResNet(18, width=16, stem="small", zero_init_residual=zero).build()
        assert torch.equal(encoder.layer1(x), x) is zero


@pytest.mark.parametrize(
    "asked", [{"keep": torch.zeros(1, 1).long()}, {"mask": torch.ones(1, 1) > 0}, {"attention": True}]
)
def test_resnet_says_what_it_cannot_do(asked: dict[str, Tensor | bool]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(asked))}=.*Use a ViT"):
        NAMED["resnet_narrow"].build()(torch.zeros(1, 3, 32, 32), **asked)
    with pytest.raises(ValueError, match=r"A ConvNet cannot do .*Use a ViT"):
        NAMED["convnet_narrow"].build()(torch.zeros(1, 3, 32, 32), **asked)


# What must hold for any vision transformer


def test_keeping_all_patches_is_keeping_none_back(vit: VisionTransformer) -> None:
    pixels = images(2, 3, 32, 40)
    full = vit(pixels)
    order = torch.stack([torch.randperm(20), torch.arange(20)])
    kept = vit(pixels, keep=order)
    shuffled = full.patches.gather(1, order.unsqueeze(-1).expand_as(full.patches))
    torch.testing.assert_close(kept.patches, shuffled)
    torch.testing.assert_close(kept.pool(), full.pool())
    assert kept.grid == full.grid == (4, 5)


def test_patches_left_out_have_no_influence(vit: VisionTransformer) -> None:
    pixels = images(2, 3, 32, 32)
    keep = torch.tensor([[0, 5, 3], [15, 2, 1]])
    changed = torch.full_like(pixels, 7.0)
    for row, kept in enumerate(keep):
        for patch in kept.tolist():
            y, x = 8 * (patch // 4), 8 * (patch % 4)
            changed[row, :, y : y + 8, x : x + 8] = pixels[row, :, y : y + 8, x : x + 8]
    assert torch.equal(vit(pixels, keep=keep).patches, vit(changed, keep=keep).patches)
    assert vit(pixels, keep=keep, attention=True).attention.shape[-1] == 3 + joined(vit(pixels)).shape[1] - 16


@pytest.mark.parametrize("name", ["rope", "sincos"])
def test_masked_patches_are_hidden_but_keep_their_place(name: str) -> None:
    encoder = VARIANTS[name].build().double().eval()
    pixels, mask = images(2, 3, 32, 32), torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 5:9] = True
    changed = pixels.clone()
    changed[:, :, 8:16, 8:] = 7.0  # patches 5, 6, 7
    assert torch.equal(encoder(pixels, mask=mask).patches, encoder(changed, mask=mask).patches)
    assert not torch.allclose(
        encoder(pixels, mask=mask).patches[:, 5], encoder(pixels, mask=mask).patches[:, 6]
    )
    order = torch.arange(15, -1, -1).expand(2, -1)
    torch.testing.assert_close(
        encoder(pixels, mask=mask, keep=order).patches, encoder(pixels, mask=mask).patches.flip(1)
    )


def test_attention_is_a_distribution_and_changes_nothing(vit: VisionTransformer) -> None:
    pixels = images(2, 3, 32, 32)
    plain, tokens = vit(pixels), vit(pixels, attention=True)
    n = joined(plain).shape[1]
    assert plain.attention is None and tokens.attention is not None
    assert tokens.attention.shape == (2, 2, 4, n, n)
    torch.testing.assert_close(tokens.attention.sum(-1), torch.ones(2, 2, 4, n, dtype=torch.float64))
    assert tokens.attention.min() >= 0
    torch.testing.assert_close(joined(tokens), joined(plain))


def test_tokens_of_each_kind(vit: VisionTransformer) -> None:
    tokens = vit(images(2, 3, 24, 40), layers=(1, 2))
    config = vit.config
    assert tokens.patches.shape == (2, 15, 48) and tokens.grid == (3, 5)
    assert (tokens.cls is not None) == config.cls
    assert (0 if tokens.registers is None else tokens.registers.shape[1]) == config.registers
    assert torch.equal(tokens.layers[1].patches, tokens.patches)
    assert not torch.equal(tokens.layers[0].patches, tokens.patches)


@pytest.mark.parametrize(
    "config",
    [*VARIANTS.values(), NAMED["resnet_narrow"], NAMED["convnet_narrow"]],
    ids=[*VARIANTS, "resnet", "convnet"],
)
def test_every_parameter_gets_a_gradient(config: ViT | ResNet) -> None:
    encoder = config.build().train()
    masked = isinstance(config, ViT) and config.mask_token
    tokens = encoder(images(4, 3, 32, 32).float(), mask=torch.rand(4, 16) < 0.5 if masked else None)
    joined(tokens).square().sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None, name
        assert p.grad.stride() == p.stride(), name  # or distributed training warns


def test_flipping_columns_turns_only_column_angles() -> None:
    rotary = rotary_2d((3, 4), 8)
    angles = torch.atan2(rotary.sin, rotary.cos).unflatten(0, (3, 4))
    flipped = angles.flip(1)
    assert torch.equal(flipped[..., :2], angles[..., :2])  # rows
    torch.testing.assert_close(flipped[..., 2:4].sin(), -angles[..., 2:4].sin())  # columns


def test_sincos_of_another_grid_are_the_same_functions() -> None:
    coarse, fine = sincos_2d((4, 4), 32), sincos_2d((12, 4), 32, trained=(4, 4))
    centres = fine.unflatten(0, (12, 4))[1::3]  # the middle one of three fine rows lies on a coarse row
    torch.testing.assert_close(centres.flatten(0, 1), coarse)


def test_resampled_positions_are_smooth_and_trainable() -> None:
    ramp = torch.arange(8.0).repeat(8, 1).reshape(1, 64, 1).requires_grad_()
    finer = resample(ramp, (8, 8), (8, 16))
    inner = finer.unflatten(1, (8, 16))[0, 3, 4:12, 0]
    torch.testing.assert_close(inner.diff(), torch.full((7,), 0.5))
    finer.sum().backward()
    assert ramp.grad is not None and ramp.grad.sum() == pytest.approx(128)


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    dropped = drop(x).flatten(1)  # images, all values of one
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    rates = [block.drop_path.rate for block in replace(SMALL, depth=3, drop_path=0.2).build().blocks]  # pyright: ignore
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_blocks_start_as_in_dino() -> None:
    torch.manual_seed(0)
    block = Block(64, 4)
    for name, p in block.named_parameters():
        if name.endswith("bias"):
            assert p.eq(0).all()
        elif "norm" not in name:
            assert p.std().item() == pytest.approx(0.02, rel=0.1)


# Errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ViT(image=30, patch=8), "30 x 30 pixels does not divide.*8 x 8.*nearest.*32 x 32"),
        (lambda: ViT(width=50, heads=4), "need a width that is a multiple of 4, got width=50"),
        (lambda: ViT(width=24, heads=4, position="rope"), "multiple of 16, got width=24"),
        (lambda: check_choice("mlp", "relu", ("gelu", "swiglu")), "mlp='relu' .* one of 'gelu', 'swiglu'"),
        (lambda: ViT(position="sincos", position_offset=0.1), "position_offset=0.1 has no effect"),
        (
            lambda: SMALL.build()(torch.zeros(1, 3, 30, 45)),
            "30 x 45 pixels .* nearest size that does is 32 x 48",
        ),
        (lambda: SMALL.build()(torch.zeros(1, 3, 4, 8)), "4 x 8 pixels .* 8 x 8"),
        (lambda: SMALL.build()(torch.zeros(1, 1, 32, 32)), r"3 channels, got shape \(1, 1, 32, 32\)"),
        (lambda: check_images(torch.zeros(2, 1, 3, 32, 32), 3), "Join views"),
        (lambda: SMALL.build()(torch.zeros(1, 3, 32, 32), layers=(1, 3)), "layer 3; .* layers 1 to 2"),
        (lambda: SMALL.build()(torch.zeros(1, 3, 32, 32), mask=torch.ones(1, 16) > 0), "mask_token=True"),
        (
            lambda: VARIANTS["rope"].build()(torch.zeros(2, 3, 32, 32), mask=torch.ones(2, 9) > 0),
            r"shape \(2, 9\).*4 x 4 .*need \(2, 16\)",
        ),
        (lambda: check_keep(torch.zeros(1, 4), 2), r"shape \(1, 4\); 2 images need \(2, patches to keep\)"),
    ],
)
def test_errors_say_what_to_change(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: ViT(position="rotary"),  # pyright: ignore[reportArgumentType]
        lambda: ViT(mlp="relu"),  # pyright: ignore[reportArgumentType]
        lambda: ResNet(101),  # pyright: ignore[reportArgumentType]
        lambda: ResNet(stem="cifar"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_unknown_choices_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError)):  # TypeError when annotations are executed
        build()


# On disk


@pytest.mark.parametrize("name", ["vit_narrow", "resnet_narrow"])
def test_saved_encoder_comes_back_whole(tmp_path: Path, name: str) -> None:
    encoder = NAMED[name].build()
    encoder(images(8, 3, 32, 32).float())  # moves BatchNorm statistics
    encoder.preprocessing = Preprocessing(48, ratio=0.9, mean=(0.5, 0.4, 0.3))
    save_encoder(tmp_path / "new" / "folder", encoder)
    back = load_encoder(str(tmp_path / "new" / "folder"))
    assert type(back) is type(encoder) and back.config == encoder.config and not back.training
    assert back.preprocessing == encoder.preprocessing
    pixels = images(2, 3, 32, 32).float()
    assert torch.equal(back(pixels).pool(), encoder.eval()(pixels).pool())
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "encoder.json",
        "encoder.safetensors",
    ]


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No folder"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"encoder\.safetensors and no encoder\.json. Is it a run folder"
    ):
        load_encoder(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has not saved an encoder yet"):
        load_encoder(tmp_path)

    save_encoder(tmp_path, SMALL.build())
    description = tmp_path / "encoder.json"
    text = description.read_text()
    deeper, wider = (
        {**json.loads(text)["config"], **change} for change in ({"depth": 3}, {"mlp_ratio": 3.0})
    )
    for config, wrong in (
        (deeper, r"12 weights.*'blocks\.2\.attn\.proj\.bias'.*found none"),
        (wider, r"\(144,\), found \(96,\)"),
    ):
        description.write_text(json.dumps({**json.loads(text), "config": config}))
        with pytest.raises(ValueError, match=wrong):
            load_encoder(tmp_path)
    description.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(ValueError, match=r"has format 99; .* reads format 1"):
        load_encoder(tmp_path)
    description.write_text(text)
    weights = tmp_path / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        load_encoder(tmp_path)


# Names


@pytest.mark.parametrize("name", NAMED)
def test_named_encoders_state_what_they_are(name: str) -> None:
    if isinstance(NAMED[name], Swin):
        needs("timm")
    with torch.device("meta"):
        encoder: Encoder = NAMED[name].build()
        size = encoder.preprocessing.size
        tokens = encoder(torch.zeros(2, 3, size, size), layers=(1, encoder.depth))
    side = size // encoder.stride
    assert tokens.grid == (side, side) and tokens.patches.shape == (2, side * side, encoder.width)
    assert encoder.config == NAMED[name]


def test_parameter_counts_are_those_of_the_papers() -> None:
    def count(name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in NAMED[name].build().parameters())

    assert count("vit_small") == 21_665_664 - 384  # DINO's, but for the position of the cls token
    assert count("vit_base") == 85_798_656 - 768
    assert count("resnet50") == 23_508_032
    assert count("resnet18") == 11_176_512
