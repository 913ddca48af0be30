"""A run is a folder that explains itself: configuration, metrics, checkpoints, encoder."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from visrep.analysis.kept import kept_encoders, kept_folder
from visrep.config import Run, from_json, save_json, to_json
from visrep.encoders import save_encoder
from visrep.method import Encoder


class RunFolder:
    """The files of one run. Only rank 0 writes."""

    def __init__(self, path: str | Path, *, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes

    @classmethod
    def create(cls, path: str | Path, about: Mapping[str, Any], *, writes: bool = True) -> RunFolder:
        """Start a new run folder. Raises ValueError when it already holds a run."""
        folder = cls(path, writes=writes)
        if not writes:
            return folder
        if (folder.path / "checkpoint.pt").exists():
            raise ValueError(
                f"{path} already holds a run. Continue it with `visrep pretrain --resume {path}`, "
                "or choose another --out."
            )
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder.path / "metrics.jsonl").unlink(
            missing_ok=True
        )  # of a run that died before its first checkpoint
        save_json(folder.path / "run.json", dict(about))
        return folder

    def about(self) -> dict[str, Any]:
        """The contents of run.json. Raises ValueError when this is not a run folder."""
        file = self.path / "run.json"
        if not file.is_file():
            raise ValueError(
                f"{self.path} is not a run folder: it has no run.json. `visrep pretrain` makes one."
            )
        return json.loads(file.read_text())

    def run(self) -> Run:
        """The configuration of the run."""
        return from_json(self.about()["run"])

    def update(self, status: str, message: str = "") -> None:
        """Say in run.json how the run stands: running, finished, stopped or failed, and why."""
        if self.writes:
            save_json(self.path / "run.json", {**self.about(), "status": status, "message": message})

    def discard_unbegun(self) -> None:
        """Remove run.json, and the folder where it then holds nothing, unless a step is on record."""
        if self.writes and not self.metrics("step") and not (self.path / "checkpoint.pt").exists():
            for name in ("run.json", "metrics.jsonl", "start.npz"):
                (self.path / name).unlink(missing_ok=True)
            if not any(self.path.iterdir()):  # decoded images are found again by the next run
                self.path.rmdir()

    def advise(self, advice: list[str]) -> None:
        """Keep in run.json what looked wrong at the start."""
        if self.writes:
            save_json(self.path / "run.json", {**self.about(), "advice": advice})

    def record(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if self.writes:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        """All lines of one kind, "step", "epoch" or "retention". A line cut short by a kill is left out."""
        return [line for line in self._lines() if line["kind"] == kind]

    def _lines(self) -> list[dict[str, Any]]:
        file = self.path / "metrics.jsonl"
        lines = []
        for text in file.read_text().splitlines() if file.exists() else ():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return lines

    def forget_after(self, step: int) -> None:
        """Drop metrics and encoders of steps after ``step``: they will be taken again by the resumed run."""
        if self.writes:
            for later, folder in kept_encoders(self.path).items():
                if later > step:
                    shutil.rmtree(folder)
            kept = [json.dumps(line) + "\n" for line in self._lines() if line["step"] <= step]
            temporary = self.path / "metrics.jsonl.part"
            temporary.write_text("".join(kept))
            temporary.replace(self.path / "metrics.jsonl")

    def keep_encoder(self, encoder: Encoder, step: int) -> None:
        """Keep the encoder as it is after ``step``, in one move: a kill at any moment leaves a whole one or none.

        Raises RuntimeError when it cannot be written (a full disk); nothing is left of it then.
        """
        if not self.writes:
            return
        folder = kept_folder(self.path, step)
        temporary = folder.with_name(folder.name + ".part")
        shutil.rmtree(temporary, ignore_errors=True)  # of a kill
        try:
            save_encoder(temporary, encoder)
            temporary.replace(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RuntimeError(
                f"The encoder of step {step} could not be kept in {folder}: {error}. The last checkpoint is intact. "
                f"Free some space (or delete encoders in {folder.parent} that you do not need), then "
                f"`visrep pretrain --resume {self.path}`."
            ) from error

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace checkpoint.pt in one move: a kill at any moment leaves the old one or the new one.

        Raises RuntimeError when it cannot be written (a full disk); the old checkpoint is then untouched.
        """
        if not self.writes:
            return
        temporary = self.path / "checkpoint.pt.part"
        try:
            with temporary.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / "checkpoint.pt")
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            raise RuntimeError(
                f"The checkpoint of step {state['step']} could not be written to {self.path}: {error}. "
                f"The one before it is intact. Free some space, then `visrep pretrain --resume {self.path}`."
            ) from error

    def load_checkpoint(self) -> dict[str, Any]:
        """The last checkpoint, on the CPU. Raises ValueError when there is none yet."""
        file = self.path / "checkpoint.pt"
        if not file.is_file():
            raise ValueError(
                f"{self.path} has no checkpoint: it stopped before the first one. Delete the folder and start again."
            )
        return torch.load(file, map_location="cpu", weights_only=True)


def describe(run: Run, *, method: str, preset: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """What run.json says of a run at its start."""
    packages = ("visrep", "torch", "numpy", "pillow", "lightning-fabric")
    return {
        "method": method,
        "preset": preset,
        "overrides": list(overrides),
        "command": " ".join(["visrep", *sys.argv[1:]]) if Path(sys.argv[0]).name == "visrep" else "",
        "status": "running",
        "message": "",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        },
        "run": to_json(run),
    }
