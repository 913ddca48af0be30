"""Comparing what is finished: sheets on file, which are not judged again, public encoders, and all protocols."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import visrep
from test_evaluate import vit
from visrep import api
from visrep.comparison.sheets import comparable, other_grids, read_sheet
from visrep.encoders.pretrained import resolve
from visrep.evaluation import sitting
from visrep.evaluation.evaluate import Evaluation
from visrep.evaluation.features import Features, extract
from visrep.evaluation.leaderboard import render_leaderboard
from visrep.evaluation.results import Judged, Result
from visrep.evaluation.standings import Comparison

DATA = "playground:n=120,size=32"


def row(protocol: str, value: float, *, layer: int = 3, kind: Judged = "trained", **more: Any) -> Result:
    usual = {"pooling": "mean", "metric": "top-1", "n_train": 80, "n_test": 20}
    about = {"protocol": protocol, "encoder": kind, "layer": layer, "value": value, **usual}
    return Result(**{**about, "ci_low": value - 3, "ci_high": value + 3, **more})


def sheet(*results: Result, judged: str = "b", fitted: str = "a", encoder: str = "e") -> Evaluation:
    sides = {"train": ("fits", 80, fitted), "test": ("tests", 20, judged)}
    mark: dict[str, Any] = {
        side: {"name": name, "images": images, "classes": 2, "content": of}
        for side, (name, images, of) in sides.items()
    }
    return Evaluation(list(results), "made up", {**mark, "encoder": encoder, "image": 32, "protocols": {}})


def written(path: Path, evaluation: Evaluation) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(evaluation.to_json()))
    return path


def shown(comparison: Comparison, width: int = 160) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(render_leaderboard(comparison))
    return file.getvalue()


def test_sheets_stand_beside_each_other_and_nothing_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visrep.comparison.compare.open_for", None)  # no images are opened
    pixels = row("knn", 20.0, kind="pixels", layer=0, pooling="none", settings={"k": 20})
    a = sheet(
        row("linear", 60.0),
        row("knn", 70.0, settings={"k": 20}),
        row("knn", 10.0, settings={"k": 100}),
        pixels,
    )
    b = sheet(
        row("linear", 80.0, layer=12), row("linear", 90.0, layer=6), row("clustering", 5.0, layer=12), pixels
    )
    entries = [written(tmp_path / "a.json", a), written(tmp_path / "of" / "b.json", b)]
    comparison = visrep.compare(entries, out=tmp_path / "out", protocols=("knn", "linear"))
    assert [entry.name for entry in comparison.entries] == ["b.json", "a.json", "raw pixels"]
    assert comparison.protocols == ("linear", "knn")
    first, second = comparison.ranked
    linear = first.headline("linear")
    assert linear and linear.value == 80.0  # of the last layer
    assert first.headline("knn") is None and first.headline("clustering") is None
    nearest = second.headline("knn")
    assert nearest and nearest.value == 70.0
    assert comparison.summary() == "b.json is clearly best."
    everything = visrep.compare(entries, out=tmp_path / "out", protocols=("all",))
    assert everything.protocols == ("linear", "knn", "clustering")
    page = (tmp_path / "out" / "comparison.html").read_text()
    HTMLParser().feed(page)
    assert "b.json" in page and 'id="settings"' not in page
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["protocols"] == [
        "linear",
        "knn",
        "clustering",
    ]


def test_a_protocol_that_all_have_decides(tmp_path: Path) -> None:
    a, b = sheet(row("linear", 60.0), row("knn", 70.0)), sheet(row("knn", 75.0))
    entries = [written(tmp_path / f"{name}.json", one) for name, one in (("a", a), ("b", b))]
    comparison = visrep.compare(entries, out=tmp_path, protocols=("linear", "knn"))
    assert comparison.protocols == ("knn", "linear") and comparison.ranked[0].name == "b.json"


def test_what_cannot_be_compared_is_named_with_the_reason() -> None:
    reference = sheet(
        row("attentive", 50.0, version=2, pooling="tokens"), row("segmentation", 30.0, pooling="tokens")
    )
    sheets = {
        "new": sheet(row("attentive", 60.0, version=2, pooling="tokens")),
        "old": sheet(row("attentive", 60.0, pooling="tokens"), row("segmentation", 40.0, pooling="tokens")),
        "older": sheet(row("attentive", 60.0, pooling="tokens")),
        "pyramid": sheet(
            row("segmentation", 60.0, pooling="pyramid"), row("attentive", 1.0, version=2, pooling="tokens")
        ),
        "elsewhere": sheet(row("attentive", 60.0, version=2, pooling="tokens"), judged="c"),
        "fitted elsewhere": sheet(row("attentive", 60.0, version=2, pooling="tokens"), fitted="c"),
        "another": sheet(row("knn", 60.0)),
    }
    found, notes = comparable({"now": reference}, sheets, ("attentive", "segmentation"))
    kept = {name: [(r.protocol, r.value) for r in one.results] for name, one in found.items()}
    assert kept == {
        "now": [("attentive", 50.0), ("segmentation", 30.0)],
        "new": [("attentive", 60.0)],
        "old": [("segmentation", 40.0)],
        "pyramid": [("attentive", 1.0)],
    }
    old = "attentive is not compared: it is of version 1, read as tokens, and others are of version 2, read as tokens."
    assert notes == [
        "elsewhere is not compared: it was judged on other images (20 of tests) than now (20 of tests).",
        "fitted elsewhere is not compared: it was fitted on other images (80 of fits) than now (80 of fits).",
        f"old: {old}",
        f"older: {old}",
        "older is not compared: it holds no such number of attentive, segmentation.",
        "pyramid: segmentation is not compared: it is of version 1, read as pyramid, and others are of version 1, "
        "read as tokens.",
        "another is not compared: it holds no such number of attentive, segmentation.",
    ]
    with pytest.raises(
        ValueError, match=r"nothing is left to compare\. elsewhere is not compared: it was judged"
    ):
        comparable({"now": reference}, {"elsewhere": sheets["elsewhere"]}, ("all",))


def test_among_sheets_alone_the_newest_version_counts() -> None:
    versions = (1, 3, 2, 3)
    sheets = {
        f"v{n}-{v}": sheet(row("knn", 50.0, version=v), row("linear", 9.0)) for n, v in enumerate(versions)
    }
    found, notes = comparable({}, sheets, ("knn",))
    assert list(found) == ["v1-3", "v3-3"] and len(notes) == 4
    found, _ = comparable({}, {name: sheets[name] for name in ("v0-1", "v2-2")}, ("all",))
    assert [[r.protocol for r in one.results] for one in found.values()] == [["linear"], ["knn", "linear"]]


def test_numbers_of_other_grids_are_not_beside_each_other() -> None:
    coarse, fine = (
        sheet(row("segmentation", 50.0, pooling="tokens", settings={"grid": grid}), row("knn", 40.0))
        for grid in ("7 x 7", "14 x 14")
    )
    found, notes = comparable({}, {"coarse": coarse, "fine": fine}, ("all",))
    assert [[r.protocol for r in one.results] for one in found.values()] == [["segmentation", "knn"], ["knn"]]
    assert notes == [
        "fine: segmentation is not compared: it is of version 1, read as tokens, on 14 x 14 patches, and others are of "
        "version 1, read as tokens, on 7 x 7 patches."
    ]
    assert other_grids(found) == []
    (note,) = other_grids({"coarse": coarse, "fine": fine})  # judged now, all of them
    assert note.startswith(
        "segmentation: numbers of different grids of patches do not compare (coarse: 7 x 7, fine: 14"
    )


def test_of_several_poolings_the_first_stands_and_is_named() -> None:
    two = sheet(row("knn", 50.0, pooling="cls"), row("knn", 60.0, pooling="mean"))
    found, notes = comparable({}, {"one": sheet(row("knn", 40.0)), "two": two}, ("knn",))
    assert [r.value for r in found["two"].results] == [50.0]
    assert notes == ["two: cls stands for its poolings (cls, mean)."]


@pytest.mark.parametrize("content", ["{", "[]", '{"results": []}', '{"results": [{"a": 1}]}'])
def test_a_file_that_is_no_sheet_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json is no sheet of results .*evaluation\.json of a run"):
        read_sheet(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"b\.json is no sheet of results \(FileNotFoundError"):
        visrep.compare([tmp_path / "b.json", "simclr"], out=tmp_path)


def test_records_are_sheets_and_old_versions_are_not_beside_new_ones(tmp_path: Path) -> None:
    folder = Path(__file__).parents[1] / "records" / "sheets"
    names = ("simclr_small64", "mobilenet_v2")
    entries = [folder / f"{name}-flowers.json" for name in names]
    old = json.loads(entries[0].read_text())
    for result in old["results"]:
        if result["protocol"] == "attentive":
            result["version"] = 1
    entries[0] = tmp_path / entries[0].name
    entries[0].write_text(json.dumps(old))
    comparison = visrep.compare(entries, out=tmp_path, protocols=("all",))
    have = {entry.name: {r.protocol for r in entry.results} for entry in comparison.ranked}
    assert {n for n, mine in have.items() if "attentive" not in mine} == {entries[0].name}
    assert any(note.startswith(f"{entries[0].name}: attentive is not compared") for note in comparison.notes)
    for name, entry in zip(names, entries, strict=True):
        mine = next(e for e in comparison.ranked if e.name == f"{name}-flowers.json").headline("linear")
        written = json.loads(entry.read_text())["results"]
        said = [r["value"] for r in written if (r["protocol"], r["encoder"]) == ("linear", "trained")]
        assert mine and [mine.value] == said
    lines = shown(comparison).splitlines()
    assert sum(line.strip().startswith(("linear", "knn", "retrieval", "shifts")) for line in lines) >= 8


def test_public_networks_rank_above_small_encoders_of_our_own() -> None:
    """On record, in Imagenette's linear probe, intervals apart: anything else would be a fault of the judge."""
    records = Path(__file__).parents[1] / "records"
    ends: dict[str, tuple[float, float]] = {}
    for file in (records / "sheets").glob("*-imagenette128.json"):
        linear = [r for r in json.loads(file.read_text())["results"] if r["protocol"] == "linear"]
        (of_encoder,) = [r for r in linear if r["encoder"] == "trained"]
        ends[file.stem.removesuffix("-imagenette128")] = of_encoder["ci_low"], of_encoder["ci_high"]
    public = [ends.pop(name)[0] for name in ("efficientnet_lite0", "mobilenet_v2")]
    own = [high for _, high in ends.values()]
    for file in records.glob("*-imagenette.json"):
        summary = json.loads(file.read_text())["summary"]
        own += [row["trained"]["mean"] for row in summary if row["protocol"] == "linear"]
    assert len(own) >= 4 and min(public) > max(own)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Grows by one with every pass of an encoder; public ones are ``pip:a`` and ``pip:b``, with their own cache."""
    seen: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Features:
        seen.append(1)
        return extract(*arguments, **options)

    build: dict[str, Callable[[], Any]] = {"a": vit, "b": lambda: vit(width=48)}
    monkeypatch.setattr(sitting, "extract", counted)
    monkeypatch.setitem(resolve.SOURCES, "pip", lambda name: build[name]())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return seen


def test_public_encoders_and_sheets_are_compared_and_passes_are_saved(
    tmp_path: Path, passes: list[int]
) -> None:
    api.evaluate("pip:b", DATA, protocols=("linear",), out=tmp_path / "b.json")
    assert len(passes) == 4  # of the encoder and of its untrained twin, on both sides
    alone = json.loads((tmp_path / "b.json").read_text())
    assert f"{alone['results'][0]['value']:.1f} %" in api.report(tmp_path / "b.json").read_text()
    comparison = visrep.compare(
        ["pip:a", tmp_path / "b.json"], DATA, out=tmp_path / "out", protocols=("linear",)
    )
    assert len(passes) == 8 and {entry.name for entry in comparison.ranked} == {"pip:a", "b.json"}
    of_b = next(entry for entry in comparison.ranked if entry.name == "b.json").headline("linear")
    assert of_b and of_b.value == next(r["value"] for r in alone["results"] if r["encoder"] == "trained")
    assert not any("is not compared" in note for note in comparison.notes)
    (baseline,) = [entry for entry in comparison.entries if entry.kind == "pixels"]
    assert baseline.name == "raw pixels"  # the same of both
    both = visrep.compare(["pip:a", "pip:b"], DATA, out=tmp_path / "out", protocols=("knn", "linear"))
    assert len(passes) == 8  # features of both were kept
    again = next(entry for entry in both.ranked if entry.name == "pip:b").headline("linear")
    assert again and again.value == of_b.value
    assert any(note.startswith("pip:a, pip:b: trained elsewhere") for note in both.notes)
    shown(both)


def test_all_is_what_applies_and_has_a_row_a_protocol(
    tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ("linear", "knn", "knn-loo", "episodes", "retrieval", "clustering")
    monkeypatch.setattr("visrep.evaluation.protocols.ORDER", order)
    monkeypatch.setattr("visrep.evaluation.evaluate.DENSE", {})
    comparison = visrep.compare(["pip:a", "pip:b"], DATA, out=tmp_path / "out", protocols=("all",))
    assert comparison.protocols == tuple(name for name in order if name != "episodes")
    assert any(note.startswith("left out: episodes") for note in comparison.notes)
    assert comparison.fingerprint["protocols"] == dict.fromkeys(comparison.protocols, 1)
    lines = [line.split() for line in shown(comparison).splitlines()]
    rows = {line[0]: line for line in lines if line and line[0] in order}
    assert tuple(rows) == comparison.protocols
    best = comparison.ranked[0].headline("retrieval")
    assert best and f"{best.value:.1f}" in rows["retrieval"]


def test_public_encoders_without_labels(tmp_path: Path, passes: list[int]) -> None:
    comparison = visrep.compare(["pip:a", "pip:b"], DATA, out=tmp_path / "out", labels=False)
    assert {entry.name for entry in comparison.ranked} == {"pip:a", "pip:b"}
    assert comparison.entries[0].effort is None and not comparison.protocols
    assert "RankMe" in shown(comparison)


def test_mistakes_with_what_is_finished_are_met_at_once(tmp_path: Path, passes: list[int]) -> None:
    path = written(tmp_path / "a.json", sheet(row("knn", 1.0)))
    mistakes: list[tuple[list[str | Path], dict[str, Any], str]] = [
        (["pip:a", "pip:b"], {}, "say with --data what to judge on"),
        (["pip:a", "pip:a"], {"data": DATA}, "pip:a was given twice"),
        ([path, path], {}, "a.json was given twice"),
        ([path, "pip:a"], {"data": DATA, "labels": False}, r"a\.json holds numbers that need labels"),
        ([path], {}, r"two or more, only a\.json was given"),
    ]
    for entries, options, message in mistakes:
        with pytest.raises(ValueError, match=message):
            visrep.compare(entries, out=tmp_path / "out", **options)
    assert not passes


def test_a_second_protocol_of_a_suite_costs_no_second_pass(tmp_path: Path, passes: list[int]) -> None:
    data, out = [DATA, "playground:n=140,size=32"], tmp_path / "suite.json"
    api.suite("pip:a", data, protocols=("knn",), train=50, out=out)
    before = len(passes)
    api.suite("pip:a", data, protocols=("clustering",), train=50, out=out)
    assert len(passes) == before > 0
    api.suite("pip:a", data, protocols=("clustering",), train=50, baselines=False, out=out, keep=False)
    assert len(passes) == before + 4  # two sides of two data sets
