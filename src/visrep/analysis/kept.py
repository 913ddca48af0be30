"""Encoders that a run kept while it trained (``keep_encoders``): ``RUN/encoders/step-NNNNNN``, one a measurement."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = "encoders"
_NAME = re.compile(r"step-(\d{6,})")


def kept_folder(run: Path, step: int) -> Path:
    """Where the run folder ``run`` keeps its encoder as it is after ``step``."""
    return run / FOLDER / f"step-{step:06d}"


def kept_encoders(run: Path) -> dict[int, Path]:
    """The folders of the encoders that a run kept, by step, oldest first."""
    folder = run / FOLDER
    found = folder.iterdir() if folder.is_dir() else ()
    named = ((_NAME.fullmatch(path.name), path) for path in found)
    return dict(sorted((int(name[1]), path) for name, path in named if name))


def kept_by(path: Path) -> tuple[Path, int] | None:
    """The run folder and the step of a kept encoder; None for any other folder."""
    whole = path.resolve()
    name, run = _NAME.fullmatch(whole.name), whole.parent.parent
    if name is None or whole.parent.name != FOLDER or not (run / "run.json").is_file():
        return None
    return run, int(name[1])
