"""The doctor on runs broken on purpose, on metrics as broken runs leave them, and on sound ones."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import visrep
from visrep.analysis.doctor import Checkup, examine
from visrep.analysis.record import RunRecord
from visrep.cli import doctor as command
from visrep.data.playground import Playground
from visrep.encoders.saved import WEIGHTS
from visrep.log import TrainingLog
from visrep.methods import method_files, preset
from visrep.rundir import RunFolder
from visrep.schedules import Constant, Warmup
from visrep.starting import start
from visrep.views import TwoViews, View

PLAIN = View(size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, gray=0.0, blur=0.0)
"""always the same picture"""
WILD = View(
    size=32, scale=(0.02, 0.05), jitter=1.0, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5, gray=0.5,
    solarize=0.5, blur_sigma=(1.0, 4.0),
)  # fmt: skip
"""hardly anything of the image left"""


def trained(folder: Path, method: str, *, without: str = "", instead: str = "", **changes: Any) -> Checkup:
    """Train the ``tiny`` preset for 56 steps, with part of its file replaced or fields of the run changed."""
    text = method_files()[method].read_text()
    assert without in text
    file = folder / f"{method}_of_test.py"
    file.write_text(text.replace(without, instead) if without else text)
    run = preset(f"{file}:tiny")[2]
    of_run = {
        name: changes.pop(name)
        for name in ("epochs", "cache", "workers", "monitor_images", "monitor_epochs")
        if name in changes
    }
    of_optim = {name: changes.pop(name) for name in ("lr", "multipliers") if name in changes}
    run = replace(
        run, out=str(folder / "run"), data="playground:n=64,size=32", epochs=14, batch=16, monitor_epochs=4
    )
    run = replace(run, optim=replace(run.optim, **of_optim), method=replace(run.method, **changes))
    try:
        start(replace(run, **of_run), method=str(file), preset="tiny")
    except RuntimeError:
        pass  # a loss that is not finite: the folder says so
    return visrep.doctor(folder / "run")


def test_views_that_are_one_picture_are_a_leak(tmp_path: Path) -> None:
    found = trained(tmp_path, "simclr", views=TwoViews(PLAIN, PLAIN)).verdict
    assert found.state == "leaking", found
    assert "100 % of cases" in found.evidence and "method.views" in found.change


def test_a_queue_that_is_never_filled_is_a_leak(tmp_path: Path) -> None:
    found = trained(tmp_path, "moco", without='self.queue.push(carry["keys"])', instead="pass").verdict
    assert found.state == "leaking", found
    assert "queue" in found.cause and "kNN" in found.evidence


def test_views_that_share_nothing_are_too_strong(tmp_path: Path) -> None:
    found = trained(tmp_path, "simclr", views=TwoViews(WILD, WILD)).verdict
    assert found.state == "over-augmented", found
    assert "as far apart as two different images" in found.evidence and "larger least scale" in found.change


def test_a_thousandfold_learning_rate_is_blamed(tmp_path: Path) -> None:
    found = trained(tmp_path, "simclr", lr=Constant(2.0)).verdict
    assert found.state in ("diverging", "complete collapse", "dimensional collapse"), found
    assert "learning rate" in found.cause and "optim.lr" in found.change


def test_a_rate_that_rises_too_far_diverges_though_every_number_is_finite(tmp_path: Path) -> None:
    """A thousand times MAE's rate at the end, in the decoder only, so that the features are not to blame."""
    rising = Warmup(epochs=14, then=Constant(2.0))
    spared = (("backbone*", Constant(1e-4)),)
    checkup = trained(tmp_path, "mae", lr=rising, multipliers=spared)
    assert [found.state for found in checkup.findings] == ["diverging"], checkup
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"
    assert "The loss rose from" in checkup.verdict.evidence and "optim.clip" in checkup.verdict.change


def test_nothing_learned_is_flat(tmp_path: Path) -> None:
    """The loss of small batches wobbles by a tenth, so that the best of many lies that much below the first."""
    checkup = trained(tmp_path, "simclr", lr=Constant(0.0))
    assert [found.state for found in checkup.findings] == ["flat"], checkup
    assert "The learning rate reached 0." in checkup.verdict.evidence and "optim.lr" in checkup.verdict.change


def test_images_that_share_three_prototypes_are_a_cluster_collapse(tmp_path: Path) -> None:
    """DINO's teacher with a softmax over the first three of its 32 prototypes: the others are dead."""
    alive = "torch.nn.functional.pad(((t - center) / tau)[..., :3].softmax(-1), (0, t.shape[-1] - 3))"
    checkup = trained(tmp_path, "dino", without="((t - center) / tau).softmax(-1)", instead=alive)
    assert [found.state for found in checkup.findings] == ["cluster collapse"], checkup
    assert "as many as 3 of 32 used evenly" in checkup.verdict.evidence
    assert "method.center_momentum" in checkup.verdict.change


def test_codes_that_are_not_balanced_give_all_images_one_prototype(tmp_path: Path) -> None:
    softmax = "(x / epsilon).softmax(-1)"
    checkup = trained(tmp_path, "swav", without="sinkhorn(x, epsilon, iterations)", instead=softmax)
    assert [found.state for found in checkup.findings] == ["complete collapse"], checkup
    assert "method.epsilon" in checkup.verdict.change and "center" not in checkup.verdict.change


def test_nothing_that_decorrelates_leaves_few_directions(tmp_path: Path) -> None:
    """VICReg of the features themselves, without its covariance term: each of them becomes the easiest one."""
    checkup = trained(
        tmp_path, "vicreg", without="self.head(x) for", instead="x for", w_covariance=0.0, lr=Constant(0.03),
        monitor_epochs=1,
    )  # fmt: skip
    assert [found.state for found in checkup.findings] == ["dimensional collapse"], checkup
    assert "nothing in the objective decorrelates" in checkup.verdict.cause


def test_a_slow_reader_starves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Playground.read

    def slowly(self: Playground, index: int) -> Any:
        time.sleep(0.1)
        return read(self, index)

    monkeypatch.setattr(Playground, "read", slowly)
    found = trained(tmp_path, "simclr", cache="off", workers=0, epochs=0.75, monitor_images=4).verdict
    assert found.state == "starved by data loading", found
    assert "cache=off, workers=0" in found.evidence and "cache=memory" in found.change


def test_sound_runs_are_healthy(tmp_path: Path) -> None:
    checkup = trained(tmp_path, "mae")  # SimCLR's loss needs more steps to fall beyond its wobble
    assert checkup.healthy and len(checkup.findings) == 1, checkup
    assert [remark[:30] for remark in checkup.remarks] == ["Said at the start: Only 56 ste"]


def test_waiting_is_what_the_reader_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def batches() -> Any:
        for i in range(3):
            now[0] += 2.0
            yield i

    monkeypatch.setattr("visrep.log.time.monotonic", lambda: now[0])
    log = TrainingLog(preset("simclr:tiny")[2], RunFolder(tmp_path), 1, 1)
    for _ in log.waiting_for(batches()):
        now[0] += 1.0  # the step itself
    assert log.waited == 6.0 and now[0] == 9.0


def record(
    *,
    n: int = 100,
    losses: tuple[float, float] = (6.0, 4.0),
    monitor: dict[str, float] | None = None,
    epochs: list[dict[str, float]] | None = None,
    about: dict[str, Any] | None = None,
    **of_step: float,
) -> RunRecord:
    """A run whose loss goes from one value to the other in ``n`` records."""
    steps = [
        {
            "kind": "step", "step": i + 1, "epoch": i / 10,
            "loss": losses[0] + (losses[1] - losses[0]) * i / n, "terms": {}, "monitor": dict(monitor or {}),
            "schedules": {"lr": 1e-3}, "images_per_second": 100.0, "seconds": 1.0 * i, "data_wait": 0.01, **of_step,
        }
        for i in range(n)
    ]  # fmt: skip
    usual = {
        "feature_std": 0.05,
        "rankme": 40.0,
        "alignment": 0.3,
        "uniformity": -1.5,
        "width": 128,
        "images": 800,
    }
    lines = [
        {"kind": "epoch", "step": i, "monitors": {**usual, **one}} for i, one in enumerate(epochs or [{}, {}])
    ]
    run = {"method": {"prototypes": 128}, "cache": "auto", "workers": -1, "canvas": 32}
    facts = {"status": "finished", "message": "", "advice": [], "run": run}
    return RunRecord(Path("run"), {**facts, **(about or {})}, steps, lines, {}, {}, [])


def test_broken_weights_are_seen_without_a_log_that_says_so(tmp_path: Path) -> None:
    """A run too short for a verdict, whose encoder is NaN."""
    weights = {"a": torch.ones(3), "b": torch.tensor([1.0, math.nan]), "c": torch.tensor([math.inf])}
    save_file(weights, tmp_path / WEIGHTS)
    (found,) = examine(replace(record(n=20), path=tmp_path)).findings
    assert found.state == "diverging" and "optim.lr" in found.change
    assert found.evidence == "2 of 3 tensors in encoder.safetensors hold NaN or infinity, the first: b."
    save_file({"a": torch.ones(3)}, tmp_path / WEIGHTS)
    assert examine(replace(record(n=20), path=tmp_path)).verdict.state == "too early"


KNN_FLAT = [{"knn": 20.0}, {"knn": 20.5}]
FALLEN = [{"rankme": 60.0}, {"rankme": 2.0}]
NOT_FINITE = "The loss term 'mse' became nan at step 40 (epoch 1.00). Lower optim.lr."


@pytest.mark.parametrize(
    ("run", "states", "said"),
    [
        (record(), ["healthy"], "Loss 5.9"),
        (record(n=20), ["too early"], "50 steps"),
        (record(losses=(4.0, 4.0)), ["flat"], "optim.lr"),
        (record(losses=(4.0, 90.0)), ["diverging"], "rose"),
        (record(about={"status": "failed", "message": NOT_FINITE}), ["diverging"], "became nan at step 40"),
        (record(n=0, about={"status": "failed", "message": NOT_FINITE}), ["diverging"], "became nan"),
        (record(about={"status": "failed", "message": "disk full"}), ["failed"], "disk full"),
        (record(epochs=FALLEN), ["dimensional collapse"], "RankMe 2.0"),
        (record(epochs=[{"rankme": 2.6, "width": 32, "feature_std": 0.09}]), ["dimensional collapse"], "RankMe 2.6"),
        (record(epochs=[{"rankme": 5.1, "width": 32, "feature_std": 0.09}]), ["healthy"], "RankMe 5.1"),
        (record(epochs=[{"feature_std": 0.001}]), ["complete collapse"], "one vector"),
        (record(monitor={"prototype_entropy": 0.3, "teacher_entropy": 0.1, "teacher_student_kl": 0.5},
                epochs=KNN_FLAT), ["cluster collapse"], "as many as 4 of 128"),
        (record(monitor={"prototype_entropy": 0.7, "teacher_entropy": 0.1, "teacher_student_kl": 0.5}),
         ["healthy"], "teacher"),
        (record(monitor={"pretext_accuracy": 0.99}, epochs=KNN_FLAT), ["leaking"], "99 % of cases"),
        (record(monitor={"pretext_accuracy": 0.99}, epochs=[{"knn": 20.0}, {"knn": 60.0}]), ["healthy"], "60.0 %"),
        (record(monitor={"pretext_accuracy": 0.6}, epochs=KNN_FLAT), ["healthy"], "kNN"),
        (record(monitor={"pretext_accuracy": 0.6}, epochs=[{"alignment": 0.001}] * 2), ["leaking"], "0.2 % as far"),
        (record(epochs=[{"alignment": 0.001}] * 2), ["healthy"], "Loss"),
        (record(epochs=[{"alignment": 0.63}] * 3), ["over-augmented"], "98 % as far apart"),
        (record(epochs=[{"alignment": 0.63}, {"alignment": 0.4}, {"alignment": 0.4}]), ["healthy"], "Loss"),
        (record(losses=(4.0, 4.0), epochs=[{"alignment": 0.63}] * 3), ["over-augmented", "flat"], "views"),
        (record(data_wait=0.8), ["starved by data loading"], "100 images/s; without waiting about 500"),
        (record(losses=(4.0, 4.0), data_wait=0.8), ["flat", "starved by data loading"], "optim.lr"),
    ],
)  # fmt: skip
def test_what_metrics_show(run: RunRecord, states: list[str], said: str) -> None:
    checkup = examine(run)
    assert [verdict.state for verdict in checkup.findings] == states, checkup
    words = " ".join((checkup.verdict.evidence, checkup.verdict.cause, checkup.verdict.change))
    assert said in words and "nan nan" not in words, words
    assert checkup.healthy == (states == ["healthy"])
    if states[0] not in ("healthy", "too early"):
        assert all(verdict.cause and verdict.change for verdict in checkup.findings)


def test_fresh_weights_are_no_start_of_a_run_that_began_with_others() -> None:
    knn = {"protocol": "knn", "layer": 4, "pooling": "mean", "n_test": 10_000, "settings": {"k": 20}}
    values = (("trained", 60.0), ("untrained", 30.0))
    evaluation = {"results": [{**knn, "encoder": name, "value": value} for name, value in values]}
    run = replace(record(epochs=FALLEN), evaluation=evaluation)
    assert examine(run).healthy and "60.0 % of 10,000 images" in examine(run).verdict.evidence
    for field in ("init", "start_from"):
        about = {**run.about, "run": {**run.about["run"], field: "timm:vit"}}
        assert examine(replace(run, about=about)).verdict.state == "dimensional collapse"


def test_what_is_worth_knowing_is_remarked() -> None:
    run = record(about={"status": "stopped", "advice": ["Only 90 steps."]})
    checkup = examine(replace(run, unreadable=[("a.jpg", "broken"), ("b.jpg", "empty")]))
    assert [remark.split()[0] for remark in checkup.remarks] == ["The", "Said", "2"]
    assert "a.jpg: broken" in checkup.remarks[2] and checkup.healthy
    old = record()
    for step in old.steps:
        del step["data_wait"]
    assert "not known" in examine(old).remarks[0]


def test_the_command_prints_state_evidence_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = record(losses=(4.0, 90.0))
    (tmp_path / "run.json").write_text(json.dumps(run.about))
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in [*run.steps, *run.epochs])
    )
    command.doctor(tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        printed.startswith("Diverging Evidence: The loss rose") and "What to change: Set optim.lr" in printed
    )
    with pytest.raises(ValueError, match="not a run folder"):
        command.doctor(tmp_path / "nothing")
