"""BYOL and SimSiam: published losses, heads, schedules; one is the other when the target does not lag."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance import Case, doubled, views
from visrep.method import At, Method
from visrep.methods.distillation import byol, simsiam
from visrep.nn.teacher import Teacher
from visrep.optim import build_optimizer, set_schedules
from visrep.schedules import Constant, Cosine

GOLDEN = Path(__file__).parent / "golden" / "byol.npz"


def arrays(prefix: str) -> dict[str, Tensor]:
    with np.load(GOLDEN) as stored:
        return {
            name.removeprefix(prefix): torch.from_numpy(stored[name])
            for name in stored.files
            if name.startswith(prefix)
        }


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def moment(step: int, total: int = 100) -> At:
    return At(step, total, 10, torch.Generator().manual_seed(0))


def gradients(method: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def test_byol_loss() -> None:
    gold = arrays("byol.")
    p = torch.stack([gold["p1"], gold["p2"]]).requires_grad_()
    loss = byol.byol_loss(p, torch.stack([gold["z1"], gold["z2"]]))
    loss.backward()
    close(loss, gold["solo_loss_sum"])
    close(loss, gold["solo_loss_p1z2"] + gold["solo_loss_p2z1"])
    assert p.grad is not None
    close(p.grad[0], gold["grad_p1"])
    close(p.grad[1], gold["grad_p2"])
    one_way = byol.byol_loss(torch.stack([gold["p1"], gold["p1"]]), torch.stack([gold["z2"], gold["z2"]]))
    close(one_way, 2 * (2 + 2 * gold["lightly_negcos_p1z2"]))


def test_simsiam_loss_stops_the_gradient() -> None:
    gold = arrays("simsiam.")
    p = torch.stack([gold["p1"], gold["p2"]]).requires_grad_()
    z = torch.stack([gold["z1"], gold["z2"]]).requires_grad_()
    loss = simsiam.simsiam_loss(p, z)
    loss.backward()
    close(loss, gold["loss"])
    assert p.grad is not None and z.grad is None
    close(p.grad[0], gold["grad_p1"])
    close(p.grad[1], gold["grad_p2"])


def test_byol_without_lag_is_simsiam() -> None:
    torch.manual_seed(0)
    siamese = simsiam.SimSiam(simsiam.tiny().method).double()
    bootstrap = byol.BYOL(replace(byol.tiny().method, teacher_decay=Constant(0.0))).double()
    bootstrap.online.encoder = copy.deepcopy(siamese.backbone)
    bootstrap.online.projector = copy.deepcopy(siamese.projector)
    bootstrap.predictor = copy.deepcopy(siamese.predictor)
    bootstrap.target = Teacher(bootstrap.online)

    def descend(method: Method, loss: Tensor, rate: float) -> dict[str, Tensor]:
        method.zero_grad()
        loss.backward()
        with torch.no_grad():
            moved = gradients(method)
            for name, gradient in moved.items():
                method.get_parameter(name).sub_(rate * gradient)
        return {name.replace("online.encoder", "backbone"): g for name, g in moved.items()}

    for step in range(3):
        batch = doubled(views(Case("simsiam"), step=step))
        one, other = siamese.loss(batch, moment(step)), bootstrap.loss(batch, moment(step))
        close(other.terms["byol"], 4 + 4 * one.terms["simsiam"])
        close(other.monitor["projection_std"], one.monitor["projection_std"])
        left = descend(siamese, one.terms["simsiam"], 0.4)
        right = descend(bootstrap, other.terms["byol"], 0.1)
        bootstrap.after_step(moment(step), {})
        assert {name.removeprefix("online.") for name in right} == left.keys()
        for name, gradient in right.items():
            close(gradient, 4 * left[name.removeprefix("online.")])


def test_byol_with_lag_is_not_simsiam() -> None:
    """The identity above would also hold if nothing were learned: a lagging target must break it."""
    torch.manual_seed(0)
    cfg = byol.tiny().method
    lagging, current = (
        byol.BYOL(replace(cfg, teacher_decay=Constant(decay))).double() for decay in (0.9, 0.0)
    )
    current.load_state_dict(lagging.state_dict())
    with torch.no_grad():
        for method in (lagging, current):
            for p in method.online.parameters():
                p.mul_(1.1).add_(0.01)
            method.after_step(moment(0), {})
    batch = doubled(views(Case("byol")))
    one, other = (method.loss(batch, moment(1)).terms["byol"] for method in (lagging, current))
    assert abs(one - other) > 1e-4


def test_byol_target_is_the_average_of_encoder_and_projector() -> None:
    method = byol.BYOL(byol.tiny().method)
    online = dict(method.online.named_parameters())
    target = dict(method.target.module.named_parameters())
    assert target.keys() == online.keys()
    assert {name.partition(".")[0] for name in target} == {"encoder", "projector"}  # no predictor
    before = {name: p.clone() for name, p in target.items()}
    with torch.no_grad():
        for p in online.values():
            p.add_(1.0)
    step, total, start = 30, 100, 0.9
    method.after_step(moment(step, total), {})
    decay = 1 - (1 - start) * (math.cos(math.pi * step / total) + 1) / 2  # the paper's equation
    for name, p in target.items():
        torch.testing.assert_close(p, before[name] + (1 - decay))


def test_byol_target_normalises_with_its_own_batches() -> None:
    method = byol.BYOL(byol.tiny().method)
    batch = views(Case("byol"))
    with torch.no_grad():
        for p in method.online.encoder.parameters():
            p.mul_(1.5)
    method.loss(batch, moment(0))
    own, online = (dict(module.named_buffers()) for module in (method.target.module, method.online))
    assert own["projector.1.num_batches_tracked"] == 2  # once a view
    assert not torch.allclose(own["projector.1.running_mean"], online["projector.1.running_mean"])
    kept = own["projector.1.running_mean"].clone()
    method.after_step(moment(0), {})
    assert torch.equal(own["projector.1.running_mean"], kept)


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_batchnorm_sees_one_view_at_a_time(name: str) -> None:
    """A first view's prediction does not depend on the second views, as it would in one large batch."""
    method, batch = Case(name).build().double(), doubled(views(Case(name)))
    seen: list[Tensor] = []
    assert isinstance(method.predictor, nn.Module)

    def see(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output)

    method.predictor.register_forward_hook(see)
    (crops,) = batch.crops
    for second in (crops[1], crops[1].flip(-1) * 3 + 1):
        method.loss(replace(batch, crops=(torch.stack([crops[0], second]),)), moment(0))
    first, second, first_again, second_again = seen
    close(first, first_again)
    assert not torch.allclose(second, second_again)


def test_byol_heads_are_the_official_ones() -> None:
    method = byol.BYOL(byol.tiny().method)
    for head in (method.online.projector, method.predictor):
        into, norm, relu, out = head.children()
        assert isinstance(into, nn.Linear) and isinstance(relu, nn.ReLU)
        assert isinstance(norm, nn.BatchNorm1d) and norm.affine
        assert isinstance(out, nn.Linear) and out.bias is None
        width = into.in_features, out.out_features
    assert width == (16, 16)


def test_simsiam_heads_are_the_official_ones() -> None:
    method = simsiam.SimSiam(simsiam.tiny().method)
    layers = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear, nn.BatchNorm1d]
    assert [type(module) for module in method.projector] == layers
    assert not method.projector[-1].affine and method.projector[1].affine
    assert [type(module) for module in method.predictor] == [*layers[:3], nn.Linear]
    assert method.predictor[0].bias is None and method.predictor[-1].bias is not None
    assert method.predictor[0].out_features == 8


def test_simsiam_predictor_keeps_its_learning_rate() -> None:
    """As with the official ``--fix-pred-lr``: a cosine over epochs for all else, from 0.05 an image of 256."""
    optim = simsiam.paper().optim
    optimizer = build_optimizer(simsiam.SimSiam(simsiam.tiny().method).named_parameters(), optim)
    for step in (0, 30, 99):
        set_schedules(optimizer, optim, moment(step), batch=512)
        for group in optimizer.param_groups:
            predictor = {name.startswith("predictor.") for name in group["names"]}
            assert len(predictor) == 1
            decayed = 0.5 * (1 + math.cos(math.pi * step / 100))
            assert group["lr"] == pytest.approx(0.1 if predictor.pop() else 0.1 * decayed)


def test_presets_move_the_target_fast_enough_for_few_steps() -> None:
    """With decay d the target forgets its random start within 1 / (1 - d) steps: a small part of the run."""
    run = byol.small32()
    steps = run.epochs * run.limit // run.batch
    assert isinstance(run.method.teacher_decay, Cosine)
    assert 1 / (1 - run.method.teacher_decay.start) < steps / 10
