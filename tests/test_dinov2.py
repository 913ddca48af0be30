"""DINOv2: the official losses, codes and centres; KoLeo by a plain loop; DINO where nothing is added to it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conformance import Case, check_ranks, doubled, moment, on_two_ranks, views
from test_golden import GOLDEN, arrays, close
from visrep.functional import dino_loss, koleo, masked_patch_loss
from visrep.methods.distillation import dino, dinov2
from visrep.optim import build_optimizer
from visrep.schedules import Constant

CASE = Case("dinov2")
TINY = CASE.run.method


def build(**changes: object) -> dinov2.DINOv2:
    method = CASE.build(cfg=replace(TINY, **changes)).double()
    assert isinstance(method, dinov2.DINOv2)
    return method


@pytest.mark.parametrize(("codes", "official"), [("center", "softmax_center"), ("sinkhorn", "sinkhorn")])
def test_codes(codes: dinov2.Codes, official: str) -> None:
    for part, teacher in (("dino", "teacher_logits"), ("patch", "teacher_masked_logits")):
        gold = arrays("dinov2.npz", f"{part}.")
        p = dinov2.targets(gold[teacher], gold["center_before"].flatten(), gold["teacher_temp"].item(), codes)
        # The official Sinkhorn computes in 32 bits.
        close(p, gold[f"{official}_probs"].double(), 1e-9 if codes == "center" else 1e-5)


@pytest.mark.parametrize(
    ("kind", "probs"), [("center", "softmax_center_probs"), ("sinkhorn", "sinkhorn_probs")]
)
def test_loss_of_crops(kind: str, probs: str) -> None:
    gold = arrays("dinov2.npz", "dino.")
    s = torch.stack([gold[f"student{i}"] for i in range(3)]).requires_grad_()
    p = gold[probs].double().unflatten(0, (2, 8))
    # The official sum has all 2 x 3 pairs. Ours leaves out crops of the teacher itself: here two that predict nothing,
    # so that each costs log k with the other.
    crops = torch.cat([torch.zeros(2, 8, 64, dtype=torch.float64), s])
    loss = 8 * dino_loss(p, crops, gold["student_temp"].item()) - 2 * math.log(64)
    loss.backward()
    tolerance = 1e-9 if kind == "center" else 1e-6  # rows of 32-bit codes do not quite sum to 1
    close(loss, gold[f"loss_{kind}"], tolerance)
    assert s.grad is not None
    for i in range(3):
        close(s.grad[i], gold[f"grad_{kind}_student{i}"], tolerance)


@pytest.mark.parametrize(
    ("kind", "probs"), [("center", "softmax_center_probs"), ("sinkhorn", "sinkhorn_probs")]
)
def test_loss_of_patches(kind: str, probs: str) -> None:
    gold = arrays("dinov2.npz", "patch.")
    with np.load(GOLDEN / "dinov2.npz") as stored:
        mask = torch.from_numpy(stored["patch.masks"])
    s = gold["student_masked"].clone().requires_grad_()
    loss = masked_patch_loss(gold[probs].double(), s, mask, gold["student_temp"].item())
    loss.backward()
    assert s.grad is not None
    close(loss, gold[f"loss_masked_{kind}"], 1e-6)  # the official weights have 32 bits
    close(s.grad, gold[f"grad_masked_{kind}"], 1e-6)


def test_centers_move_as_the_official_ones() -> None:
    for part, teacher, name in (
        ("dino", "teacher_logits", "center"),
        ("patch", "teacher_masked_logits", "patch_center"),
    ):
        gold = arrays("dinov2.npz", f"{part}.")
        method = build(prototypes=64, center_momentum=0.9, teacher_decay=Constant(1.0))
        center = method.get_buffer(name).copy_(gold["center_before"].flatten())
        rows = gold[teacher]
        parts = [
            torch.cat([x.sum(0), x.new_tensor([len(x)])]) for x in (rows[:5], rows[5:])
        ]  # as if accumulated
        method.after_step(moment(), {name: torch.stack(parts)})
        close(center, gold["center_after"].flatten())


def test_koleo() -> None:
    gold = arrays("dinov2.npz", "koleo.")
    x = gold["x"].clone().requires_grad_()
    loss = koleo(x, x, 0)
    loss.backward()
    close(loss, gold["loss"])
    assert x.grad is not None
    close(x.grad, gold["grad"])


def test_koleo_by_a_plain_loop_and_in_parts() -> None:
    x = torch.randn(10, 6, dtype=torch.float64)
    z = F.normalize(x, dim=-1)
    logs = [math.log(min((z[i] - z[j]).norm().item() for j in range(10) if j != i)) for i in range(10)]
    close(koleo(x, x, 0), torch.tensor(-np.mean(logs)), 1e-6)
    close((koleo(x[:5], x, 0) + koleo(x[5:], x, 5)) / 2, koleo(x, x, 0))
    with pytest.raises(ValueError, match="at least 2"):
        koleo(x[:1], x[:1], 0)


def test_equal_images_have_a_finite_gradient() -> None:
    x = torch.ones(4, 6, requires_grad=True)
    koleo(x, x, 0).backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_patches_and_distances_by_a_plain_loop() -> None:
    method, batch = build(w_patch=0.7, w_koleo=0.3), doubled(views(CASE))
    (crops, *_), b, total = batch.crops, len(batch), torch.zeros((), dtype=torch.float64)
    hidden = dinov2.hidden_blocks(moment(), b, 2, (4, 4), probability=0.5, ratio=(0.1, 0.5)).unflatten(
        0, (2, b)
    )
    assert hidden.any(2).sum() == b  # exactly half of the 2 b crops
    z = []
    for g in range(2):
        for i in range(b):
            image, m = crops[g, i : i + 1], hidden[g, i]
            seen = method.student.encoder(image, mask=m[None])
            z.append(seen.pool("cls")[0])
            if m.any():
                s = method.student.patch_head(seen.patches[0])
                t = method.teacher.module.patch_head(method.teacher.module.encoder(image).patches[0])
                p = (t / TINY.tau_teacher(moment())).softmax(-1)  # the centre starts at zero
                total += -(p * (s / 0.1).log_softmax(-1)).sum(-1)[m].mean() / (2 * b)
    terms = method.loss(batch, moment()).terms
    close(terms["patch"], 0.7 * total)
    first, second = torch.stack(z[:b]), torch.stack(z[b:])
    close(
        terms["koleo"], 0.3 * (koleo(first, first, 0) + koleo(second, second, 0))
    )  # crops of an image do not repel


def test_without_additions_it_is_dino(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = torch.zeros(32, 16, dtype=torch.bool)
    monkeypatch.setattr(dinov2, "hidden_blocks", lambda *_, probability, ratio: nothing)
    names = ("views", "prototypes", "hidden", "bottleneck", "tau_teacher", "teacher_decay")
    encoder = replace(TINY.encoder, mask_token=False)
    simple = dino.DINO(
        dino.Config(encoder=encoder, learn_norm=True, **{name: getattr(TINY, name) for name in names})
    ).double()
    method = build(w_patch=0.0, w_koleo=0.0)
    assert not method.load_state_dict(simple.state_dict(), strict=False).unexpected_keys

    batch = doubled(views(CASE))
    ours, theirs = method.loss(batch, moment()), simple.loss(batch, moment())
    close(ours.terms["cls"], theirs.terms["dino"])
    assert ours.terms["patch"] == ours.terms["koleo"] == 0
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


def test_sinkhorn_needs_no_centers() -> None:
    method = build(codes="sinkhorn")
    losses = method.loss(doubled(views(CASE)), moment())
    method.after_step(moment(), losses.carry)
    assert not losses.carry and not method.center.any() and not method.patch_center.any()


def test_sinkhorn_on_two_ranks_equals_one(tmp_path: Path) -> None:
    """The ranks hide different numbers of patches, and share them equally all the same."""
    source = Path(dinov2.__file__).read_text()
    file = tmp_path / "dinov2_sinkhorn.py"
    file.write_text(source.replace("prototypes=32,", 'prototypes=32, codes="sinkhorn",', 1))
    case = Case(str(file))
    assert case.run.method.codes == "sinkhorn"
    check_ranks(case, on_two_ranks((case.name,), tmp_path))


def test_heads_are_one_or_two() -> None:
    for shared in (True, False):
        method = build(shared_head=shared)
        for network in (method.student, method.teacher.module):
            assert (network.head is network.patch_head) == shared
            assert (network.head.mlp is network.patch_head.mlp) == shared


def test_the_papers_layers_move_at_their_own_rates() -> None:
    run = dinov2.paper()
    small = replace(run.method.encoder, width=64)
    method = dinov2.DINOv2(replace(run.method, encoder=small, prototypes=8, hidden=8, bottleneck=8))
    optimizer = build_optimizer(method.named_parameters(), run.optim)
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        schedule = Constant(1.0) if group["multiplier"] < 0 else run.optim.multipliers[group["multiplier"]][1]
        rates |= dict.fromkeys(group["names"], schedule(moment(99)))
    assert len(rates) == sum(p.requires_grad for p in method.parameters())
    encoder = {
        name.removeprefix("student.encoder."): rate for name, rate in rates.items() if "encoder" in name
    }
    first = encoder["patch_embed.proj.weight"] / 0.2
    assert first == encoder["cls_token"] == encoder["mask_token"] == encoder["position"] == 0.9**25
    assert encoder["blocks.0.norm1.weight"] == 0.9**24
    assert encoder["blocks.1.mlp.fc1.weight"] == encoder["blocks.1.ls1.gamma"] == 0.9**23
    assert encoder["blocks.10.attn.qkv.weight"] == 0.9**14
    assert encoder["blocks.23.ls2.gamma"] == 0.9
    assert encoder["norm.weight"] == rates["student.head.mlp.0.weight"] == 1
    assert rates["student.head.prototypes"] == rates["student.head.prototypes_norm"] == 1


def test_bad_settings_say_what_to_change() -> None:
    cfg = replace(TINY)
    object.__setattr__(cfg, "codes", "swav")  # the annotation, executed here, would refuse it
    with pytest.raises(ValueError, match="codes='swav'"):
        CASE.fresh(cfg=cfg)
    with pytest.raises(ValueError, match="mask_probability"):
        build(mask_probability=1.5)
    batch = views(CASE)
    for change, words in (({"mask_token": False}, "mask_token=True"), ({"cls": False}, "cls token")):
        cfg = replace(TINY, encoder=replace(TINY.encoder, **change))
        with pytest.raises(ValueError, match=words):
            CASE.fresh(cfg=cfg).loss(batch, moment())
