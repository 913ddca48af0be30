"""AIM's attentive probe against the published modules, its training written out, and the mean of layers by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from test_attentive_layers import SIZE, TEST, TRAIN
from test_evaluate import resnet, vit
from visrep.data import CanvasSet, Source
from visrep.evaluation import attentive_aim as preset
from visrep.evaluation import probe_training, protocols
from visrep.evaluation.attentive import AttentiveProbe, AttentiveProbes
from visrep.evaluation.attentive_aim import GRID, attentive_aim, fresh, train_probes
from visrep.evaluation.evaluate import evaluate
from visrep.evaluation.features import _mean_tokens
from visrep.evaluation.probe_training import batches
from visrep.evaluation.results import Inapplicable, Prediction
from visrep.method import Encoder
from visrep.views import center

GOLDEN = Path(__file__).parent / "golden/attentive_aim.npz"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step an epoch."""
    monkeypatch.setattr(probe_training, "LEAST_STEPS", 1)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape))


def test_layers_and_probe_are_the_published_ones() -> None:
    """Mean of six layers, logits, gradients, and BatchNorm's statistics afterwards."""
    with np.load(GOLDEN) as file:
        golden = {name: torch.from_numpy(array) for name, array in file.items()}
    layers = [(1 + i) * drawn(100 + i, 3, 7, 24) + i for i in range(8)]
    tokens = _mean_tokens(layers[-6:])
    torch.testing.assert_close(tokens, golden["tokens"], atol=1e-12, rtol=0)

    probe = AttentiveProbe(24, 5, 12, torch.Generator()).double()
    probe.query.data = 0.3 * drawn(0, 12, 2)
    probe.key.data, probe.value.data = (0.3 * drawn(i, 12, 2, 24) for i in (1, 2))
    probe.head.data = 0.3 * drawn(3, 5, 24).T
    probes = AttentiveProbes([probe]).double().train()
    (logits,) = probes(tokens)
    torch.testing.assert_close(logits, golden["logits"], atol=1e-9, rtol=0)
    logits.square().sum().backward()
    for name, mine in (("query", probe.query), ("k", probe.key), ("v", probe.value)):
        assert mine.grad is not None
        theirs = golden[f"gradient_{name}"].reshape(mine.shape)
        torch.testing.assert_close(mine.grad, theirs, atol=1e-9, rtol=0, msg=name)
    torch.testing.assert_close(probe.head.grad, golden["gradient_linear"].T, atol=1e-9, rtol=0)
    (judged,) = probes.eval()(drawn(200, 3, 7, 24))
    torch.testing.assert_close(judged, golden["judged"], atol=1e-9, rtol=0)


def test_settings_are_the_published_ones() -> None:
    assert preset.CLIP == 3.0
    assert {(s.lr, s.weight_decay) for s in GRID} == {
        (lr, decay) for lr in (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3) for decay in (0.05, 0.1)
    }
    for s in GRID:
        assert (s.epochs, s.batch, s.lr_at(0), s.lr_at(2.5)) == (100, 1024, 0.0, s.lr / 2)
        assert s.lr_at(5) == s.lr and s.lr_at(100) == 1e-5
        assert s.lr_at(52.5) == pytest.approx((s.lr + 1e-5) / 2)
        assert s.weight_decay_at(70) == s.weight_decay
    probe = fresh(192, 100, 0)
    assert float(probe.query.detach().std()) == pytest.approx(0.02, rel=0.2)
    for matrix in (probe.key, probe.value, probe.head):
        assert float(matrix.detach().abs().max()) == pytest.approx(192**-0.5, rel=0.01)
        assert float(matrix.detach().std()) == pytest.approx((3 * 192) ** -0.5, rel=0.02)


def test_training_is_the_loop_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each probe of a grid is torch's layers, BatchNorm, AdamW and clipping (often, here), by itself."""
    monkeypatch.setattr(preset, "CLIP", 0.2)
    d, k = 12, 3
    tokens = 5 * torch.randn(40, 4, d, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % k
    grid = (GRID[0], GRID[13])
    together, clipped = train_probes(tokens, y, k, grid, seed=3), 0
    for probe, schedule in zip(together.probes, grid, strict=True):
        start = fresh(d, k, 3)
        parameters = [nn.Parameter(part.detach().clone()) for part in start.parameters()]
        query, key, value, head = parameters
        norm = nn.BatchNorm1d(d, affine=False, eps=1e-6)
        optimiser = torch.optim.AdamW(parameters)
        for epoch, rows in batches(40, schedule, torch.Generator().manual_seed(3)):
            optimiser.param_groups[0] |= {"lr": schedule.lr_at(epoch), "weight_decay": schedule.weight_decay}
            x = norm(tokens[rows].transpose(1, 2)).transpose(1, 2)
            scores = torch.einsum("he,hed,bpd->bhp", query, key, x) / (d // 12) ** 0.5
            pooled = torch.einsum("bhp,hed,bpd->bhe", scores.softmax(-1), value, x).flatten(1)
            optimiser.zero_grad()
            F.cross_entropy(pooled @ head, y[rows]).backward()
            clipped += float(nn.utils.clip_grad_norm_(parameters, 0.2)) > 0.2
            optimiser.step()
        for mine, theirs in zip(probe.parameters(), parameters, strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)
    assert 20 < clipped < 180


def test_the_best_probe_is_chosen_on_held_out_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_training, "LEAST_STEPS", 100)
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(150) % 3
    tokens = F.one_hot(y, 12)[:, None] + 0.2 * torch.randn(150, 4, 12, generator=rng)
    state, labels = torch.get_rng_state(), 10 * y + 3
    grid = (GRID[0], GRID[13])
    (found,) = attentive_aim(tokens[:90].half(), labels[:90], tokens[90:].half(), seed=1, grid=grid)
    (again,) = attentive_aim(tokens[:90].half(), labels[:90], tokens[90:].half(), seed=1, grid=grid)
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(found.predicted, again.predicted)
    assert (found.predicted == labels[90:]).double().mean() > 0.8
    assert found.settings["lr"] == 2e-3 and found.settings["probes"] == 2 and found.settings["heads"] == 12
    with pytest.raises(ValueError, match="at least 2 classes"):
        attentive_aim(tokens, torch.zeros_like(y), tokens)


# --- which tokens it reads


def by_hand(encoder: Encoder, source: Source) -> Tensor:
    canvases = CanvasSet(source, SIZE, cache="memory", workers=0)
    pixels = center(canvases.get(np.arange(len(source))), encoder.preprocessing)
    with torch.no_grad():
        found = encoder(pixels, layers=(3, 4, 5, 6, 7, 8)).layers
    return torch.stack([layer.patches for layer in found]).mean(0).half()


def test_it_reads_the_mean_of_the_last_six_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, whichever layers are asked for; kept apart from the tokens of one layer."""
    monkeypatch.setattr("visrep.evaluation.attentive.EPOCHS", 1)
    monkeypatch.setattr("visrep.evaluation.attentive.LEAST_STEPS", 1)
    seen: list[tuple[Tensor, Tensor]] = []

    def remembered(train: Tensor, labels: Tensor, test: Tensor, *, seed: int) -> list[Prediction]:
        seen.append((train, test))
        return [Prediction("attentive-aim", labels.clone(), {})]

    monkeypatch.setitem(protocols.ON_MEAN_TOKENS, "attentive-aim", remembered)
    encoder = vit(depth=8)
    how: dict[str, Any] = {"protocols": ("attentive-aim", "attentive"), "layers": (1,), "keep": tmp_path}
    first = evaluate(encoder, TRAIN, TEST, **how)
    again = evaluate(encoder, TRAIN, TEST, **how)
    expected = [by_hand(encoder, side) for side in (TRAIN, TEST)]
    assert len(seen) == 4  # of the encoder and of its untrained twin, twice
    for number in (0, 2):
        for mine, theirs in zip(seen[number], expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=2e-3)
    assert torch.equal(seen[0][0], seen[2][0]) and first.results == again.results
    assert [(r.encoder, r.layer, r.pooling) for r in first.results if r.protocol == "attentive-aim"] == [
        ("trained", 8, "layers"),
        ("untrained", 8, "layers"),
    ]
    reused, unread = [note for note in again.notes if "reused" in note], again.notes[-1]
    assert len(reused) == 2 and "layers is not read by: attentive-aim" in unread, again.notes


def test_layers_of_different_shapes_have_no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    said = r"attentive-aim cannot read this encoder: .* 4 layers .* 256 of 8 numbers, 64 of 16 numbers"
    with pytest.raises(Inapplicable, match=said + r".*Use attentive, which reads the last layer alone\."):
        evaluate(resnet(), TRAIN, TEST, protocols=("attentive-aim",))
    monkeypatch.setattr(protocols, "ORDER", ("attentive-aim", "knn"))
    monkeypatch.setattr(protocols, "LONG", frozenset())
    found = evaluate(resnet(), TRAIN, TEST, protocols=("all",))
    assert {r.protocol for r in found.results} == {"knn"}
    (warning,) = [line for line in found.warnings if "attentive-aim" in line]
    assert warning.startswith("left out: attentive-aim cannot read") and warning.endswith("(trained)")
