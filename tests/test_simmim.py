"""SimMIM: the official forward pass, loss, gradients and masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance import Case, doubled, moment, views
from test_golden import GOLDEN, arrays, close
from visrep.encoders import ViT
from visrep.encoders.vit import VisionTransformer
from visrep.functional import displayed, patchify, repainted, unpatchify
from visrep.masking import unit_mask
from visrep.methods.masked import simmim
from visrep.views import OneView, View

CASE = Case("simmim")
TINY = CASE.run.method

with np.load(GOLDEN / "simmim.npz") as stored:
    MASK = torch.from_numpy(stored["mask"]).bool().flatten(1)
    INDEX = torch.from_numpy(stored["rel.index"])
    MASKS = torch.from_numpy(stored["masks_192_32_16"]).bool()


def official(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The published weights under our names, and the relative positions, which we have none of."""
    encoder = {k.removeprefix("encoder."): v.double() for k, v in weights.items() if k.startswith("encoder.")}
    table = encoder.pop("rel_pos_bias.relative_position_bias_table", torch.empty(0))
    if "pos_embed" in encoder:  # ours has no position for the cls token: it is part of the token
        position = encoder.pop("pos_embed")
        encoder["cls_token"] = encoder["cls_token"] + position[:, :1]
        encoder["position"] = position[:, 1:]
    for i in range(2):
        q, v = (encoder.pop(f"blocks.{i}.attn.{name}_bias") for name in ("q", "v"))
        encoder[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
        for j in (1, 2):
            encoder[f"blocks.{i}.ls{j}.gamma"] = encoder.pop(f"blocks.{i}.gamma_{j}")
    encoder["patch_embed.proj.weight"] = encoder["patch_embed.proj.weight"].flatten(1)
    ours = {f"backbone.{k}": v for k, v in encoder.items()}
    # The published head lists a patch's values as (channel, row, column), ours as (row, column, channel).
    for kind in ("weight", "bias"):
        value = weights[f"decoder.0.{kind}"].double().flatten(1 if kind == "weight" else 0)
        ours[f"head.{kind}"] = value.unflatten(0, (3, 16)).transpose(0, 1).flatten(0, 1)
    return ours, table


@pytest.mark.parametrize("positions", ["abs", "rel"])
def test_loss_and_gradients(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = arrays("simmim.npz")
    weights = {
        k.removeprefix(f"{positions}.w."): v for k, v in gold.items() if k.startswith(f"{positions}.w.")
    }
    ours, table = official(weights)
    position = "learned" if positions == "abs" else "rope"
    encoder = ViT(
        image=16, patch=4, width=24, depth=2, heads=2, layer_scale=0.1, mask_token=True, position=position
    )
    method = simmim.SimMIM(simmim.Config(encoder=encoder, views=OneView(View(size=16)), mask_unit=4)).double()
    method.load_state_dict(ours)
    if positions == "rel":  # attention with the published bias in place of our rotation
        bias = table[INDEX.flatten()].view(17, 17, 2).permute(2, 0, 1)
        attend = F.scaled_dot_product_attention
        monkeypatch.setattr(
            "visrep.nn.transformer.F.scaled_dot_product_attention",
            lambda q, k, v: attend(q, k, v, attn_mask=bias),
        )
        monkeypatch.setattr("visrep.nn.positions.Rotary.__call__", lambda self, x: x)

    images = gold["images"].double()
    prediction = method.head(method.backbone(images, mask=MASK).patches)
    if positions == "rel":
        close(unpatchify(prediction, 4, (4, 4)), gold["rel.reconstruction"])
    loss = simmim.simmim_loss(prediction, patchify(images, 4), MASK)
    loss.backward()
    pixels = MASK.sum().item() * 16
    fewer = pixels / (pixels + 1e-5)  # the published code divides by a little more than the number of pixels
    close(loss * fewer, gold[f"{positions}.loss"])
    backbone, gradients = method.backbone, f"{positions}.grad."
    assert isinstance(backbone, VisionTransformer)
    for ours_, theirs in (
        (backbone.mask_token, gold[gradients + "encoder.mask_token"]),
        (backbone.patch_embed.proj.weight, gold[gradients + "encoder.patch_embed.proj.weight"].flatten(1)),
        (
            backbone.get_parameter("blocks.0.attn.qkv.weight"),
            gold[gradients + "encoder.blocks.0.attn.qkv.weight"],
        ),
        (
            method.head.weight,
            gold[gradients + "decoder.0.weight"]
            .flatten(1)
            .unflatten(0, (3, 16))
            .transpose(0, 1)
            .flatten(0, 1),
        ),
    ):
        assert ours_ is not None and ours_.grad is not None
        close(ours_.grad * fewer, theirs)


def test_the_method_uses_mask_and_loss() -> None:
    method, batch = CASE.build().double(), doubled(views(CASE))
    assert isinstance(method, simmim.SimMIM)
    images = batch.crops[0][0]
    mask = unit_mask(moment().rand(16, 4, 4), 0.6, 2)
    reconstruction = unpatchify(method.head(method.backbone(images, mask=mask).patches), 4, (8, 8))
    pixels = mask.unflatten(1, (8, 8)).repeat_interleave(4, 1).repeat_interleave(4, 2).unsqueeze(1)
    expected = ((reconstruction - images).abs() * pixels).sum() / (pixels.sum() * 3)
    close(method.loss(batch, moment()).terms["simmim"], expected)


def test_masks_are_those_of_the_official_generator() -> None:
    ours = unit_mask(torch.rand(4000, 6, 6, generator=torch.Generator().manual_seed(0)), 0.6, 2)
    assert (ours.sum(1) == MASKS[0].sum()).all() and (MASKS.sum((1, 2)) == 22 * 4).all()
    for masks in (ours.unflatten(1, (12, 12)), MASKS):  # whole units of 2 x 2 patches
        units = masks.unflatten(1, (6, 2)).unflatten(3, (6, 2)).transpose(2, 3).flatten(3)
        assert torch.equal(units.any(-1), units.all(-1))
    share = ours.double().mean(0)  # every place as likely
    assert (share - 22 / 36).abs().max() < 4.5 * (22 / 36 * 14 / 36 / 4000) ** 0.5


def test_columns_of_pictures() -> None:
    images, prediction = torch.rand(2, 3, 8, 8), torch.rand(2, 4, 48)
    hidden = torch.tensor([[True, False, False, False], [False, False, True, True]])
    whole, seen, painted = repainted(images, prediction, hidden, 4).unbind(1)
    close(whole, images, 0)
    predicted = unpatchify(prediction, 4, (2, 2))
    assert (seen[0, :, :4, :4] == 0).all() and torch.equal(painted[0, :, :4, :4], predicted[0, :, :4, :4])
    assert torch.equal(seen[0, :, :, 4:], images[0, :, :, 4:]) and torch.equal(
        painted[0, :, 4:], images[0, :, 4:]
    )
    assert (seen[1, :, 4:] == 0).all() and torch.equal(painted[1, :, 4:], predicted[1, :, 4:])
    close(displayed((images - 0.4) / 0.2, (0.4,) * 3, (0.2,) * 3), images, 1e-6)
    assert displayed(5 * images, (0.4,) * 3, (0.2,) * 3).max() <= 1


def test_bad_settings_say_what_to_change() -> None:
    for unit in (6, 24):
        with pytest.raises(ValueError, match="Try mask_unit=4"):
            CASE.fresh(cfg=replace(TINY, mask_unit=unit))
    for ratio, words in ((0.0, "hides 0 of 16 units"), (0.99, "at most 0.938")):
        with pytest.raises(ValueError, match=words):
            CASE.fresh(cfg=replace(TINY, mask_ratio=ratio)).loss(views(CASE), moment())
    with pytest.raises(ValueError, match="mask_token=True"):
        cfg = replace(TINY, encoder=replace(TINY.encoder, mask_token=False))
        CASE.fresh(cfg=cfg).loss(views(CASE), moment())


def test_pixels_told_by_their_surroundings_are_the_official_ones() -> None:
    gold = arrays("simmim.npz")
    mean, deviation = simmim.surroundings(gold["window.images"], 5)
    close((gold["window.images"] - mean) / deviation, gold["window.targets"])
    with pytest.raises(ValueError, match="window=4 has no middle"):
        simmim.SimMIM(replace(TINY, window=4))


def test_pictures_and_loss_of_pixels_told_by_their_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A perfect prediction of the targets costs nothing and paints the image."""
    method, batch = simmim.SimMIM(replace(TINY, window=7)), views(CASE)
    images = batch.crops[0][0]
    mean, deviation = simmim.surroundings(images, 7)
    perfect = patchify((images - mean) / deviation, TINY.encoder.patch)
    mask = torch.ones(perfect.shape[:2], dtype=torch.bool)
    monkeypatch.setattr(method, "_predict", lambda images, at: (mask, perfect))
    assert method.loss(batch, moment()).terms["simmim"] == 0
    (row,) = method.pictures(batch, moment()).values()
    rows = displayed(
        repainted(images, patchify(images, TINY.encoder.patch), mask, 4),
        TINY.views.view.mean,
        TINY.views.view.std,
    )
    torch.testing.assert_close(row, rows)
