"""Linear probes with published settings: against torch's own modules and optimisers in plain loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visrep.evaluation import linear_dinov2, probe_training
from visrep.evaluation.linear import linear
from visrep.evaluation.linear_dino import SCHEDULE as DINO
from visrep.evaluation.linear_dino import linear_dino, normal_linear
from visrep.evaluation.linear_dinov2 import LRS, Grid, Head, inputs, linear_dinov2_as_published, train_heads
from visrep.evaluation.linear_mae import SCHEDULE as MAE
from visrep.evaluation.linear_mae import batch_norm, lars, linear_mae
from visrep.evaluation.poolings import beside
from visrep.evaluation.probe_training import Published, batches
from visrep.evaluation.protocols import LayersProbe

Parts = dict[tuple[int, str], Tensor]


def blobs(n: int, d: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    centres = torch.randn(k, d, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(n) % k
    return centres[labels] + 1.5 * noise, labels


def layers(x: Tensor, *, cls: bool = True, seed: int = 0) -> Parts:
    """Five layers, the fourth of which is the clearest."""
    rng = torch.Generator().manual_seed(seed)
    return {
        (layer, how): x + abs(4 - layer) * torch.randn(x.shape, generator=rng)
        for layer in range(1, 6)
        for how in (("cls", "mean") if cls else ("mean",))
    }


@pytest.mark.parametrize(
    ("schedule", "batch", "steps"),
    [(DINO, 1024, 125_200), (MAE, 16384, 7110), (linear_dinov2.SCHEDULE, 1024, 12_520)],
)
def test_imagenet_is_trained_on_as_published(schedule: Published, batch: int, steps: int) -> None:
    assert (schedule.batch_for(1_281_167), schedule.steps(1_281_167)) == (batch, steps)


def test_small_sets_have_as_many_steps() -> None:
    assert DINO.batch_for(3453) == 173 and DINO.steps(3453) == 2000
    assert MAE.batch_for(3453) == 156 and MAE.steps(3453) == 2070
    assert DINO.batch_for(100) == 16 and DINO.batch_for(10) == 10


def test_schedules_are_torchs_and_maes() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([weight], lr=DINO.lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, DINO.epochs)
    for epoch in range(DINO.epochs):
        for within in (0.0, 0.7):  # moves between epochs only
            assert DINO.lr_at(epoch + within) == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-12)
        optimiser.step()
        cosine.step()
    assert MAE.lr_at(0) == 0 and MAE.lr_at(5) == pytest.approx(3.2) and MAE.lr_at(10) == pytest.approx(6.4)
    assert MAE.lr_at(50) == pytest.approx(6.4 * (1 + math.cos(math.pi / 2)) / 2)
    assert (DINO.lr, MAE.lr) == (0.004, 6.4)


def test_weight_decay_follows_its_schedule() -> None:
    schedule = Published(epochs=20, batch=8, lr=1.0, weight_decay=1e-3, last_weight_decay=1e-6)
    assert schedule.weight_decay_at(0) == pytest.approx(1e-3)
    assert schedule.weight_decay_at(20) == pytest.approx(1e-6)
    assert schedule.weight_decay_at(10) == pytest.approx((1e-3 + 1e-6) / 2)


def test_every_image_is_seen_once_an_epoch() -> None:
    schedule = Published(epochs=3, batch=7, lr=1.0)
    found = list(batches(100, schedule, torch.Generator().manual_seed(0)))
    assert len(found) == schedule.steps(100) == 3 * 15
    for epoch in range(3):
        rows = torch.cat([rows for at, rows in found if math.floor(at) == epoch])
        assert rows.sort().values.equal(torch.arange(100))
    assert [at for at, _ in found[:2]] == [0, 1 / 15]


def test_grid_is_52_heads_trained_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each head as torch.nn.Linear under torch.optim.SGD on its own input, in float64; 1e-9."""
    monkeypatch.setattr(linear_dinov2, "SCHEDULE", Published(epochs=2, batch=16, lr=4.0))
    x, y = blobs(60, 3, 4, seed=1)
    parts = {key: part.double() for key, part in layers(x).items()}
    joined, heads, columns = inputs(parts)
    assert len(heads) == 52 and len(LRS) == 13
    grid = train_heads(joined, y, heads, columns, 4, seed=3)
    for number in range(0, 52, 5):
        head = heads[number]
        own = beside(parts, 5, head.layers, mean=head.mean)
        assert own.shape[1] == 3 * (head.layers + head.mean)
        seen = columns[head.layers, head.mean]
        torch.testing.assert_close(joined[:, seen], own)
        probe = nn.Linear(own.shape[1], 4).double()
        with torch.no_grad():
            probe.weight.copy_(linear_dinov2._start(joined.shape[1], 4, head, 3)[seen].T)
            probe.bias.zero_()
        optimiser = torch.optim.SGD(probe.parameters(), lr=1.0, momentum=0.9, weight_decay=0)
        for epoch, rows in batches(60, linear_dinov2.SCHEDULE, torch.Generator().manual_seed(3)):
            optimiser.param_groups[0]["lr"] = head.lr * 4.0 * (1 + math.cos(math.pi * epoch / 2)) / 2
            optimiser.zero_grad()
            F.cross_entropy(probe(own[rows]), y[rows]).backward()
            optimiser.step()
        torch.testing.assert_close(grid.logits(joined)[:, number], probe(own), atol=1e-9, rtol=0)


def test_a_head_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_dinov2, "SCHEDULE", Published(epochs=1, batch=16, lr=4.0))
    x, y = blobs(60, 3, 4, seed=1)
    joined, heads, columns = inputs({key: part.double() for key, part in layers(x).items()})
    every = train_heads(joined, y, heads, columns, 4, seed=0).logits(joined)
    alone = train_heads(joined, y, [heads[30]], columns, 4, seed=0).logits(joined)
    torch.testing.assert_close(every[:, 30], alone[:, 0], atol=1e-12, rtol=0)


def test_without_cls_there_are_26_heads() -> None:
    x, _ = blobs(10, 3, 2, seed=1)
    parts = layers(x, cls=False)
    joined, heads, columns = inputs(parts)
    assert len(heads) == 26 and not any(head.mean for head in heads)
    torch.testing.assert_close(joined[:, columns[1, False]], parts[5, "mean"])
    stages = {(1, "mean"): torch.randn(10, 2), (2, "mean"): torch.randn(10, 5)}  # a convolutional network's
    joined, heads, columns = inputs(stages)
    torch.testing.assert_close(joined[:, columns[1, False]], stages[2, "mean"])
    assert columns[4, False].all() and joined.shape == (10, 7)


def test_accuracies_are_counted() -> None:
    grid = Grid(torch.eye(2), torch.zeros(1, 2))
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert grid.accuracies(x, torch.tensor([0, 1, 1])).tolist() == pytest.approx([2 / 3])


def test_only_paper_mode_looks_at_test_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_dinov2, "SCHEDULE", Published(epochs=5, batch=64, lr=4.0))
    monkeypatch.setattr(probe_training, "LEAST_STEPS", 50)
    (x, y), (test, answers) = blobs(300, 6, 4, seed=1), blobs(200, 6, 4, seed=2)
    train_parts, test_parts = layers(x, seed=1), layers(test, seed=2)
    (honest,) = linear_dinov2.linear_dinov2(train_parts, y, test_parts, answers)
    (same,) = linear_dinov2.linear_dinov2(train_parts, y, test_parts, answers.roll(1))
    assert torch.equal(honest.predicted, same.predicted) and honest.settings == same.settings
    (paper,) = linear_dinov2_as_published(train_parts, y, test_parts, answers)
    assert (paper.predicted == answers).double().mean() >= (
        honest.predicted == answers
    ).double().mean() - 0.02
    assert "chosen on the reported test images" in paper.caution and not honest.caution
    assert paper.protocol == "linear-dinov2@paper" and paper.settings["chosen_on"] == "test images"
    (other,) = linear_dinov2_as_published(train_parts, 10 * y + 3, test_parts, 10 * answers + 3)
    assert torch.equal(other.predicted, 10 * paper.predicted + 3)
    # no head does better on the test images than the reported one
    joined, heads, columns = inputs(train_parts)
    grid = train_heads(joined, y, heads, columns, 4, seed=0)
    best = grid.accuracies(inputs(test_parts)[0], answers).max()
    assert (paper.predicted == answers).double().mean() == pytest.approx(float(best))


def test_dino_is_a_linear_layer_under_sgd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "visrep.evaluation.linear_dino.SCHEDULE", Published(epochs=4, batch=16, lr=0.1, by_epoch=True)
    )
    (x, y), (test, answers) = blobs(50, 4, 3, seed=1), blobs(80, 4, 3, seed=2)
    train_parts, test_parts = layers(x, seed=1), layers(test, seed=2)
    (found,) = linear_dino(train_parts, y, test_parts, answers, seed=5)
    own, own_test = (
        torch.cat([p[layer, "cls"] for layer in (2, 3, 4, 5)], 1) for p in (train_parts, test_parts)
    )
    rng = torch.Generator().manual_seed(5)
    probe = normal_linear(16, 3, rng)
    assert float(probe.weight.detach().std()) == pytest.approx(0.01, rel=0.3) and not probe.bias.any()
    optimiser = torch.optim.SGD(probe.parameters(), lr=0.1, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 4)
    for _ in range(4):
        for rows in torch.randperm(50, generator=rng).tensor_split(4):
            optimiser.zero_grad()
            F.cross_entropy(probe(own[rows]), y[rows]).backward()
            optimiser.step()
        cosine.step()
    assert torch.equal(found.predicted, probe(own_test).argmax(1))
    assert found.settings["layers"] == 4 and found.settings["mean"] is False


def test_dino_reads_what_they_read() -> None:
    """ViT-S: cls of four layers; wider: cls and mean of one; without cls: the mean."""
    wide = {(layer, how): torch.randn(20, 400) for layer in (1, 2) for how in ("cls", "mean")}
    y = torch.arange(20) % 2
    (found,) = linear_dino(wide, y, wide, y)
    assert (found.settings["layers"], found.settings["mean"]) == (1, True)
    (found,) = linear_dino({key: x for key, x in wide.items() if key[1] == "mean"}, y, wide, y)
    assert (found.settings["layers"], found.settings["mean"]) == (1, False)


def test_mae_is_batch_norm_and_lars(monkeypatch: pytest.MonkeyPatch) -> None:
    """LARS written out, on a normalised batch; running statistics judge."""
    schedule = Published(epochs=6, batch=16, lr=6.4, warmup=2)
    monkeypatch.setattr("visrep.evaluation.linear_mae.SCHEDULE", schedule)
    (x, y), (test, _) = blobs(50, 4, 3, seed=1), blobs(80, 4, 3, seed=2)
    (found,) = linear_mae(x, y, test, seed=5)
    rng = torch.Generator().manual_seed(5)
    start = normal_linear(4, 3, rng)
    weight, bias = (
        start.weight.detach().clone().requires_grad_(),
        start.bias.detach().clone().requires_grad_(),
    )
    momenta = [torch.zeros(3, 4), torch.zeros(3)]
    mean, var, lr_before = torch.zeros(4), torch.ones(4), -1.0
    for epoch in range(6):
        for number, rows in enumerate(torch.randperm(50, generator=rng).tensor_split(4)):
            at = epoch + number / 4
            lr = 6.4 * (at / 2 if at < 2 else (1 + math.cos(math.pi * (at - 2) / 4)) / 2)
            assert lr != lr_before
            lr_before = lr
            batch = x[rows]
            z = (batch - batch.mean(0)) / (batch.var(0, correction=0) + 1e-6).sqrt()
            mean, var = 0.9 * mean + 0.1 * batch.mean(0), 0.9 * var + 0.1 * batch.var(0)
            grads = torch.autograd.grad(F.cross_entropy(z @ weight.T + bias, y[rows]), (weight, bias))
            with torch.no_grad():
                trust = 0.001 * weight.norm() / grads[0].norm()
                for p, g, m in zip((weight, bias), (trust * grads[0], grads[1]), momenta, strict=True):
                    m.mul_(0.9).add_(g)
                    p -= lr * m
    logits = (test - mean) / (var + 1e-6).sqrt() @ weight.T + bias
    assert (found.predicted == logits.argmax(1)).double().mean() == 1


def test_lars_leaves_vectors_unscaled() -> None:
    probe = nn.Linear(3, 2)
    groups = lars(probe.parameters(), 0.1).param_groups
    assert [[p.ndim for p in group["params"]] for group in groups] == [[2], [1]]
    assert [group["decay"] for group in groups] == [True, False]
    assert not list(batch_norm(3).parameters())


def test_presets_reach_what_logistic_regression_reaches() -> None:
    (x, y), (test, answers) = blobs(600, 16, 5, seed=1), blobs(500, 16, 5, seed=2)

    def accuracy(predicted: Tensor) -> float:
        return float((predicted == answers).double().mean())

    expected = accuracy(linear(x, y, test)[0].predicted)
    assert expected > 0.8
    assert accuracy(linear_mae(x, y, test)[0].predicted) > expected - 0.04


@pytest.mark.parametrize("probe", [linear_dino, linear_dinov2.linear_dinov2, linear_dinov2_as_published])
def test_one_class_is_an_error(probe: LayersProbe) -> None:
    parts = layers(torch.randn(8, 3))
    with pytest.raises(ValueError, match="at least 2 classes"):
        probe(parts, torch.zeros(8, dtype=torch.long), parts, torch.zeros(8, dtype=torch.long), seed=0)


def test_head_is_a_value() -> None:
    assert Head(0.1, 4, True) == Head(0.1, 4, True) != Head(0.1, 1, True)
