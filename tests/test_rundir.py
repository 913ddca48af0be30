"""A run folder survives what happens to processes and disks."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visrep.rundir import RunFolder


def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", {"status": "running"})


def test_metrics_are_read_back_by_kind_and_a_torn_line_is_left_out(tmp_path: Path):
    run = folder(tmp_path)
    run.record({"kind": "step", "step": 1})
    run.record({"kind": "epoch", "step": 2})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')
    assert run.metrics("step") == [{"kind": "step", "step": 1}]
    assert run.metrics("epoch") == [{"kind": "epoch", "step": 2}]


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path: Path):
    run = folder(tmp_path)
    for step in range(5):
        run.record({"kind": "step", "step": step})
    run.forget_after(2)
    assert [line["step"] for line in run.metrics("step")] == [0, 1, 2]


def test_a_finished_or_begun_run_is_not_overwritten(tmp_path: Path):
    run = folder(tmp_path)
    run.save_checkpoint({"step": 1})
    with pytest.raises(ValueError, match=r"already holds a run.*--resume"):
        RunFolder.create(run.path, {})


def test_a_run_that_never_reached_a_checkpoint_is_replaced(tmp_path: Path):
    run = folder(tmp_path)
    run.record({"kind": "step", "step": 1})
    assert RunFolder.create(run.path, {"status": "new"}).metrics("step") == []


def test_other_folders_and_missing_checkpoints_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="not a run folder"):
        RunFolder(tmp_path).about()
    with pytest.raises(ValueError, match="no checkpoint"):
        folder(tmp_path).load_checkpoint()


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = folder(tmp_path)
    run.save_checkpoint({"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RuntimeError, match=r"step 2 could not be written.*No space left.*intact"):
        run.save_checkpoint({"step": 2})
    monkeypatch.undo()
    assert run.load_checkpoint() == {"step": 1}
    assert not list(run.path.glob("*.part"))


KILLED = """
import sys, torch
from visrep.rundir import RunFolder
run = RunFolder.create(sys.argv[1], {})
step = 0
while True:
    step += 1
    run.save_checkpoint({"step": step, "weights": torch.full((200_000,), float(step))})
    run.record({"kind": "step", "step": step})
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path):
    path = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    done = 0
    while done < 5:
        done = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    saved = RunFolder(path).load_checkpoint()
    assert saved["step"] >= 5
    assert torch.equal(saved["weights"], torch.full((200_000,), float(saved["step"])))
    assert all(json.dumps(line) for line in RunFolder(path).metrics("step"))
