"""Images with an answer for every pixel: layouts, numbering, sizes, the playgrounds, and errors that help."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visrep.data.dense import IGNORE, Answers, DenseSubset, nearest
from visrep.data.dense_opening import dense_splits, is_dense, open_dense
from visrep.data.dense_playground import NAMES, DensePlayground, PlaygroundFrames
from visrep.data.masked_folder import MaskedFolder
from visrep.data.playground_video import PlaygroundVideo
from visrep.data.shapes import SHAPES

SHARED = Path(os.environ.get("VISREP_SHARED", Path(__file__).parents[2] / "shared")) / "data"
CLASSES = {"0": "unlabeled", "3": "sky", "7": "cat"}


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def pair(root: Path, name: str, mask: np.ndarray, size: tuple[int, int] | None = None) -> None:
    h, w = size or (mask.shape[0], mask.shape[1])
    write(root / "images" / f"{name}.jpg", np.full((h, w, 3), 90, np.uint8))
    write(root / "masks" / f"{name}.png", mask)


def mask(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.uint8)


@pytest.mark.parametrize("shape", [(5, 8), (20, 30), (10, 10), (1, 4)])
def test_nearest_is_pillows(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 250, (10, 14)).astype(np.uint8)
    expected = Image.fromarray(values).resize((shape[1], shape[0]), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(nearest(values, shape), np.asarray(expected))


def test_classes_are_numbered_by_classes_json(tmp_path: Path) -> None:
    pair(tmp_path, "a", mask([0, 3], [7, 255]))
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    source = open_dense(tmp_path)
    assert source.names == ("sky", "cat") and source.knows == {"classes"} and source.labels is None
    found = source.answers(0)
    assert found.classes is not None and found.instances is None and found.depth is None
    np.testing.assert_array_equal(found.classes, [[IGNORE, 0], [1, IGNORE]])
    assert found.classes.dtype == np.int64
    large = source.answers(0, (4, 6)).classes
    assert large is not None and large.shape == (4, 6) and large[0, 5] == 0 and large[3, 0] == 1


def test_a_list_names_classes_in_order(tmp_path: Path) -> None:
    pair(tmp_path, "a", mask([0, 1]))
    (tmp_path / "classes.json").write_text('["ground", "house"]')
    assert open_dense(tmp_path).names == ("ground", "house")


def test_without_names_each_number_found_is_a_class_on_both_sides(tmp_path: Path) -> None:
    pair(tmp_path, "train2017/a", mask([2, 9]))
    pair(tmp_path, "train2017/b", mask([2, 2]))
    pair(tmp_path, "val2017/c", mask([9, 40]))
    train, test = dense_splits(tmp_path)
    assert test is not None and (len(train), len(test)) == (2, 1)
    assert train.names == test.names == ("class 2", "class 9", "class 40")
    classes = test.answers(0).classes
    assert classes is not None and classes.tolist() == [[1, 2]]
    assert train.key(0) == "images/train2017/a.jpg"


def test_splits_may_stand_above_the_folders(tmp_path: Path) -> None:
    pair(tmp_path / "train", "a", mask([0, 1]))
    pair(tmp_path / "test", "b", mask([0, 1]))
    train, test = dense_splits(tmp_path)
    assert test is not None and train.name.endswith("train") and test.name.endswith("test")


def test_a_mask_of_0_and_255_shows_one_object(tmp_path: Path) -> None:
    pair(tmp_path, "a", mask([0, 255]))
    source = open_dense(tmp_path)
    classes = source.answers(0).classes
    assert source.names == ("background", "object")
    assert classes is not None and classes.tolist() == [[0, 1]]


def test_images_without_mask_are_left_out_and_counted(tmp_path: Path) -> None:
    pair(tmp_path, "a", mask([0, 1]))
    write(tmp_path / "images" / "b.jpg", np.zeros((2, 2, 3), np.uint8))
    source = open_dense(tmp_path)
    assert len(source) == 1
    assert "1 of 2 images" in source.notes[0] and "b.jpg" in source.notes[0]
    assert DenseSubset(source, [0]).notes == source.notes


def test_videos_and_objects_of_the_davis_layout(tmp_path: Path) -> None:
    for name, values in [("dog/00", [0, 255]), ("dog/01", [0, 0]), ("cow/00", [1, 2])]:
        write(tmp_path / "JPEGImages" / f"{name}.jpg", np.zeros((1, 2, 3), np.uint8))
        write(tmp_path / "Annotations" / f"{name}.png", mask(values))
    source = open_dense(tmp_path)
    assert source.knows == {"classes", "instances", "video"} and source.names == ("background", "object")
    assert [source.key(i) for i in range(3)] == [
        f"JPEGImages/{n}.jpg" for n in ("cow/00", "dog/00", "dog/01")
    ]
    assert source.groups is not None and source.groups.tolist() == [0, 1, 1]
    answers = [source.answers(i) for i in range(3)]
    assert [a.instances.tolist() for a in answers if a.instances is not None] == [
        [[1, 2]],
        [[0, 1]],
        [[0, 0]],
    ]
    assert [a.classes.tolist() for a in answers if a.classes is not None] == [[[1, 1]], [[0, 1]], [[0, 0]]]


def test_a_mask_lies_upright_as_its_image(tmp_path: Path) -> None:
    pair(tmp_path, "a", mask([0, 1, 0], [1, 0, 1]))
    turned = Image.Exif()
    turned[0x0112] = 6  # stored on its side: 2 wide, 3 high, shown 3 wide, 2 high
    held = io.BytesIO()
    Image.fromarray(np.zeros((3, 2, 3), np.uint8)).save(held, "JPEG", exif=turned)
    (tmp_path / "images" / "a.jpg").write_bytes(held.getvalue())
    classes = open_dense(tmp_path).answers(0).classes
    assert classes is not None and classes.shape == (2, 3)


def test_the_mark_tells_masks_apart(tmp_path: Path) -> None:
    pair(tmp_path, "a", mask([0, 1]))
    pair(tmp_path, "b", mask([1, 0]))
    source = open_dense(tmp_path)
    assert source.mark(0) != source.mark(1)
    assert DenseSubset(source, [1]).mark(0) == source.mark(1)


def test_errors_say_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        open_dense(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has no masks: .*found no files at all"):
        open_dense(tmp_path)
    write(tmp_path / "images" / "a.jpg", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match="no masks/: without masks"):
        open_dense(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match=r"none of the 1 images .* has a mask: .* holds 0"):
        open_dense(tmp_path)
    write(tmp_path / "masks" / "a.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match=r"masks/a.png is 5 x 4 pixels and its image images/a.jpg 6 x 4"):
        open_dense(tmp_path).answers(0)
    write(tmp_path / "masks" / "a.png", np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "classes.json").write_text('{"0": "ground"}')
    with pytest.raises(ValueError, match="has 3 channels"):
        open_dense(tmp_path).answers(0)
    write(tmp_path / "masks" / "a.png", np.full((4, 6), 5, np.uint8))
    with pytest.raises(ValueError, match=r"holds 5, which .*classes.json does not name"):
        open_dense(tmp_path).answers(0)
    (tmp_path / "masks" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read"):
        open_dense(tmp_path).answers(0)
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(ValueError, match=r"classes.json cannot be read"):
        open_dense(tmp_path)
    with pytest.raises(ValueError, match="dense protocols need masks"):
        open_dense(np.zeros((2, 4, 4, 3), np.uint8))


def test_two_names_for_one_number_are_refused(tmp_path: Path) -> None:
    for part, name in (("train", "cat"), ("test", "dog")):
        pair(tmp_path / part, "a", mask([0, 1]))
        (tmp_path / part / "classes.json").write_text(json.dumps(["ground", name]))
    with pytest.raises(ValueError, match=r"class 1 is 'cat' in .* and 'dog' in"):
        dense_splits(tmp_path)


def test_the_playground_answers_for_every_pixel() -> None:
    world = DensePlayground(n=12, size=40)
    assert world.names == NAMES and world.labels is not None
    for index in range(12):
        scene, found = world.scene(index), world.answers(index)
        assert found.classes is not None and found.instances is not None and found.depth is not None
        np.testing.assert_array_equal(found.instances, scene.mask)
        np.testing.assert_array_equal(found.depth, scene.depth)
        for number, thing in enumerate(scene.things, start=1):
            here = found.instances == number
            assert (found.classes[here] == NAMES.index(thing.shape)).all()
            assert np.allclose(found.depth[here], thing.depth)
        assert (found.classes[found.instances == 0] == 0).all() and (
            found.depth[found.instances == 0] == 1
        ).all()
        assert (
            1 + int(world.labels[index]) in found.classes
        )  # the shape that the label names is in the picture
    assert len(NAMES) == 1 + len(SHAPES)


def test_frames_of_the_playground_are_those_of_its_clips() -> None:
    frames, clips = PlaygroundFrames(n=3, size=24, frames=4), PlaygroundVideo(n=3, size=24, frames=4)
    assert len(frames) == 12 and frames.groups is not None and frames.groups.tolist() == sorted([0, 1, 2] * 4)
    for clip in range(3):
        for t, frame in enumerate(clips.read(clip)):
            np.testing.assert_array_equal(frames.read(4 * clip + t), frame)
        depths = [frames.answers(4 * clip + t) for t in range(4)]
        for found in depths:  # the near object is number 1 in every frame
            assert found.instances is not None and found.depth is not None
            assert np.allclose(found.depth[found.instances == 1], 0.3)
            assert np.allclose(found.depth[found.instances == 2], 0.6)


def test_which_data_is_dense(tmp_path: Path) -> None:
    assert is_dense("playground:n=10") and not is_dense("playground-video") and not is_dense(tmp_path)
    pair(tmp_path, "a", mask([0, 1]))
    assert is_dense(tmp_path) and is_dense(str(tmp_path)) and is_dense(DensePlayground(n=10))
    train, test = dense_splits("playground:n=20,size=16")
    assert test is not None and (len(train), len(test)) == (20, 4)
    frames, more = dense_splits("playground-video:n=5,size=16,frames=3")
    assert more is not None and (len(frames), len(more)) == (15, 3)
    assert dense_splits("playground:n=20,size=16,split=test")[1] is None


def test_resized_answers_keep_their_kinds() -> None:
    found = Answers(depth=np.ones((4, 4), np.float32)).resized((2, 2))
    assert found.classes is None and found.depth is not None and found.depth.shape == (2, 2)


@pytest.mark.skipif(not (SHARED / "coco128").is_dir(), reason="no shared data; set VISREP_SHARED")
def test_the_shared_sets_open() -> None:
    train, test = dense_splits(SHARED / "coco128")
    assert test is not None and (len(train), len(test)) == (100, 100) and train.names == test.names
    assert (
        "28 of 128" in train.notes[0]
        and len(train.names) == len(json.loads((SHARED / "coco128/classes.json").read_text())) - 1
    )
    train.answers(0)
    videos = open_dense(SHARED / "davis240")
    assert isinstance(videos, MaskedFolder) and videos.groups is not None
    assert np.bincount(videos.groups).tolist() == [50, 84, 75, 104, 60, 50]
    objects = videos.answers(0).instances
    assert objects is not None and set(np.unique(objects)) == {0, 1}
