"""How long each method may train: its steps are timed by the training loop itself, then the epochs are settled.

A run that a clock cuts off would be judged with a learning rate that had not come down. So a budget of seconds
becomes a number of steps before training, and schedules end with the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from visrep.comparison.budget import SHARE, Budget, Timing, parse_budget, read_timing
from visrep.comparison.candidates import Candidate
from visrep.config import Run, save_json, to_json
from visrep.continuing.retention import held_out
from visrep.evaluation.effort import duration
from visrep.method import Method
from visrep.methods import load_method, method_class
from visrep.rundir import RunFolder
from visrep.schedules import Constant
from visrep.starting import start, training_images

TRIAL_STEPS = 24
"""timed at first, with the representation measured in the middle"""
TRIAL_SECONDS = 5.0
"""of steps that are timed where those first ones took much less"""
TRIAL_SHARE = 0.05
"""of the budget that such a longer trial may take"""
MOST_TRIAL_STEPS = 1000
FEWEST_STEPS = 10
"""below which a budget is too short to train anything"""


def common_budget(text: str, new: Sequence[Candidate]) -> Budget:
    """What was asked for, else as many images as the preset that wants most."""
    if text:
        return parse_budget(text)
    runs = [candidate.run for candidate in new if candidate.run]
    return Budget("images", max(round(run.epochs * trained_on(run)) for run in runs))


def trained_on(run: Run) -> int:
    """How many images: all but those that a guard holds out."""
    source = training_images(run)
    return len(source) - len(held_out(run, np.arange(len(source)), source.groups))


def plan(candidate: Candidate, budget: Budget, out: Path, *, say: Callable[[str], None]) -> dict[str, Any]:
    """How many epochs fit the budget; kept in plan.json, so that a continued comparison does what was begun.

    Raises ValueError for a budget too small, and for a folder that holds a run under other terms.
    """
    assert candidate.run is not None
    run, file = candidate.run, out / "plan.json"
    stored: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    asked = {"budget": asdict(budget), "run": to_json(replace(run, out="", epochs=0.0))}
    known = stored.get(candidate.name)
    if known and known["asked"] == asked:
        return known
    if (candidate.folder / "checkpoint.pt").exists():
        changed = _differences(known["asked"], asked) if known else ["it is not part of this comparison"]
        raise ValueError(
            f"{candidate.folder} already holds a run under other terms ({'; '.join(changed[:3])}). "
            "Continue with the terms it was begun with, or choose another --out."
        )
    images = trained_on(run)
    if images < run.batch:
        raise ValueError(
            f"{candidate.name} takes {run.batch} images a step and {run.data} has {images} to train on. "
            f"Add --set batch={2 ** int(math.log2(images))}."
        )
    steps_per_epoch = images // run.batch
    timing = None
    if budget.unit == "images":
        steps, fewest = round(budget.amount / run.batch), 1
        least = f"{run.batch} images, one batch,"
    else:
        say(f"Timing {candidate.name}")
        timing = time_steps(candidate, budget.amount, steps_per_epoch, out)
        pace = {"steps_per_epoch": steps_per_epoch, "monitor_epochs": run.monitor_epochs}
        steps, fewest = timing.steps_within(budget.amount, **pace), FEWEST_STEPS
        least = f"{duration(timing.seconds(FEWEST_STEPS, **pace) / SHARE)} for {FEWEST_STEPS} steps"
    if steps < fewest:
        raise ValueError(f"a budget of {budget} is too small: {candidate.name} needs {least} at least.")
    settled = {
        "asked": asked,
        "epochs": steps / steps_per_epoch,
        "steps": steps,
        "timing": asdict(timing) if timing else None,
    }
    save_json(file, {**stored, candidate.name: settled})
    return settled


def _differences(one: Any, other: Any, path: str = "") -> list[str]:
    """The leaves in which two JSON values differ, in words."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted(one.keys() | other.keys())
        return [
            line for n in names for line in _differences(one.get(n), other.get(n), f"{path}.{n}".strip("."))
        ]
    return [] if one == other else [f"{path.removeprefix('run.')} was {one}, now {other}"]


def time_steps(candidate: Candidate, seconds: float, steps_per_epoch: int, out: Path) -> Timing:
    """What the method's own steps cost, by the training loop itself; longer where steps are very short."""
    timing = _trial(candidate, TRIAL_STEPS, steps_per_epoch, out)
    longer = int(min(TRIAL_SECONDS, TRIAL_SHARE * seconds) / timing.step)
    if longer < 2 * TRIAL_STEPS:
        return timing
    return _trial(candidate, min(longer, MOST_TRIAL_STEPS), steps_per_epoch, out)


def _trial(candidate: Candidate, steps: int, steps_per_epoch: int, out: Path) -> Timing:
    assert candidate.run is not None
    with TemporaryDirectory(prefix=".timing-", dir=out) as scratch:
        run = replace(
            candidate.run,
            out=str(Path(scratch) / candidate.name),
            epochs=steps / steps_per_epoch,
            monitor_epochs=steps // 2 / steps_per_epoch,
            optim=replace(
                candidate.run.optim, lr=Constant(0.0)
            ),  # squeezed schedules could break the weights
        )
        try:
            folder = RunFolder(start(run, method=candidate.method))
        except ValueError as error:
            raise ValueError(f"{candidate.name}: {error}") from error
        looks_ahead = method_class(load_method(candidate.method)).before_epoch is not Method.before_epoch
        return read_timing(
            folder.metrics("step"),
            folder.metrics("epoch")[0]["step"],
            steps_per_epoch=steps_per_epoch,
            looks_ahead=looks_ahead,
        )
