"""dBOT: the official forward pass and gradients, and stages that make a teacher of the student."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from conformance import Case, doubled, moment, optimizers, state, take_step, views
from test_data2vec import one_view, stored
from test_golden import Noise, close
from visrep.encoders import ViT
from visrep.method import At
from visrep.methods.masked import dbot
from visrep.schedules import Constant, Cosine, Stages, Warmup, stage
from visrep.views import OneView, View

CASE = Case("dbot")
TINY = CASE.run.method


def build(**changes: object) -> dbot.DBOT:
    method = CASE.build(cfg=replace(TINY, **changes))
    assert isinstance(method, dbot.DBOT)
    return method


def converted(gold: dict[str, Tensor], prefix: str, ours: str) -> dict[str, Tensor]:
    """The official arrays by our names; decoder parts stay apart from the encoder's."""
    names = {"decoder_predp": "predict", "mask_token": "mask_token"}
    weights: dict[str, Tensor] = {}
    for name, value in gold.items():
        if name.startswith(prefix):
            first, dot, rest = name.removeprefix(prefix).partition(".")
            decoder = first.startswith("decoder_") or first == "mask_token"
            first = names.get(first, first.removeprefix("decoder_"))
            value = value.flatten(1) if first == "patch_embed" and rest == "proj.weight" else value
            weights[("student.decoder." if decoder else ours) + first + dot + rest] = value
    return weights


def test_loss_and_gradients() -> None:
    gold = stored("dbot.npz")
    cfg = dbot.Config(
        encoder=ViT(image=32, patch=8, width=24, depth=2, heads=3, position="sincos"),
        views=OneView(View(size=32)),
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
    )
    method = dbot.DBOT(cfg).double()
    method.load_state_dict(
        converted(gold, "w.student.", "student.encoder.") | converted(gold, "w.teacher.", "teacher.module.")
    )
    at = Noise(0, 100, 10, torch.Generator(), noise=gold["noise"])
    losses = method.loss(one_view(gold["images"]), at)
    losses.terms["smooth_l1"].backward()
    close(losses.terms["smooth_l1"], gold["loss"])
    close(method._targets(gold["images"]), dbot.targets(gold["target"]))
    gradients = converted(gold, "g.student.", "student.encoder.")
    assert len(gradients) == 12
    for name, value in gradients.items():
        grad = method.get_parameter(name).grad
        assert grad is not None
        close(grad, value)


def test_learning_rate_begins_again_as_the_official_one() -> None:
    ours = Stages(2, then=Warmup(epochs=2, then=Cosine(1e-3, 0.0)))
    values = np.array([ours(At(step, 60, 5, torch.Generator())) for step in range(60)])
    theirs = stored("dbot.npz")["lr"].numpy()
    after = np.arange(60) % 30 >= 10
    np.testing.assert_allclose(values[after], theirs[after], rtol=1e-12)
    np.testing.assert_allclose(
        values[~after], theirs[~after], atol=1.2e-4
    )  # ours reaches the peak a step before


def at(step: int, rank: int = 0, world: int = 1) -> At:
    """A moment of a run of 10 epochs with 10 steps each: its second stage begins at step 50."""
    return moment(step, rank=rank, world=world)


def test_a_stage_makes_the_student_the_teacher_and_begins_again() -> None:
    method = build()
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
    trained = state(method)
    for step in (0, 10, 40, 51, 60):
        method.before_epoch([], at(step))
        assert all(torch.equal(value, trained[name]) for name, value in state(method).items())

    drawn = torch.get_rng_state()
    method.before_epoch([], at(50))
    assert torch.equal(torch.get_rng_state(), drawn)
    teacher, student = method.teacher.module.state_dict(), method.student.state_dict()
    for name, value in teacher.items():
        assert torch.equal(value, trained["student.encoder." + name])
    for name, value in student.items():
        assert value.requires_grad == trained["student." + name].requires_grad
        assert value.abs().mean() < 1.0 or value.eq(1).all()  # as small as at the start; norms are 1
        assert not torch.equal(value, trained["student." + name])


def test_every_rank_begins_with_the_same_weights_and_every_stage_with_its_own() -> None:
    first, second, later = build(stages=5), build(stages=5), build(stages=5)
    torch.manual_seed(1)
    first.before_epoch([], at(20, rank=0, world=2))
    torch.manual_seed(2)
    second.before_epoch([], at(20, rank=1, world=2))
    later.before_epoch([], at(40))
    for name, value in first.student.state_dict().items():
        assert torch.equal(value, second.student.state_dict()[name])
    weight = "encoder.patch_embed.proj.weight"
    assert not torch.equal(first.student.state_dict()[weight], later.student.state_dict()[weight])


def test_a_run_resumed_at_a_new_stage_is_the_unbroken_one() -> None:
    run = replace(CASE.run, optim=replace(CASE.run.optim, lr=Constant(1e-3)))

    def steps(method: dbot.DBOT, turns: dict, start: int, stop: int) -> None:
        for step in range(start, stop):
            if step % 10 == 0:
                method.before_epoch([], at(step))
            take_step(run, method, turns, views(CASE, step=step), at(step))

    unbroken = build()
    turns = optimizers(run, unbroken)
    steps(unbroken, turns, 48, 50)
    file = io.BytesIO()
    torch.save([unbroken.state_dict(), turns["main"].state_dict()], file)
    steps(unbroken, turns, 50, 52)

    file.seek(0)
    saved, optimizer = torch.load(file, weights_only=True)
    resumed = build()
    resumed.load_state_dict(saved)
    turns = optimizers(run, resumed)
    turns["main"].load_state_dict(optimizer)
    steps(resumed, turns, 50, 52)
    for name, value in state(unbroken).items():
        assert torch.equal(value, state(resumed)[name]), name


def test_the_first_teacher_is_the_random_student() -> None:
    method = build()
    for name, value in method.teacher.module.state_dict().items():
        assert torch.equal(value, method.student.encoder.state_dict()[name])


def test_an_encoder_without_cls_token_predicts_patches_only() -> None:
    method = build(encoder=replace(TINY.encoder, cls=False)).double()
    batch = doubled(views(CASE))
    images = batch.crops[0][0]
    keep, hidden = method._split(images, moment())
    z, y = method.student(images, keep, hidden), method._targets(images)
    assert z.shape == y.shape == (16, 16, 32)
    error = torch.nn.functional.smooth_l1_loss(z, y, beta=2.0, reduction="none").mean(-1)
    close(method.loss(batch, moment()).terms["smooth_l1"], error.gather(1, hidden).mean())


@pytest.mark.parametrize(("n", "total"), [(1, 100), (2, 100), (3, 100), (3, 95), (10, 100)])
def test_stages_are_whole_epochs_that_fill_the_run(n: int, total: int) -> None:
    moments = [stage(At(step, total, 10, torch.Generator()), n) for step in range(total)]
    starts = [step for step, within in enumerate(moments) if within.step == 0]
    assert len(starts) == n and not any(start % 10 for start in starts)
    lengths = np.diff([*starts, total])
    assert lengths.max() - lengths.min() <= 10
    for start, length in zip(starts, lengths, strict=True):
        assert [m.step for m in moments[start : start + length]] == list(range(length))
        assert {m.total for m in moments[start : start + length]} == {length}


def test_bad_settings_say_what_to_change() -> None:
    for n in (0, 11):
        with pytest.raises(ValueError, match=f"{n} stages .* the run has 10"):
            build(stages=n).before_epoch([], at(10))
    with pytest.raises(ValueError, match=r"mask_ratio=1\.0"):
        build(mask_ratio=1.0).loss(views(CASE), moment())
