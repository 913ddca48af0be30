"""Sheets tell how they were made: encoder, command, machine, seconds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from test_evaluate import vit
from visrep import api
from visrep.cli import main
from visrep.encoders.pretrained import resolve
from visrep.evaluation import timing
from visrep.evaluation.timing import CLOCK, PASS

DATA = "playground:n=60,size=32"


def test_what_is_timed_within_counts_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 4.0, 5.0, 6.0, 8.0, 10.0, 11.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    with CLOCK.measuring() as seconds:
        with CLOCK.timed("probe"):  # 0 to 5
            with CLOCK.timed("pass"):  # 1 to 4
                pass
        with pytest.raises(ValueError), CLOCK.timed("probe"):  # 6 to 8
            raise ValueError
    assert seconds == {"probe": 4.0, "pass": 3.0}
    with CLOCK.timed("later"):
        pass
    assert set(seconds) == {"probe", "pass"}


def test_a_sheet_says_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(resolve.SOURCES, "pip", lambda name: vit())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = str(tmp_path / "a b.json")
    line = [
        "evaluate",
        "pip:a",
        "--data",
        DATA,
        "--protocols",
        "knn",
        "retrieval",
        "--no-baselines",
        "--out",
        out,
    ]
    monkeypatch.setattr(sys, "argv", ["/some/where/visrep", *line])
    main()
    (made,) = json.loads(Path(out).read_text())["made"]
    assert made["encoder"] == "pip:a" and made["protocols"] == ["knn", "retrieval"]
    assert (
        made["command"]
        == f"visrep evaluate pip:a --data {DATA} --protocols knn retrieval --no-baselines --out '{out}'"
    )
    assert set(made["seconds"]) == {PASS, "knn", "retrieval"} and made["seconds"][PASS] > 0
    assert {"cores", "arch", "torch", "threads", "device"} == set(made["machine"])

    def protocols() -> list[Any]:
        return [
            (one["protocols"], one["command"] is None) for one in json.loads(Path(out).read_text())["made"]
        ]

    more: dict[str, Any] = {"baselines": False, "out": out}
    monkeypatch.setattr(sys, "argv", ["pytest"])
    found = api.evaluate("pip:a", DATA, protocols=("knn",), **more)
    assert PASS not in found.made[0]["seconds"]  # features were kept
    assert protocols() == [(["retrieval"], False), (["knn"], True)]
    api.evaluate("pip:a", DATA, protocols=("retrieval",), **more)
    assert protocols() == [(["knn"], True), (["retrieval"], True)]


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
def test_a_comparison_says_how_it_was_made(
    labels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(resolve.SOURCES, "pip", lambda name: vit())
    line = ["compare", "pip:1", "pip:2", "--data", DATA, "--protocols", "knn", "--no-keep"]
    line += ["--out", str(tmp_path), *([] if labels else ["--no-labels"])]
    monkeypatch.setattr(sys, "argv", ["/some/where/visrep", *line])
    main()
    first, second = json.loads((tmp_path / "comparison.json").read_text())["made"]
    assert (first["encoder"], second["encoder"]) == ("pip:1", "pip:2")
    for one in (first, second):
        assert one["command"] == f"visrep {' '.join(line)}" and one["machine"]["cores"]
        assert one["protocols"] == (["knn"] if labels else ["rankme"])
        assert set(one["seconds"]) == ({PASS, "knn"} if labels else {"rankme"})


def test_a_suite_says_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(resolve.SOURCES, "pip", lambda name: vit())
    data = [f"{DATA},seed={seed}" for seed in (0, 1)]
    out = tmp_path / "suite.json"
    line = ["suite", "pip:a", "--data", *data, "--protocols", "knn", "--no-baselines", "--no-keep"]
    monkeypatch.setattr(sys, "argv", ["/some/where/visrep", *line, "--out", str(out)])
    main()
    tasks = json.loads(out.read_text())["tasks"]
    assert list(tasks) == data
    for one in tasks.values():
        (made,) = one["made"]
        assert made["encoder"] == "pip:a" and made["command"].startswith("visrep suite pip:a")
        assert made["protocols"] == ["knn"] and set(made["seconds"]) == {PASS, "knn"}
