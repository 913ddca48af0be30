"""Optimisers and parameter groups."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from visrep.config import Optim
from visrep.method import At
from visrep.optim import build_optimizer, clip_gradients, drop_frozen_gradients, set_schedules
from visrep.schedules import Constant, Step

GOLDEN = np.load(Path(__file__).parent / "golden" / "optim.npz")


def at(step: int) -> At:
    return At(step, 100, 10, torch.Generator())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 6)
        self.norm = nn.LayerNorm(6)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 6))
        self.head = nn.Linear(6, 2)


@pytest.mark.parametrize("official", ["mocov3", "vicreg", "barlow"])
def test_lars_equals_official(official: str):
    net = nn.Module()
    net.w = nn.Parameter(torch.from_numpy(GOLDEN["lars_w0"]))
    net.b = nn.Parameter(torch.from_numpy(GOLDEN["lars_b0"]))
    cfg = Optim(
        name="lars",
        lr=Constant(0.3),
        lr_scaling="none",
        weight_decay=Constant(0.01),
        momentum=0.9,
        trust=0.01,
    )
    optimizer = build_optimizer(net.named_parameters(), cfg)
    for i in range(4):
        set_schedules(optimizer, cfg, at(i), batch=256)
        net.w.grad = torch.from_numpy(GOLDEN["lars_grad_w"][i])
        net.b.grad = torch.from_numpy(GOLDEN["lars_grad_b"][i])
        optimizer.step()
        np.testing.assert_allclose(net.w.detach(), GOLDEN[f"{official}_lars_w"][i], rtol=1e-9)
        np.testing.assert_allclose(net.b.detach(), GOLDEN[f"{official}_lars_b"][i], rtol=1e-9)


def test_biases_norms_and_tokens_do_not_decay():
    optimizer = build_optimizer(Net().named_parameters(), Optim())
    decayed = {name for group in optimizer.param_groups if group["decay"] for name in group["names"]}
    assert decayed == {"linear.weight", "head.weight"}


def test_schedules_scale_and_multiply_the_learning_rate():
    cfg = Optim(
        lr=Constant(1.0), weight_decay=Constant(0.3), multipliers=(("head.*", Step((0.0, 0.5), (1,))),)
    )
    optimizer = build_optimizer(Net().named_parameters(), cfg)
    logged = set_schedules(optimizer, cfg, at(10), batch=512)
    assert logged == {"lr": 2.0, "weight_decay": 0.3}
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert rates["linear.weight"] == 2.0
    assert rates["head.weight"] == rates["head.bias"] == 1.0
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["names"]}
    assert decays["linear.weight"] == 0.3
    assert decays["norm.weight"] == 0.0
    sqrt = replace(cfg, lr_scaling="sqrt")
    assert set_schedules(optimizer, sqrt, at(10), batch=1024)["lr"] == 2.0


def test_a_frozen_group_neither_moves_nor_gathers_momentum():
    net, cfg = Net(), Optim(lr=Constant(1.0), multipliers=(("head.*", Step((0.0, 1.0), (1,))),))
    optimizer = build_optimizer(net.named_parameters(), cfg)
    before = net.head.weight.detach().clone()
    set_schedules(optimizer, cfg, at(0), batch=256)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    drop_frozen_gradients(optimizer)
    optimizer.step()
    assert torch.equal(net.head.weight, before)
    assert net.head.weight not in optimizer.state
    assert not torch.equal(net.linear.weight.detach(), before)


def test_clipping_jointly_and_each():
    net = Net()
    for clip_each in (False, True):
        cfg = Optim(clip=1.0, clip_each=clip_each)
        optimizer = build_optimizer(net.named_parameters(), cfg)
        for i, parameter in enumerate(net.parameters()):
            parameter.grad = torch.full_like(parameter, 0.01 if i == 0 else 5.0)
        small = next(net.parameters())
        joint = clip_gradients(optimizer, cfg)
        norms = torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None])
        assert joint > 20
        if clip_each:
            assert small.grad is not None
            assert torch.allclose(small.grad, torch.full_like(small, 0.01))
            assert norms[1:].allclose(torch.ones(len(norms) - 1), atol=1e-4)
        else:
            assert norms.norm() == pytest.approx(1.0, abs=1e-4)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="haed"):
        build_optimizer(Net().named_parameters(), Optim(multipliers=(("haed.*", Constant(0.1)),)))


def test_a_setting_that_would_be_ignored_is_an_error():
    with pytest.raises(ValueError, match=r"betas.*no effect.*sgd"):
        build_optimizer(Net().named_parameters(), Optim(name="sgd", betas=(0.9, 0.95)))
