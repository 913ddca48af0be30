"""CAE: both losses and gradients of the official network (golden/README_cae.md), its masks, what its parts may see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conformance import tiny_run
from visrep.encoders import ViT
from visrep.method import At, Batch
from visrep.methods.masked import cae
from visrep.views import OneView, View

with np.load(Path(__file__).parent / "golden" / "cae.npz") as stored:
    GOLD = {name: torch.from_numpy(stored[name]) for name in stored.files}


def moment(step: int = 0) -> At:
    return At(step, 100, 10, torch.Generator().manual_seed(step))


def close(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, expected.double(), rtol=1e-9, atol=1e-9)


def ours(name: str) -> str:
    """Our name of an official parameter."""
    for theirs, mine in (
        ("regresser.regressor_blocks.", "regressor."),
        ("decoder.decoder_blocks.", "decoder."),
        ("regresser.norm.", "regressor_norm."),
        ("decoder.norm.", "decoder_norm."),
        ("decoder.head.", "head."),
        ("encoder.", "backbone."),
        ("norm1_", "norm_"),
        ("norm2_cross.", "norm."),
        ("mlp_cross.", "mlp."),
        ("gamma_1_cross", "ls1.gamma"),
        ("gamma_2_cross", "ls2.gamma"),
        ("gamma_1", "ls1.gamma"),
        ("gamma_2", "ls2.gamma"),
        ("attn.q_bias", "attn.qkv.bias"),
    ):
        name = name.replace(theirs, mine)
    return name.replace("cross_attn.qkv.bias", "cross_attn.q.bias").replace(
        "cross_attn.v_bias", "cross_attn.v.bias"
    )


def weights() -> dict[str, Tensor]:
    found = {name.removeprefix("w."): value for name, value in GOLD.items() if name.startswith("w.")}
    renamed: dict[str, Tensor] = {}
    for name, value in found.items():
        if (
            "pos_embed" in name
            or name.endswith("norm1_k.bias")
            or (name.endswith("v_bias") and "cross" not in name)
        ):
            continue
        if (
            name.endswith("q_bias") and "cross" not in name
        ):  # self-attention has one bias here, without effect on keys
            value = torch.cat([value, torch.zeros_like(value), found[name.replace("q_bias", "v_bias")]])
        renamed[ours(name)] = value.flatten(1) if name.endswith("patch_embed.proj.weight") else value
    return renamed


def official(monkeypatch: pytest.MonkeyPatch) -> cae.CAE:
    """Our CAE with the stored weights, masks and tokens."""
    cfg = cae.Config(
        tokenizer=tiny_run("dvae"),
        encoder=ViT(image=32, patch=4, width=24, depth=2, heads=4, position="sincos", layer_scale=0.1),
        views=OneView(View(size=32)),
        regressor_depth=2,
        decoder_depth=2,
    )
    method = cae.CAE(cfg).double()
    missing, unexpected = method.load_state_dict(weights(), strict=False)
    assert all(name.startswith("tokenizer.") for name in missing) and not unexpected
    # The official table has rows and columns the other way round.
    table = GOLD["w.encoder.pos_embed"][0, 1:].double()
    assert method.backbone.position is not None
    torch.testing.assert_close(method.position, table.roll(12, dims=1), rtol=0, atol=2e-6)
    method.position.copy_(table)
    method.backbone.position.copy_(table[None])
    monkeypatch.setattr(method, "_mask", lambda b, at: GOLD["mask"])
    monkeypatch.setattr(method, "_tokens", lambda images: GOLD["tokens"].long())
    return method


def batch(images: Tensor) -> Batch:
    box = torch.zeros(1, len(images), 4)
    return Batch((images[None],), (box,), (box[..., 0] > 0,), torch.arange(len(images)))


def test_losses_and_gradients_are_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    method = official(monkeypatch)
    terms = method.loss(batch(GOLD["imgs"].double()), moment()).terms
    sum(terms.values(), torch.zeros(())).backward()
    close(terms["tokens"], GOLD["loss_tokens"])
    close(terms["alignment"], GOLD["loss_alignment"])
    stored = {name.removeprefix("grad."): value for name, value in GOLD.items() if name.startswith("grad.")}
    assert len(stored) == 12
    for name, value in stored.items():
        mine = method.get_parameter(ours(name)).grad
        assert mine is not None and value.abs().max() > 1e-6
        close(mine.view_as(value), value)


def test_the_target_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    method = official(monkeypatch)
    images = GOLD["imgs"].double()
    pixels = images.clone().requires_grad_()
    sum(method.loss(batch(pixels), moment()).terms.values(), torch.zeros(())).backward()
    assert pixels.grad is not None
    touched = pixels.grad.unfold(2, 4, 4).unfold(3, 4, 4).abs().sum((1, 4, 5)).flatten(1) > 0
    assert torch.equal(touched, ~GOLD["mask"])  # visible patches only


def test_the_decoder_sees_latents_of_hidden_patches_only(monkeypatch: pytest.MonkeyPatch) -> None:
    method = official(monkeypatch)
    images, mask = GOLD["imgs"].double(), GOLD["mask"]
    z, logits = method._predict(images, mask)
    x = z + method.position.expand(3, -1, -1)[mask].view(3, 32, 24)
    for block in method.decoder:
        x = block(x)
    close(method.head(method.decoder_norm(x)), logits)


def test_masks_hide_as_much_everywhere_and_nearly_as_the_official_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = replace(
        cae.tiny().method,
        tokenizer=tiny_run("dvae"),
        encoder=ViT(image=56, patch=4, width=8, depth=1, heads=1, position="sincos"),
        views=OneView(View(size=56)),
        smallest_block=16,
    )
    mask = cae.CAE(cfg)._mask(2000, moment()).view(2000, 14, 14)
    assert (mask.sum((1, 2)) == 98).all()
    freq = GOLD["masks.freq"]
    error = (freq * (1 - freq) * (1 / 1000 + 1 / 2000)).sqrt()
    assert ((mask.double().mean(0) - freq).abs() < 5 * error).all()
    pairs = (mask[:, 1:] & mask[:, :-1]).sum((1, 2)) + (mask[:, :, 1:] & mask[:, :, :-1]).sum((1, 2))
    assert abs(pairs.double().mean() - GOLD["masks.neighbours"].double().mean()) < 1.5  # of 169; 91 at random


def test_without_a_tokenizer_the_error_says_how_to_make_one() -> None:
    with pytest.raises(
        ValueError, match=r"visrep pretrain dvae:small32 --data FOLDER --out runs/dvae-small32"
    ):
        cae.CAE(replace(cae.small32().method, tokenizer="runs/dvae-small32"))


def test_bad_masks_are_refused() -> None:
    method = cae.CAE(replace(cae.tiny().method, tokenizer=tiny_run("dvae"), smallest_block=9))
    with pytest.raises(ValueError, match=r"smallest_block=9.* at most 8"):
        method.loss(batch(torch.rand(4, 3, 32, 32)), moment())


def test_pictures_differ_only_where_patches_are_hidden() -> None:
    method = cae.CAE(replace(cae.tiny().method, tokenizer=tiny_run("dvae")))
    (picture,) = method.pictures(batch(torch.rand(4, 3, 32, 32)), moment()).values()
    assert picture.shape == (4, 4, 3, 32, 32)
    mask = method._mask(4, moment()).view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    same = (picture[:, 2] == picture[:, 3]) | mask
    assert same.all()
