"""The verdict on real runs of methods broken on purpose, beside the same runs unbroken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from visrep.analysis.health import Verdict, diagnose
from visrep.methods import method_files, preset
from visrep.rundir import RunFolder
from visrep.schedules import Constant
from visrep.starting import start


def verdict(folder: Path, method: str, *, without: str = "", instead: str = "", **changes: object) -> Verdict:
    """Train the ``tiny`` preset for a hundred steps: with part of its file replaced, or fields of the run changed."""
    text = method_files()[method].read_text()
    assert without in text
    file = folder / f"{method}_{'broken' if without or changes else 'sound'}.py"
    file.write_text(text.replace(without, instead) if without else text)
    run = preset(f"{file}:tiny")[2]
    run = replace(
        run,
        out=str(folder / "run"),
        data="playground:n=256,size=32",
        epochs=13,
        batch=32,
        monitor_epochs=5,
        monitor_images=128,
        method=replace(run.method, **{k: v for k, v in changes.items() if k != "lr"}),
    )
    if "lr" in changes:
        run = replace(run, optim=replace(run.optim, lr=changes["lr"]))
    ended = RunFolder(start(run, method=str(file), preset="tiny"))
    return diagnose(ended.metrics("step"), ended.metrics("epoch"))


@pytest.mark.parametrize("method", ["byol", "dino", "simclr"])
def test_sound_runs_are_healthy(method: str, tmp_path: Path) -> None:
    assert verdict(tmp_path, method).state == "healthy"


def test_byol_without_its_stop_gradient_collapses(tmp_path: Path) -> None:
    found = verdict(tmp_path, "byol", without="self.target(crops)", instead="self.online(crops)")
    assert found.state == "complete collapse", found
    assert "projections" in found.evidence and "targets are detached" in found.change


def test_dino_without_centring_collapses(tmp_path: Path) -> None:
    found = verdict(tmp_path, "dino", center_momentum=1.0)
    assert found.state == "complete collapse", found
    assert "method.center_momentum" in found.change


def test_simclr_at_a_hundred_times_its_rate_does_not_pass_for_healthy(tmp_path: Path) -> None:
    found = verdict(tmp_path, "simclr", lr=Constant(0.2))
    assert found.state in ("dimensional collapse", "complete collapse", "diverging"), found
    assert "optim.lr" in found.change
