"""The retention guard: a run that unlearns what it began with is told, ended or undone; a sane one is left alone."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import visrep
from visrep.analysis.doctor import examine
from visrep.analysis.record import read_run
from visrep.analysis.report import report
from visrep.config import Adapt, Guard, Run
from visrep.continuing.retention import Kept, held_out, likeness, paired_error
from visrep.data import CanvasSet, Loader, open_source
from visrep.encoders import ResNet, save_encoder
from visrep.log import TrainingLog
from visrep.method import At, Encoder, Losses, Preprocessing
from visrep.methods import preset
from visrep.progress import TrainingProgress
from visrep.rundir import RunFolder
from visrep.schedules import Constant, Step
from visrep.starting import resume, start

EPOCHS = 2


@cache
def knowing() -> Encoder:
    """An encoder whose features at the start are worth keeping: random convolutions tell the playground's classes."""
    torch.manual_seed(0)
    encoder: Encoder = ResNet(18, width=8, stem="small").build().eval()
    encoder.preprocessing = Preprocessing(32, 1.0)
    return encoder


def run(tmp_path: Path, name: str, *, rate: float, guard: Guard, held_out: float = 0.0) -> Run:
    """All 120 images that are compared are trained on too, unless some are held out: fewer say less."""
    save_encoder(tmp_path / "start", knowing())
    _, _, tiny = preset("simclr:tiny")
    optim = replace(tiny.optim, lr=Constant(rate), weight_decay=Constant(0.0))
    adapt = Adapt(freeze_epochs=0.0, lr_scale=1.0, layer_decay=1.0)
    guard = replace(guard, held_out=held_out)
    tiny = replace(tiny, init=str(tmp_path / "start"), adapt=adapt, guard=guard, optim=optim, epochs=EPOCHS)
    return replace(tiny, out=str(tmp_path / name), data="playground:n=128,size=32", monitor_images=120)


SANE, BROKEN = 1e-3, 0.1
"""learning rates: usual for so small a network, and a hundred times that"""
LEAST = 0.75
"""CKA with the start that the first keeps"""


def lines(folder: Path) -> list[dict]:
    return RunFolder(folder).metrics("retention")


def weights(folder: Path) -> dict[str, Tensor]:
    return visrep.load_encoder(folder).state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(x, b[name]) for name, x in a.items())


def test_a_sane_run_is_left_alone_and_its_report_shows_it(tmp_path: Path):
    folder = start(
        run(tmp_path, "sane", rate=SANE, guard=Guard(act="rollback", min_cka=LEAST)), method="simclr"
    )
    found = lines(folder)
    assert [line["step"] for line in found] == [8, 16]
    assert not any(line["lost"] for line in found)
    assert 0.05 < 1 - found[-1]["cka"]["data"], "it learned something"
    assert not same(weights(folder), knowing().state_dict())
    assert RunFolder(folder).about()["status"] == "finished"
    assert "forgetting" not in [finding.state for finding in examine(read_run(folder)).findings]
    page = report(folder, images=40).read_text()
    assert "Beside its start" in page and "Nothing was lost." in page


def test_a_warned_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(TrainingProgress, "say", lambda bar, line: said.append(line))
    folder = start(
        run(tmp_path, "warned", rate=BROKEN, guard=Guard(act="warn", min_cka=LEAST)), method="simclr"
    )
    found = lines(folder)
    assert len(found) == EPOCHS and all("guard.min_cka=0.75" in line["lost"] for line in found)
    assert RunFolder(folder).about()["status"] == "finished"
    verdict = next(f for f in examine(read_run(folder)).findings if f.state == "forgetting")
    assert found[-1]["lost"] in verdict.evidence and "adapt.lr_scale" in verdict.change
    assert sum(line.startswith("The encoder unlearns what it began with: CKA") for line in said) == EPOCHS
    assert found[0]["lost"] in report(folder, images=40).read_text()


def test_a_stopped_run_ends_at_the_first_measurement_with_what_it_has(tmp_path: Path):
    folder = start(
        run(tmp_path, "stopped", rate=BROKEN, guard=Guard(act="stop", min_cka=LEAST)), method="simclr"
    )
    about = RunFolder(folder).about()
    assert about["status"] == "stopped" and about["message"].startswith("guard.act=stop: ")
    assert [line["step"] for line in lines(folder)] == [8]
    assert RunFolder(folder).load_checkpoint()["step"] == 8
    assert not same(weights(folder), knowing().state_dict())
    visrep.export(folder, "safetensors", tmp_path / "out", heads=True)
    assert load_file(tmp_path / "out" / "heads.safetensors"), "encoder and heads are of one moment"


def test_a_run_rolled_back_leaves_the_encoder_it_began_with(tmp_path: Path):
    guard = Guard(act="rollback", min_cka=LEAST)
    folder = start(run(tmp_path, "undone", rate=BROKEN, guard=guard), method="simclr")
    assert RunFolder(folder).about()["message"].startswith("guard.act=rollback: ")
    assert same(weights(folder), knowing().state_dict())
    assert not lines(folder)[0]["kept"]
    other = (
        r"of another moment.*kept the encoder of an earlier moment.*without --heads, or .*--guard\.act stop"
    )
    with pytest.raises(ValueError, match=other):
        visrep.export(folder, "safetensors", tmp_path / "out", heads=True)
    assert not (tmp_path / "out").exists()
    visrep.export(folder, "safetensors", tmp_path / "out")


def test_without_a_guard_nothing_is_compared(tmp_path: Path):
    folder = start(run(tmp_path, "off", rate=BROKEN, guard=Guard(act="off")), method="simclr")
    assert not lines(folder) and not (folder / "start.npz").exists()
    plain = replace(preset("simclr:tiny")[2], out=str(tmp_path / "random"), guard=Guard(act="off"))
    folder = start(plain, method="simclr")
    assert not lines(folder), "a run that begins with random weights has nothing to keep"


def test_a_reference_is_watched_beside_the_runs_own_images(tmp_path: Path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "ref.npz", images=rng.integers(0, 255, (40, 32, 32, 3), np.uint8))
    guard = Guard(act="warn", reference=str(tmp_path / "ref.npz"))
    folder = start(run(tmp_path, "two", rate=SANE, guard=guard), method="simclr")
    found = lines(folder)
    assert all(line["cka"].keys() == {"data", "reference"} for line in found)
    assert all(line["knn"].keys() == {"data"} for line in found), "the reference has no labels"
    with np.load(folder / "start.npz") as kept:
        assert kept["reference_z"].shape == (40, knowing().width) and not kept["reference_right"].size
        assert kept["data_right"].shape == (120,), "every monitored image is asked for, among all others"


def test_a_resumed_run_compares_with_the_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = start(run(tmp_path, "whole", rate=1e-3, guard=Guard()), method="simclr")
    add = TrainingLog.add

    def interrupted(
        log: TrainingLog, at: At, taken: list[Losses], values: dict[str, float], norm: Tensor
    ) -> bool:
        if at.step == 10:
            raise KeyboardInterrupt
        return add(log, at, taken, values, norm)

    monkeypatch.setattr(TrainingLog, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(run(tmp_path, "broken", rate=1e-3, guard=Guard()), method="simclr")
    monkeypatch.undo()
    resume(tmp_path / "broken")
    assert lines(tmp_path / "broken") == lines(whole)
    assert lines(whole)[0]["cka"] != lines(whole)[-1]["cka"]


def test_too_few_images_to_tell(tmp_path: Path):
    few = run(tmp_path, "few", rate=SANE, guard=Guard(act="stop"))
    with pytest.raises(
        ValueError, match=r"guard\.act=stop compares features of 8 or more images and there are 7 of data"
    ):
        start(replace(few, monitor_images=7), method="simclr")


# what is looked at


def apart(settings: Run) -> np.ndarray:
    source = open_source(settings.data)
    return held_out(settings, np.arange(len(source)), source.groups)


def test_the_guards_images_are_never_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: set[int] = set()
    indices = Loader.indices

    def spied(loader: Loader, step: int) -> np.ndarray:
        found = indices(loader, step)
        seen.update(found.tolist())
        return found

    monkeypatch.setattr(Loader, "indices", spied)
    settings = run(tmp_path, "apart", rate=SANE, guard=Guard(), held_out=0.1)
    folder = start(settings, method="simclr")
    held = set(apart(settings).tolist())
    assert len(held) == 13 and not held & seen and len(seen) >= 112
    with np.load(folder / "start.npz") as kept:
        assert kept["data_z"].shape == (13, knowing().width) and kept["data_right"].shape == (13,)
    again = apart(settings)
    assert set(again.tolist()) == held, "a resumed run holds the same ones out"


def test_a_batch_that_the_guard_leaves_too_few_images_for(tmp_path: Path):
    settings = replace(run(tmp_path, "few", rate=SANE, guard=Guard(), held_out=0.1), batch=128)
    said = r"only 115 readable images in .* beside 13 that are held out for the guard \(guard\.held_out=0\.1\); lower"
    with pytest.raises(ValueError, match=said):
        start(settings, method="simclr")


def test_without_labels_held_out_images_are_compared_too(tmp_path: Path):
    unlabelled(tmp_path / "photos.npz", 100)
    settings = run(tmp_path, "plain", rate=SANE, guard=Guard(), held_out=0.2)
    folder = start(replace(settings, data=str(tmp_path / "photos.npz")), method="simclr")
    with np.load(folder / "start.npz") as kept:
        assert kept["data_z"].shape == (20, knowing().width) and not kept["data_right"].size
    assert all(not line["knn"] and 0.2 < line["cka"]["data"] < 1 for line in lines(folder))


def test_images_to_validate_on_are_the_guards_and_none_is_held_out(tmp_path: Path):
    settings = run(tmp_path, "val", rate=SANE, guard=Guard(), held_out=0.5)
    settings = replace(settings, val="playground:n=30,size=32,split=test")
    assert not len(apart(settings))
    folder = start(settings, method="simclr")
    with np.load(folder / "start.npz") as kept:
        assert kept["data_z"].shape == (30, knowing().width) and kept["data_right"].shape == (30,)


def test_without_labels_images_to_validate_on_are_the_guards_too(tmp_path: Path):
    """The guard must not look at images that are trained on, where others were given for it."""
    unlabelled(tmp_path / "photos.npz", 100)
    settings = run(tmp_path, "plain-val", rate=SANE, guard=Guard(), held_out=0.5)
    val = "playground:n=30,size=32,split=test"
    settings = replace(settings, data=str(tmp_path / "photos.npz"), val=val, epochs=1)
    folder = start(settings, method="simclr")
    with np.load(folder / "start.npz") as kept:
        assert kept["data_z"].shape == (30, knowing().width) and not kept["data_right"].size
    (line,) = lines(folder)
    assert 0 < line["cka"]["data"] < 1 and not line["knn"]
    assert not any("knn" in line["monitors"] for line in RunFolder(folder).metrics("epoch"))


def test_videos_are_held_out_whole():
    """Of five videos of 20 clips, a fourth of the clips: one video."""
    source = open_source("playground:n=100,size=32")
    source.groups = np.repeat([7, 3, 5, 9, 1], 20)
    settings = replace(preset("simclr:tiny")[2], init="x", guard=Guard(held_out=0.25))
    held = held_out(settings, np.arange(100), source.groups)
    assert len(held) == 20 and len(np.unique(source.groups[held])) == 1


def test_a_fall_of_knn_ends_a_run(tmp_path: Path):
    """Classes that differ in brightness, which views change at random: what broken training unlearns first."""
    rng, labels = np.random.default_rng(0), np.arange(128) % 4
    shades = 40 + 55 * labels[:, None, None, None] + rng.normal(0, 15, (128, 32, 32, 3))
    np.savez(tmp_path / "shades.npz", images=shades.clip(0, 255).astype(np.uint8), labels=labels)
    guard = Guard(act="stop", min_cka=-1.0)
    settings = run(tmp_path, "forgets", rate=3.0, guard=guard, held_out=0.3)
    folder = start(replace(settings, data=str(tmp_path / "shades.npz")), method="simclr")
    (last,) = lines(folder)
    before, now = last["knn"]["data"]
    assert before - now > last["allowed"]["data"] >= 3
    assert last["lost"].startswith("kNN on data fell from ") and "CKA" not in last["lost"]
    assert RunFolder(folder).about()["message"] == f"guard.act=stop: {last['lost']}"


def test_a_labelled_reference_is_asked_too(tmp_path: Path):
    guard = Guard(act="warn", reference="playground:n=60,size=32,split=test")
    (first, _) = lines(start(run(tmp_path, "ref", rate=SANE, guard=guard), method="simclr"))
    assert first["knn"].keys() == first["cka"].keys() == {"data", "reference"}
    with np.load(tmp_path / "ref" / "start.npz") as kept:
        assert first["knn"]["reference"][0] == pytest.approx(100 * kept["reference_right"].mean())


def test_a_run_rolled_back_keeps_what_it_learned_before_it_went_wrong(tmp_path: Path):
    unlabelled(tmp_path / "photos.npz", 128)
    settings = run(tmp_path, "late", rate=SANE, guard=Guard(act="rollback", min_cka=LEAST))
    settings = replace(settings, data=str(tmp_path / "photos.npz"))
    late = replace(settings, optim=replace(settings.optim, lr=Step((SANE, 3.0), at_epochs=(1,))))
    folder = start(late, method="simclr")
    assert [(line["kept"], bool(line["lost"])) for line in lines(folder)] == [(True, False), (False, True)]
    short = start(replace(late, epochs=1, out=str(tmp_path / "short")), method="simclr")
    assert same(weights(folder), weights(short)) and not same(weights(folder), knowing().state_dict())


def unlabelled(file: Path, n: int) -> None:
    """The playground's images alone."""
    source = open_source(f"playground:n={n},size=32")
    images = CanvasSet(source, 32).get(np.arange(n)).pixels
    np.savez(file, images=images.permute(0, 2, 3, 1).numpy())


# what counts as lost


@pytest.mark.parametrize(
    ("cka", "knn", "said"),
    [
        ({"data": 0.9}, {}, ""),
        ({"data": 0.19}, {}, "CKA with the start is 0.19 on data (guard.min_cka=0.2)"),
        ({"data": 0.2}, {"data": (50.0, 47.0)}, ""),
        (
            {"data": 0.9},
            {"data": (50.0, 46.9)},
            "kNN on data fell from 50.0 to 46.9 %, by more than 3.0",
        ),
        ({"data": 0.9, "reference": 0.1}, {}, "CKA with the start is 0.10 on reference (guard.min_cka=0.2)"),
    ],
)
def test_thresholds(cka: dict[str, float], knn: dict[str, tuple[float, float]], said: str):
    assert Kept(cka, knn, dict.fromkeys(knn, 0.1)).lost(Guard()) == said


def test_few_images_say_less():
    """Twice the standard error, where that is more than the guard's points."""
    kept = Kept({}, {"data": (50.0, 42.0)}, {"data": 4.0})
    assert kept.allowed("data", Guard()) == 8.0
    assert not kept.lost(Guard())
    assert replace(kept, knn={"data": (50.0, 41.9)}).lost(Guard())
    assert replace(kept, error={"data": 0.0}).lost(Guard()), "where all is certain the guard's points count"


def test_only_answers_that_changed_make_the_error():
    """McNemar's: 12 lost and 4 won of 200, and the spread of the difference over bootstrap samples."""
    b, c, n = 12, 4, 200
    before, now = (np.repeat(right, [b, c, 90, 94]).astype(bool) for right in ([1, 0, 1, 0], [0, 1, 1, 0]))
    expected = 100 * math.sqrt((b + c - (b - c) ** 2 / n) / (n * (n - 1)))
    assert paired_error(before, now) == pytest.approx(expected)
    rows = np.random.default_rng(0).integers(0, n, (4000, n))
    drops = 100 * (before[rows].mean(1) - now[rows].mean(1))
    assert paired_error(before, now) == pytest.approx(drops.std(), rel=0.05)
    assert paired_error(before, before) == 0.0
    of_other_images = 100 * math.sqrt(2 * 0.5 * 0.5 / n)
    assert paired_error(before, now) < of_other_images / 2


def test_likeness_is_blind_to_rotation_and_scale_and_zero_after_a_collapse():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(60, 12, generator=rng)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=rng))[0]
    assert likeness(z, 3 * z @ rotation + 1) == pytest.approx(1, abs=1e-6)
    assert likeness(z, torch.ones(60, 5)) == 0
    assert abs(likeness(z, torch.randn(60, 12, generator=rng))) < 0.15
    k, m = ((x - x.mean(0)) @ (x - x.mean(0)).T for x in (z.double(), (z**3).double()))
    assert likeness(z, z**3) == pytest.approx(
        naive_hsic(k, m) / math.sqrt(naive_hsic(k, k) * naive_hsic(m, m)), abs=1e-6
    )


def naive_hsic(k: Tensor, m: Tensor) -> float:
    """Song et al. 2012, equation 5, term by term."""
    n, one = len(k), torch.ones(len(k), dtype=k.dtype)
    k, m = k - torch.diag(k.diagonal()), m - torch.diag(m.diagonal())
    first = torch.trace(k @ m)
    second = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((first + second - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))


@pytest.mark.parametrize("wrong", [{"min_cka": 1.1}, {"max_knn_drop": -1.0}, {"held_out": 1.0}])
def test_thresholds_that_cannot_be(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=r"at most 1|give 0 to below 1"):
        Guard(**wrong)  # pyright: ignore[reportArgumentType]
