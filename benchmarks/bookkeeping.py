"""What benchmarks share: how a record was made, which of its rows stay, and rows on the terminal."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "records"

Row = dict[str, Any]
Name = TypeVar("Name", bound=Hashable)


def command(script: str) -> str:
    """The line that was typed; ``script`` is the benchmark's ``__file__``."""
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *sys.argv[1:]])


def commit() -> str:
    """The commit of the code that runs, with a mark when the tree differs from it."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def commit_in(file: Path) -> str:
    """The commit that was noted in a file when something began; unknown where nobody noted it."""
    return file.read_text() if file.exists() else "unknown"


def machine() -> str:
    """What was computed on, in words."""
    return f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}"


def on_file(record: Path) -> Row:
    """What a record holds; nothing when there is none yet."""
    return json.loads(record.read_text()) if record.exists() else {}


def unless_gone(known: Mapping[Name, Row], name: Name, run: Path, measure: Callable[[], Row]) -> Row:
    """What ``measure`` finds; of a run whose encoder is no longer there the row that is known, where there is one."""
    gone = not (run / "encoder.json").exists()
    return known[name] if gone and name in known else measure()


def beside_others(earlier: Iterable[Row], rows: list[Row], key: Callable[[Row], Hashable]) -> list[Row]:
    """The new rows behind the earlier ones that they do not replace."""
    made = {key(row) for row in rows}
    return [*(row for row in earlier if key(row) not in made), *rows]


def show(row: Mapping[str, object], *, as_json: bool) -> None:
    """One line: a JSON object, or the name and behind it what else there is."""
    said = json.dumps(row) if as_json else "  ".join(_said(key, value) for key, value in row.items())
    print(said, flush=True)


def _said(key: str, value: object) -> str:
    return str(value) if key == "name" else f"{key}={value}"
