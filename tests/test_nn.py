"""Heads, teacher, decoder, masks and the shared maths."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from visrep.encoders import ResNet, ViT
from visrep.functional import entropy, feature_std, widen
from visrep.masking import random_split
from visrep.method import Tokens
from visrep.methods.distillation import dino
from visrep.methods.masked import mae
from visrep.nn.decoder import MaskedDecoder
from visrep.nn.heads import projection
from visrep.nn.teacher import Teacher
from visrep.nn.transformer import DropPath


def test_teacher_starts_equal_and_follows() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = Teacher(student)
    weight, own = student.get_parameter("0.weight"), teacher.module.get_parameter("0.weight")
    before = own.clone()
    assert torch.equal(before, weight)
    with torch.no_grad():
        weight.add_(1.0)
    torch.testing.assert_close(own, before, msg="the teacher is not a copy")
    for decay, expected in ((0.75, before + 0.25), (1.0, before + 0.25), (0.0, before + 1.0)):
        teacher.follow(student, decay)
        torch.testing.assert_close(own, expected)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert weight.requires_grad


def test_teacher_keeps_its_own_batchnorm_statistics_and_drops_nothing() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), DropPath(0.5), nn.Dropout(0.5))
    teacher = Teacher(student)
    x = torch.randn(16, 3, requires_grad=True)
    assert torch.equal(teacher(x), teacher(x)) and not teacher(x).requires_grad
    seen, mean = (teacher.module.get_buffer(f"1.{name}") for name in ("num_batches_tracked", "running_mean"))
    assert seen == 3 and student.get_buffer("1.num_batches_tracked") == 0
    own = mean.clone()
    teacher.follow(student, decay=0.5)
    assert torch.equal(mean, own)
    teacher.eval()
    teacher(x)
    assert seen == 3
    nn.Sequential(teacher).train()
    modes = [module.training for module in teacher.module]
    assert modes == [False, True, False, False]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_projection_normalises_every_layer(layers: int) -> None:
    head = projection(6, 8, 4, layers=layers)
    y = head(torch.randn(64, 6))
    torch.testing.assert_close(y.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert sum(isinstance(module, nn.Linear) for module in head) == layers
    assert sum(isinstance(module, nn.BatchNorm1d) for module in head) == layers
    plain = projection(6, 8, 4, layers=layers, last_norm=False)
    assert isinstance(plain[-1], nn.Linear) and plain[-1].bias is not None
    with pytest.raises(ValueError, match="got 0"):
        projection(6, 8, 4, layers=0)


def test_random_split_keeps_the_smallest_noise() -> None:
    noise = torch.rand(5, 16)
    keep, hidden = random_split(noise, 0.75)
    assert keep.shape == (5, 4) and hidden.shape == (5, 12)
    assert torch.equal(torch.cat([keep, hidden], 1).sort(1).values, torch.arange(16).expand(5, -1))
    assert (noise.gather(1, keep).max(1).values < noise.gather(1, hidden).min(1).values).all()


@pytest.mark.parametrize(("ratio", "fault"), [(0.98, "keeps none of the 16"), (0.0, "hides none of the 16")])
def test_random_split_says_what_is_impossible(ratio: float, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        random_split(torch.rand(2, 16), ratio)


@pytest.mark.parametrize("cls", [True, False])
def test_decoder_puts_tokens_where_they_belong(cls: bool) -> None:
    decoder = MaskedDecoder(8, 5, (4, 4), width=16, depth=1, heads=2)
    keep, hidden = random_split(torch.rand(3, 16), 0.75)
    tokens = Tokens(torch.randn(3, 4, 8), (4, 4), cls=torch.randn(3, 8) if cls else None)
    out = decoder(tokens, keep, hidden)
    assert out.shape == (3, 16, 5)
    order = torch.tensor([2, 0, 3, 1])  # the same patches, named in another order
    shuffled = Tokens(tokens.patches[:, order], (4, 4), cls=tokens.cls)
    torch.testing.assert_close(decoder(shuffled, keep[:, order], hidden.flip(1)), out)


def test_shared_maths() -> None:
    uniform, certain = torch.full((1, 8), 1 / 8), torch.eye(8)[:1]
    torch.testing.assert_close(entropy(torch.cat([uniform, certain])), torch.tensor([math.log(8), 0.0]))
    assert feature_std(torch.ones(10, 16)) == 0
    spread = feature_std(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)))
    assert spread.item() == pytest.approx(1 / math.sqrt(16), rel=0.02)
    assert widen(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert widen(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def test_the_paper_presets_state_the_papers_sizes() -> None:
    assert dino.paper().method.prototypes == 65_536
    assert dino.paper().method.views.n_local == 8
    assert mae.paper().method.encoder == ViT(width=768, heads=12, position="sincos")
    assert mae.paper().optim.lr_batch == 256 and mae.paper().batch == 4096


def test_a_convolutional_encoder_takes_part_in_dino() -> None:
    cfg = replace(dino.tiny().method, encoder=ResNet(18, width=4, stem="small"))
    method = dino.DINO(cfg)
    logits = method.student((torch.randn(2, 3, 3, 32, 32), torch.randn(4, 3, 3, 16, 16)))
    assert logits.shape == (6, 3, 32)
    assert method.encoder is method.teacher.module.encoder
