"""iBOT: the official losses and centres, a plain loop over patches, and DINO where nothing is hidden."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from conformance import Case, doubled, moment, views
from test_golden import GOLDEN, arrays, close
from visrep.encoders import ViT
from visrep.functional import dino_loss, masked_patch_loss
from visrep.methods.distillation import dino, ibot
from visrep.schedules import Constant

CASE = Case("ibot")
TINY = CASE.run.method


@pytest.fixture
def gold() -> dict[str, Tensor]:
    return arrays("ibot.npz", "ibot.")


@pytest.fixture
def mask() -> Tensor:
    with np.load(GOLDEN / "ibot.npz") as stored:
        return torch.from_numpy(stored["ibot.mask"]).flatten(0, 1).flatten(1)  # crop by crop, "i n"


def build(**changes: object) -> ibot.IBOT:
    method = CASE.build(cfg=replace(TINY, **changes)).double()
    assert isinstance(method, ibot.IBOT)
    return method


@pytest.mark.parametrize("epoch", [0, 5])
def test_losses_and_gradients(gold: dict[str, Tensor], mask: Tensor, epoch: int) -> None:
    cls, local, patch = (
        gold[name].clone().requires_grad_() for name in ("student_cls", "student_local_cls", "student_patch")
    )
    centers = (
        ("center_before", "center2_before") if epoch == 0 else ("center_after_epoch0", "center2_after_epoch0")
    )
    center, patch_center = (gold[name].flatten() for name in centers)
    tau, tau_patch = (gold[name][epoch].item() for name in ("temp_schedule", "temp2_schedule"))

    p = ibot.targets(gold["teacher_cls"].unflatten(0, (2, 4)), center, tau)
    p_patch = ibot.targets(gold["teacher_patch"][mask], patch_center, tau_patch)
    of_cls = dino_loss(p, torch.cat([cls, local]).unflatten(0, (6, 4)), 0.1)
    of_patches = 0.8 * masked_patch_loss(p_patch, patch[mask], mask, 0.1)
    (of_cls + of_patches).backward()

    close(of_cls, gold[f"cls_epoch{epoch}"])
    close(of_patches, gold[f"patch_epoch{epoch}"])
    for logits, name in ((cls, "cls"), (local, "local"), (patch, "patch")):
        assert logits.grad is not None
        close(logits.grad, gold[f"grad_{name}_epoch{epoch}"])


def test_centers_move_as_the_official_ones(gold: dict[str, Tensor]) -> None:
    means = {"teacher_mean": gold["teacher_cls"], "patch_mean": gold["teacher_patch"].flatten(0, 1)}
    for name, k, official in (("center", 64, "center"), ("patch_center", 48, "center2")):
        method = build(prototypes=k, teacher_decay=Constant(1.0), center_momentum=0.9)
        center = method.get_buffer(name).copy_(gold[f"{official}_before"].flatten())
        rows = means["teacher_mean" if name == "center" else "patch_mean"]
        for epoch in (0, 5):
            method.after_step(moment(), dict.fromkeys(means, rows.mean(0)[None]))
            close(center, gold[f"{official}_after_epoch{epoch}"].flatten())


def test_the_loss_carries_what_the_centers_need() -> None:
    method, batch = build(), doubled(views(CASE))
    network = method.teacher.module
    tokens = network.encoder(batch.crops[0].flatten(0, 1))
    carry = method.loss(batch, moment()).carry
    close(carry["teacher_mean"][0], network.head(tokens.pool("cls")).mean(0))
    close(
        carry["patch_mean"][0], network.patch_head(tokens.patches.flatten(0, 1)).mean(0)
    )  # of all, hidden or not


@pytest.mark.parametrize("shape", ["block", "random"])
def test_patches_are_predicted_in_their_own_crop(shape: str) -> None:
    method, batch = build(mask_shape=shape, w_patch=0.7), doubled(views(CASE))
    (crops, *_), b, total = batch.crops, len(batch), 0.0
    hidden = method._hidden(crops, moment()).unflatten(0, (2, b))
    for g in range(2):
        for i in range(b):
            image, m = crops[g, i : i + 1], hidden[g, i]
            if m.any():
                s = method.student.patch_head(method.student.encoder(image, mask=m[None]).patches[0])
                t = method.teacher.module.patch_head(method.teacher.module.encoder(image).patches[0])
                p = (t / TINY.tau_teacher_patch(moment())).softmax(-1)  # the centre starts at zero
                total += -(p * (s / 0.1).log_softmax(-1)).sum(-1)[m].mean() / (2 * b)
    assert isinstance(total, Tensor)
    close(method.loss(batch, moment()).terms["patch"], 0.7 * total)


def test_without_hidden_patches_it_is_dino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ibot.IBOT, "_hidden", lambda *_: torch.zeros(32, 16, dtype=torch.bool))
    names = ("views", "prototypes", "hidden", "bottleneck", "tau_teacher", "teacher_decay")
    encoder = replace(TINY.encoder, mask_token=False)
    cfg = dino.Config(encoder=encoder, **{name: getattr(TINY, name) for name in names})
    simple = dino.DINO(cfg).double()
    method = build(w_patch=0.0)
    missing = method.load_state_dict(simple.state_dict(), strict=False)
    assert not missing.unexpected_keys

    batch = doubled(views(CASE))
    ours, theirs = method.loss(batch, moment()), simple.loss(batch, moment())
    close(ours.terms["cls"], theirs.terms["dino"])
    assert ours.terms["patch"] == 0
    for losses in (ours, theirs):
        torch.stack(list(losses.terms.values())).sum().backward()
    parameters = dict(method.named_parameters())
    for name, parameter in simple.named_parameters():
        if parameter.grad is not None:
            grad = parameters[name].grad
            assert grad is not None
            close(grad, parameter.grad)
    method.after_step(moment(), ours.carry)
    simple.after_step(moment(), theirs.carry)
    close(method.center, simple.center)


def test_masks_hide_half_of_the_crops() -> None:
    crops = torch.zeros(2, 2000, 3, 32, 32)
    for shape, least in (("block", 1), ("random", 6)):
        method = build(
            encoder=ViT(image=32, patch=4, width=8, depth=1, heads=1, mask_token=True), mask_shape=shape
        )
        count = method._hidden(crops, moment()).sum(1)
        assert 0.46 < (count > 0).double().mean() < 0.54
        assert least <= count[count > 0].min() and count.max() <= 32


def test_heads_share_all_or_the_mlp() -> None:
    for shared in (True, False):
        method = build(shared_head=shared)
        for network in (method.student, method.teacher.module):
            assert (network.head is network.patch_head) == shared
            assert network.head.mlp is network.patch_head.mlp


def test_bad_settings_say_what_to_change() -> None:
    cfg = replace(TINY)
    object.__setattr__(cfg, "mask_shape", "round")  # the annotation, executed here, would refuse it
    with pytest.raises(ValueError, match="mask_shape='round'"):
        CASE.fresh(cfg=cfg)
    with pytest.raises(ValueError, match="mask_ratio"):
        build(mask_ratio=(0.5, 0.1))
    batch = views(CASE)
    for change, words in ((("mask_token", False), "mask_token=True"), (("cls", False), "no|none")):
        cfg = replace(TINY, encoder=replace(TINY.encoder, **dict([change])))
        with pytest.raises(ValueError, match=words):
            CASE.fresh(cfg=cfg).loss(batch, moment())
