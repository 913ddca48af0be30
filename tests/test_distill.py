"""Distillation from a finished encoder: the losses by the definitions and by those of DINO, iBOT and DINOv3."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from _extras import needs
from conformance import images, moment
from visrep import cli
from visrep.encoders import ResNet, ViT, load_encoder, save_encoder
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder
from visrep.functional import dino_loss, entropy, masked_patch_loss
from visrep.method import Encoder, Preprocessing
from visrep.methods.distillation.dinov3 import gram_loss
from visrep.methods.distillation.distill import Config, Distill, code_loss, feature_loss, relation_loss, tiny
from visrep.rundir import RunFolder
from visrep.views import draw

VIT = ViT(image=32, patch=8, width=32, depth=2, heads=2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_gradient(loss: Tensor, s: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, s)
    return gradient


def test_codes_are_dinos_cross_entropy_less_the_teachers_entropy():
    s, t, tau = random(2, 5, 7).requires_grad_(), random(5, 7, seed=1), 0.1
    p = (t / 0.04).softmax(-1)
    official = dino_loss(p[None], s, tau)  # the first crop's code, guessed from the second
    ours = code_loss(s[1] / tau, t / 0.04)
    torch.testing.assert_close(ours + entropy(p).mean(), official, rtol=0, atol=1e-12)
    torch.testing.assert_close(with_gradient(ours, s), with_gradient(official, s), rtol=0, atol=1e-12)


def test_codes_of_patches_are_ibots():
    s, t, tau = random(3 * 4, 6).requires_grad_(), random(3 * 4, 6, seed=1), 0.1
    p = t.softmax(-1)
    official = masked_patch_loss(p, s, torch.ones(3, 4, dtype=torch.bool), tau)
    ours = code_loss((s / tau).view(3, 4, 6), t.view(3, 4, 6))
    torch.testing.assert_close(ours + entropy(p).mean(), official, rtol=0, atol=1e-12)
    torch.testing.assert_close(with_gradient(ours, s), with_gradient(official, s), rtol=0, atol=1e-12)


def test_relations_of_patches_are_dinov3s_gram_loss():
    x, y = random(3, 5, 4).requires_grad_(), random(3, 5, 4, seed=1)
    official, ours = gram_loss(x, y), relation_loss((x, x), (y, y))
    torch.testing.assert_close(ours, official, rtol=0, atol=1e-12)
    torch.testing.assert_close(with_gradient(ours, x), with_gradient(official, x), rtol=0, atol=1e-12)


def test_relations_by_their_definition_between_different_widths():
    s, t = random(4, 3), random(4, 8, seed=1)
    pairs = [(i, j) for i in range(4) for j in range(4)]
    naive = [
        (float(F.cosine_similarity(s[i], s[j], dim=0)) - float(F.cosine_similarity(t[i], t[j], dim=0))) ** 2
        for i, j in pairs
    ]
    assert float(relation_loss((s, s), (t, t))) == pytest.approx(sum(naive) / 16)
    assert float(relation_loss((s[:1], s), (t[:1], t))) == pytest.approx(sum(naive[:4]) / 4)


def test_features_by_their_definition():
    s, t = random(3, 4), random(3, 4, seed=1)
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in zip(s, t, strict=True)]
    assert float(feature_loss(s, t, "cosine")) == pytest.approx(1 - sum(cosines) / 3)
    assert float(feature_loss(s, t, "squared")) == pytest.approx(float(((s - t) ** 2).sum()) / 12)
    assert float(feature_loss(2 * t, t, "cosine")) == pytest.approx(0)


# the method


def finished(folder: Path, config: Any, seed: int = 3) -> Encoder:
    torch.manual_seed(seed)
    encoder: Encoder = config.build().eval()
    encoder.preprocessing = Preprocessing(32, 1.0, (0.2, 0.3, 0.4), (0.5, 0.6, 0.7))
    save_encoder(folder, encoder)
    return encoder


def distill(teacher: Path | str, **changed: Any) -> Distill:
    cfg = replace(tiny().method, teacher=str(teacher), **changed)
    torch.manual_seed(0)
    return Distill(cfg)


@pytest.mark.parametrize("distance", ["cosine", "squared"])
def test_nothing_is_left_to_learn_when_student_and_teacher_are_one(distance: str, tmp_path: Path):
    teacher = finished(tmp_path / "t", VIT)
    one = {"encoder": VIT, "tau_student": 0.1, "tau_teacher": 0.1, "distance": distance}
    method = distill(tmp_path / "t", **one)
    view = replace(method.cfg.views.view, mean=teacher.preprocessing.mean, std=teacher.preprocessing.std)
    method = distill(tmp_path / "t", **one, views=replace(method.cfg.views, view=view))
    batch = draw(method.cfg.views, images(8), moment())
    far = method.loss(batch, moment()).terms
    method.backbone.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        for head in (method.head, method.patch_head):
            head.weight.copy_(torch.eye(32))
            head.bias.zero_()
    for name, term in method.loss(batch, moment()).terms.items():
        assert abs(float(term.detach())) < 1e-6 < float(far[name].detach()), name


def test_the_teacher_sees_the_views_as_it_knows_images(tmp_path: Path):
    teacher = finished(tmp_path / "t", ResNet(18, width=4, stem="small"))
    method = distill(tmp_path / "t", teacher_size=64)
    shown = draw(method.cfg.views, images(4), moment()).crops[0][0]
    view, seen = method.cfg.views.view, teacher.preprocessing
    pixels = shown * torch.tensor(view.std).view(3, 1, 1) + torch.tensor(view.mean).view(3, 1, 1)
    own = (pixels - torch.tensor(seen.mean).view(3, 1, 1)) / torch.tensor(seen.std).view(3, 1, 1)
    expected = teacher(F.interpolate(own, size=(64, 64), mode="bicubic", antialias=True))
    found = method._teach(shown)
    assert found.grid == (8, 8)
    torch.testing.assert_close(found.patches, expected.patches, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (ResNet(18, width=4, stem="small"), VIT),
        (VIT, ResNet(18, width=4, stem="small")),
        (replace(VIT, patch=4, cls=False), replace(VIT, patch=16)),
    ],
    ids=["CNN to ViT", "ViT to CNN", "fine to coarse"],
)
def test_any_encoder_teaches_any(teacher: Any, student: Any, tmp_path: Path):
    known = finished(tmp_path / "t", teacher)
    method = distill(tmp_path / "t", encoder=student)
    losses = method.loss(draw(method.cfg.views, images(8), moment()), moment())
    sum(losses.terms.values(), torch.zeros(())).backward()
    assert method.head.weight.shape == (known.width, method.backbone.width)
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.head.parameters())


def test_patches_can_be_left_out(tmp_path: Path):
    finished(tmp_path / "t", VIT)
    method = distill(tmp_path / "t", w_patch=0.0)
    sum(
        method.loss(draw(method.cfg.views, images(8), moment()), moment()).terms.values(), torch.zeros(())
    ).backward()
    assert not method.patch_head.weight.grad.any()  # pyright: ignore[reportOptionalMemberAccess]
    assert method.head.weight.grad.any()  # pyright: ignore[reportOptionalMemberAccess]


def test_anchors_are_the_teachers_vectors_of_the_last_batches(tmp_path: Path):
    finished(tmp_path / "t", VIT)
    method = distill(tmp_path / "t", anchors=16)
    batch = draw(method.cfg.views, images(8), moment())
    carry = method.loss(batch, moment()).carry
    method.after_step(moment(), carry)
    method.after_step(moment(), {name: -x for name, x in carry.items()})
    taught = F.normalize(method._teach(batch.crops[0][0]).pool(), dim=-1)
    torch.testing.assert_close(method.images.rows, torch.cat([taught, -taught]))
    assert method.patches.rows.norm(dim=1).sub(1).abs().max() < 1e-5


def test_a_model_of_timm_teaches_by_the_short_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    needs("timm")
    words = "--data playground:n=32,size=32 --epochs 1 --batch 16 --method.teacher-size 64 --encoder resnet_narrow"
    for number, flag in enumerate(
        ("--teacher timm:test_efficientnet@random", "--teacher=timm:test_vit@random")
    ):
        out = tmp_path / str(number)
        arguments = ["visrep", "pretrain", "distill:tiny", *flag.split(), *words.split(), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", arguments)
        cli.main()
        folder = RunFolder(out)
        assert folder.run().method.teacher == flag.replace("=", " ").split()[1]
        assert type(load_encoder(out).config) is ResNet
        losses = [line["loss"] for line in folder.metrics("step")]
        assert losses and all(math.isfinite(loss) for loss in losses)
    teacher: Any = distill("timm:test_efficientnet@random", teacher_size=64).teacher.encoder
    assert isinstance(teacher, TimmEncoder) and not any(p.requires_grad for p in teacher.parameters())


def test_what_can_be_given_is_said(tmp_path: Path):
    with pytest.raises(ValueError, match=r"method\.teacher='' names no finished encoder.*--method\.teacher"):
        Distill(Config())
    with pytest.raises(ValueError, match=r"method\.teacher=.*nothing.*names no finished encoder"):
        distill(tmp_path / "nothing")
