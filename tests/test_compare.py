"""Comparing methods and runs: budgets, fairness, continuing, the leaderboard and its page."""

from __future__ import annotations

import inspect
import io
import json
import shutil
import signal
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import visrep
from visrep import cli, engine
from visrep.analysis.record import read_run
from visrep.cli.compare import setting
from visrep.comparison import compare as comparing
from visrep.comparison import plans
from visrep.comparison.budget import SHARE, Budget, Timing, parse_budget, read_timing
from visrep.encoders import ResNet, save_encoder
from visrep.evaluation.compare import leaderboard
from visrep.evaluation.effort import Effort, duration, effort
from visrep.evaluation.evaluate import Evaluation
from visrep.evaluation.leaderboard import render_leaderboard
from visrep.evaluation.results import Judged, Result
from visrep.evaluation.standings import Comparison
from visrep.monitor import NotFinite

DATA = "playground:n=120,size=32"


def compared(out: Path, *entries: str | Path, **options: Any) -> Comparison:
    usual = {"data": DATA, "preset": "tiny", "budget": "64 images", "out": out, "protocols": ("knn",)}
    return visrep.compare(entries, **{**usual, **options})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SimCLR and MAE, compared; do not write into it."""
    out = tmp_path_factory.mktemp("compared")
    compared(out, "simclr", "mae", budget="240 images", protocols=("knn", "linear"))
    return out


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("90s", "seconds", 90),
        ("30m", "seconds", 1800),
        ("30 min", "seconds", 1800),
        ("2h", "seconds", 7200),
        ("1h30m", "seconds", 5400),
        ("500000", "images", 500_000),
        ("500,000", "images", 500_000),
        ("500k", "images", 500_000),
        ("1.5k images", "images", 1500),
        ("64 images", "images", 64),
    ],
)
def test_budgets(text: str, unit: str, amount: float):
    assert parse_budget(text) == Budget(unit, amount)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("text", ["soon", "30x", "5M", "0s", "0k", "-3m", "m", "k", "1m30", "½h", " "])
def test_what_is_no_budget_is_refused_with_what_is_possible(text: str):
    with pytest.raises(ValueError, match=r"is no budget.*30m.*500k"):
        parse_budget(text)


def test_a_small_bare_number_could_be_minutes():
    with pytest.raises(ValueError, match="Write 30m or '30 images'"):
        parse_budget("30")


def test_a_timing_is_read_from_a_run_and_predicts_another():
    """Records made from known costs give these costs back."""
    step, start, measure = 0.5, 3.0, 2.0
    records = [{"step": i, "seconds": start + step * i + measure * (i > 12)} for i in range(1, 25)]
    timing = read_timing(records, 12, steps_per_epoch=30, looks_ahead=False)
    assert timing.step == pytest.approx(step)
    assert timing.start == pytest.approx(start)
    assert timing.measure == pytest.approx(measure)
    assert timing.epoch == 0
    clusters = read_timing(records, 12, steps_per_epoch=30, looks_ahead=True)
    assert (clusters.start, clusters.epoch) == (0, pytest.approx(start))
    few = read_timing(records, 12, steps_per_epoch=10, looks_ahead=True)
    assert few.epoch == 0  # the timed steps hold it already
    pace = {"steps_per_epoch": 30, "monitor_epochs": 2.0}
    steps = timing.steps_within(100.0, **pace)
    assert timing.seconds(steps, **pace) <= SHARE * 100 < timing.seconds(steps + 1, **pace)
    assert timing.seconds(60, **pace) == pytest.approx(start + 60 * step + measure)
    assert Timing(1.0, 5.0, 0.0, 0.0, 20).steps_within(4.0, **pace) == 0
    without = timing.seconds(60, steps_per_epoch=30, monitor_epochs=0)
    assert without == pytest.approx(start + 60 * step)


def test_effort_adds_up_over_resumed_parts(pair: Path):
    record = read_run(pair / "simclr")
    lines = [
        {**record.steps[0], "step": n, "epoch": n / 4, "seconds": s, "images_per_second": 16 * (n - m) / t}
        for m, n, s, t in ((0, 2, 1.0, 1.0), (2, 4, 3.0, 2.0), (4, 6, 9.0, 9.0))  # resumed after step 4
    ]
    took = effort(inspect.unwrap(type(record))(**{**vars(record), "steps": lines}))
    assert took.seconds == pytest.approx(12.0)
    assert (took.images, took.steps, took.epochs) == (96, 6, 1.5)


def test_durations_are_words():
    assert [duration(s) for s in (0.042, 4.21, 42.2, 59.7, 90, 5400, 7201)] == [
        "0.042 s", "4.2 s", "42 s", "1 min", "1 min 30 s", "1 h 30 min", "2 h",
    ]  # fmt: skip


def test_methods_get_the_same_images_and_the_same_judge(pair: Path):
    saved = json.loads((pair / "comparison.json").read_text())
    trained = [entry for entry in saved["entries"] if entry["kind"] == "trained"]
    assert {entry["name"] for entry in trained} == {"simclr", "mae"}
    assert {entry["effort"]["images"] for entry in trained} == {240}
    assert all(entry["effort"]["seconds"] > 0 for entry in trained)
    assert saved["budget"] == "240 images each"
    assert {name: plan["steps"] for name, plan in saved["plans"].items()} == {"simclr": 15, "mae": 15}
    sizes = {(r["n_train"], r["n_test"]) for entry in saved["entries"] for r in entry["results"]}
    assert sizes == {(120, 24)}
    baselines = {entry["name"]: entry["of"] for entry in saved["entries"] if entry["kind"] != "trained"}
    assert baselines["untrained (simclr)"] == ["simclr"] and baselines["untrained (mae)"] == ["mae"]
    assert sorted(baselines["raw pixels"]) == ["mae", "simclr"]
    values = [
        next(r["value"] for r in entry["results"] if r["protocol"] == "linear") for entry in saved["entries"]
    ]
    assert values == sorted(values, reverse=True)
    for name in ("simclr", "mae"):  # complete on its own, so that `visrep report` shows it
        own = json.loads((pair / name / "evaluation.json").read_text())
        assert {result["encoder"] for result in own["results"]} == {"trained", "untrained", "pixels"}
    assert set(saved["fingerprint"]["encoder"]) == {"simclr", "mae"}


def test_the_judge_is_visrep_evaluate(pair: Path):
    own = json.loads((pair / "simclr" / "evaluation.json").read_text())["results"]
    alone = visrep.evaluate(pair / "simclr", DATA).to_json()["results"]
    key = lambda result: (result["encoder"], result["protocol"], str(result["settings"]))  # noqa: E731
    assert sorted(own, key=key) == sorted(alone, key=key)


def test_finished_runs_are_kept_and_an_unfinished_one_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    take_step, taken = engine.take_step, []

    def stops_in_the_second_run(*arguments: Any, **options: Any) -> Any:
        taken.append(arguments)
        if len(taken) == 6:  # the second step of the second method
            signal.raise_signal(signal.SIGINT)
        return take_step(*arguments, **options)

    monkeypatch.setattr(engine, "take_step", stops_in_the_second_run)
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, "simclr", "mae")
    assert not (tmp_path / "comparison.json").exists()
    first = (tmp_path / "simclr" / "checkpoint.pt").stat().st_mtime_ns
    comparison = compared(tmp_path, "simclr", "mae")
    assert len(taken) == 8
    assert (tmp_path / "simclr" / "checkpoint.pt").stat().st_mtime_ns == first
    assert {entry.effort.steps for entry in comparison.ranked if entry.effort} == {4}
    again = compared(tmp_path, "simclr", "mae")
    assert len(taken) == 8
    found, before = ({**one.to_json(), "made": []} for one in (again, comparison))  # it took other seconds
    assert found == before
    with pytest.raises(
        ValueError, match=r"simclr already holds a run under other terms \(budget.amount was 64"
    ):
        compared(tmp_path, "simclr", "mae", budget="96 images")
    with pytest.raises(ValueError, match=r"other terms \(seed was 0, now 1\)"):
        compared(tmp_path, "simclr", "mae", seed=1)


def test_a_budget_of_seconds_becomes_whole_schedules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    costs = {"simclr": Timing(0.5, 1.0, 0.0, 0.0, 20), "mae": Timing(0.25, 1.0, 0.0, 0.0, 20)}
    monkeypatch.setattr(plans, "time_steps", lambda candidate, *_: costs[candidate.name])
    comparison = compared(tmp_path, "simclr", "mae", budget="12s")
    steps = {entry.name: entry.effort.steps for entry in comparison.ranked if entry.effort}
    assert steps == {"simclr": 20, "mae": 41}  # (0.95 * 12 - 1) / cost of a step
    for name in steps:
        last = read_run(tmp_path / name).steps[-1]["schedules"]["lr"]
        peak = max(record["schedules"]["lr"] for record in read_run(tmp_path / name).steps)
        assert last < 0.02 * peak  # the cosine has come down
    assert comparison.plans["mae"]["timing"]["step"] == 0.25
    with pytest.raises(ValueError, match=r"2 s each is too small: simclr needs 6\.3 s for 10 steps"):
        compared(tmp_path / "b", "simclr", "mae", budget="2s")


def test_all_methods_begin_with_the_weights_that_are_named(tmp_path: Path):
    save_encoder(tmp_path / "weights", ResNet(18, width=4, stem="small").build())
    begins = comparing.Common("playground:n=100,size=32", "tiny", init=str(tmp_path / "weights"), limit=0)
    candidates = comparing.gather_candidates(["simclr", "mae"], begins, tmp_path)
    runs = [candidate.run for candidate in candidates if candidate.run]
    assert [run.init for run in runs] == [begins.init] * 2
    assert candidates[0].overrides == (f"init={begins.init}",)
    assert plans.trained_on(runs[0]) == 90, "the guard holds out a tenth"
    comparing.check_init(candidates[0])
    with pytest.raises(ValueError, match=r"mae: mae trains a ViTLike, and init=.* is a ResNet"):
        comparing.check_init(candidates[1])
    with pytest.raises(ValueError, match="simclr: encoder=vit_tiny asks for fresh weights"):
        comparing.gather_candidates(["simclr", "mae"], replace(begins, encoder="vit_tiny"), tmp_path)
    with pytest.raises(ValueError, match=r"simclr: adapt\.lora_rank=4 says how .* there is no init"):
        unread = comparing.Common(DATA, "tiny", overrides={"adapt.lora_rank": 4})
        comparing.gather_candidates(["simclr", "mae"], unread, tmp_path)


def test_steps_are_timed_by_the_real_loop_and_leave_nothing_behind(tmp_path: Path):
    candidates = comparing.gather_candidates(["simclr", "mae"], comparing.Common(DATA, "tiny"), tmp_path)
    timing = plans.time_steps(candidates[0], 5.0, 7, tmp_path)
    assert 0 < timing.step < 5 and timing.steps >= 18
    assert timing.measure >= 0 and timing.start >= 0
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_diverges_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begin = comparing.start

    def diverges(run: Any, *, method: str, **options: Any) -> Path:
        if method == "mae":
            raise NotFinite("The loss term 'mae' became nan at step 3.")
        return begin(run, method=method, **options)

    monkeypatch.setattr(comparing, "start", diverges)
    comparison = compared(tmp_path, "simclr", "mae", "dino")
    assert {entry.name for entry in comparison.ranked} == {"simclr", "dino"}
    assert comparison.failed == {"mae": "The loss term 'mae' became nan at step 3."}
    assert "mae failed and is left out" in shown(comparison)
    assert "became nan" in Page(tmp_path / "comparison.html").text["how-far-to-trust-this"]


def test_runs_and_methods_may_be_mixed(pair: Path, tmp_path: Path):
    before = (pair / "mae" / "evaluation.json").read_text()
    comparison = compared(tmp_path, pair / "mae", "simclr", budget="96 images")
    assert {entry.name for entry in comparison.ranked} == {"mae", "simclr"}
    assert (pair / "mae" / "evaluation.json").read_text() == before  # somebody's own run is not written to
    assert any("terms of their own" in note for note in comparison.notes)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "comparison.html",
        "comparison.json",
        "plan.json",
        "simclr",
    ]


def test_runs_of_one_folder_name_are_told_apart(pair: Path, tmp_path: Path):
    again = tmp_path / ("a_long_name_" * 4) / "mae"
    shutil.copytree(pair / "mae", again)
    comparison = visrep.compare([pair / "mae", again, pair / "simclr"], out=tmp_path, protocols=("knn",))
    folders = (pair / "mae", again, pair / "simclr")
    assert {entry.name for entry in comparison.ranked} == {"/".join(folder.parts[-2:]) for folder in folders}
    assert comparison.budget == "" and comparison.split.startswith(f"fitted on 120 images of {DATA}")
    with pytest.raises(ValueError, match="mae was given twice"):
        visrep.compare([pair / "mae", pair / "mae"], out=tmp_path)


def photos(folder: Path, *, classes: int) -> Path:
    rng = np.random.default_rng(0)
    for i in range(48):
        place = folder / "abc"[i % classes] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 120, (40, 36, 3), dtype=np.uint8)
        pixels[..., i % 2] += 120
        Image.fromarray(pixels).save(place / f"{i}.png")
    return folder


def test_without_labels_the_order_is_by_rankme_and_says_what_that_is_worth(tmp_path: Path):
    data = str(photos(tmp_path / "photos", classes=0))
    comparison = compared(tmp_path / "out", "simclr", "mae", data=data)
    assert comparison.protocols == ()
    ranks = [entry.scores["rankme"] for entry in comparison.entries]
    assert ranks == sorted(ranks, reverse=True)
    assert {entry.kind for entry in comparison.entries} == {"trained", "untrained"}
    for entry in comparison.entries:
        assert 1 <= entry.scores["rankme"] <= min(entry.scores["images"], entry.scores["width"]) + 1e-3
        assert -4 <= entry.scores["uniformity"] <= 0 <= entry.scores["alignment"] <= 4
    text = shown(comparison)
    assert "Trust this order little" in text and "2210.02885" in text
    page = Page(tmp_path / "out" / "comparison.html")
    assert "2210.02885" in page.text["how-far-to-trust-this"]
    trained_first = comparison.entries[0].kind == "trained"
    said = "does not say that it is the best" if trained_first else "nothing can be said"
    assert said in page.text[""] and said in " ".join(text.split())


def test_runs_of_one_method_are_what_rankme_is_for(pair: Path, tmp_path: Path):
    shutil.copytree(pair / "simclr", tmp_path / "again")
    comparison = visrep.compare([pair / "simclr", tmp_path / "again"], out=tmp_path, labels=False)
    assert any("proposed for this, runs of one method" in note for note in comparison.notes)
    assert not any("Trust this order little" in note for note in comparison.notes)


def test_images_judged_on_and_also_trained_on_are_owned_up_to(tmp_path: Path):
    data = str(photos(tmp_path / "photos", classes=3))
    comparison = compared(tmp_path / "out", "simclr", "mae", data=data)
    assert any("no test part" in note for note in comparison.notes)
    with pytest.raises(ValueError, match=r"supervised learns from labels, and .* has no test part"):
        compared(tmp_path / "other", "simclr", "supervised", data=data)
    elsewhere = compared(tmp_path / "third", "simclr", "mae", data=data, labelled=DATA)
    assert "judged on 24 of playground" in elsewhere.split
    assert not any("no test part" in note for note in elsewhere.notes)


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        (("simclr",), {}, "two or more, only simclr was given"),
        ((), {}, "two or more, nothing was given"),
        (("simclr", "simlcr"), {}, "Perhaps you meant simclr"),
        (("simclr", "mae:huge"), {}, "mae has no preset 'huge'"),
        (("simclr", "simclr"), {}, "simclr was given twice"),
        (("simclr", "no/such/run"), {}, "no/such/run is not a run folder"),
        (("simclr", "mae"), {"budget": "soon"}, "'soon' is no budget"),
        (("simclr", "mae"), {"budget": "4 images"}, "simclr needs 16 images, one batch"),
        (("simclr", "mae"), {"protocols": ("knm",)}, "no protocol 'knm'"),
        (("simclr", "mae"), {"overrides": {"method.tua": 1}}, "simclr: There is no field 'tua'"),
        (("simclr", "mae"), {"overrides": {"batch": "big"}}, "batch='big' does not fit: it is 16 now"),
        (("simclr", "mae"), {"overrides": {"epochs": 3}}, "epochs has an option of its own. Use --budget"),
        (("simclr", "mae"), {"overrides": {"batch": 512}}, r"has 120 to train on\. Add --set batch=64"),
        (("simclr", "mae"), {"overrides": {"devices": 2}}, "compared on one device"),
        (("simclr", "mae"), {"encoder": "vit_huge"}, "no encoder 'vit_huge'"),
        (("simclr", "mae"), {"data": "no/such/folder"}, "no such file or folder"),
    ],
)
def test_mistakes_are_met_before_any_training(
    entries: tuple[str, ...],
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def trains(*_: Any, **__: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(comparing, "start", trains)
    monkeypatch.setattr(plans, "start", trains)
    with pytest.raises(ValueError, match=message):
        compared(tmp_path, *entries, **options)


def test_runs_of_different_data_need_to_be_told_what_to_judge_on(pair: Path, tmp_path: Path):
    run = tmp_path / "mae"
    run.mkdir()
    about = json.loads((pair / "mae" / "run.json").read_text())
    about["run"]["data"] = "elsewhere/"
    (run / "run.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"mae holds no encoder.safetensors, its status is 'finished'"):
        visrep.compare([pair / "simclr", run], out=tmp_path)
    for name in ("encoder.safetensors", "encoder.json"):
        (run / name).write_bytes((pair / "mae" / name).read_bytes())
    with pytest.raises(ValueError, match=r"different images \(simclr on playground.*; mae on elsewhere/\)"):
        visrep.compare([pair / "simclr", run], out=tmp_path)
    comparison = visrep.compare([pair / "simclr", run], DATA, out=tmp_path, protocols=("knn",))
    assert any("trained on different images" in note for note in comparison.notes)


def test_overrides_and_encoder_are_common_to_all(tmp_path: Path):
    compared(
        tmp_path,
        "simclr",
        "dino",
        encoder="resnet_narrow",
        overrides={"batch": 8, "optim.clip": 2},
        budget="8 images",
    )
    for name in ("simclr", "dino"):
        about = json.loads((tmp_path / name / "run.json").read_text())
        assert (about["run"]["batch"], about["run"]["optim"]["clip"]) == (8, 2)
        assert about["run"]["method"]["encoder"]["width"] == 16
        assert about["overrides"] == ["encoder=resnet_narrow", "batch=8", "optim.clip=2"]
    untrained = json.loads((tmp_path / "comparison.json").read_text())["entries"]
    assert [sorted(entry["of"]) for entry in untrained if entry["kind"] == "untrained"] == [
        ["dino", "simclr"]
    ]


def judged(
    value: float, width: float, protocol: str = "linear", kind: Judged = "trained", **settings: int
) -> Result:
    low, high = value - width, value + width
    return Result(protocol, kind, 0, "none", "top-1", value, low, high, 100, 100, dict(settings))


def standings(*, baseline: float = 20.0, **values: float) -> Comparison:
    """A leaderboard of made-up accuracies, each with an interval of 3 points to either side."""
    evaluations = {
        name: Evaluation(
            [
                judged(value, 3),
                judged(100 - value, 3, "knn", k=20),
                judged(1, 1, "knn", k=100),
                judged(baseline, 3, kind="untrained"),
                judged(baseline - 5, 3, kind="pixels"),
            ],
            "made up",
            {"encoder": name, "image": 32},
            [f"said once ({'trained, pixels' if name == 'a' else 'trained'})"],
        )
        for name, value in values.items()
    }
    took = Effort("somewhere", "simclr", "tiny", DATA, 16, 10, 1.0, 160, 2.5, "healthy", "")
    return leaderboard(evaluations, dict.fromkeys(values, took), ("knn", "linear"), seed=0)


def test_overlapping_intervals_are_marked():
    comparison = standings(a=50, b=70, c=64.5, d=63)
    assert [entry.name for entry in comparison.entries] == ["b", "c", "d", "a", "untrained", "raw pixels"]
    assert comparison.protocols == ("linear", "knn")  # linear decides
    assert comparison.level("linear") == ["c"]
    assert comparison.level("knn") == []  # a leads there; k=20 counts, not k=100
    assert comparison.summary() == "b leads; not clearly behind: c."
    assert all(comparison.beaten(entry) for entry in comparison.ranked)
    lines = shown(comparison).splitlines()
    row = {line.split()[1]: line for line in lines if line.split()[:1] and line.split()[0] in "1234"}
    assert "64.5 (61.5-67.5) ≈" in row["c"] and "≈" not in row["b"] + row["a"] + row["d"]
    assert comparison.notes.count("said once") == 1
    assert standings(a=50, b=70).summary() == "b is clearly best."


def test_a_leader_that_does_not_beat_its_baselines_is_not_praised():
    comparison = standings(a=25, b=22, baseline=21)
    assert not comparison.beaten(comparison.ranked[0])
    assert comparison.summary().endswith("but it is not clearly better than its baselines.")
    assert {"untrained", "b"} <= set(comparison.level("linear"))
    assert "green" not in shown(comparison)


def shown(comparison: Comparison) -> str:
    file = io.StringIO()
    Console(file=file, width=160).print(render_leaderboard(comparison))
    return file.getvalue()


class Page(HTMLParser):
    """Checks nesting; collects text by section and anything that would need the network."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "rect", "circle"})

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: dict[str, str] = {"": ""}
        self.outside: list[str] = []
        self.section = ""
        self.feed(file.read_text(encoding="utf-8"))
        assert not self.open and not self.outside

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = values["id"]
            self.text[self.section] = ""
        links = (values.get(name, "") for name in ("src", "href", "xlink:href"))
        self.outside += [link for link in links if link and not link.startswith(("data:image/", "#"))]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text[self.section] += data


def test_the_page_holds_the_leaderboard_and_needs_nothing_else(pair: Path):
    page = Page(pair / "comparison.html")
    saved = json.loads((pair / "comparison.json").read_text())
    assert list(page.text) == [
        "",
        "leaderboard",
        "how-far-to-trust-this",
        "what-it-took",
        "while-training",
        "settings",
    ]
    for entry in saved["entries"]:
        assert entry["name"] in page.text["leaderboard"]
        linear = next(result for result in entry["results"] if result["protocol"] == "linear")
        assert (
            f"{linear['value']:.1f} ({linear['ci_low']:.1f}-{linear['ci_high']:.1f})"
            in page.text["leaderboard"]
        )
    assert "240 images each" in page.text[""] and saved["summary"] in page.text[""]
    assert "Another seed of training" in page.text["how-far-to-trust-this"]
    assert "240" in page.text["what-it-took"] and "simclr:tiny" in page.text["what-it-took"]
    assert "images seen" in page.text["while-training"]
    assert "optim.lr_scaling" in page.text["settings"]


def test_the_command(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["visrep", "compare", *arguments])
        cli.main()
        return capsys.readouterr().out

    runs = (str(pair / "simclr"), str(pair / "mae"))
    assert "simclr" in run(*runs, "--data", DATA, "--protocols", "knn", "--out", str(tmp_path))
    assert (tmp_path / "comparison.html").exists()
    assert "RankMe" in run(*runs, "--no-labels", "--out", str(tmp_path))
    with pytest.raises(SystemExit):
        run("simclr", "mae", "--set", "batch")
    assert "write FIELD=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("batch=128", ("batch", 128)),
        ("optim.clip=3.5", ("optim.clip", 3.5)),
        ("compile=true", ("compile", True)),
        ("cache=disk", ("cache", "disk")),
        ("optim.betas=[0.9, 0.95]", ("optim.betas", (0.9, 0.95))),
    ],
)
def test_settings_of_the_command(text: str, parsed: tuple[str, Any]):
    assert setting(text) == parsed
