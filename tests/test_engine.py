"""The loop: exact resume, several ranks, errors that lose nothing."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visrep
from visrep import engine, machine, starting
from visrep.api import override, with_encoder
from visrep.config import Run
from visrep.methods import preset
from visrep.monitor import NotFinite
from visrep.rundir import RunFolder
from visrep.schedules import Constant
from visrep.starting import resume, start, training_images
from visrep.views import OneView, View


def tiny(name: str, out: Path) -> Run:
    _, _, run = preset(f"{name}:tiny")
    return replace(run, out=str(out), epochs=2, monitor_images=40)


@pytest.mark.parametrize("name", ["simclr", "dino", "mae"])
def test_a_run_leaves_a_folder_that_explains_itself(name: str, tmp_path: Path):
    folder = RunFolder(start(tiny(name, tmp_path / "run"), method=name, preset="tiny"))
    about = folder.about()
    assert about["status"] == "finished"
    assert about["method"] == name
    assert folder.run() == replace(tiny(name, tmp_path / "run"), canvas=32, precision="32-true")
    steps, epochs = folder.metrics("step"), folder.metrics("epoch")
    assert [line["step"] for line in epochs] == [4, 8]
    assert steps[-1]["step"] == 8
    assert {"lr", "weight_decay"} <= steps[-1]["schedules"].keys()
    assert {"rankme", "feature_std", "alignment", "uniformity"} <= epochs[-1]["monitors"].keys()
    assert epochs[-1]["monitors"]["queries"] == 40  # each among the others
    assert epochs[-1]["verdict"]["state"]
    encoder = visrep.load_encoder(folder.path)
    assert encoder(torch.zeros(2, 3, 32, 32)).pool().shape == (2, encoder.width)
    assert encoder.preprocessing.size == 32
    pictures = np.load(folder.path / "pictures.npz")
    assert pictures["views"].dtype == np.uint8
    assert pictures["views"].ndim == 5


STOPPED = """
import sys
from dataclasses import replace
from visrep import starting
from visrep.methods import preset
run = preset(sys.argv[1] + ":tiny")[2]
run = replace(run, out=sys.argv[2], epochs=12, monitor_images=40, precision="32-true")
starting.start(run, method=sys.argv[1], preset="tiny")
"""


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("simclr", signal.SIGKILL),
        ("dino", signal.SIGKILL),
        ("mae", signal.SIGKILL),
        ("simclr", signal.SIGINT),
    ],
)
def test_a_stopped_and_resumed_run_equals_an_unbroken_one_bit_for_bit(
    name: str, how: signal.Signals, tmp_path: Path
):
    whole = replace(tiny(name, tmp_path / "whole"), epochs=12)
    start(whole, method=name, preset="tiny")
    broken = tmp_path / "broken"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-c", STOPPED, name, str(broken)], env=environment)
    deadline = time.monotonic() + 60
    while not (broken / "checkpoint.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, how)
    process.wait()
    if how == signal.SIGINT:
        assert RunFolder(broken).about()["status"] == "stopped"
    stopped_at = RunFolder(broken).load_checkpoint()["step"]
    resume(broken)
    expected, got = RunFolder(tmp_path / "whole"), RunFolder(broken)
    a, b = expected.load_checkpoint(), got.load_checkpoint()
    assert a["step"] == b["step"] == 48
    assert stopped_at < 48, "the process finished before it could be killed"
    assert a["method"].keys() == b["method"].keys()
    for key, value in a["method"].items():
        assert torch.equal(value, b["method"][key]), key
    assert [line["monitors"] for line in expected.metrics("epoch")] == [
        line["monitors"] for line in got.metrics("epoch")
    ]
    assert [line["step"] for line in got.metrics("step")] == sorted(
        {line["step"] for line in got.metrics("step")}
    )


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path):
    path = start(tiny("simclr", tmp_path / "run"), method="simclr", preset="tiny")
    before = (path / "metrics.jsonl").read_text()
    resume(path)
    assert (path / "metrics.jsonl").read_text() == before


def test_a_loss_that_is_not_finite_stops_the_run_and_names_term_and_step(tmp_path: Path):
    run = tiny("simclr", tmp_path / "run")
    run = override(run, "optim.lr", Constant(1e30))
    with pytest.raises(NotFinite, match=r"'nt_xent' became (nan|inf).* at step \d+"):
        start(replace(run, epochs=6), method="simclr", preset="tiny")
    about = RunFolder(tmp_path / "run").about()
    assert about["status"] == "failed"
    assert "nt_xent" in about["message"]


def test_too_few_images_for_a_batch(tmp_path: Path):
    run = replace(tiny("simclr", tmp_path / "run"), batch=100)
    with pytest.raises(ValueError, match=r"batch.*100.*64"):
        start(run, method="simclr", preset="tiny")
    assert not (tmp_path / "run").exists(), "a run that never began leaves nothing"


@pytest.mark.parametrize("name", ["simclr", "moco", "dino", "vicreg"])
def test_one_view_where_two_are_needed(name: str, tmp_path: Path):
    run = tiny(name, tmp_path / "run")
    config = copy.copy(run.method)
    # past the annotations, which only tests execute
    object.__setattr__(config, "views", OneView(View(size=32)))
    with pytest.raises(
        ValueError, match=rf"{name} cannot learn from OneView \(one view an image or clip\)\. Set method"
    ):
        start(replace(run, method=config), method=name)
    assert not (tmp_path / "run").exists()


def test_views_with_other_frames_than_the_encoder(tmp_path: Path):
    run = override(tiny("videomae", tmp_path / "run"), "method.encoder.frames", 8)
    with pytest.raises(
        ValueError, match=r"Views of 4 frames .* of 8\. Set method\.encoder\.frames to 4, or .* to 8"
    ):
        start(run, method="videomae")


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path):
    """MAE's loss is a mean over images, so halves of a batch add up to it exactly, but for the masks drawn."""
    run = replace(tiny("mae", tmp_path / "run"), accumulate=2)
    folder = RunFolder(start(run, method="mae", preset="tiny"))
    assert folder.metrics("step")[-1]["step"] == 8
    with pytest.raises(ValueError, match="accumulate=3 does not divide"):
        start(replace(run, accumulate=3, out=str(tmp_path / "odd")), method="mae", preset="tiny")


def test_corrupt_images_are_listed_and_skipped(tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)).save(photos / f"{i}.png")
    (photos / "broken.png").write_bytes((photos / "1.png").read_bytes()[:100])
    run = replace(tiny("simclr", tmp_path / "run"), data=str(photos))
    path = start(run, method="simclr", preset="tiny")
    (line,) = (path / "unreadable.txt").read_text().splitlines()
    assert line.split("\t")[0].endswith("broken.png")


def test_the_test_part_of_the_data_is_not_trained_on(tmp_path: Path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("test", 30)):
        (tmp_path / "data" / part / "a").mkdir(parents=True)
        for i in range(n):
            image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8))
            image.save(tmp_path / "data" / part / "a" / f"{i}.png")
    run = replace(tiny("simclr", tmp_path / "run"), data=str(tmp_path / "data"), batch=8)
    keys = {training_images(run).key(i) for i in range(len(training_images(run)))}
    assert keys == {f"a/{i}.png" for i in range(20)}
    with pytest.raises(ValueError, match="batch=40 but only 20"):
        start(replace(run, batch=40), method="simclr", preset="tiny")


def test_two_ranks_train_as_one(tmp_path: Path):
    """The same crops, the same gradients, up to rounding: a short run on two processes ends where one does."""
    script = """
import sys
from dataclasses import replace
from visrep import starting
from visrep.methods import preset
run = preset(sys.argv[1] + ":tiny")[2]
run = replace(run, out=sys.argv[2], devices=int(sys.argv[3]), accelerator="cpu", epochs=1, monitor_images=40)
run = replace(run, precision="32-true")
starting.start(run, method=sys.argv[1], preset="tiny")
"""
    file = tmp_path / "train.py"
    file.write_text(script)
    for devices in (1, 2):
        subprocess.run(
            [sys.executable, str(file), "simclr", str(tmp_path / str(devices)), str(devices)],
            check=True,
            capture_output=True,
            timeout=120,
        )
    one, two = (RunFolder(tmp_path / devices) for devices in "12")
    for a, b in zip(one.metrics("step"), two.metrics("step"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)
    first = [run.metrics("step")[0]["loss"] for run in (one, two)]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


@pytest.mark.parametrize(("multiplies", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_precision_is_what_the_cpu_is_fast_at(
    multiplies: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine, "multiplies_bf16", lambda: multiplies)
    run = replace(tiny("simclr", tmp_path), accelerator="cpu")
    resolved = starting.resolve(run, training_images(run))
    assert resolved.precision == precision
    chosen = engine.build_fabric(resolved).strategy.precision
    assert chosen.precision == precision


def test_overrides_by_path_and_their_errors():
    _, _, run = preset("simclr:tiny")
    assert override(run, "method.tau", 0.7).method.tau == 0.7
    with pytest.raises(ValueError, match=r"no field 'taus'.*tau"):
        override(run, "method.taus", 1)


def test_named_encoders_fit_the_views():
    _, _, run = preset("dino:tiny")
    assert with_encoder(run, "vit_tiny").method.encoder.image == run.method.views.size
    with pytest.raises(ValueError, match=r"no encoder 'vit_giant'.*vit_tiny"):
        with_encoder(run, "vit_giant")


def test_a_stage_starts_from_the_weights_of_another(tmp_path: Path):
    _, _, run = preset("dino:tiny")
    first = start(replace(run, out=str(tmp_path / "first")), method="dino", preset="tiny")
    still = replace(run.optim, lr=Constant(0.0))
    run = replace(run, optim=still, method=replace(run.method, teacher_decay=Constant(1.0)))
    second = start(
        replace(run, out=str(tmp_path / "second"), start_from=str(first), seed=1),
        method="dino",
        preset="tiny",
    )
    weights = [RunFolder(path).load_checkpoint()["method"] for path in (first, second)]
    for name in ("student.encoder.patch_embed.proj.weight", "teacher.module.encoder.norm.weight"):
        assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0]["center"], weights[1]["center"]), "it moved on from there"

    with pytest.raises(ValueError, match="is a run of dino, not of simclr"):
        start(
            replace(preset("simclr:tiny")[2], out=str(tmp_path / "c"), start_from=str(first)), method="simclr"
        )
    wider = replace(
        run, out=str(tmp_path / "d"), start_from=str(first), method=replace(run.method, prototypes=64)
    )
    with pytest.raises(ValueError, match="does not fit this run"):
        start(wider, method="dino")


def test_a_users_own_file_is_a_method(tmp_path: Path):
    """By its path: no registry, no other change."""
    from visrep.methods import method_files

    copied = tmp_path / "mine.py"
    copied.write_text(method_files()["simclr"].read_text())
    run = replace(preset(f"{copied}")[2], out="")
    assert type(run.method).__module__ == "visrep_user_mine"
    tiny_run = replace(preset(f"{copied}:tiny")[2], out=str(tmp_path / "run"), monitor_images=40)
    path = start(tiny_run, method=str(copied), preset="tiny")
    assert json.loads((path / "run.json").read_text())["method"] == str(copied)
    assert RunFolder(path).run().method.tau == tiny_run.method.tau
