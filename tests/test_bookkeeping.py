"""benchmarks/bookkeeping.py: the command of a record, the rows that it keeps, and rows on the terminal."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from visrep.encoders import ViT, save_encoder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("bookkeeping")


def test_the_command_can_be_typed_again(books: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/record.py", "mae:tiny", "--set", 'precision="32-true"'])
    said = books.command(str(BENCHMARKS / "record.py"))
    assert said == "python benchmarks/record.py mae:tiny --set 'precision=\"32-true\"'"
    assert shlex.split(said)[2:] == sys.argv[1:]


def test_rows_of_runs_that_are_gone_stay(books: Any, tmp_path: Path) -> None:
    known, there, unfinished = {0: {"value": 1.0}}, tmp_path / "there", tmp_path / "unfinished"
    for folder in (there, unfinished):
        folder.mkdir()
    (there / "encoder.json").write_text("{}")
    measured = {"value": 2.0}
    assert books.unless_gone(known, 0, there, lambda: measured) == measured
    assert books.unless_gone(known, 0, unfinished, lambda: measured) == known[0]
    assert books.unless_gone(known, 0, tmp_path / "gone", lambda: measured) == known[0]
    assert books.unless_gone(known, 1, tmp_path / "gone", lambda: measured) == measured


def test_rows_of_others_stay(books: Any, tmp_path: Path) -> None:
    assert books.on_file(tmp_path / "none.json") == {}
    rows = [{"run": "a", "value": 1}, {"run": "b", "value": 2}]
    (tmp_path / "record.json").write_text(json.dumps({"rows": rows}))
    earlier = books.on_file(tmp_path / "record.json")["rows"]
    found = books.beside_others(earlier, [{"run": "a", "value": 3}], itemgetter("run"))
    assert found == [{"run": "b", "value": 2}, {"run": "a", "value": 3}]


def test_rows_are_shown(books: Any, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": "kNN", "seconds": 0.5}
    books.show(row, as_json=False)
    books.show(row, as_json=True)
    words, values = capsys.readouterr().out.splitlines()
    assert words == "kNN  seconds=0.5" and json.loads(values) == row


def test_seeds_of_the_frame_average_say_how_they_were_made(
    books: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = importlib.import_module("frame_average")
    given: list[dict[str, Any]] = []

    def evaluate(run: Path, data: str, **options: Any) -> None:
        given.append(options)
        made = [{"command": options["command"], "seconds": {"finetune-motion": 1.5}}]
        results = [{"metric": "top-1", "value": 10.0 + options["seed"]}]
        options["out"].write_text(json.dumps({"results": results, "made": made}))

    monkeypatch.setattr(script.visrep, "evaluate", evaluate)
    monkeypatch.setattr(sys, "argv", ["frame_average.py", "a-run"])
    record = tmp_path / "record.json"
    old = {"seed": 0, "run": "unknown", "commit": "unknown", "results": []}
    record.write_text(json.dumps({"rows": [old, {**old, "seed": 1}]}))
    settings = script.Settings(run=tmp_path, seeds=(1, 2), record=record)
    script.main(settings)
    kept, *rows = books.on_file(record)["rows"]
    assert kept == old
    assert [(row["seed"], row["results"][0]["value"]) for row in rows] == [(1, 11.0), (2, 12.0)]
    assert {row["commit"] for row in rows} == {books.commit()}
    assert {row["made"][0]["command"] for row in rows} == {"python benchmarks/frame_average.py a-run"}
    script.main(settings)
    assert len(given) == 2  # what was judged is not judged again
    assert [options["seed"] for options in given] == [1, 2]


def test_read_outs_say_with_what_and_how_long(
    books: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = importlib.import_module("read_outs")
    made = [{"command": "python x", "seconds": {"attentive": 2.5}}]

    def result(protocol: str, encoder: str) -> dict[str, Any]:
        return {"protocol": protocol, "encoder": encoder, "value": 9.0, "ci_low": 8.0, "settings": {}}

    def sheet(protocol: str) -> str:
        results = [result(protocol, encoder) for encoder in ("trained", "untrained")]
        return json.dumps({"results": results, "made": made})

    monkeypatch.setattr(script, "open_source", lambda data, limit: data)
    monkeypatch.setattr(
        script.visrep, "evaluate", lambda *given, out, **o: out.write_text(sheet("attentive"))
    )
    save_encoder(tmp_path, ViT(image=16, patch=8, width=16, depth=1, heads=2).build())
    (tmp_path / "run.json").write_text(json.dumps({"method": "mae"}))
    (tmp_path / "evaluation.json").write_text(sheet("linear"))
    settings = script.Settings(runs=(tmp_path,), data="d", test="t", name="n")
    row = script.about(tmp_path, settings, {})
    assert row["attentive"]["commit"] == books.commit() and row["attentive"]["made"] == made
    assert row["command"].startswith("python benchmarks/read_outs.py")
    (tmp_path / "read-out-attentive.commit").unlink()  # as earlier sheets
    assert script.about(tmp_path, settings, {})["attentive"]["commit"] == "unknown"
