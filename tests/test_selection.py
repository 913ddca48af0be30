"""benchmarks/selection.py: how a choice without labels is set beside the probe."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from visrep.api.train import override
from visrep.methods import preset

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)  # it imports its neighbour
    return importlib.import_module("selection")


def test_orders_agree_where_the_better_end_goes_with_the_better_probe(benchmark: ModuleType) -> None:
    rows = [
        {"linear": 50.0, "rankme": 9.0, "uniformity": -1.0, "alpha_req": 1.3, "alignment": 0.1},
        {"linear": 46.0, "rankme": 7.0, "uniformity": -2.0, "alpha_req": 0.9},
        {"linear": 40.0, "rankme": 5.0, "uniformity": -3.0, "alpha_req": 0.2},
    ]
    assert benchmark.agreement(rows) == {
        "rankme": {"spearman": 1.0, "behind": 0.0},  # higher is better
        "uniformity": {"spearman": -1.0, "behind": 10.0},  # lower is better, and chooses the worst here
        "alpha_req": {"spearman": 0.5, "behind": 4.0},  # near 1: 0.1, 0.3, 0.8 away
    }


def test_checkpoints_of_several_runs_are_averaged(benchmark: ModuleType) -> None:
    one = {"rankme": {"spearman": 1.0, "behind": 0.0}, "lidar": {"spearman": 0.0, "behind": 1.0}}
    other = {"rankme": {"spearman": 0.5, "behind": 3.0}}
    assert benchmark.mean_over_runs([one, other]) == {"rankme": {"spearman": 0.75, "behind": 1.5}}


def test_every_setting_is_another_and_none_is_silent(benchmark: ModuleType) -> None:
    for method, settings in benchmark.SETTINGS.items():
        runs = []
        for overrides in settings.values():
            _, _, run = preset(method)
            for path, value in overrides.items():
                run = override(run, path, value)
            runs.append(run)
        assert all(a != b for n, a in enumerate(runs) for b in runs[:n]), method
