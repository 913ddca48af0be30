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
