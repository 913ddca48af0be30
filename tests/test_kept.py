"""Encoders kept while a run trains: which, equal after a resume, judged on their own, ranked without labels."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import visrep
from visrep import engine
from visrep.analysis.kept import kept_by, kept_encoders
from visrep.analysis.record import read_run
from visrep.config import Run, to_json
from visrep.data import CanvasSet, open_source
from visrep.evaluation.features import extract
from visrep.methods import preset
from visrep.rundir import RunFolder
from visrep.starting import resume, start

DATA = "playground:n=64,size=32"
ON_TWO_RANKS = """
import json, sys
from visrep import starting
from visrep.config import from_json
starting.start(from_json(json.loads(sys.argv[1])), method="simclr")
"""


def keeping(out: Path, **changes: Any) -> Run:
    """Measured and kept after steps 2, 4, 6 and 8."""
    run = replace(
        preset("simclr:tiny")[2], data=DATA, epochs=2, batch=16, monitor_epochs=0.5, monitor_images=40
    )
    return replace(run, out=str(out), keep_encoders=True, precision="32-true", **changes)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; do not write into it."""
    return start(keeping(tmp_path_factory.mktemp("kept") / "run"), method="simclr", preset="tiny")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "encoder.safetensors")


def equal(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_encoder_is_kept_at_every_measurement_and_the_last_is_that_of_the_end(kept: Path) -> None:
    found = kept_encoders(kept)
    assert list(found) == [line["step"] for line in RunFolder(kept).metrics("epoch")] == [2, 4, 6, 8]
    assert found[8].name == "step-000008" and equal(found[8], kept) and not equal(found[6], kept)
    encoder = visrep.load_encoder(found[4])
    assert encoder.preprocessing == visrep.load_encoder(kept).preprocessing
    assert encoder(torch.zeros(2, 3, 32, 32)).pool().shape == (2, encoder.width)
    assert kept_by(found[4]) == (kept.resolve(), 4) and kept_by(kept) is None


def test_keeping_changes_nothing_in_the_run_and_is_off_unless_asked_for(kept: Path, tmp_path: Path) -> None:
    plain = start(replace(keeping(tmp_path / "run"), keep_encoders=False), method="simclr", preset="tiny")
    assert not (plain / "encoders").exists() and equal(plain, kept)
    assert not Run(method=None).keep_encoders


def interrupted(out: Path, monkeypatch: pytest.MonkeyPatch, *, during: int) -> Path:
    """Stop as Ctrl-C does during this step; returns the folder."""
    take_step, taken = engine.take_step, []

    def stops(*arguments: Any, **options: Any) -> Any:
        taken.append(arguments)
        if len(taken) == during:
            signal.raise_signal(signal.SIGINT)
        return take_step(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "take_step", stops)
        with pytest.raises(KeyboardInterrupt):
            start(keeping(out), method="simclr", preset="tiny")
    return out


def test_an_interrupted_and_resumed_run_keeps_the_same_encoders(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = interrupted(tmp_path / "broken", monkeypatch, during=5)
    assert list(kept_encoders(broken)) == [2, 4]
    resume(broken)
    assert list(kept_encoders(broken)) == [2, 4, 6, 8]
    for step, folder in kept_encoders(kept).items():
        assert equal(kept_encoders(broken)[step], folder), step


def test_what_was_kept_after_the_checkpoint_is_forgotten_and_kept_again(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between keeping and the checkpoint: the encoder is there, the checkpoint is of an earlier step."""
    broken = interrupted(tmp_path / "broken", monkeypatch, during=3)
    RunFolder(broken).keep_encoder(visrep.load_encoder(kept), 4)  # not that of step 4
    (broken / "encoders" / "step-000006.part").mkdir()  # a kill in the middle of keeping
    RunFolder(broken).forget_after(3)
    assert list(kept_encoders(broken)) == [2]
    RunFolder(broken).keep_encoder(visrep.load_encoder(kept), 4)
    resume(broken)
    assert equal(kept_encoders(broken)[4], kept_encoders(kept)[4])
    assert sorted(path.name for path in (broken / "encoders").iterdir()) == [
        "step-000002", "step-000004", "step-000006", "step-000008",
    ]  # fmt: skip


def test_other_ranks_neither_keep_nor_forget(kept: Path, tmp_path: Path) -> None:
    other = RunFolder(tmp_path, writes=False)
    other.keep_encoder(visrep.load_encoder(kept), 2)
    assert not (tmp_path / "encoders").exists()
    RunFolder(kept, writes=False).forget_after(0)
    assert list(kept_encoders(kept)) == [2, 4, 6, 8]


def test_two_ranks_keep_one_encoder_each_time(tmp_path: Path) -> None:
    run, script = keeping(tmp_path / "run", devices=2, accelerator="cpu"), tmp_path / "train.py"
    script.write_text(ON_TWO_RANKS)
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(to_json(run))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    folder = Path(run.out)
    assert list(kept_encoders(folder)) == [2, 4, 6, 8] and equal(kept_encoders(folder)[8], folder)


def test_a_full_disk_is_named_and_leaves_no_half_encoder(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, *_: object) -> None:
        folder.mkdir(parents=True)
        (folder / "encoder.safetensors.part").write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("visrep.rundir.save_encoder", full)
    with pytest.raises(RuntimeError, match=r"step 2 could not be kept.*No space left.*intact.*--resume"):
        RunFolder(tmp_path).keep_encoder(visrep.load_encoder(kept), 2)
    assert not list((tmp_path / "encoders").iterdir())


def test_a_kept_encoder_is_judged_and_diagnosed_on_its_own(tmp_path: Path) -> None:
    run = start(keeping(tmp_path / "run"), method="simclr", preset="tiny")
    early = kept_encoders(run)[2]
    found = visrep.evaluate(early, DATA, protocols=("knn",), baselines=False)
    assert json.loads((early / "evaluation.json").read_text()) == json.loads(json.dumps(found.to_json()))
    assert not (run / "evaluation.json").exists()
    at_the_end = visrep.evaluate(run, DATA, protocols=("knn",), baselines=False, keep=False)
    last = visrep.evaluate(kept_encoders(run)[8], DATA, protocols=("knn",), baselines=False, keep=False)
    assert last.results == at_the_end.results
    assert found.fingerprint["encoder"] != last.fingerprint["encoder"] == at_the_end.fingerprint["encoder"]
    visrep.diagnose(early, DATA)
    assert (early / "diagnostics.json").is_file() and not (run / "diagnostics.json").exists()


def test_its_record_is_the_run_as_it_stood(kept: Path) -> None:
    whole, then = read_run(kept), read_run(kept_encoders(kept)[4])
    assert then.about == whole.about and then.path == kept_encoders(kept)[4]
    assert [line["step"] for line in then.epochs] == [2, 4]
    assert then.steps == [line for line in whole.steps if line["step"] <= 4] and len(then.steps) < len(
        whole.steps
    )


def test_checkpoints_of_a_run_are_ranked_without_labels(kept: Path, tmp_path: Path) -> None:
    found = visrep.compare([kept / "encoders"], out=tmp_path, labels=False)
    names = [f"step-{step:06d}" for step in (2, 4, 6, 8)]
    scores = {entry.name: entry.scores["rankme"] for entry in found.ranked}
    assert sorted(scores) == names and list(scores.values()) == sorted(scores.values(), reverse=True)
    canvases = CanvasSet(open_source(DATA), 32)  # all images: nothing is held out
    for name, score in scores.items():
        encoder = visrep.load_encoder(kept / "encoders" / name)
        (z,) = extract(encoder, canvases, canvases.usable).vectors.values()
        s = np.linalg.svd(z.double().numpy(), compute_uv=False)
        p = s / s.sum() + 1e-7
        assert score == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert {entry.name: entry.effort.images for entry in found.ranked if entry.effort} == {
        name: 16 * step for name, step in zip(names, (2, 4, 6, 8), strict=True)
    }
    assert any("moments of one run" in note for note in found.notes)
    assert not any("terms of their own" in note for note in found.notes)
    assert (tmp_path / "comparison.html").is_file()


def test_they_may_be_named_one_by_one_and_judged_with_labels(kept: Path, tmp_path: Path) -> None:
    two = [kept_encoders(kept)[step] for step in (2, 8)]
    found = visrep.compare([*two, kept], out=tmp_path, protocols=("knn",))
    results = {entry.name: entry.headline("knn") for entry in found.ranked}
    assert len(results) == 3 and results["run"] == results["step-000008"]


def test_a_run_that_kept_none_says_how_to(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((kept / "run.json").read_text())
    with pytest.raises(ValueError, match=r"kept no encoders.*--keep-encoders"):
        visrep.compare([tmp_path / "encoders"], labels=False)
