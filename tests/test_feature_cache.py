"""One pass for all protocols and calls; any layer and pooling; `all`; the sheet that grows; curves over layers."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from test_evaluate import SIZE, images, resnet, vit
from visrep.analysis.report_layers import layer_curves
from visrep.data import CanvasSet, Subset
from visrep.evaluation import eviction, feature_cache, sitting
from visrep.evaluation.evaluate import Evaluation, evaluate
from visrep.evaluation.features import Features, extract
from visrep.evaluation.poolings import LAST_4, POOLINGS, assemble, beside, last_layers
from visrep.evaluation.protocols import ORDER, check_protocols, place, without_all
from visrep.evaluation.sheet import joined, save_sheet
from visrep.evaluation.versions import VERSIONS, version_of
from visrep.method import Encoder, Pooling


class Passes:
    """Counts how often an encoder sees images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.decoded = 0
        real, canvases = extract, CanvasSet

        def counted(*args: Any, **kwargs: Any) -> Features:
            self.count += 1
            return real(*args, **kwargs)

        def decoding(*args: Any, **kwargs: Any) -> CanvasSet:
            self.decoded += 1
            return canvases(*args, **kwargs)

        monkeypatch.setattr(sitting, "extract", counted)
        monkeypatch.setattr(feature_cache, "CanvasSet", decoding)


def judged(keep: Path | None, *protocols: str, encoder: Encoder | None = None, **more: Any) -> Evaluation:
    return evaluate(encoder or vit(), images(60), images(30, seed=1), protocols=protocols, keep=keep, **more)


def test_a_second_protocol_costs_no_second_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    passes = Passes(monkeypatch)
    first = judged(tmp_path, "knn")
    assert passes.count == 4 and passes.decoded == 2  # trained and untrained, each on both sides
    second = judged(tmp_path, "linear", "clustering", "linear-dino", poolings=("mean", "last-4"), layers=(1,))
    assert passes.count == 4 and passes.decoded == 2
    assert [note for note in second.notes if "features reused" in note] and not first.notes
    assert judged(tmp_path, "knn").to_json() == first.to_json()
    assert judged(None, "linear", layers=(1,)).results == judged(tmp_path, "linear", layers=(1,)).results


def test_other_weights_images_or_preprocessing_are_other_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch)
    judged(tmp_path, "knn", baselines=False)
    other = vit()
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    judged(tmp_path, "knn", baselines=False, encoder=other)
    assert passes.count == 4
    other = vit()
    other.preprocessing = replace(other.preprocessing, ratio=0.9)
    judged(tmp_path, "knn", baselines=False, encoder=other)
    assert passes.count == 6
    evaluate(vit(), images(60), images(30, seed=2), protocols=("knn",), keep=tmp_path, baselines=False)
    assert passes.count == 7  # the training images are known


def test_what_is_missing_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    passes = Passes(monkeypatch)
    deep = vit(depth=6)
    judged(tmp_path, "knn", baselines=False, encoder=deep)
    judged(tmp_path, "attentive", baselines=False, encoder=deep)  # patch tokens were not kept
    assert passes.count == 4
    judged(tmp_path, "knn", baselines=False, encoder=deep, layers=(1,))
    assert passes.count == 6
    judged(tmp_path, "attentive", "knn", baselines=False, encoder=deep, layers=(1, 4))
    assert passes.count == 10  # vectors are there now; patch tokens of two more layers are not
    judged(tmp_path, "attentive", "knn", baselines=False, encoder=deep, layers=(4,))
    assert passes.count == 10
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    first = judged(tmp_path, "knn", baselines=False)
    for path in tmp_path.iterdir():
        content = bytearray(path.read_bytes())
        content[-3] ^= 255
        path.write_bytes({"cut": content[:-8], "flipped": content, "empty": b""}[damage])
    passes = Passes(monkeypatch)
    again = judged(tmp_path, "knn", baselines=False)
    assert again.results == first.results and passes.count == 2
    assert sum("is damaged and was made anew" in note for note in again.notes) == 2
    assert judged(tmp_path, "knn", baselines=False).results == first.results and passes.count == 2


def test_too_much_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "LARGEST", 20_000)
    judged(tmp_path, "attentive", baselines=False)
    (small,) = {path.name for path in tmp_path.iterdir() if path.stat().st_size < 20_000} and [True]
    assert small
    passes = Passes(monkeypatch)
    judged(tmp_path, "attentive", baselines=False)
    assert passes.count == 2  # the vectors were kept, the tokens not
    monkeypatch.setattr(feature_cache, "LARGEST", 100)
    notes = judged(tmp_path / "other", "knn", baselines=False).notes
    assert any("are not kept" in note for note in notes)


def test_unreadable_images_are_remembered(tmp_path: Path) -> None:
    from test_evaluate import with_broken_file
    from visrep.data import open_source

    folder = open_source(with_broken_file(tmp_path / "images", n=20))
    first, second = (
        evaluate(vit(), folder, protocols=("knn",), baselines=False, keep=tmp_path / "kept") for _ in range(2)
    )
    assert first.warnings == second.warnings and any(
        "1 of 20 images could not be read" in w for w in second.warnings
    )
    assert second.notes and first.results == second.results


def aged(folder: Path) -> list[Path]:
    """The files of a folder, said to have been used long ago, and in the order in which they were made."""
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for hours, path in enumerate(files, start=1):
        os.utime(path, (3600 * hours, 3600 * hours))
    return files


def test_features_used_least_recently_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(monkeypatch)
    for seed in (1, 2):  # the training images are the same
        evaluate(vit(), images(60), images(30, seed=seed), protocols=("knn",), keep=tmp_path, baselines=False)
    *others, second = aged(tmp_path)
    assert len(others) == 2
    again = judged(tmp_path, "knn", baselines=False)  # reads the oldest two
    assert passes.count == 3 and not [note for note in again.notes if "deleted" in note]
    size = sum(path.stat().st_size for path in (*others, second))
    monkeypatch.setenv(eviction.VARIABLE, str((size + 500) / 2**30))  # one more is one too many
    found = evaluate(
        vit(), images(60), images(30, seed=3), protocols=("knn",), keep=tmp_path, baselines=False
    )
    assert {*others} < {*tmp_path.iterdir()} and not second.exists()
    (said,) = [note for note in found.notes if "deleted" in note]
    assert said.startswith("1 of the files of features") and eviction.VARIABLE in said
    kept = judged(tmp_path, "knn", baselines=False)
    assert passes.count == 4 and kept.results == again.results


def test_features_of_the_sitting_stay_however_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(tmp_path, "knn", baselines=False, encoder=vit(width=48))
    earlier = aged(tmp_path)
    (tmp_path / "mine.txt").write_text("not features")
    monkeypatch.setenv(eviction.VARIABLE, "0")
    passes = Passes(monkeypatch)
    first = judged(tmp_path, "knn")
    assert not any(path.exists() for path in earlier) and (tmp_path / "mine.txt").exists()
    assert passes.count == 4 and len([*tmp_path.glob("*.safetensors")]) == 6  # two of raw pixels
    assert judged(tmp_path, "knn").results == first.results and passes.count == 4


def test_only_what_is_too_much_goes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abcd"]
    for age, path in enumerate(files):
        path.write_bytes(bytes(10))
        os.utime(path, (age, age))
    assert eviction.evict([*files, tmp_path / "gone"], 40, ()) == []
    assert eviction.evict(files, 25, {files[0]}) == files[1:3]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a", "d"]


@pytest.mark.parametrize(("given", "size"), [("", 20), ("1.5", 1.5), ("0", 0), ("inf", np.inf)])
def test_the_bound_is_a_setting(monkeypatch: pytest.MonkeyPatch, given: str, size: float) -> None:
    monkeypatch.setenv(eviction.VARIABLE, given)
    assert feature_cache.FeatureStore(None).most == size * 2**30


@pytest.mark.parametrize("given", ["much", "-1", "nan", "2 GiB"])
def test_a_bound_that_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(eviction.VARIABLE, given)
    with pytest.raises(ValueError, match=rf"VISREP_FEATURES_GIB='{given}': use a number of GiB"):
        judged(None, "knn")


def test_poolings_are_put_together_from_one_pass() -> None:
    encoder, canvases = vit(depth=5), CanvasSet(images(8), SIZE)
    everything = extract(
        encoder, canvases, np.arange(8), layers=(1, 2, 3, 4), poolings=("cls", "mean", "cls+mean")
    )
    parts = {key: x for key, x in everything.vectors.items() if key[1] != "cls+mean"}
    found = assemble(parts, (2,), ("auto", "mean", "cls+mean", "last-4"), 5)
    assert list(found) == [
        (5, "cls"), (5, "mean"), (5, "cls+mean"), (5, "last-4"), (2, "cls"), (2, "mean"), (2, "cls+mean"),
    ]  # fmt: skip
    for layer in (5, 2):
        assert torch.equal(found[layer, "cls+mean"], everything.vectors[layer, "cls+mean"])
    four = torch.cat([everything.vectors[layer, "cls"] for layer in (2, 3, 4, 5)], 1)
    assert torch.equal(found[5, "last-4"], four)
    with_mean = torch.cat([four, everything.vectors[5, "mean"]], 1)
    assert torch.equal(beside(parts, 5, 4, mean=True), with_mean)
    assert (*get_args(Pooling), LAST_4) == POOLINGS
    assert last_layers(5) == (2, 3, 4, 5) and last_layers(2) == (1, 2)


def test_poolings_without_cls() -> None:
    encoder, canvases = resnet(), CanvasSet(images(8), SIZE)
    parts = extract(encoder, canvases, np.arange(8), layers=(1, 2, 3), poolings=("auto", "mean")).vectors
    assert set(parts) == {(layer, "mean") for layer in (1, 2, 3, 4)}
    found = assemble(parts, (), ("last-4", "auto"), 4)
    assert found[4, "last-4"].shape[1] == sum(parts[layer, "mean"].shape[1] for layer in (1, 2, 3, 4))
    assert list(found) == [(4, "last-4"), (4, "mean")]
    for how in ("cls", "cls+mean"):
        with pytest.raises(ValueError, match="needs a cls token"):
            assemble(parts, (), (how,), 4)
    with pytest.raises(ValueError, match=r"no pooling 'max'.*last-4"):
        assemble(parts, (), ("max",), 4)


def test_every_layer() -> None:
    found = judged(None, "knn", layers="all")
    assert {(r.encoder, r.layer) for r in found.results} == {
        *(("trained", layer) for layer in (1, 2, 3)), *(("untrained", layer) for layer in (1, 2, 3)), ("pixels", 0),
    }  # fmt: skip
    with pytest.raises(ValueError, match="layer 7 was asked for; this encoder has layers 1 to 3"):
        judged(None, "knn", layers=(7,))


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules of a few steps."""
    monkeypatch.setattr("visrep.evaluation.probe_training.LEAST_STEPS", 1)
    monkeypatch.setattr("visrep.evaluation.attentive.EPOCHS", 1)
    monkeypatch.setattr("visrep.evaluation.attentive.LEAST_STEPS", 1)


def test_all_is_what_applies(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    found = judged(None, "all")
    of = {r.protocol for r in found.results if r.encoder == "trained"}
    asked, _ = without_all(("all",))
    needs_more = {"episodes", "backgrounds", "corruptions", "ood-layers"}  # larger images, or the playground
    assert of == set(asked) - needs_more and "finetune" not in of and "linear-dinov2@paper" not in of
    for name in ("backgrounds draws scenes anew", "corruptions are defined for images of 32 pixels"):
        assert any(line.startswith(f"left out: {name}") for line in found.warnings)
    (said,) = [line for line in found.warnings if "episodes" in line]
    assert said.startswith("left out: episodes draws 5 classes with 20 images each")
    for result in found.results:
        assert result.ci_low <= result.value <= result.ci_high
    with_test_labels = {"clustering", "retrieval", "retrieval-within"}
    of_pixels = {r.protocol for r in found.results if r.encoder == "pixels"}
    assert of_pixels == {"knn", "knn-loo", "linear", "linear-mae", "fewlabels", *with_test_labels}
    with pytest.raises(ValueError, match="episodes draws 5 classes"):
        judged(None, "episodes")


def test_names_are_checked_and_ordered() -> None:
    names, lenient = without_all(("all", "finetune:10%"))
    assert lenient and names[-1] == "finetune:10%" and len(set(names)) == len(names)
    check_protocols(names)
    check_protocols((*ORDER, "linear-dinov2@paper"))
    assert without_all(("knn",)) == (("knn",), False)
    assert place("linear") < place("attentive") < place("knn") < place("finetune:10%")
    with pytest.raises(ValueError, match=r"no protocol 'linear@paper'\. Use some of: .*retrieval.*copies"):
        check_protocols(("linear@paper",))


def test_the_sheet_grows(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    save_sheet(path, judged(None, "knn"))
    save_sheet(path, judged(None, "clustering"))
    sheet = json.loads(path.read_text())
    assert {r["protocol"] for r in sheet["results"]} == {"knn", "clustering"}
    assert sheet["fingerprint"]["protocols"] == {"clustering": 1, "knn": 1}
    again = judged(None, "knn").to_json()
    replaced = joined(sheet, again)
    assert len(replaced["results"]) == len(sheet["results"])
    other = judged(None, "linear", encoder=vit(width=48)).to_json()
    assert joined(sheet, other) == other  # other weights: numbers that cannot stand beside each other
    path.write_text("{")
    save_sheet(path, judged(None, "knn"))
    assert json.loads(path.read_text()) == again


def test_a_sheet_of_other_weights_is_put_beside_and_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    save_sheet(path, judged(None, "knn"))
    other = judged(None, "knn", encoder=vit(width=48))
    save_sheet(path, other)
    assert json.loads(path.read_text()) == other.to_json()
    assert len(list(tmp_path.glob("evaluation-*.json"))) == 1
    save_sheet(path, judged(None, "clustering"))
    assert {r["protocol"] for r in json.loads(path.read_text())["results"]} == {"knn", "clustering"}
    beside = [json.loads(file.read_text()) for file in tmp_path.glob("evaluation-*.json")]
    assert beside == [other.to_json()]


def test_numbers_of_other_versions_do_not_stand_on_one_sheet(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    save_sheet(path, judged(None, "knn", "clustering", layers=(1,)))
    before = json.loads(path.read_text())
    assert all(
        result.pop("version") == 1 for result in before["results"]
    )  # as files were before there were any
    before["fingerprint"]["protocols"] = ["clustering", "knn"]
    path.write_text(json.dumps(before))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VERSIONS, "knn", 2)
        (note,) = save_sheet(path, judged(None, "knn"))
        sheet = json.loads(path.read_text())
        assert sheet["fingerprint"]["protocols"] == {"clustering": 1, "knn": 2}
        versions = {(result["protocol"], result.get("version", 1)) for result in sheet["results"]}
        assert versions == {("clustering", 1), ("knn", 2)}
        (file,) = tmp_path.glob("evaluation-*-outdated.json")
        assert note.startswith(f"knn: numbers of version 1 are in {file.name} now.")
        old = [result for result in before["results"] if result["protocol"] == "knn"]
        assert json.loads(file.read_text())["results"] == old  # layer 1 too, which was not judged again
        assert save_sheet(path, judged(None, "linear")) == []
    (note,) = save_sheet(path, judged(None, "clustering"))  # by code of the earlier version: the newer goes
    assert "knn: numbers of version 2" in note
    aside = json.loads(file.read_text())
    assert {result.get("version", 1) for result in aside["results"]} == {1, 2}
    assert {r["protocol"] for r in json.loads(path.read_text())["results"]} == {"linear", "clustering"}


def test_versions_are_of_protocols_and_in_each_result() -> None:
    assert {name.removesuffix(":") for name in VERSIONS} <= set(ORDER)
    assert (version_of("finetune"), version_of("finetune:10%"), version_of("finetune-motion:5")) == (1, 2, 1)
    assert (version_of("attentive"), version_of("attentive-vjepa"), version_of("knn")) == (2, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VERSIONS, "knn", 3)
        patch.setitem(VERSIONS, "clustering", 4)
        found = judged(None, "knn", "clustering", "linear")
    versions = {result.protocol: result.version for result in found.results}
    assert versions == {"knn": 3, "clustering": 4, "linear": 1} == found.fingerprint["protocols"]


def value(layer: int, value: float, who: str = "trained", **more: Any) -> dict[str, Any]:
    return {
        "protocol": "knn", "metric": "top-1", "encoder": who, "layer": layer, "pooling": "cls", "value": value,
        "settings": {"k": 20}, **more,
    }  # fmt: skip


def test_curves_need_three_layers_and_name_the_best() -> None:
    results = [
        value(1, 40.0),
        value(2, 62.5),
        value(3, 55.0),
        value(1, 30.0, "untrained"),
        value(0, 20.0, "pixels"),
    ]
    drawn = layer_curves(results)
    assert drawn.count("<svg") == 1 and "best at layer 2 with 62.5 %" in drawn and "kNN (k=20)" in drawn
    assert layer_curves(results[:2]) == ""
    with_others = [*results, *(value(layer, 10.0, settings={"k": 200}) for layer in (1, 2, 3))]
    assert layer_curves(with_others).count("<svg") == 1
    measured = [
        value(layer, 9.0 * layer, protocol="clustering", metric="NMI", settings={}) for layer in (1, 2, 3)
    ]
    assert "clustering: NMI" in layer_curves([*results, *measured])


def test_test_labels_are_never_fitted_by_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    train, test = images(60), images(30, seed=1)
    shuffled = Subset(test, np.arange(30))
    assert test.labels is not None
    shuffled.labels = np.roll(test.labels, 1)
    names = ("linear-dino", "linear-dinov2", "linear-mae", "attentive-vjepa", "attentive-efficient")
    first, second = (
        evaluate(vit(), train, side, protocols=names, baselines=False) for side in (test, shuffled)
    )
    assert [r.settings for r in first.results] == [r.settings for r in second.results]
    assert [r.value for r in first.results] != [r.value for r in second.results]


def test_store_without_a_folder_keeps_nothing(tmp_path: Path) -> None:
    store, side = feature_cache.FeatureStore(None), feature_cache.Side(images(4), SIZE)
    x: Tensor = torch.zeros(4, 2)

    def made(layers: tuple[int, ...], tokens: bool) -> Features:
        return Features({}, None, torch.arange(4), parts={(layer, "mean"): x for layer in layers})

    assert list(store.get("trained", {}, side, (1, 2), False, made).parts) == [(1, "mean"), (2, "mean")]
    assert not store.notes and not list(tmp_path.iterdir())
