"""What a run folder has on record, read without the code that trained it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from visrep.analysis.kept import kept_by


@dataclass(frozen=True)
class RunRecord:
    """The files of a run folder. Whatever is not written yet is empty."""

    path: Path
    about: dict[str, Any]
    """run.json: method, preset, command, versions, status and, under "run", the whole configuration"""
    steps: list[dict[str, Any]]
    """"step" records of metrics.jsonl, oldest first"""
    epochs: list[dict[str, Any]]
    """"epoch" records of metrics.jsonl, oldest first"""
    evaluation: dict[str, Any]
    """evaluation.json"""
    pictures: dict[str, np.ndarray]
    """pictures.npz: uint8 "rows columns h w 3", of clips "rows columns t h w 3", by name"""
    unreadable: list[tuple[str, str]]
    """(path, reason) of images that could not be decoded"""
    diagnostics: dict[str, Any] = field(default_factory=dict)
    """diagnostics.json"""
    retention: list[dict[str, Any]] = field(default_factory=list)
    """"retention" records of metrics.jsonl, oldest first"""
    captions: dict[str, str] = field(default_factory=dict)
    """pictures.npz: what the columns of a picture show, by its name"""

    @property
    def from_fresh_weights(self) -> dict[str, Any]:
        """The evaluation, where its untrained twin is how the run began; else empty."""
        run = self.about["run"]
        return {} if run.get("init") or run.get("start_from") else self.evaluation


def read_run(path: Path) -> RunRecord:
    """Read a run folder, finished or not, or a kept encoder: its run as it stood then, with what the encoder's own
    folder holds. Raises ValueError when ``path`` is neither.
    """
    if kept := kept_by(path):
        return _as_it_stood(path, *kept)
    if not (path / "run.json").is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "no such folder"
        raise ValueError(
            f"{path} is not a run folder: it has no run.json ({found or 'empty'}). "
            "Give the folder that pretraining wrote, the one with metrics.jsonl in it."
        )
    lines = _metrics(path / "metrics.jsonl")
    pictures = _pictures(path / "pictures.npz")
    captions = pictures.pop("captions", np.empty((0, 2), dtype=str))  # runs of earlier versions have none
    return RunRecord(
        path=path,
        about=json.loads((path / "run.json").read_text()),
        steps=[line for line in lines if line["kind"] == "step"],
        epochs=[line for line in lines if line["kind"] == "epoch"],
        evaluation=_json(path / "evaluation.json"),
        pictures=pictures,
        unreadable=_unreadable(path / "unreadable.txt"),
        diagnostics=_json(path / "diagnostics.json"),
        retention=[line for line in lines if line["kind"] == "retention"],
        captions=dict(captions.tolist()),
    )


def _as_it_stood(path: Path, run: Path, step: int) -> RunRecord:
    record = read_run(run)
    steps, epochs, retention = (
        [line for line in lines if line["step"] <= step]
        for lines in (record.steps, record.epochs, record.retention)
    )
    return replace(
        record,
        path=path,
        steps=steps,
        epochs=epochs,
        retention=retention,
        evaluation=_json(path / "evaluation.json"),
        diagnostics=_json(path / "diagnostics.json"),
        pictures={},
    )


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _metrics(file: Path) -> list[dict[str, Any]]:
    lines = []
    for text in file.read_text().splitlines() if file.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:  # the line being written while we read, or cut short by a kill
            continue
    return lines


def _pictures(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        return {}
    with np.load(file) as stored:
        return {name: stored[name] for name in stored.files}


def _unreadable(file: Path) -> list[tuple[str, str]]:
    lines = file.read_text().splitlines() if file.is_file() else []
    pairs = (line.partition("\t") for line in lines if line)
    return [(name, reason) for name, _, reason in pairs]
