"""CrossMAE: loss and gradients of the official model (golden/README_crossmae.md), and what its decoder must not see."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visrep.encoders import ViT
from visrep.method import At, Batch
from visrep.methods.masked import crossmae
from visrep.nn.cross import CrossAttention, CrossBlock
from visrep.views import OneView, View

with np.load(Path(__file__).parent / "golden" / "crossmae.npz") as stored:
    GOLD = {name: torch.from_numpy(stored[name]) for name in stored.files}

GRADIENTS = sorted(name for name in GOLD if name.startswith("grad_"))


@dataclass(frozen=True)
class Noise(At):
    """Hands out stored random numbers."""

    noise: Tensor = field(kw_only=True)

    def rand(self, b: int, *shape: int) -> Tensor:
        assert (b, *shape) == self.noise.shape
        return self.noise


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.double(), rtol=1e-9, atol=1e-9)


def ours(name: str) -> str:
    """Our name of an official parameter."""
    pairs = (
        ("decoder_blocks.", "decoder.blocks."),
        ("dec_norms.", "decoder.norms."),
        ("wfm.linear.", "decoder.mix."),
        ("decoder_norm.", "decoder.norm."),
        ("decoder_pred.", "decoder.predict."),
        ("mask_token", "decoder.mask_token"),
    )
    for theirs, mine in pairs:
        if name.startswith(theirs):
            return name.replace(theirs, mine)
    return f"backbone.{name}"


def split(name: str, value: Tensor) -> dict[str, Tensor]:
    """Keys and values are one layer there and two here, of which the keys have no bias; convolutions are linear."""
    if ".kv." not in name:
        return {ours(name): value.flatten(1) if name == "patch_embed.proj.weight" else value}
    k, v = value.chunk(2)
    halves = {ours(name.replace(".kv.", ".v.")): v}
    return halves | ({ours(name.replace(".kv.", ".k.")): k} if name.endswith("weight") else {})


def official(*, norm_pixels: bool = True, predict_ratio: float = 0.75) -> crossmae.CrossMAE:
    """Our CrossMAE with the stored weights."""
    cfg = crossmae.Config(
        encoder=ViT(image=32, patch=4, width=24, depth=2, heads=4, position="sincos"),
        views=OneView(View(size=32)),
        predict_ratio=predict_ratio,
        norm_pixels=norm_pixels,
        decoder_width=16,
        decoder_depth=3,
        decoder_heads=4,
    )
    method = crossmae.CrossMAE(cfg).double()
    weights: dict[str, Tensor] = {}
    for name, value in GOLD.items():
        if name.startswith("w.") and "pos_embed" not in name:
            weights |= split(name.removeprefix("w."), value)
    missing, unexpected = method.load_state_dict(weights, strict=False)
    assert missing == ["backbone.norm.weight", "backbone.norm.bias"] and not unexpected
    # The official tables are computed in 32 bits, ours in 64, then rounded.
    tables = ((method.backbone.position, "w.pos_embed"), (method.decoder.position, "w.decoder_pos_embed"))
    for table, name in tables:
        assert table is not None
        torch.testing.assert_close(table, GOLD[name][0, 1:].double().view_as(table), rtol=0, atol=2e-7)
        table.copy_(GOLD[name][0, 1:].view_as(table))
    return method


def loss(method: crossmae.CrossMAE) -> Tensor:
    images, box = GOLD["imgs"].double()[None], torch.zeros(1, 3, 4)
    batch = Batch((images,), (box,), (box[..., 0] > 0,), torch.arange(3))
    return method.loss(batch, Noise(0, 1, 1, torch.Generator(), noise=GOLD["noise"])).terms["crossmae"]


@pytest.mark.parametrize("norm_pixels", [False, True])
@pytest.mark.parametrize("predict_ratio", [0.25, 0.75])
def test_loss_is_the_official_one(norm_pixels: bool, predict_ratio: float) -> None:
    found = loss(official(norm_pixels=norm_pixels, predict_ratio=predict_ratio))
    close(found, GOLD[f"loss_normpix{int(norm_pixels)}_kept{predict_ratio}"])


@pytest.mark.parametrize("predict_ratio", [0.25, 0.75])
def test_gradients_are_the_official_ones(predict_ratio: float) -> None:
    method = official(predict_ratio=predict_ratio)
    loss(method).backward()
    prefix = f"grad_normpix1_kept{predict_ratio}."
    names = [name.removeprefix(prefix) for name in GRADIENTS if name.startswith(prefix)]
    assert len(names) == 9
    for name in names:
        for mine, value in split(name, GOLD[prefix + name]).items():
            gradient = method.get_parameter(mine).grad
            assert gradient is not None and value.abs().max() > 1e-6
            close(gradient, value)


def test_a_patch_is_predicted_the_same_whichever_others_are_asked_for() -> None:
    method = official()
    images = GOLD["imgs"].double()
    order = GOLD["noise"].argsort(1)
    keep, asked = order[:, :16], order[:, 16:]
    every = method._predict(images, keep, asked)
    close(method._predict(images, keep, asked[:, 10:20]), every[:, 10:20])
    assert not torch.allclose(method._predict(images, keep[:, :-1], asked), every)


def test_decoder_sees_every_layer() -> None:
    method = official()
    images, order = GOLD["imgs"].double(), GOLD["noise"].argsort(1)
    layers = method.backbone(images, keep=order[:, :16], layers=(0, 1, 2), layer_kind="raw").layers
    before = method.decoder(layers, order[:, 16:])
    for i in range(3):
        assert layers[i].cls is not None
        changed = list(layers)
        changed[i] = replace(layers[i], cls=layers[i].cls + 1.0 * torch.arange(24))
        assert not torch.allclose(method.decoder(tuple(changed), order[:, 16:]), before)


def test_cross_attention_equals_torchs() -> None:
    attention = CrossAttention(12, 3, n_in=8).double()
    theirs = torch.nn.MultiheadAttention(12, 3, kdim=8, vdim=8, batch_first=True).double()
    with torch.no_grad():
        theirs.q_proj_weight.copy_(attention.q.weight)
        theirs.k_proj_weight.copy_(attention.k.weight)
        theirs.v_proj_weight.copy_(attention.v.weight)
        for bias in (attention.q.bias, attention.v.bias, attention.proj.bias):
            bias.normal_()
        theirs.in_proj_bias.copy_(torch.cat([attention.q.bias, torch.ones(12), attention.v.bias]))
        theirs.out_proj.load_state_dict(attention.proj.state_dict())
    x, keys, values = (
        torch.randn(2, 5, 12).double(),
        torch.randn(2, 7, 8).double(),
        torch.randn(2, 7, 8).double(),
    )
    close(attention(x, keys, values), theirs(x, keys, values, need_weights=False)[0])


def test_bad_settings_are_refused() -> None:
    cfg = crossmae.tiny().method
    with pytest.raises(ValueError, match=r"predict_ratio=0.8 .* at most mask_ratio=0.75"):
        crossmae.CrossMAE(replace(cfg, predict_ratio=0.8))
    with pytest.raises(ValueError, match="predict_ratio=0"):
        crossmae.CrossMAE(replace(cfg, predict_ratio=0.0))
    with pytest.raises(ValueError, match="heads=5"):
        CrossBlock(16, 5, n_in=8)


def test_layer_0_is_what_enters_the_first_block() -> None:
    encoder = ViT(image=32, patch=8, width=32, depth=1, heads=2).build()
    images = torch.rand(2, 3, 32, 32)
    before, after = encoder(images, layers=(0, 1), layer_kind="raw").layers
    assert before.cls is not None and encoder.cls_token is not None and after.cls is not None
    assert torch.equal(before.cls, encoder.cls_token[0].expand(2, -1))
    x = torch.cat([before.cls.unsqueeze(1), before.patches], dim=1)
    torch.testing.assert_close(encoder.blocks[0](x)[:, 1:], after.patches)
    with pytest.raises(ValueError, match="layers 1 to 1"):
        encoder(images, layers=(0,))
