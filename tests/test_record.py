"""benchmarks/record.py: each trained encoder is judged once, and its baselines once for all runs that share them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from visrep.encoders import ViT, save_encoder
from visrep.evaluation.sitting import Sitting

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = ViT(image=16, patch=8, width=16, depth=1, heads=2)
DATA = "playground:n=60,size=16"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)  # it imports its neighbour
    return importlib.import_module("record")


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who went before the judges, in order."""
    seen: list[str] = []
    for name in ("judge_encoder", "judge_twin", "judge_pixels"):
        real = getattr(Sitting, name)

        def counted(sitting: Sitting, *given: Any, name: str = name, real: Any = real) -> Any:
            seen.append(name.removeprefix("judge_"))
            return real(sitting, *given)

        monkeypatch.setattr(Sitting, name, counted)
    return seen


def run(folder: Path, weights: int, encoder: ViT = SMALL) -> Path:
    torch.manual_seed(weights)
    save_encoder(folder, encoder.build())
    return folder


def sheet(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def by_whom(folder: Path, *, trained: bool) -> list[dict[str, Any]]:
    return [r for r in sheet(folder)["results"] if (r["encoder"] == "trained") == trained]


def test_every_trained_encoder_is_judged_once(script: Any, judged: list[str], tmp_path: Path) -> None:
    record = script.Record(method="mae:tiny", name="x", data=DATA, limit=40, protocols=("knn",))
    first, second, third = (run(tmp_path / name, i) for i, name in enumerate("abc"))
    script.judge(record, first, 0)
    assert judged == ["encoder", "twin", "pixels"]
    script.judge(record, second, 0)
    assert judged == ["encoder", "twin", "pixels", "encoder"]  # nobody is judged twice
    assert by_whom(second, trained=False) == by_whom(first, trained=False)
    assert {r["encoder"] for r in by_whom(second, trained=False)} == {"untrained", "pixels"}
    assert sheet(second)["warnings"][-1] == "untrained twin and pixels as measured for a"
    assert sheet(first)["fingerprint"] == script.mark_of(first, *script.yardstick(record), ("knn",), 0)
    other = script.Record(method="mae:tiny", name="x", data=DATA, limit=30, protocols=("knn",))
    script.judge(other, third, 0)  # other images
    assert judged[4:] == ["encoder", "twin", "pixels"]


@pytest.mark.parametrize("other", ["seed", "protocols", "encoder", "preprocessing"])
def test_baselines_of_other_terms_are_not_taken(script: Any, tmp_path: Path, other: str) -> None:
    record = script.Record(method="mae:tiny", name="x", data=DATA, protocols=("knn",))
    known = run(tmp_path / "a", 0)
    script.judge(record, known, 0)
    mine = run(
        tmp_path / "b", 1, ViT(image=16, patch=4, width=16, depth=1, heads=2) if other == "encoder" else SMALL
    )
    if other == "preprocessing":
        about = json.loads((mine / "encoder.json").read_text())
        about["preprocessing"]["ratio"] /= 2
        (mine / "encoder.json").write_text(json.dumps(about))
    protocols = ("knn", "linear") if other == "protocols" else ("knn",)
    train, test = script.yardstick(record)
    mark = script.mark_of(mine, train, test, protocols, int(other == "seed"))
    assert script.known_baselines(mine, mark) is None
    same = run(tmp_path / "c", 2)
    found = script.known_baselines(same, script.mark_of(same, train, test, ("knn",), 0))
    assert found is not None and found[0] == known and found[1] == by_whom(known, trained=False)


def test_a_record_names_the_runs_that_a_method_is_built_on(script: Any, tmp_path: Path) -> None:
    tokenizer = run(tmp_path / "dvae-tiny", 5)
    about = {"method": "dvae", "preset": "tiny", "run": {"seed": 3, "method": {}}}
    (tokenizer / "run.json").write_text(json.dumps(about))
    config = {
        "tokenizer": str(tokenizer),
        "position": "learned",
        "teacher": str(tmp_path / "gone"),
        "eye": "",
    }
    found = script.built_on({"run": {"method": config}})
    told = {"run": str(tokenizer), "method": "dvae", "preset": "tiny", "seed": 3}
    assert found == {"tokenizer": told | {"weights": script.digest_of(script.visrep.load_encoder(tokenizer))}}
    run(tokenizer, 6)  # others take its place
    assert (
        script.built_on({"run": {"method": config}})["tokenizer"]["weights"] != found["tokenizer"]["weights"]
    )
