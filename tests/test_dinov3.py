"""DINOv3: the official losses and positions; Gram anchoring by a plain loop and over time; DINOv2 without it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance import Case, doubled, images, moment, views
from test_golden import arrays, close
from visrep.functional import dino_loss, koleo
from visrep.method import At
from visrep.methods.distillation import dinov2, dinov3
from visrep.nn.positions import Rotary, Warp, resample, rotary_2d
from visrep.schedules import Constant, Step
from visrep.views import MultiCrop, View, draw

CASE = Case("dinov3")
TINY = CASE.run.method
CALM = replace(TINY, warp=Warp(), w_local=Constant(1.0), w_gram=Constant(0.0))
"""DINOv2 with rotary positions"""


def build(cfg: dinov3.Config = TINY, **changes: object) -> dinov3.DINOv3:
    method = CASE.build(cfg=replace(cfg, **changes)).double()
    assert isinstance(method, dinov3.DINOv3)
    return method


# --------------------------------------------------------------------------------------------- losses


def test_gram_loss() -> None:
    gold = arrays("dinov3.npz", "gram.")
    x = gold["student"].clone().requires_grad_()
    loss = dinov3.gram_loss(x, gold["teacher"])
    loss.backward()
    close(loss, gold["loss_keep_neg"].double(), 1e-6)
    assert x.grad is not None
    close(x.grad, gold["grad_keep_neg"], 1e-6)


def test_gram_loss_by_a_plain_loop() -> None:
    x, y = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    cosine = F.cosine_similarity
    pairs = [(i, a, b) for i in range(3) for a in range(5) for b in range(5)]
    total = sum((cosine(x[i, a], x[i, b], 0) - cosine(y[i, a], y[i, b], 0)) ** 2 for i, a, b in pairs)
    close(dinov3.gram_loss(x, y), torch.as_tensor(total) / len(pairs))
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    close(dinov3.gram_loss(x, 3 * x @ turn), torch.zeros((), dtype=torch.float64))  # only likeness counts


def test_loss_of_crops() -> None:
    gold = arrays("dinov3.npz", "dino.")
    p, other = gold["teacher_probs"].double(), torch.zeros(2, 8, 64, dtype=torch.float64)
    for ours, official in (
        (lambda s: dino_loss(p, s, 0.1), "ignorediag1"),
        # All pairs: six local crops; of global ones, here, each of two predicts nothing and costs log k.
        (lambda s: (14 * dino_loss(p, torch.cat([other, s]), 0.1) - 2 * math.log(64)) / 12, "ignorediag0"),
    ):
        s = gold["student"].clone().requires_grad_()
        loss = ours(s)
        loss.backward()
        close(loss, gold[f"loss_{official}"].double(), 1e-6)
        assert s.grad is not None
        close(s.grad, gold[f"grad_{official}"], 1e-6)


def test_local_crops_count_less() -> None:
    """The official weights: (2 x global + w x 2 n x local) / (2 + 2 n), each a mean over its pairs."""
    p, s = torch.randn(2, 5, 7).softmax(-1), torch.randn(6, 5, 7)
    log_q = (s / 0.1).log_softmax(-1)
    pairs = {(g, v): -(p[g] * log_q[v]).sum(-1).mean() for g in range(2) for v in range(6) if g != v}
    whole = torch.stack([x for (_, v), x in pairs.items() if v < 2]).mean()
    local = torch.stack([x for (_, v), x in pairs.items() if v >= 2]).mean()
    close(dino_loss(p, s, 0.1, 0.3), (2 * whole + 0.3 * 8 * local) / 10, 1e-5)
    assert torch.equal(dino_loss(p, s[:2], 0.1, 0.3), dino_loss(p, s[:2], 0.1))


def test_koleo() -> None:
    gold = arrays("dinov3.npz", "koleo.")
    x = gold["x"].clone().requires_grad_()
    loss = koleo(x, x, 0)
    loss.backward()
    close(loss, gold["top1_loss"].double(), 1e-6)
    assert x.grad is not None
    close(x.grad, gold["top1_grad"], 1e-6)


# --------------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize(("kind", "down", "across"), [("max", 1.0, 5 / 7), ("min", 7 / 5, 1.0)])
def test_warped_positions_equal_official_tables(kind: str, down: float, across: float) -> None:
    """The official tables with one scale for both axes: ours with an axis stretched about its start, -1."""
    gold = arrays("dinov3.npz", "rope.")
    warp = torch.tensor([[[f, f - 1] for f in (down, across)]] * 2, dtype=torch.float64)
    rotary = rotary_2d((7, 5), 32, warp=warp, dtype=torch.float64)
    for table, name in ((rotary.sin, "sin"), (rotary.cos, "cos")):
        assert table.shape == (2, 1, 35, 32)
        close(table[1, 0], gold[f"{name}_{kind}"])


def test_a_warp_shifts_then_stretches() -> None:
    u = torch.tensor([[1.0, 0.0, 1.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5, 0.0]])
    warp = Warp(shift=0.25, jitter=1.5, rescale=2.0).draw(u)
    first, second = ([[1.5, 1.5 * 0.25], [1.0, -0.25]], [[0.5, 0.0], [0.5, 0.0]])
    close(warp, torch.tensor([first, second]), 1e-6)
    nothing = Warp().draw(torch.rand(4, 5))
    assert torch.equal(nothing, torch.tensor([1.0, 0.0]).expand(4, 2, 2))


def test_stretches_are_log_uniform() -> None:
    draws = Warp(rescale=2.0).draw(torch.rand(4000, 5, generator=torch.Generator().manual_seed(0)))
    factor = draws[..., 0].log2()
    assert torch.equal(factor[:, 0], factor[:, 1]) and not draws[..., 1].any()
    assert -1 <= factor.min() < -0.99 and 0.99 < factor.max() < 1 and abs(factor.mean()) < 0.03
    assert abs(factor.std() - 3**-0.5) < 0.02


def test_kept_patches_keep_their_warped_positions() -> None:
    warp = Warp(shift=0.3, jitter=1.5, rescale=2.0).draw(torch.rand(3, 5))
    kept = torch.stack([torch.randperm(12)[:5] for _ in range(3)])
    for rotary in (rotary_2d((3, 4), 8), rotary_2d((3, 4), 8, warp=warp)):
        some = rotary.keep(kept)
        assert some.sin.shape == some.cos.shape == (3, 1, 5, 8)
        for i in range(3):
            table = Rotary(rotary.sin.expand(3, 1, -1, -1)[i, 0], rotary.cos.expand(3, 1, -1, -1)[i, 0])
            assert torch.equal(some.sin[i, 0], table.sin[kept[i]])
            assert torch.equal(some.cos[i, 0], table.cos[kept[i]])


def test_only_the_student_is_warped() -> None:
    seen: list[tuple[str, Tensor | None]] = []
    method, batch = build(), doubled(views(CASE))
    encoders = {
        "student": method.student.encoder,
        "teacher": method.encoder,
        "gram": method.gram_teacher.module,
    }
    for name, encoder in encoders.items():
        encoder.register_forward_pre_hook(
            lambda _, __, kw, name=name: seen.append((name, kw.get("warp"))), with_kwargs=True
        )
    method.loss(batch, moment())
    warps = {name: [warp for who, warp in seen if who == name] for name in encoders}
    assert warps["teacher"] == warps["gram"] == [None]
    assert [len(warp) for warp in warps["student"] if warp is not None] == [32, 32]  # two crops of each size
    factors = torch.cat([warp[:, 0, 0] for warp in warps["student"] if warp is not None])
    assert len(factors.unique()) == 64  # each crop has its own


# --------------------------------------------------------------------------------------------- Gram anchoring


def test_anchors_are_clean_copies_of_the_crops() -> None:
    plain = View(size=32, flip=0.5, jitter=0.0, gray=0.0, blur=0.0)
    busy = replace(plain, jitter=1.0, gray=0.5, blur=1.0, solarize=0.5)
    canvases = images(6)
    made, calm = (
        draw(MultiCrop(view, view, replace(view, size=16), n_local=2, clean=32), canvases, moment())
        for view in (busy, plain)
    )
    assert [tuple(x.shape[:1]) + tuple(x.shape[3:]) for x in made.crops] == [
        (2, 32, 32),
        (2, 16, 16),
        (2, 32, 32),
    ]
    assert torch.equal(calm.crops[2], calm.crops[0])
    assert torch.equal(made.crops[2], calm.crops[0])
    assert not torch.equal(made.crops[0], calm.crops[0])
    assert torch.equal(made.boxes[2], made.boxes[0]) and torch.equal(made.flipped[2], made.flipped[0])
    without = draw(MultiCrop(busy, busy, replace(busy, size=16), n_local=2), canvases, moment())
    assert all(torch.equal(a, b) for a, b in zip(without.crops, made.crops[:2], strict=True))

    larger = MultiCrop(plain, plain, n_local=0, clean=48)
    assert (larger.size, larger.preprocessing.size) == (48, 32)
    with pytest.raises(ValueError, match="clean=-1"):
        replace(larger, clean=-1)


def test_gram_term_by_a_plain_loop() -> None:
    """Student: crops with hidden patches. Gram teacher: the clean copies, at twice the side."""
    method, batch, at = build(warp=Warp(), w_gram=Constant(0.7)), doubled(views(CASE)), moment()
    for parameter in method.gram_teacher.parameters():
        parameter.mul_(1.1)
    b = len(batch)
    hidden = dinov3.hidden_blocks(moment(), b, 2, (4, 4), probability=0.5, ratio=(0.1, 0.5))
    total = torch.zeros((), dtype=torch.float64)
    for i, mask in enumerate(hidden):
        g, image = divmod(i, b)
        x = method.student.encoder(batch.crops[0][g, image][None], mask=mask[None]).patches[0]
        y = method.gram_teacher(batch.crops[2][g, image][None]).patches.unflatten(1, (8, 8)).movedim(3, 1)
        y = F.interpolate(y, size=(4, 4), mode="bicubic")[0].flatten(1).T
        x, y = (F.normalize(features, dim=-1) for features in (x, y))
        total += (x @ x.T - y @ y.T).square().mean() / (2 * b)
    close(method.loss(batch, at).terms["gram"], 0.7 * total)


def test_features_are_read_off_at_the_places_of_the_coarser_grid() -> None:
    """Of a plane, at twice the density, that is the mean of four neighbours; no antialiasing, which sees more."""
    down, across = torch.meshgrid(torch.arange(16.0), torch.arange(12.0), indexing="ij")
    plane = (2 * down + 3 * across).flatten()[None, :, None]
    coarse = resample(plane, (16, 12), (8, 6), antialias=False).unflatten(1, (8, 6))[0, 1:-1, 1:-1, 0]
    close(coarse, F.avg_pool2d(plane.view(1, 1, 16, 12), 2)[0, 0, 1:-1, 1:-1], 1e-5)


def test_without_weight_the_gram_teacher_is_not_asked() -> None:
    method, batch = build(w_gram=Step((0.0, 1.0), (6.0,))), doubled(views(CASE))
    asked: list[int] = []
    method.gram_teacher.register_forward_hook(lambda *_: asked.append(1))
    assert method.loss(batch, moment(59)).terms["gram"] == 0 and not asked
    assert method.loss(batch, moment(60)).terms["gram"] > 0 and asked


def test_without_copies_the_gram_teacher_sees_the_crops() -> None:
    method = build(views=replace(TINY.views, clean=0))
    seen: list[Tensor] = []
    method.gram_teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = doubled(views(CASE))
    method.loss(replace(batch, crops=batch.crops[:2]), moment())
    assert torch.equal(seen[0], batch.crops[0].flatten(0, 1))


def test_gram_teacher_is_the_teacher_of_the_given_epochs() -> None:
    method = build(gram_epochs=(0.0, 0.45, 1.0), teacher_decay=Constant(0.5))
    copied = []
    for step in range(25):
        for parameter in method.student.parameters():
            parameter.data += 0.01
        before = [p.clone() for p in method.gram_teacher.parameters()]
        at = At(step, 100, 10, torch.Generator().manual_seed(step))
        method.after_step(at, {})
        after = list(method.gram_teacher.parameters())
        if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
            copied.append(step + 1)  # steps taken
            assert all(torch.equal(a, b) for a, b in zip(after, method.encoder.parameters(), strict=True))
    assert copied == [1, 5, 10]
    assert not any(p.requires_grad for p in method.gram_teacher.parameters())


# --------------------------------------------------------------------------------------------- the rest


def test_without_additions_it_is_dinov2() -> None:
    names = ("encoder", "views", "mask_probability", "mask_ratio", "w_patch", "w_koleo", "tau_student")
    names += ("tau_teacher", "teacher_decay")
    same = {name: getattr(CALM, name) for name in names}
    cfg = dinov2.Config(codes="sinkhorn", shared_head=False, prototypes=32, hidden=64, bottleneck=48, **same)
    ours = build(CALM, prototypes=(32, 32), hidden=(64, 64), bottleneck=(48, 48))
    theirs = dinov2.DINOv2(cfg).double()
    rest = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(rest.missing_keys) == {"center", "patch_center"}
    assert all(name.startswith("gram_teacher.") for name in rest.unexpected_keys)

    batch = doubled(views(CASE))
    for network in (ours.student, theirs.student):  # a teacher unlike the student
        for parameter in network.parameters():
            parameter.data *= 1.1
    left = ours.loss(batch, moment()).terms
    right = theirs.loss(replace(batch, crops=batch.crops[:2]), moment()).terms
    assert left.pop("gram") == 0
    assert left.keys() == right.keys()
    for name, term in left.items():
        close(term, right[name])
    sum(left.values(), torch.zeros(())).backward()
    sum(right.values(), torch.zeros(())).backward()
    theirs_by_name = dict(theirs.named_parameters())
    for name, parameter in ours.student.named_parameters():
        grad = theirs_by_name[f"student.{name}"].grad
        assert (parameter.grad is None) == (grad is None)
        if parameter.grad is not None and grad is not None:
            close(parameter.grad, grad)


def test_stages_of_the_paper_share_their_weights() -> None:
    """Each stage can continue the one before: networks, names and shapes are the same."""
    runs = [dinov3.paper(), dinov3.paper_gram(), dinov3.paper_highres()]
    assert (
        len({(r.method.encoder, r.method.prototypes, r.method.hidden, r.method.bottleneck) for r in runs})
        == 1
    )
    assert [r.epochs / dinov3.STEPS for r in runs] == pytest.approx([1000, 200, 15])
    assert [r.method.views.size for r in runs] == [256, 512, 1152]
    assert [r.method.views.preprocessing.size for r in runs] == [256, 256, 768]
    start, late = moment(0), replace(moment(0), total=10**7, step=10**6)
    assert [r.method.w_gram(start) for r in runs] == [0, 0, 1.5]
    assert [r.method.w_gram(late) for r in runs] == [0, 2, 1.5]
    assert [r.method.w_local(late) for r in runs] == [1, 0.5, 0.5]


def test_bad_settings_say_what_to_change() -> None:
    for make in (lambda: Warp(shift=-0.1), lambda: Warp(jitter=0.5), lambda: Warp(rescale=0.0)):
        with pytest.raises(ValueError, match="shift >= 0, jitter >= 1"):
            make()
    learned = replace(TINY, encoder=replace(TINY.encoder, position="learned"))
    with pytest.raises(ValueError, match="position='rope'"):
        CASE.fresh(cfg=learned).loss(views(CASE), moment())
    with pytest.raises(ValueError, match="mask_probability"):
        build(mask_probability=0.0)
