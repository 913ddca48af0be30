"""HPM: the official errors, predictions, ranking, gradients and masks; a plain loop over pairs; MAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance import Case, doubled, moment, views
from test_golden import GOLDEN, arrays, close
from visrep.encoders import ViT
from visrep.functional import patch_statistics, patchify
from visrep.masking import random_split
from visrep.methods.masked import hpm, mae
from visrep.nn.teacher import Teacher
from visrep.schedules import Constant
from visrep.views import OneView, View

Ranking = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

CASE = Case("hpm")
TINY = CASE.run.method
NAMES = {
    "decoder_embed": "embed",
    "decoder_blocks": "blocks",
    "decoder_norm": "norm",
    "decoder_pred": "predict",
}
GOLD = arrays("hpm.npz")

with np.load(GOLDEN / "hpm.npz") as stored:
    MASK = torch.from_numpy(stored["mask"])

CONFIG = hpm.Config(
    encoder=ViT(image=32, patch=4, width=24, depth=2, heads=2, mlp_ratio=2.0, position="sincos"),
    views=OneView(View(size=32)),
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
)


def official(method: hpm.HPM, prefix: str) -> None:
    """Load the published weights: into the student, and where they lack a first decoder into the teacher."""
    weights: dict[str, Tensor] = {}
    for name, value in GOLD.items():
        if name.startswith(prefix):
            first, dot, rest = name.removeprefix(prefix).partition(".")
            second = first.endswith("_losspred")
            first = first.removesuffix("_losspred")
            if first in NAMES or first == "mask_token":
                path = NAMES.get(first, first) + dot + rest
                shared = first in ("decoder_embed", "mask_token")
                weights |= {f"student.ranker.{path}": value} if second or shared else {}
                weights |= {} if second else {f"decoder.{path}": value}
            else:
                weights[f"student.encoder.{first}{dot}{rest}"] = value
    name = "student.encoder.patch_embed.proj.weight"
    weights[name] = weights[name].flatten(1)
    weights = {name: value.double() for name, value in weights.items()}
    if prefix == "teacher.":
        of_student = {k.removeprefix("student."): v for k, v in weights.items() if k.startswith("student.")}
        method.teacher.module.load_state_dict(of_student)
    else:
        missing, unexpected = method.load_state_dict(weights, strict=False)
        assert not unexpected and all(name.startswith("teacher.") for name in missing)


def build(**changes: object) -> hpm.HPM:
    torch.manual_seed(0)
    method = hpm.HPM(replace(CONFIG, **changes))
    # The published MLPs of this oracle are twice as wide as their tokens, ours four times.
    for decoder in (method.decoder, method.student.ranker, method.teacher.module.ranker):
        mlp = decoder.get_submodule("blocks.0.mlp")
        mlp.fc1, mlp.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)
    method.teacher.requires_grad_(False)
    return method.double()


def published_ranking(predicted: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Ours with 1e-6 inside the logarithms; each pair is met twice, as the larger and as the smaller."""
    harder = errors.unsqueeze(2) > errors.unsqueeze(1)
    lead = (predicted.unsqueeze(2) - predicted.unsqueeze(1))[harder]
    both = (lead.sigmoid() + 1e-6).log() + (1 - (-lead).sigmoid() + 1e-6).log()
    return -both.sum() / (2 * harder.sum()), (lead > 0).double().mean()


@pytest.mark.parametrize("norm", [0, 1])
@pytest.mark.parametrize(("rank", "tolerance"), [(published_ranking, 1e-9), (hpm.ranking_loss, 1e-5)])
def test_losses_and_gradients(norm: int, rank: Ranking, tolerance: float) -> None:
    method = build()
    official(method, "w.")
    images = GOLD["images"].double()
    keep, hidden = (m.nonzero()[:, 1].view(3, -1) for m in (~MASK, MASK))
    visible = method.encoder(images, keep=keep)
    target = patchify(images, 4)
    if norm:
        mean, std = patch_statistics(target)
        target = (target - mean) / std
    errors = hpm.patch_errors(method.decoder(visible, keep, hidden), target, hidden)
    predicted = method.student.ranker(visible, keep, hidden).squeeze(-1).gather(1, hidden)
    ranking, accuracy = rank(predicted, errors.detach())
    (errors.mean() + ranking).backward()

    close(errors, GOLD[f"patch_losses{norm}"])
    close(errors.mean(), GOLD[f"reconstruction{norm}"])
    close(predicted, GOLD[f"predicted{norm}"])
    close(ranking, GOLD[f"ranking{norm}"], tolerance)
    assert 0 < accuracy < 1
    names = {
        "mask_token": "decoder.mask_token",
        "decoder_embed.weight": "decoder.embed.weight",
        "patch_embed.proj.weight": "student.encoder.patch_embed.proj.weight",
        "decoder_blocks_losspred.0.attn.qkv.weight": "student.ranker.blocks.0.attn.qkv.weight",
        "decoder_norm_losspred.weight": "student.ranker.norm.weight",
    }
    for theirs, ours in names.items():
        gradient, expected = method.get_parameter(ours).grad, GOLD[f"grad{norm}.{theirs}"]
        assert gradient is not None
        close(gradient.view_as(expected), expected, tolerance)


def test_ranking_equals_a_plain_loop() -> None:
    g = torch.Generator().manual_seed(0)
    predicted, errors = (torch.randn(3, 7, generator=g, dtype=torch.float64) for _ in range(2))
    errors[0, 1] = errors[0, 2]  # a tie is no pair
    total, right, pairs = 0.0, 0, 0
    for p, e in zip(predicted, errors, strict=True):
        for i in range(7):
            for j in range(7):
                if e[i] > e[j]:
                    total -= (p[i] - p[j]).sigmoid().log()
                    right += int(p[i] > p[j])
                    pairs += 1
    assert pairs == 3 * 21 - 1
    loss, accuracy = hpm.ranking_loss(predicted, errors)
    assert isinstance(total, Tensor)
    close(loss, total / pairs)
    assert accuracy.item() == pytest.approx(right / pairs)
    assert hpm.ranking_loss(errors, errors)[1] == 1 and hpm.ranking_loss(-errors, errors)[1] == 0


@pytest.mark.parametrize("epoch", [0, 99, 199])
def test_masks_are_the_official_ones(epoch: int) -> None:
    method = build()
    official(method, "teacher.")
    images = GOLD["images"].double()
    close(method.teacher(images), GOLD["teacher_prediction"])
    many = []
    for step in range(200):
        at = replace(moment(step), step=epoch + 1, total=200)  # their share of an epoch is its end's
        many.append(method._masks(images, at)[2])
    ours = torch.stack([torch.zeros(3, 64).scatter(1, hidden, 1.0) for hidden in many]).double().mean(0)
    theirs = GOLD[f"mask_freq{epoch}"]
    hardest = method.teacher(images).argsort(1)[:, 64 - int(48 * 0.5 * (epoch + 1) / 200) :]
    for share in (ours, theirs):
        assert hardest.numel() == 0 or (share.gather(1, hardest) == 1).all()
    rest = torch.ones(3, 64, dtype=torch.bool).scatter(1, hardest, False)
    p = (48 - hardest.shape[1]) / (64 - hardest.shape[1])
    for share in (ours, theirs):  # others as likely as each other
        assert (share[rest] - p).abs().max() < 4.5 * (p * (1 - p) / 200) ** 0.5


def test_the_loss_uses_the_masks() -> None:
    method, batch = CASE.build().double(), doubled(views(CASE))
    assert isinstance(method, hpm.HPM)
    _, keep, hidden = method._masks(batch.crops[0][0], moment())
    expected = method.teacher(batch.crops[0][0])
    _, plain = random_split(moment().rand(16, 16), 0.75)
    assert not torch.equal(hidden.sort(1).values, plain.sort(1).values)
    top = expected.topk(3, dim=1).indices  # a quarter of 12 hidden patches, half-way through the run
    assert (top.unsqueeze(2) == hidden.unsqueeze(1)).any(2).all()
    visible = method.encoder(batch.crops[0][0], keep=keep)
    errors = hpm.patch_errors(method.decoder(visible, keep, hidden), patchify(batch.crops[0][0], 8), hidden)
    terms = method.loss(batch, moment()).terms
    close(terms["reconstruction"], errors.mean())
    guess = method.student.ranker(visible, keep, hidden).squeeze(-1).gather(1, hidden)
    close(terms["ranking"], hpm.ranking_loss(guess, errors)[0])


def test_without_hard_patches_the_error_is_that_of_mae() -> None:
    method = CASE.build(cfg=replace(TINY, hardest=0.0, norm_pixels=True)).double()
    fields = (
        "encoder",
        "views",
        "mask_ratio",
        "norm_pixels",
        "decoder_width",
        "decoder_depth",
        "decoder_heads",
    )
    plain = mae.MAE(mae.Config(**{name: getattr(method.cfg, name) for name in fields})).double()
    names = {k.replace("student.encoder.", "backbone."): v for k, v in method.state_dict().items()}
    plain.load_state_dict({k: v for k, v in names.items() if k.startswith(("backbone.", "decoder."))})
    batch = doubled(views(CASE))
    close(method.loss(batch, moment()).terms["reconstruction"], plain.loss(batch, moment()).terms["mae"])


def test_the_teacher_follows_what_ranks() -> None:
    method = CASE.build(cfg=replace(TINY, teacher_decay=Constant(0.5)))
    assert isinstance(method, hpm.HPM) and isinstance(method.teacher, Teacher)
    before = [p.clone() for p in method.teacher.module.parameters()]
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter.add_(1.0)
    method.after_step(moment(), {})
    for start, after in zip(before, method.teacher.module.parameters(), strict=True):
        close(after, start + 0.5, 1e-6)


def test_bad_settings_say_what_to_change() -> None:
    for share in (-0.1, 1.5):
        with pytest.raises(ValueError, match="is not a share"):
            CASE.fresh(cfg=replace(TINY, hardest=share))
    with pytest.raises(ValueError, match="mask_ratio"):
        CASE.fresh(cfg=replace(TINY, mask_ratio=0.99)).loss(views(CASE), moment())
