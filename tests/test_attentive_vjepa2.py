"""V-JEPA 2's attentive probe against the published module and schedules, and a grid against probes trained alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from visrep.evaluation import attentive_vjepa2 as preset
from visrep.evaluation import probe_training
from visrep.evaluation.attentive import heads_for
from visrep.evaluation.attentive_vjepa2 import (
    GRID,
    DeepProbe,
    attentive_vjepa2,
    attentive_vjepa2_as_published,
    train_probes,
)
from visrep.evaluation.probe_training import Published, batches, choose, seeded
from visrep.evaluation.protocols import check_protocols, place, without_all

GOLDEN = Path(__file__).parent / "golden/attentive_vjepa2.npz"
SHORT = tuple(
    replace(schedule, epochs=6, warmup=schedule.warmup / 5) for schedule in (GRID[0], GRID[5], GRID[16])
)


@pytest.fixture
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as found:
        return dict(found)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_training, "LEAST_STEPS", 24)


def official(name: str) -> str:
    """What the published module calls a parameter of ours; its matrices of keys and values are one."""
    if name.startswith("blocks"):
        for ours, theirs in (
            ("self_attn.in_proj_", "attn.qkv."), ("self_attn.out_proj", "attn.proj"), ("linear1", "mlp.fc1"),
            ("linear2", "mlp.fc2"),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        return f"pooler.{name}"
    if name.startswith("pool.head"):
        return name.replace("pool.head", "linear")
    if name == "pool.query":
        return "pooler.query_tokens"
    name = name.replace("pool.", "pooler.cross_attention_block.")
    return name.replace(".q.", ".xattn.q.").replace("mlp.0", "mlp.fc1").replace("mlp.2", "mlp.fc2")


def filled(names: list[str], probe: DeepProbe) -> None:
    """Every parameter as `golden/README_attentive_vjepa2.md` says."""

    def drawn(name: str, *shape: int) -> Tensor:
        return torch.from_numpy(0.3 * np.random.RandomState(names.index(name)).randn(*shape))

    for name, parameter in probe.named_parameters():
        if name.startswith(("pool.k.", "pool.v.")):
            kind, shape = name.rpartition(".")[2], parameter.shape
            both = drawn(f"pooler.cross_attention_block.xattn.kv.{kind}", 2 * shape[0], *shape[1:])
            parameter.data = both[: shape[0]] if name.startswith("pool.k.") else both[shape[0] :]
        else:
            shape = (1, *parameter.shape) if name == "pool.query" else parameter.shape
            parameter.data = drawn(official(name), *shape).reshape(parameter.shape)


def test_forward_and_gradients_are_those_of_the_published_module(golden: dict[str, np.ndarray]) -> None:
    probe, names = DeepProbe(16, 5, 4).double(), golden["names"].tolist()
    filled(names, probe)
    tokens = torch.from_numpy(np.random.RandomState(1000).randn(3, 7, 16))
    logits = probe(tokens)
    np.testing.assert_allclose(logits.detach().numpy(), golden["logits"], atol=1e-9, rtol=0)
    logits.square().sum().backward()
    norms, seen = dict(zip(names, golden["gradient_norms"].tolist(), strict=True)), set()
    for name, parameter in probe.named_parameters():
        if not name.startswith(("pool.k.", "pool.v.")):
            assert parameter.grad is not None
            assert float(parameter.grad.norm()) == pytest.approx(norms[official(name)], rel=1e-7), name
            seen.add(official(name))
    assert set(names) - seen == {
        f"pooler.cross_attention_block.xattn.kv.{kind}" for kind in ("weight", "bias")
    }
    probe.eval()
    with torch.no_grad():
        np.testing.assert_allclose(probe(tokens).numpy(), golden["logits"], atol=1e-9, rtol=0)


def test_schedules_are_the_published_ones(golden: dict[str, np.ndarray]) -> None:
    """Twenty epochs of three steps, step by step, with and without warm-up."""
    warm = next(s for s in GRID if (s.lr, s.weight_decay) == (1.5e-3, 4e-3))
    for schedule, name in ((warm, "schedule"), (GRID[0], "schedule_without_warmup")):
        found = [(schedule.lr_at(t / 3), schedule.weight_decay_at(t / 3)) for t in range(1, 61)]
        np.testing.assert_allclose(found, golden[name], atol=1e-12)
    assert len(GRID) == 21 == len({(s.lr, s.weight_decay, s.warmup) for s in GRID})
    assert {(s.epochs, s.batch) for s in GRID} == {(20, 1024)}


def test_a_probe_starts_as_theirs() -> None:
    probe = seeded(lambda: DeepProbe(256, 10, 16), 0)
    deviations = {}
    for number, block in enumerate(probe.blocks, start=1):
        assert isinstance(block, nn.TransformerEncoderLayer)
        deviations[block.self_attn.in_proj_weight] = 0.02
        deviations[block.linear1.weight] = 0.02
        deviations[block.self_attn.out_proj.weight] = deviations[block.linear2.weight] = 0.02 / math.sqrt(
            2 * number
        )
        assert not block.self_attn.in_proj_bias.any() and not block.linear2.bias.any()
        assert (block.norm1.weight == 1).all()
    last = probe.pool.mlp[2]
    assert isinstance(last, nn.Linear)
    deviations[last.weight] = 0.02 / math.sqrt(6)
    for weight, expected in deviations.items():
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.02)
    assert [heads_for(d, 16) for d in (1024, 384, 24, 7)] == [16, 16, 12, 7]


def needles(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of eight tokens one is marked and carries the class."""
    rng = torch.Generator().manual_seed(seed)
    kinds = torch.randint(3, (n, 8), generator=rng)
    tokens = nn.functional.one_hot(kinds, 8).float() + 0.1 * torch.randn(n, 8, 8, generator=rng)
    place = torch.randint(8, (n,), generator=rng)
    tokens[torch.arange(n), place, 6] += 3
    return tokens, kinds[torch.arange(n), place]


def alone(tokens: Tensor, y: Tensor, number: int, schedule: Published, seed: int) -> DeepProbe:
    """One probe by torch's own optimiser, with the published steps written out."""
    probe = seeded(lambda: DeepProbe(8, 3, 8), (seed << 16) + number)
    optimiser = torch.optim.AdamW(probe.parameters(), fused=True)
    n = len(tokens)
    each = math.ceil(n / schedule.batch_for(n))
    rng = torch.Generator().manual_seed(seed)
    for step, (_, rows) in enumerate(batches(n, schedule, rng), start=1):
        for group in optimiser.param_groups:
            group["lr"] = schedule.lr_at(step / each)
            group["weight_decay"] = schedule.weight_decay_at(step / each)
        loss = nn.functional.cross_entropy(probe(tokens[rows]), y[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return probe.eval()


def test_each_probe_of_a_grid_is_the_one_trained_alone() -> None:
    tokens, y = needles(60, 0)
    numbered = dict(enumerate(SHORT))
    together = train_probes(tokens, y, 3, numbered, seed=2)
    (single,) = train_probes(tokens, y, 3, {1: SHORT[1]}, seed=2).each
    for number, schedule in numbered.items():
        wanted = alone(tokens, y, number, schedule, seed=2).state_dict()
        for name, value in together.each[number].state_dict().items():
            torch.testing.assert_close(value, wanted[name], atol=0, rtol=0, msg=name)
            assert number != 1 or torch.equal(value, single.state_dict()[name])
    first, second = (probe.pool.head.weight for probe in together.each[:2])
    assert not torch.equal(first, second)


def test_the_best_probe_is_chosen_on_held_out_images_or_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe_training, "LEAST_STEPS", 200)
    (tokens, y), (test, answers) = needles(150, 0), needles(60, 1)
    tokens, test = (
        x + 3 * nn.functional.one_hot(z, 8)[:, None] for x, z in ((tokens, y), (test, answers))
    )  # every token tells
    labels, wanted = 10 * y + 3, 10 * answers + 3
    useless = replace(GRID[0], lr=1e-9)
    grid = (useless, replace(GRID[0], lr=5e-3))
    state = torch.get_rng_state()
    (found,) = attentive_vjepa2(tokens.half(), labels, test.half(), seed=1, grid=grid)
    assert torch.equal(state, torch.get_rng_state())
    assert found.settings["lr"] == 5e-3 and found.settings["probes"] == 2 and not found.caution
    assert set(found.predicted.tolist()) <= {3, 13, 23}
    (again,) = attentive_vjepa2(tokens.half(), labels, test.half(), seed=1, grid=grid)
    assert torch.equal(found.predicted, again.predicted)

    (paper,) = attentive_vjepa2_as_published(tokens, labels, test, wanted, seed=1, grid=grid)
    probes = train_probes(tokens, y, 3, dict(enumerate(grid)), seed=1)
    right = (probes.answers(test) == answers[:, None]).double().mean(0)
    assert float((paper.predicted == wanted).double().mean()) == float(right.max()) > float(right[0])
    assert "optimistic" in paper.caution and paper.settings["chosen_on"] == "test images"


def test_a_probe_that_diverges_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, y = needles(60, 0)
    train = preset.train_probes

    def broken(*args: object, **how: object) -> preset.Probes:
        made = train(*args, **how)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            made.each[0].pool.head.bias.fill_(math.nan)
        return made

    monkeypatch.setattr(preset, "train_probes", broken)
    (paper,) = attentive_vjepa2_as_published(tokens, y, tokens, torch.zeros_like(y), grid=SHORT[:2])
    assert paper.settings["warmup"] == SHORT[1].warmup  # though class 0 is right everywhere
    with pytest.raises(ValueError, match="at least 2 classes"):
        attentive_vjepa2(tokens, torch.zeros_like(y), tokens)
    with pytest.raises(ValueError, match=r"diverged: its answers for 60 of 60"):
        attentive_vjepa2_as_published(tokens, y, tokens, y, grid=SHORT[:1])


def test_it_is_asked_for_by_name() -> None:
    check_protocols(("attentive-vjepa2", "attentive-vjepa2@paper"))
    assert "attentive-vjepa2" not in without_all(("all",))[0]
    assert "attentive-vjepa2" in without_all(("all", "attentive-vjepa2"))[0]
    assert place("attentive-vjepa") < place("attentive-vjepa2") < place("linear-dinov2@paper")


def test_the_first_of_the_best_probes_is_chosen() -> None:
    answers = torch.tensor([[0, 1, 1, -1], [2, 2, 2, -1], [1, 1, 2, 0]])  # the last diverged on two images
    best, choice = choose(answers, torch.tensor([1, 2, 0]))
    assert best == 1 and choice == {"held_out": 3, "held_out_top1": pytest.approx(200 / 3)}
