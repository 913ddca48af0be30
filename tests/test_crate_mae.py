"""CRATE-MAE: the official forward pass, loss and gradients; the decoder undoes what the encoder did."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from test_golden import GOLDEN, arrays, close, moment
from visrep.encoders import CRATE
from visrep.encoders.pretrained.convert_crate import to_crate
from visrep.functional import patchify
from visrep.method import At, Batch
from visrep.methods.masked import crate_mae
from visrep.methods.masked.crate_mae import CRATEMAE, MirrorDecoder
from visrep.views import OneView

SMALL = replace(crate_mae.BASE, image=16, patch=4, width=24, depth=2, heads=3)
ONE = OneView(replace(crate_mae.PLAIN, size=16))
DECODER = {
    "0.norm": "norm1",
    "0.fn.weight": "decode",
    "1.norm": "norm2",
    "1.fn.qkv": "attn.subspaces",
    "1.fn.to_out.0": "attn.proj",
}


class Given(At):
    """A moment whose random numbers are those of the official run."""

    def rand(self, b: int, *shape: int) -> Tensor:
        return arrays("whitebox.npz", "mae.")["noise"].view(b, *shape)


def method(norm_pixels: bool) -> CRATEMAE:
    """With the official weights."""
    model = CRATEMAE(crate_mae.Config(encoder=SMALL, views=ONE, norm_pixels=norm_pixels)).double()
    weights = {k[6:]: v.double() for k, v in arrays("whitebox.npz").items() if k.startswith("mae.w.")}
    # fixed sines, which are not kept
    backbone = to_crate(weights | {"pos_embed": torch.zeros(1, 17, 24)}, heads=3)
    assert backbone.config == SMALL
    table = arrays("whitebox.npz", "mae.")["table"]  # ours may differ in the last bit of 32
    assert backbone.position is not None
    torch.testing.assert_close(backbone.position[0], table, rtol=0, atol=1e-7)
    model.backbone.get_buffer("position").copy_(table)
    ours = {f"backbone.{name}": x for name, x in backbone.state_dict().items()}
    for name, x in weights.items():
        if name.startswith("decoder_blocks."):
            _, i, _, _, part = name.split(".", 4)
            for old, new in DECODER.items():
                if part.startswith(old):
                    part = part.replace(old, new)
                    break
            ours[f"decoder.blocks.{i}.{part}"] = x
        elif name.startswith(("decoder_norm", "decoder_pred")):
            ours[name.replace("decoder_norm", "decoder.norm").replace("decoder_pred", "decoder.predict")] = x
    model.load_state_dict(ours)
    return model


def batch(images: Tensor) -> Batch:
    boxes, flipped = torch.zeros(1, len(images), 4), torch.zeros(1, len(images), dtype=torch.bool)
    return Batch((images[None],), (boxes,), (flipped,), torch.arange(len(images)))


def given() -> Given:
    at = moment()
    return Given(at.step, at.total, at.steps_per_epoch, at.rng)


@pytest.mark.parametrize("norm_pixels", [False, True], ids=["pixels", "normalised"])
def test_loss_and_gradients(norm_pixels: bool) -> None:
    gold = arrays("whitebox.npz", "mae.")
    model = method(norm_pixels)
    images = gold["images"].double().requires_grad_()
    mask, prediction = model._predict(images, given())
    close(prediction, gold["prediction"])
    close(mask.double().sum(1), torch.full((2,), 12.0, dtype=torch.float64))
    loss = model.loss(batch(images), given()).terms["crate_mae"]
    close(loss, gold["loss_normalised" if norm_pixels else "loss"])
    if not norm_pixels:
        return
    loss.backward()
    assert images.grad is not None
    close(images.grad, gold["grad_images"])
    ours = dict(model.named_parameters())
    for name, theirs in (
        ("backbone.blocks.0.attn.subspaces.weight", "blocks.0.layers.0.0.fn.qkv.weight"),
        ("backbone.blocks.1.ista.dictionary", "blocks.1.layers.0.1.fn.weight"),
        ("decoder.blocks.0.decode", "decoder_blocks.0.layers.0.0.fn.weight"),
        ("decoder.blocks.1.attn.subspaces.weight", "decoder_blocks.1.layers.0.1.fn.qkv.weight"),
        ("decoder.blocks.1.attn.proj.weight", "decoder_blocks.1.layers.0.1.fn.to_out.0.weight"),
        ("decoder.norm.bias", "decoder_norm.bias"),
        ("backbone.mask_token", "mask_token"),
        ("backbone.cls_token", "cls_token"),
    ):
        gradient = ours[name].grad
        assert gradient is not None
        close(gradient, gold[f"grad.{theirs}"])


def test_the_official_mask() -> None:
    with np.load(GOLDEN / "whitebox.npz") as stored:
        expected = torch.from_numpy(stored["mae.mask"])
    images = arrays("whitebox.npz", "mae.")["images"].double()
    mask, _ = method(norm_pixels=True)._predict(images, given())
    assert torch.equal(mask, expected)


def test_the_loss_is_of_hidden_patches_only() -> None:
    images = arrays("whitebox.npz", "mae.")["images"].double()
    target = patchify(images, 4)
    mask = torch.arange(16).expand(2, -1) < 5
    prediction = target.clone()
    prediction[~mask] = 9.0
    assert crate_mae.crate_mae_loss(prediction, target, mask) == 0
    prediction[:, 0] += 2.0
    close(crate_mae.crate_mae_loss(prediction, target, mask), torch.tensor(4 / 5, dtype=torch.float64))


def test_hidden_pixels_change_nothing_but_the_target() -> None:
    model, gold = method(norm_pixels=True), arrays("whitebox.npz", "mae.")
    images = gold["images"].double()
    mask, prediction = model._predict(images, given())
    cover = mask.view(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    _, other = model._predict(torch.where(cover, 3.0, images), given())
    close(other, prediction)


def test_the_decoder_has_as_many_blocks_as_the_encoder() -> None:
    decoder = MirrorDecoder(replace(SMALL, depth=5), 48)
    assert len(decoder.blocks) == 5
    tokens = CRATE(image=16, patch=4, width=24, depth=1, heads=3, registers=2).build()(
        torch.zeros(1, 3, 16, 16)
    )
    assert MirrorDecoder(SMALL, 48)(tokens).shape == (1, 16, 48)
    assert crate_mae.paper().method.encoder.mask_token, "hidden patches need one"
