"""Sources: every layout opens, labels are found, mistakes are explained."""

import io
import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visrep.data import Source, Subset, open_source, open_splits
from visrep.data.split import stratified_split

SHARED = Path(os.environ.get("VISREP_SHARED", Path(__file__).parents[2] / "shared")) / "data"


def png(value: int = 0, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def write(root: Path, *files: str) -> Path:
    for value, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return root


def write_parquet(path: Path, columns: dict, features: dict | None = None, row_group_size: int = 100) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def keys(source: Source) -> list[str]:
    return [source.key(i) for i in range(len(source))]


# folders


def test_folder_with_classes(tmp_path: Path) -> None:
    write(tmp_path, "dog/10.PNG", "dog/2.jpg", "cat/deep/1.jpeg", "cat/.hidden.png", "cat/notes.txt")
    source = open_source(tmp_path)
    assert keys(source) == ["cat/deep/1.jpeg", "dog/2.jpg", "dog/10.PNG"], "natural order"
    assert source.classes == ("cat", "dog")
    assert (
        source.labels is not None and source.labels.dtype == np.int64 and source.labels.tolist() == [0, 1, 1]
    )
    assert source.read(2) == (tmp_path / "dog/10.PNG").read_bytes()
    assert source.name == str(tmp_path)


@pytest.mark.parametrize("files", [("a/1.png", "b/2.png", "3.png"), ("a/1.png", "a/2.png"), ("1.png",)])
def test_folder_without_classes(tmp_path: Path, files: tuple[str, ...]) -> None:
    source = open_source(str(write(tmp_path, *files)))
    assert source.labels is None and source.classes is None and len(source) == len(files)


def test_splits_are_not_classes(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a", "train/cat/1.png", "train/dog/1.png", "val/cat/2.png"))
    assert source.classes == ("cat", "dog") and len(source) == 3
    assert open_source(write(tmp_path / "b", "train2017/1.png", "val2017/1.png")).classes is None
    assert open_source(write(tmp_path / "c", "trains/1.png", "valleys/1.png")).classes == (
        "trains",
        "valleys",
    )


def test_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "1.png")
    write(tmp_path / "root", "2.png")
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/loop").symlink_to(tmp_path / "root")
    assert keys(open_source(tmp_path / "root")) == ["2.png", "linked/1.png"]


def test_limit(tmp_path: Path) -> None:
    write(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    source = open_source(tmp_path, limit=2)
    assert keys(source) == ["a/1.png", "a/2.png"] and source.classes == ("a", "b")
    assert len(open_source(tmp_path, limit=9)) == 3
    with pytest.raises(ValueError, match="limit=-1"):
        open_source(tmp_path, limit=-1)


def test_missing_paths_name_the_nearest_folder(tmp_path: Path) -> None:
    write(tmp_path, "flowers/1.png")
    with pytest.raises(ValueError, match=rf"nearest folder that exists, {tmp_path}, holds flowers"):
        open_source(tmp_path / "flower/train")


def test_empty_folders_say_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found no files at all"):
        open_source(tmp_path)
    for name in ("a.txt", "b.txt", "c.json", "README"):
        (tmp_path / name).write_text("x")
    with pytest.raises(ValueError, match=r"found 4 files: 2 \.txt"):
        open_source(tmp_path)


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ValueError, match=f"cannot read the folder {tmp_path}: Permission denied"):
        open_source(tmp_path)


def test_other_files(tmp_path: Path) -> None:
    write(tmp_path, "one.png", "data.zip")
    with pytest.raises(ValueError, match="is one image; give the folder"):
        open_source(tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"a \.zip file\. Data can be a folder"):
        open_source(tmp_path / "data.zip")


# Parquet


def test_parquet_in_hugging_face_layout(tmp_path: Path) -> None:
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(7)]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    path = write_parquet(
        tmp_path / "x.parquet", {"image": images, "label": [0, 1, 0, 1, 0, 1, 1]}, features, row_group_size=3
    )
    source = open_source(path)
    assert len(source) == 7 and source.classes == ("cat", "dog")
    assert source.labels is not None and source.labels.tolist() == [0, 1, 0, 1, 0, 1, 1]
    assert [source.read(i) for i in (6, 0, 3)] == [png(6), png(0), png(3)]
    assert source.key(6) == "x.parquet:6"
    assert pickle.loads(pickle.dumps(source)).read(5) == png(5)


def test_parquet_variants(tmp_path: Path) -> None:
    """Plain bytes, another column name, string labels, several shards in natural order, unnamed integers."""
    write_parquet(tmp_path / "a/part-10.parquet", {"img": [png(2)], "labels": ["dog"]})
    write_parquet(tmp_path / "a/part-9.parquet", {"img": [png(0), png(1)], "labels": ["cat", "dog"]})
    source = open_source(tmp_path / "a")
    assert [source.read(i) for i in range(3)] == [png(0), png(1), png(2)]
    assert keys(source) == ["part-9.parquet:0", "part-9.parquet:1", "part-10.parquet:0"]
    assert (
        source.classes == ("cat", "dog") and source.labels is not None and source.labels.tolist() == [0, 1, 1]
    )
    plain = open_source(write_parquet(tmp_path / "b.parquet", {"image": [png()], "label": [4]}))
    assert plain.labels is not None and plain.labels.tolist() == [4] and plain.classes is None


def test_parquet_images_by_path_and_missing_ones(tmp_path: Path) -> None:
    write(tmp_path / "set", "a.png")
    images = [
        {"bytes": None, "path": "a.png"},
        {"bytes": None, "path": None},
        {"bytes": None, "path": "gone.png"},
    ]
    source = open_source(write_parquet(tmp_path / "set/x.parquet", {"image": images}))
    assert source.labels is None and source.read(0) == png()
    from visrep.data import CanvasSet

    assert CanvasSet(source, 8).unreadable == {
        1: "x.parquet:1: the row holds no image",
        2: "x.parquet:2: No such file or directory",
    }


def test_parquet_missing_labels(tmp_path: Path) -> None:
    hidden = open_source(write_parquet(tmp_path / "a.parquet", {"image": [png()] * 2, "label": [-1, -1]}))
    assert hidden.labels is None
    with pytest.warns(UserWarning, match="1 of 2 rows .* have no label"):
        some = open_source(write_parquet(tmp_path / "b.parquet", {"image": [png()] * 2, "label": [3, None]}))
    assert some.labels is None


def test_parquet_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no image column .* columns are: text \(string\), n \(int64\)"):
        open_source(write_parquet(tmp_path / "a.parquet", {"text": ["x"], "n": [1]}))
    (tmp_path / "b.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"cannot read .*b\.parquet as Parquet"):
        open_source(tmp_path / "b.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r'pip install "visrep\[data\]"'):
        open_source(tmp_path / "a.parquet")


def test_parquet_keeps_a_bounded_number_of_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visrep.data import parquet

    monkeypatch.setattr(parquet, "HELD_BYTES", 1)
    source = parquet.Parquet(
        [write_parquet(tmp_path / "a.parquet", {"image": [png(i) for i in range(6)]}, row_group_size=2)], "a"
    )
    assert [source.read(i) for i in (0, 5, 1, 4)] == [png(0), png(5), png(1), png(4)]
    assert len(source._held) == 1


# arrays and sequences


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 1), (5, 6, 7, 3), (5, 6, 7, 4)])
def test_npz(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([2, 0, 1, 0, 2], dtype=np.uint8))
    source = open_source(tmp_path / "x.npz")
    assert (
        source.labels is not None
        and source.labels.dtype == np.int64
        and source.labels.tolist() == [2, 0, 1, 0, 2]
    )
    np.testing.assert_array_equal(source.read(3), images[3].reshape(6, 7, -1))
    assert source.key(3) == "3"


def test_npz_mistakes(tmp_path: Path) -> None:
    good = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("none", {"x": good, "y": good}, "holds x, y; wanted an array named images"),
        ("float", {"images": good / 1.0}, "are float64; wanted uint8"),
        ("first", {"images": np.zeros((2, 3, 9, 9), np.uint8)}, "channels first"),
        ("shape", {"images": good[0, 0]}, r"have shape \(4, 3\)"),
        ("labels", {"images": good, "labels": np.arange(3)}, r"have shape \(3,\) for 2 images"),
        ("negative", {"images": good, "labels": np.array([0, -1])}, "label -1"),
    ]
    for name, arrays, message in cases:
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            open_source(tmp_path / f"{name}.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        open_source(tmp_path / "text.npz")


def test_sequence(tmp_path: Path) -> None:
    write(tmp_path, "a.png")
    array = np.full((8, 8, 3), 7, dtype=np.uint8)
    source = open_source([png(3), tmp_path / "a.png", str(tmp_path / "a.png"), array, Image.fromarray(array)])
    assert source.read(0) == png(3) and source.read(1) == source.read(2) == png()
    np.testing.assert_array_equal(source.read(3), array)
    np.testing.assert_array_equal(source.read(4), array)
    assert source.key(1) == str(tmp_path / "a.png") and source.key(4) == "4" and source.labels is None


def test_sequence_with_labels() -> None:
    named = open_source([(png(), "dog"), (png(), "cat"), (png(), "dog")])
    assert named.classes == ("cat", "dog") and named.labels is not None and named.labels.tolist() == [1, 0, 1]
    numbered = open_source([(png(), 5), (png(), np.int32(0))])
    assert numbered.labels is not None and numbered.labels.tolist() == [5, 0]
    assert open_source(named) is named
    assert len(open_source(np.zeros((3, 4, 4, 3), np.uint8))) == 3


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no images"),
        ([(png(), 1), png()], "1 of 2 items"),
        ([3.5], "item 0 is a float"),
        ([(png(), 1), (png(), "a")], "labels are all strings, or all integers"),
    ],
)
def test_sequence_mistakes(items: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_source(items)


# the playground


def test_playground_spec() -> None:
    source = open_source("playground:n=20,size=16,seed=3,split=test")
    image = source.read(0)
    assert len(source) == 20 and isinstance(image, np.ndarray) and image.shape == (16, 16, 3)
    assert len(open_source("playground:size=16", limit=5)) == 5
    for wrong in ("playground:side=4", "playground:n=many", "playground:n", "playground:split=dev"):
        with pytest.raises(ValueError, match="Settings are n, size, seed"):
            open_source(wrong)
    with pytest.raises(ValueError, match="n must be at least 1"):
        open_source("playground:n=0")


# masks beside images


def test_masks_are_no_images(tmp_path: Path) -> None:
    images = ("images/cat/1.png", "images/dog/2.png", "more.png")
    write(tmp_path, *images, "masks/cat/1.png", "masks/dog/2.png", "annotations/panoptic/1.png")
    (tmp_path / "annotations" / "instances.json").write_text("{}")
    source = open_source(tmp_path)
    assert keys(source) == ["images/cat/1.png", "images/dog/2.png", "more.png"]
    assert source.labels is None, "images and masks are no classes"
    assert [note.split(":")[0] for note in source.notes] == [
        "the images in annotations/ (1) were left out",
        "the images in masks/ (2) were left out",
    ]
    assert open_source(tmp_path, limit=2).notes == source.notes
    parts = tmp_path / "parts"
    for part in ("train", "test"):
        write(parts, f"{part}/images/1.png", f"{part}/masks/1.png")
    train, test = open_splits(parts)
    assert test is not None and keys(train) == keys(test) == ["images/1.png"] and train.notes


def test_masks_are_no_videos(tmp_path: Path) -> None:
    names = [f"{folder}/bear/{i}.png" for folder in ("JPEGImages", "Annotations") for i in range(2)]
    clips = open_source(f"{write(tmp_path, *names)}:frames=2,stride=1")
    assert (
        keys(clips) == ["JPEGImages/bear"]
        and "the images in Annotations/ (2) were left out" in clips.notes[0]
    )


@pytest.mark.parametrize(
    "files",
    [
        ("masks/1.png", "photos/1.png"),  # nothing that they would be the masks of
        ("images/1.png", "portraits/1.png"),
        ("deep/images/1.png", "deep/masks/1.png"),
        ("JPEGImages/1.png", "masks/1.png"),
    ],
)
def test_other_folders_stay(tmp_path: Path, files: tuple[str, ...]) -> None:
    source = open_source(write(tmp_path, *files))
    assert keys(source) == list(files) or keys(source) == list(reversed(files))
    assert not source.notes


def test_annotations_without_images_are_not_worth_a_note(tmp_path: Path) -> None:
    write(tmp_path, "JPEGImages/1.png")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "1.xml").write_text("<annotation/>")
    assert not open_source(tmp_path).notes
    empty = tmp_path / "empty"
    write(empty, "images/0/1.png", "masks/0/1.png")
    (empty / "images" / "0" / "1.png").unlink()
    (empty / "images" / "0" / "about.txt").write_text("")
    with pytest.raises(ValueError, match=r"no images or videos.*1 files: 1 \.txt"):
        open_source(empty)


# splits


def test_split_folders(tmp_path: Path) -> None:
    write(tmp_path, "train/ant/1.png", "train/cow/1.png", "test/bee/1.png", "test/cow/1.png", "val/cow/9.png")
    train, test = open_splits(tmp_path)
    assert (
        test is not None
        and keys(train) == ["ant/1.png", "cow/1.png"]
        and keys(test) == ["bee/1.png", "cow/1.png"]
    )
    assert train.classes == ("ant", "cow") and test.classes == ("ant", "cow", "bee")
    assert test.labels is not None and test.labels.tolist() == [2, 1], (
        "numbered as in train, new classes last"
    )


def test_split_shards(tmp_path: Path) -> None:
    for place in ("a", "b/data"):
        write_parquet(tmp_path / place / "train-00000-of-00002.parquet", {"image": [png(0)], "label": ["x"]})
        write_parquet(tmp_path / place / "train-00001-of-00002.parquet", {"image": [png(1)], "label": ["y"]})
        write_parquet(
            tmp_path / place / "validation-00000-of-00001.parquet", {"image": [png(2)], "label": ["y"]}
        )
        train, test = open_splits(tmp_path / Path(place).parts[0])
        assert test is not None and (len(train), len(test)) == (2, 1)
        assert test.labels is not None and test.labels.tolist() == [1] and test.classes == ("x", "y")
        assert test.read(0) == png(2)


def test_split_playground() -> None:
    train, test = open_splits("playground:n=50,size=16,seed=2")
    assert test is not None and (len(train), len(test)) == (50, 10)
    first, held_out = train.read(0), test.read(0)
    assert isinstance(first, np.ndarray) and isinstance(held_out, np.ndarray)
    assert not np.array_equal(first, held_out)
    assert open_splits("playground:n=50,split=test")[1] is None


def test_no_splits(tmp_path: Path) -> None:
    write(tmp_path, "train/1.png", "photos/1.png")
    train, test = open_splits(tmp_path)
    assert test is None and len(train) == 2
    assert open_splits([png()])[1] is None


def test_stratified_split() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 2])
    train, test = stratified_split(labels, 0.2, seed=0)
    assert np.bincount(labels[test]).tolist() == [10, 6, 1]
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(82))
    again, other = stratified_split(labels, 0.2, seed=0)[1], stratified_split(labels, 0.2, seed=1)[1]
    assert np.array_equal(test, again) and not np.array_equal(test, other)
    with pytest.raises(ValueError, match=r"1 classes have a single image \(label 3"):
        stratified_split(np.array([0, 0, 3]), 0.5, seed=0)
    with pytest.raises(ValueError, match="fraction=1"):
        stratified_split(labels, 1.0, seed=0)


def test_subset_and_pickling(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, "a/1.png", "a/2.png", "b/1.png"))
    subset = Subset(Subset(source, [2, 1]), [1])
    copy = pickle.loads(pickle.dumps(subset))
    assert copy.key(0) == "a/2.png" and copy.labels.tolist() == [0] and copy.read(0) == png(1)


# real images


@pytest.mark.parametrize(
    ("name", "sizes", "classes"),
    [
        ("flowers", (3457, 860), 5),
        ("cifar10-jpeg", (50_000, 10_000), 10),
        ("imagenette128", (9469, 3925), 10),
    ],
)
def test_real_data(name: str, sizes: tuple[int, int], classes: int) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {SHARED / name}; set VISREP_SHARED to the folder that has data/{name}")
    train, test = open_splits(SHARED / name)
    assert (len(train), 0 if test is None else len(test)) == sizes
    assert train.classes is not None and len(train.classes) == classes
    assert train.labels is not None and np.unique(train.labels).tolist() == list(range(classes))
