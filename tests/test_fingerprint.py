"""The mark of data: other images have another one, the same images have the same one wherever they lie."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from test_compare_sheets import row, sheet
from test_evaluate import vit
from visrep.comparison.sheets import comparable
from visrep.data import Source, open_source
from visrep.data.arrays import Arrays
from visrep.data.content import content_of
from visrep.data.masked_folder import MaskedFolder
from visrep.data.playground import Playground
from visrep.data.sequence import Items
from visrep.data.source import Subset
from visrep.data.video import Clips
from visrep.evaluation.evaluate import Evaluation
from visrep.evaluation.fingerprint import fingerprint, images_in
from visrep.evaluation.sheet import save_sheet

N = 6


def pixels(index: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, index]).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def written(root: Path, seed: int = 0) -> Path:
    for index in range(N):
        path = root / "ab"[index % 2] / f"{index}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(index, seed)).save(path)
        os.utime(path, (1, 1))  # neither size nor time of change tells one image from another
    return root


def marks(source: Source) -> tuple[Any, ...]:
    return images_in(fingerprint(vit(), source, source, [], seed=0)["train"])


def test_other_pixels_have_another_mark_and_another_path_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = open_source(written(tmp_path / "here"))
    first = marks(here)
    monkeypatch.chdir(tmp_path)
    shutil.copytree("here", "there")  # times of change are those of now
    assert marks(open_source("here")) == marks(open_source("there")) == first
    assert marks(open_source(written(tmp_path / "other", seed=1))) != first
    Image.fromarray(pixels(3, seed=1)).save("here/b/3.bmp")
    assert marks(open_source("here")) != first == marks(open_source("there"))
    assert marks(Subset(here, [1, 0])) != marks(Subset(here, [0, 1])) != marks(Subset(here, [0, 2]))
    (tmp_path / "here/b/3.bmp").unlink()
    assert marks(here) not in (first, marks(open_source("here")))  # gone, and not there


def test_of_each_kind_of_source() -> None:
    images = np.stack([pixels(i) for i in range(N)])
    other = images.copy()
    other[4, 2, 3, 1] ^= 1
    for build in (
        lambda x: Arrays(x, None, "x"),
        lambda x: Items(list(x)),
        lambda x: Items([*map(bytes, x)]),
    ):
        assert content_of(build(images)) == content_of(build(images.copy())) != content_of(build(other))
    assert content_of(Arrays(images, None, "x")) == content_of(Items(list(images)))
    assert content_of(Arrays(images[:, :, :, 0], None, "x")) != content_of(Arrays(images, None, "x"))
    worlds = [
        Playground(200, 8),
        Playground(200, 8),
        Playground(200, 16),
        Playground(200, 8, seed=1),
        Playground(199, 8),
    ]
    same, again, *others = map(content_of, worlds)
    assert same == again and len({same, *others}) == 4


def test_nothing_is_decoded_of_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visrep.data.video.need_pyav", lambda: None)
    (tmp_path / "a.mp4").write_bytes(b"no video")
    clips = Clips(tmp_path, ["a.mp4"], frames=2, clips=2)
    found = content_of(clips)
    assert found == content_of(Clips(tmp_path, ["a.mp4"], frames=2, clips=2))
    assert content_of(Subset(clips, [0])) != content_of(Subset(clips, [1]))
    assert found != content_of(Clips(tmp_path, ["a.mp4"], frames=3, clips=2))
    (tmp_path / "a.mp4").write_bytes(b"on video")
    assert found != content_of(clips)


def test_masks_are_part_of_the_mark(tmp_path: Path) -> None:
    for part, value in (("images", pixels(0)), ("masks", pixels(0)[:, :, 0] % 2)):
        (tmp_path / part).mkdir()
        Image.fromarray(value).save(tmp_path / part / "0.png")
    first = marks(MaskedFolder(tmp_path))
    Image.fromarray(1 - pixels(0)[:, :, 0] % 2).save(tmp_path / "masks/0.png")
    assert marks(MaskedFolder(tmp_path)) != first


def old(evaluation: Evaluation, **more: str) -> Evaluation:
    """As sheets were before images were hashed."""
    mark: dict[str, Any] = json.loads(json.dumps(evaluation.fingerprint))
    for side in ("train", "test"):
        mark[side]["hash"] = mark[side].pop("content")
    return replace(evaluation, fingerprint={**mark, **more})


def test_the_name_of_the_data_is_no_part_of_it_and_old_sheets_are_named() -> None:
    now = sheet(row("knn", 50.0))
    moved = sheet(row("knn", 60.0))
    moved.fingerprint["test"]["name"] = "../elsewhere"
    found, notes = comparable({"now": now}, {"moved": moved}, ("knn",))
    assert list(found) == ["now", "moved"] and not notes

    sheets = {"moved": moved, "old": old(now)}
    _, notes = comparable({"now": now}, sheets, ("knn",))
    reason = "was made before images were hashed, so nobody can say whether both are of the same ones."
    assert notes == [f"old is not compared: it {reason}"]
    with pytest.raises(ValueError, match=rf"now is not compared: old {reason}"):
        comparable({}, {"old": old(now), "now": now}, ("knn",))
    found, (note,) = comparable({}, {"one": old(now), "two": old(moved)}, ("knn",))
    assert list(found) == ["one", "two"]
    assert note.startswith("one, two: made before images were hashed. Names and labels")


def test_an_old_sheet_does_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    usual = {"seed": 0, "versions": {}}
    now, more = (sheet(row(name, 50.0)) for name in ("knn", "linear"))
    for one in (now, more):
        one.fingerprint.update(usual)
    path.write_text(json.dumps(old(now).to_json()))
    (note,) = save_sheet(path, more)
    (beside,) = tmp_path.glob("evaluation-*.json")
    assert note.startswith(
        f"earlier numbers are in {beside.name} now: they were made before images were hashed"
    )
    assert [r["protocol"] for r in json.loads(path.read_text())["results"]] == ["linear"]
    more.fingerprint["test"]["name"] = "../elsewhere"
    assert save_sheet(path, now) == []  # the same images under another path: one sheet
    assert {r["protocol"] for r in json.loads(path.read_text())["results"]} == {"knn", "linear"}
