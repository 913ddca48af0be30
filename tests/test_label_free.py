"""benchmarks/label_free.py: correlations of measures with a probe over all runs, and within methods."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from visrep.comparison.worth import WITHIN

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)  # it imports its neighbour
    return importlib.import_module("label_free")


def ranks(values: Any) -> np.ndarray:
    """From 1, the mean of their places for equal ones."""
    values = np.asarray(values)
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def spearman(x: Any, y: Any) -> float:
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def runs(module: ModuleType, *, seeds: int, networks: tuple[str, ...] = ("vit",)) -> list[Any]:
    """Methods whose mean RankMe falls as their mean probe rises, while within a method both rise together."""
    rng, made = np.random.default_rng(0), []
    for m in range(6):
        for n, net in enumerate(networks):
            for seed in range(seeds):
                step = rng.normal()
                value = {"rankme": 100.0 - 10 * m - 300 * n + step}
                linear = 40.0 + 5 * m + 40 * n + step + 0.2 * rng.normal()
                made.append(module.Measured(f"m{m}-a-d-{seed}", f"m{m}", "d", net, linear, value, value))
    return made


def test_within_methods_the_order_can_be_the_opposite_of_that_between_them(benchmark: ModuleType) -> None:
    made = runs(benchmark, seeds=4)
    found = {group["name"]: group["correlations"]["rankme"] for group in benchmark.groups(made, 50)}
    assert set(found) == {"d, 6 methods", "d, 6 methods with one encoder, vit", f"d, runs {WITHIN}"}
    x, y = (
        np.array(values).reshape(6, 4)
        for values in ([r.good["rankme"] for r in made], [r.linear for r in made])
    )
    centred = [(values - values.mean(1, keepdims=True)).ravel() for values in (x, y)]
    within = found[f"d, runs {WITHIN}"]
    assert within["n"] == 24 and within["spearman"] == pytest.approx(spearman(*centred), abs=1e-3)
    assert within["low"] <= within["spearman"] <= within["high"] and within["spearman"] > 0.8
    assert found["d, 6 methods"]["spearman"] == pytest.approx(spearman(x.ravel(), y.ravel()), abs=1e-3)
    assert found["d, 6 methods"]["spearman"] < -0.8


def test_runs_of_different_networks_are_not_set_against_each_other(benchmark: ModuleType) -> None:
    made = runs(benchmark, seeds=3, networks=("vit", "resnet"))
    found = {group["name"]: group["correlations"]["rankme"] for group in benchmark.groups(made, 50)}
    assert found["d, 6 methods"]["spearman"] < 0 < 0.7 < found[f"d, runs {WITHIN}"]["spearman"]


def test_one_run_a_method_says_nothing_within_methods(benchmark: ModuleType) -> None:
    assert not any(WITHIN in group["name"] for group in benchmark.groups(runs(benchmark, seeds=1), 50))


def test_presets_and_seeds_of_one_method_are_read_as_its_runs(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "linear_probe", lambda folder: 50.0)
    monkeypatch.setattr(benchmark, "network", lambda folder: "vit")
    names = ("mae-small32-cifar10-jpeg-0", "mae-small32-cifar10-jpeg-1", "mae-long32-cifar10-jpeg-0")
    read = []
    for i, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "encoder.json").write_text("{}")
        read.append(benchmark.measured(tmp_path / name, benchmark.Settings(), {name: {"rankme": float(i)}}))
    assert {(run.method, run.data) for run in read} == {("mae", "cifar10-jpeg")}
    differences = benchmark.within_methods(read)
    assert [run.good["rankme"] for run in differences] == pytest.approx([-1.0, 0.0, 1.0])
