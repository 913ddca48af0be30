"""data2vec: the official targets, loss and gradients, and a teacher whose raw layers are what they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance import Case, doubled, moment, views
from test_golden import close
from visrep.encoders import ViT
from visrep.method import Batch
from visrep.methods.masked import data2vec
from visrep.nn.feature_pictures import feature_pictures
from visrep.nn.transformer import Block
from visrep.views import OneView, View

GOLDEN = Path(__file__).parent / "golden"
CASE = Case("data2vec")
TINY = CASE.run.method


def stored(file: str) -> dict[str, Tensor]:
    """All arrays in 64 bits, masks and indices as they are; weights are stored in 16, which they fit."""
    with np.load(GOLDEN / file) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return {name: x.double() if x.is_floating_point() else x for name, x in tensors.items()}


def one_view(images: Tensor) -> Batch:
    none = torch.zeros(1, len(images), 4)
    return Batch((images[None],), (none,), (none[..., 0] > 0,), torch.arange(len(images)))


def loaded(gold: dict[str, Tensor]) -> data2vec.Data2Vec:
    """Ours with the weights of the official model: 24 wide, 3 blocks, a cls token and learned positions."""
    cfg = data2vec.Config(
        encoder=ViT(image=16, patch=4, width=24, depth=3, heads=3, mask_token=True, layer_scale=0.1),
        views=OneView(View(size=16)),
        top=2,
        beta=0.5,
    )
    method = data2vec.Data2Vec(cfg).double()
    method.load_state_dict(
        converted(gold, "w.student.", "backbone.") | converted(gold, "w.teacher.", "teacher.module.")
    )
    return method


def converted(gold: dict[str, Tensor], prefix: str, ours: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name, value in gold.items():
        name = name.removeprefix(prefix) if name.startswith(prefix) else ""
        name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        if name.startswith("lm_head"):
            if ours == "backbone.":
                weights[name.replace("lm_head", "predictor")] = value
        elif name == "pos_embed":
            assert not value[:, 0].any()  # ours has no position of the cls token
            weights[ours + "position"] = value[:, 1:]
        elif name.endswith("q_bias"):
            v_bias = gold[prefix + name.replace("q_bias", "v_bias")]
            weights[ours + name.replace("q_bias", "qkv.bias")] = torch.cat([value, 0 * value, v_bias])
        elif name and not name.endswith("v_bias"):
            weights[ours + name] = value.flatten(1) if name == "patch_embed.proj.weight" else value
    return weights


def test_loss_and_gradients_through_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = stored("data2vec.npz")
    monkeypatch.setattr(data2vec.Data2Vec, "_hidden", lambda *_: gold["mask"])
    method = loaded(gold)
    losses = method.loss(one_view(gold["images"]), moment())
    losses.terms["smooth_l1"].backward()
    close(losses.terms["smooth_l1"], gold["loss"])
    gradients = converted(gold, "g.student.", "backbone.")
    assert len(gradients) > 10
    for name, value in gradients.items():
        grad = method.get_parameter(name).grad
        assert grad is not None
        close(grad, value)


def test_targets_and_loss_of_the_training_loop() -> None:
    gold = {name.removeprefix("oracle."): x for name, x in stored("data2vec.npz").items() if "oracle" in name}
    mask, z = gold["mask"] > 0, gold["student_masked"].requires_grad_()
    y = data2vec.targets(gold["layer_outputs"][-4:])[mask]
    close(y, gold["target"], 1e-5)  # computed in 32 bits there
    loss = data2vec.regression(z, y, mask.sum().double(), beta=2.0)
    loss.backward()
    assert z.grad is not None
    close(loss / 2, gold["loss"], 1e-6)  # a loss scale of a half
    close(z.grad / 2, gold["grad"], 1e-7)


def test_targets_are_normalised_layer_by_layer() -> None:
    layers = torch.randn(3, 2, 5, 8, dtype=torch.float64)
    loud = layers * torch.tensor([1.0, 100.0, 0.01]).view(-1, 1, 1, 1).double()
    close(data2vec.targets(loud), data2vec.targets(layers), 0.3)  # but for the norm's eps
    y = data2vec.targets(layers)
    close(y.mean(-1), torch.zeros(2, 5, dtype=torch.float64))
    close(y.std(-1, correction=0), torch.ones(2, 5, dtype=torch.float64), 1e-4)


def test_the_target_does_not_know_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = CASE.build().double(), doubled(views(CASE))
    assert isinstance(method, data2vec.Data2Vec)
    images = batch.crops[0][0]
    y = method._targets(images)
    layers = method.teacher.module(images, layers=(1, 2), layer_kind="raw").layers
    close(y, data2vec.targets(torch.stack([layer.patches for layer in layers])))
    hidden = torch.zeros(len(images), 16, dtype=torch.bool)
    hidden[:, 3] = True
    monkeypatch.setattr(data2vec.Data2Vec, "_hidden", lambda *_: hidden)
    z = method.predictor(method.backbone(images, mask=hidden).patches[:, 3])
    expected = nn.functional.smooth_l1_loss(z, y[:, 3], beta=TINY.beta)
    close(method.loss(batch, moment()).terms["smooth_l1"], expected)


def test_layers_of_each_kind() -> None:
    vit = (
        ViT(image=16, patch=8, width=16, depth=3, heads=2, registers=1, layer_scale=0.5)
        .build()
        .double()
        .eval()
    )
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    raw, normed, added = (
        [torch.cat([x.cls[:, None], x.registers, x.patches], 1) for x in tokens.layers]
        for tokens in (vit(images, layers=(1, 2, 3), layer_kind=kind) for kind in ("raw", "normed", "mlp"))
    )
    for i in range(3):
        close(vit.norm(raw[i]), normed[i])
    for i in (1, 2):
        block = vit.blocks[i]
        assert isinstance(block, Block)
        between = raw[i - 1] + block.ls1(block.attn(block.norm1(raw[i - 1])))
        close(between + added[i], raw[i])
        close(block.ls2(block.mlp(block.norm2(between))), added[i])


def test_collapse_shows_in_the_monitor() -> None:
    method, batch = CASE.build(), views(CASE)
    assert isinstance(method, data2vec.Data2Vec)
    assert method.loss(batch, moment()).monitor["target_std"] > 0.1
    nn.init.zeros_(method.teacher.module.patch_embed.proj.weight)  # only the place is left
    assert method.loss(batch, moment()).monitor["target_std"] < 1e-6


def test_pictures_show_a_perfect_prediction_as_the_target() -> None:
    images, y = torch.randn(3, 3, 32, 32), torch.randn(3, 16, 8)
    hidden = torch.rand(3, 16) < 0.5
    shown = feature_pictures(images, hidden, y, y, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert shown.shape == (3, 4, 3, 32, 32)
    assert torch.equal(shown[:, 2], shown[:, 3])
    covered = hidden.view(3, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)
    assert not shown[:, 1][covered].any()
    wrong = feature_pictures(images, hidden, y, -y, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert torch.equal((wrong[:, 2] != wrong[:, 3]).any(1), covered[:, 0])


def test_bad_settings_say_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"top=3 .* Use 1 to 2"):
        CASE.build(cfg=replace(TINY, top=3))
    with pytest.raises(ValueError, match=r"mask_ratio=0\.01"):
        CASE.build(cfg=replace(TINY, mask_ratio=0.01)).loss(views(CASE), moment())
    encoder = replace(TINY.encoder, mask_token=False)
    with pytest.raises(ValueError, match="mask_token=True"):
        CASE.build(cfg=replace(TINY, encoder=encoder)).loss(views(CASE), moment())
