"""VideoMAE equals transformers' model: loss, gradients, predictions; its masks are tubes of the official size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance import Case, moment, views
from visrep.encoders import VideoViT
from visrep.encoders.patches import take
from visrep.masking import through_time, tube_split
from visrep.method import At, Batch
from visrep.methods.masked.videomae import PLAIN, Config, VideoMAE, pixel_statistics, tiny
from visrep.views import OneView

GOLDEN = Path(__file__).parent / "golden"
LAYER = {
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
    "norm1": ("layernorm_before",),
    "norm2": ("layernorm_after",),
}
"""our names of the parts of a block: theirs"""


@pytest.fixture(scope="module")
def gold() -> dict[str, Tensor]:
    with np.load(GOLDEN / "videomae.npz") as stored:
        values = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return {name: x.double() if x.is_floating_point() else x for name, x in values.items()}


def named(gold: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Their weights, or gradients, under our names; what they do not have is 0."""
    found: dict[str, Tensor] = {}

    def put(ours: str, theirs: tuple[str, ...], width: int) -> None:
        for kind in ("weight", "bias"):
            parts = [gold.get(f"{prefix}.{part}.{kind}") for part in theirs]
            if any(part is not None for part in parts) or kind == "bias":
                empty = torch.zeros(width, dtype=torch.float64)
                found[f"{ours}.{kind}"] = torch.cat([empty if part is None else part for part in parts])

    put("backbone.patch_embed.proj", ("videomae.embeddings.patch_embeddings.projection",), 24)
    put("backbone.norm", ("videomae.layernorm",), 24)
    put("decoder.embed", ("encoder_to_decoder",), 16)
    put("decoder.norm", ("decoder.norm",), 16)
    put("decoder.predict", ("decoder.head",), 96)
    blocks = [(f"backbone.blocks.{i}", f"videomae.encoder.layer.{i}", 24) for i in range(2)]
    blocks.append(("decoder.blocks.0", "decoder.decoder_layers.0", 16))
    for ours, theirs, width in blocks:
        for part, names in LAYER.items():
            put(f"{ours}.{part}", tuple(f"{theirs}.{name}" for name in names), width)
    found["backbone.patch_embed.proj.weight"] = found["backbone.patch_embed.proj.weight"].flatten(1)
    found["decoder.mask_token"] = gold[f"{prefix}.mask_token"]
    return found


class Given(At):
    """A moment with the masks' noise given."""

    noise = torch.empty(0)

    def rand(self, b: int, *shape: int) -> Tensor:
        assert self.noise.shape == (b, *shape)
        return self.noise


def given(noise: Tensor) -> At:
    at = Given(0, 100, 10, torch.Generator())
    object.__setattr__(at, "noise", noise)
    return at


def batch_of(clips: Tensor) -> Batch:
    empty = torch.zeros(1, len(clips), 4)
    return Batch((clips[None],), (empty,), (empty[..., 0] > 0,), torch.arange(len(clips)))


def method(gold: dict[str, Tensor], *, norm_pixels: bool) -> VideoMAE:
    encoder = VideoViT(frames=4, image=8, patch=4, width=24, depth=2, heads=2, mlp_ratio=2)
    mean, std = (tuple(torch.tensor(x).tolist()) for x in (PLAIN.mean, PLAIN.std))  # theirs have 32 bits
    views = OneView(replace(PLAIN, size=8, mean=mean, std=std), frames=4)
    cfg = Config(
        encoder=encoder,
        views=views,
        mask_ratio=0.75,
        norm_pixels=norm_pixels,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
    )
    made = VideoMAE(cfg).double()
    made.load_state_dict(named(gold, "w"))
    made.decoder.norm.eps = 1e-5  # in transformers; 1e-6 in the official code
    return made


@pytest.mark.parametrize("kind", ["norm", "raw"])
def test_loss_and_gradients(gold: dict[str, Tensor], kind: str):
    videomae = method(gold, norm_pixels=kind == "norm")
    losses = videomae.loss(batch_of(gold["pixel_values"]), given(gold["noise"]))
    loss = losses.terms["videomae"]
    torch.testing.assert_close(loss, gold[f"loss_{kind}"], rtol=1e-9, atol=1e-9)
    loss.backward()
    parameters = dict(videomae.named_parameters())
    if kind == "norm":
        expected = named(gold, "grad_norm")
        assert expected.keys() == parameters.keys()
        del expected["decoder.embed.bias"]  # they have none
        for block in ("backbone.blocks.0", "backbone.blocks.1", "decoder.blocks.0"):
            keys = parameters[f"{block}.attn.qkv.bias"].grad
            assert keys is not None  # a bias of keys changes nothing
            assert keys.chunk(3)[1].abs().max() < 1e-12
    else:
        names = ("decoder.mask_token", "decoder.embed.weight", "backbone.patch_embed.proj.weight")
        theirs = (
            "mask_token",
            "encoder_to_decoder.weight",
            "videomae.embeddings.patch_embeddings.projection.weight",
        )
        expected = {
            name: gold[f"grad_raw.{other}"].reshape(parameters[name].shape)
            for name, other in zip(names, theirs, strict=True)
        }
    for name, value in expected.items():
        grad = parameters[name].grad
        assert grad is not None and value.any(), name
        torch.testing.assert_close(grad, value, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_predictions(gold: dict[str, Tensor]):
    """Of hidden patches, in the order of time and place in which they list them."""
    videomae = method(gold, norm_pixels=True)
    _, hidden, prediction = videomae._predict(gold["pixel_values"], given(gold["noise"]))
    torch.testing.assert_close(take(prediction, hidden.sort(1).values), gold["logits"], rtol=1e-9, atol=1e-9)
    mask = torch.zeros(2, 8, dtype=torch.bool).scatter(1, hidden, True)
    assert torch.equal(mask, gold["bool_masked_pos"])


def test_masks_are_tubes_of_the_official_size(gold: dict[str, Tensor]):
    official = gold["tube_masks_8x14x14_0.9"].view(-1, 8, 196)
    assert (official == official[:, :1]).all()
    keep, hidden = tube_split(torch.rand(500, 196, generator=torch.Generator().manual_seed(0)), 0.9, 8)
    assert hidden.shape == (500, int(official[0].sum())) and keep.shape == (500, int((~official[0]).sum()))
    mask = torch.zeros(500, 8 * 196, dtype=torch.bool).scatter(1, hidden, True).view(-1, 8, 196)
    assert (mask == mask[:, :1]).all() and not mask.flatten(1).gather(1, keep).any()
    share = mask[:, 0].double().mean(0)  # each place as likely
    assert (share - 176 / 196).abs().max() < 5 * (0.9 * 0.1 / 500) ** 0.5
    assert torch.equal(through_time(torch.tensor([[2, 0]]), 3, 2), torch.tensor([[2, 0, 5, 3]]))


def test_impossible_ratios():
    for ratio, hides in ((0.2, "none"), (1.0, "all")):
        with pytest.raises(ValueError, match=f"hides {hides} of 4 places"):
            tube_split(torch.rand(2, 4), ratio, 2)


def test_targets_have_no_mean_and_unit_deviation_in_each_channel():
    pixels = torch.rand(2, 5, 32, 3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 3.0])
    mean, std = pixel_statistics(pixels)
    target = (pixels - mean) / std
    torch.testing.assert_close(target.mean(2), torch.zeros(2, 5, 3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(target.std(2), torch.ones(2, 5, 3).double(), atol=1e-4, rtol=0)


def test_pictures_show_the_clip_and_its_visible_places():
    case = Case("videomae")
    batch = views(case)
    picture = case.build().pictures(batch, moment())["reconstructions"]
    assert picture.shape == (3, 3, 4, 3, 32, 32)
    shown, seen, filled = picture[0]
    view = tiny().method.views.view
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (view.mean, view.std))
    torch.testing.assert_close(shown, batch.crops[0][0][0] * std + mean, atol=1e-5, rtol=0)
    visible = (seen == shown).all(1, keepdim=True)  # of dark pixels too, which look hidden
    assert 0.2 < visible.float().mean() < 0.6
    patches = nn.functional.max_pool2d((seen > 0).any(1, keepdim=True).float(), 8)
    assert patches.mean() == 0.25 and torch.equal(patches, patches[:1].expand_as(patches))
    assert torch.equal(filled.where(seen > 0, seen), seen)
