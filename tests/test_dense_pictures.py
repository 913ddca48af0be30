"""Pictures of what dense protocols said: they show what was answered, in the colours of the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from test_dense_protocols import CPU, K, Tiles
from test_dense_training_free import Squares, colours, exam, tiny_vit
from visrep.data.canvas import CanvasSet
from visrep.data.dense import IGNORE
from visrep.data.playground_pairs import PlaygroundPairs
from visrep.evaluation.dense.attention_masks import attention_masks
from visrep.evaluation.dense.boxes import Box
from visrep.evaluation.dense.discovery import discovery_lost, discovery_tokencut
from visrep.evaluation.dense.drawing import (
    DARK,
    FOUND,
    NOBODY,
    TILE,
    TRUE,
    boxed,
    colours_of,
    depth_painted,
    legend_of,
    overlaid,
    painted,
    scaled,
)
from visrep.evaluation.dense.exam import DenseSide, Exam, Key
from visrep.evaluation.dense.examples import class_examples, depth_examples, point_example
from visrep.evaluation.dense.hummingbird import hummingbird
from visrep.evaluation.dense.patches import Patches
from visrep.evaluation.dense.videos import propagation
from visrep.evaluation.examples import Example, Strip, spread, strips
from visrep.evaluation.sheet_pictures import GAP, move_pictures, pictures_folder, read_pictures, save_pictures

SIZE = 16


def told(n: int, seed: int) -> DenseSide:
    """Tiles with a token for every pixel that names its class, as from a perfect encoder."""
    source = Tiles(n, seed)
    tiles = torch.from_numpy(source.tiles).repeat_interleave(4, 1).repeat_interleave(4, 2)
    patches = Patches(F.one_hot(tiles, K).half(), torch.arange(n))
    return DenseSide(Key(source, SIZE), CanvasSet(source, SIZE, workers=0), patches)


def test_a_perfect_encoder_paints_the_truth() -> None:
    train, test = told(12, 0), told(9, 1)
    (measure,) = hummingbird(Exam(train, test, None, 1, SIZE, CPU, seed=0))
    assert measure.value == 1.0 and len(measure.examples) == 4
    for row, example in zip((0, 2, 5, 8), measure.examples, strict=True):
        image, true = example.known["image"], example.known["true classes"]
        assert np.array_equal(example.found, true)
        assert true.shape == image.shape == (TILE, TILE, 3)
        classes = test.classes[row].numpy()
        assert np.array_equal(true[3::7, 3::7], colours_of(Tiles.names)[classes])  # a pixel is 7 pixels
        assert (true[:14, :14] == NOBODY).all()
        light, answers = image[3::7, 3::7, 0][2:-2, 2:-2], classes[2:-2, 2:-2]
        assert np.corrcoef(light.ravel(), answers.ravel())[0, 1] > 0.9
        wanted = {Tiles.names[k]: "#{:02x}{:02x}{:02x}".format(*colours_of(())[k]) for k in range(K)}
        assert example.legend == {name: wanted[name] for name in example.legend} and example.legend
    wrong = replace(test, patches=Patches(test.tokens.roll(1, 0), test.index))
    (measure,) = hummingbird(Exam(train, wrong, None, 1, SIZE, CPU, seed=0))
    other = measure.examples[1]
    assert np.array_equal(other.known["true classes"], painted(test.classes[2].numpy(), (), (TILE, TILE)))
    given = np.where(
        test.classes[2] == IGNORE, IGNORE, np.repeat(np.repeat(Tiles(9, 1).tiles[1], 4, 0), 4, 1)
    )
    assert np.array_equal(other.found, painted(given, (), (TILE, TILE)))


def test_what_is_wrong_looks_wrong_and_nothing_else_does() -> None:
    side = told(2, 3)
    answers = side.classes.long()
    answers[0, 8, 8] = (answers[0, 8, 8] + 1) % K
    first, second = class_examples(side, answers)
    differs = (first.found != first.known["true classes"]).any(-1)
    assert differs.sum() == 49 and differs[56:63, 56:63].all()
    assert np.array_equal(second.found, second.known["true classes"])


def test_colours_of_classes() -> None:
    palette = colours_of(("sky", "background", "sea"))
    assert palette[1].tolist() == [*DARK] and palette[IGNORE].tolist() == [*NOBODY]
    assert np.array_equal(np.delete(palette, 1, 0), np.delete(colours_of(("a",)), 1, 0))
    some = palette[:40].astype(int)
    apart = np.abs(some[:, None] - some[None]).sum(-1) + 999 * np.eye(40, dtype=int)
    assert apart.min() >= 30
    classes = np.full((10, 10), 2)
    classes[0, 0], classes[1] = 0, IGNORE
    assert legend_of(classes, ("sky", "background", "sea")).keys() == {"sea"}  # one pixel is too little


def test_pictures_have_the_shape_of_their_image() -> None:
    halves = np.zeros((64, 64, 3), np.uint8)
    halves[:, 32:] = 255
    wide = scaled(halves, (30.0, 60.0))
    assert wide.shape == (56, 112, 3) and wide[:, :50].max() < 9 and wide[:, 62:].min() > 246
    assert scaled(halves, (1000.0, 1.0)).shape == (112, 1, 3)
    assert (
        painted(np.array([[0, 1]]), (), (4, 6))[:, 2:4].tolist()
        == [[colours_of(())[0].tolist(), colours_of(())[1].tolist()]] * 4
    )


def test_depth_has_the_scale_of_the_truth() -> None:
    side = told(3, 2)
    for example in depth_examples(side, side.depth):
        assert np.array_equal(example.found, example.known["true depth"])
    ramp = np.linspace(1, 3, 9, dtype=np.float32)[None]
    light = depth_painted(ramp, 1.0, 3.0, (1, 9)).astype(float) @ [0.3, 0.59, 0.11]
    assert (np.diff(light[0]) > 0).all()  # far is bright
    assert np.array_equal(
        depth_painted(ramp + 9, 1.0, 3.0, (1, 9))[0, 0], depth_painted(ramp, 1, 3, (1, 9))[0, -1]
    )
    (example,) = depth_examples(side.at(torch.tensor([1])), side.depth[:1] / 2)
    assert not np.array_equal(example.found, example.known["true depth"])


def test_boxes_enclose_their_pixels() -> None:
    black = np.zeros((20, 40, 3), np.uint8)
    drawn = boxed(black, [Box(0.25, 0.25, 0.75, 0.5)])
    is_true = (drawn == TRUE).all(-1)
    rows, columns = np.nonzero(is_true)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 14, 10, 19)
    assert is_true.sum() == 2 * 10 + 2 * 8 and not drawn[~is_true].any()
    both = boxed(black, [Box(0.25, 0.25, 0.75, 0.5)], Box(0.25, 0.25, 0.75, 0.5))
    assert ((both == TRUE).all(-1) == is_true).all() and (both[6, 11:19] == FOUND).all()


@pytest.mark.parametrize("protocol", [discovery_lost, discovery_tokencut])
def test_the_box_that_was_found_is_drawn_on_its_image(protocol) -> None:
    (measure,) = protocol(exam(colours(), Squares()))
    assert len(measure.examples) == 4
    for row, example in zip((0, 2, 4, 7), measure.examples, strict=True):
        edges = np.nonzero((example.known["true boxes"] == TRUE).all(-1))
        left = 4 + 4 * (row % 4) + 4 * (row // 4)
        wanted = [8 * 3.5, 20 * 3.5, left * 3.5, (left + 12) * 3.5]
        assert [edges[0].min(), edges[0].max() + 1, edges[1].min(), edges[1].max() + 1] == wanted
        orange = np.nonzero((example.found == FOUND).all(-1))
        assert [orange[0].min() - 1, orange[0].max() + 2, orange[1].min() - 1, orange[1].max() + 2] == wanted


def squares(index: int) -> np.ndarray:
    """Where the square is, at the size of pictures."""
    found = Squares().answers(index, (TILE, TILE)).instances
    assert found is not None
    return found


def test_attention_is_drawn_on_images_with_objects() -> None:
    found, mean = attention_masks(exam(tiny_vit(), Squares()))
    assert not mean.examples
    # of the images 0, 3, 7 and 11 the last has no object
    for row, example in zip((0, 3, 7), found.examples, strict=True):
        true = squares(row)
        assert np.array_equal(example.known["true objects"], overlaid(example.known["image"], true))


def test_a_square_that_is_followed_has_its_colour_in_all_frames() -> None:
    test = exam(colours(), Squares())
    jf, *others = propagation(test)
    assert len(jf.examples) == 2 and not any(measure.examples for measure in others)
    for video, example in enumerate(jf.examples):
        given, true = example.known.values()
        where = [squares(4 * video + frame) for frame in (0, 2)]
        for picture, square in zip((given, true), where, strict=True):
            coloured = np.ptp(picture.astype(int), axis=-1) > 20
            assert (coloured == (square > 0)).all()
        agree = (example.found == true).all(-1)
        assert agree.mean() > 0.97 and not agree.all()  # the corners are rounded


def test_points_keep_their_colour_and_wrong_ones_are_rings() -> None:
    pair = PlaygroundPairs(3, 64).pair(1)
    right = np.ones(len(pair.points), dtype=bool)
    perfect = point_example(pair, pair.partners, right)
    source, there = perfect.known.values()
    assert np.array_equal(perfect.found, there)
    missed = point_example(pair, pair.partners, ~right).found
    last = spread(len(pair.points), 10)[-1]  # drawn last, so that no other hides it

    def at(picture: np.ndarray, place: np.ndarray) -> list[int]:
        y, x = np.floor(place * TILE / 64).astype(int)
        return picture[y, x].tolist()

    colour = at(source, pair.points[last])
    assert len(set(colour)) > 1 and at(there, pair.partners[last]) == colour
    assert at(missed, pair.partners[last]) != colour and (missed == colour).all(-1).sum() > 5


def example(seed: int, **legend: str) -> Example:
    image, true, found = np.random.default_rng(seed).integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    return Example({"image": image, "true classes": true}, found, legend)


def test_a_file_gives_back_what_was_drawn(tmp_path: Path) -> None:
    sheet = tmp_path / "mine.json"
    rows = strips({"trained": [example(0, Straße="#010203"), example(1)], "pixels": [example(2), example(3)]})
    assert [row.titles for row in rows] == [("image", "true classes", "trained", "pixels")] * 2
    assert np.array_equal(rows[1].pictures[3], example(3).found)
    many = [replace(rows[0], titles=tuple("abcd"))] * 11
    save_pictures(sheet, {"segmentation": rows, "discovery-lost": many})
    files = sorted(file.name for file in (tmp_path / "mine-pictures").iterdir())
    assert files[:2] == ["discovery-lost-1.png", "discovery-lost-10.png"] and len(files) == 13
    with Image.open(tmp_path / "mine-pictures" / "segmentation-2.png") as image:
        assert image.size == (4 * 6 + 3 * GAP, 8)
    (tmp_path / "mine-pictures" / "of-7.png").write_bytes(b"no picture")
    found = read_pictures(sheet)
    assert {name: len(each) for name, each in found.items()} == {"discovery-lost": 11, "segmentation": 2}
    assert [row.legend for row in found["segmentation"]] == [{"Straße": "#010203"}, {}]
    for row, again in zip(rows, found["segmentation"], strict=True):
        assert again.titles == row.titles and np.array_equal(again.pictures, row.pictures)
    save_pictures(sheet, {"discovery-lost": many[:1]})
    assert {name: len(each) for name, each in read_pictures(sheet).items()} == {
        "discovery-lost": 1, "segmentation": 2,
    }  # fmt: skip


def test_pictures_move_with_their_numbers(tmp_path: Path) -> None:
    here, there = tmp_path / "a.json", tmp_path / "b.json"
    one, two = strips({"trained": [example(0), example(1)]})
    save_pictures(here, {"depth": [one, two], "segmentation": [one]})
    save_pictures(there, {"depth": [two, two, two], "hummingbird": [one]})
    move_pictures(here, there, {"depth"})
    assert read_pictures(here).keys() == {"segmentation"}
    assert {name: len(each) for name, each in read_pictures(there).items()} == {"depth": 2, "hummingbird": 1}
    move_pictures(here, there)
    assert not pictures_folder(here).exists() and len(read_pictures(there)) == 3
    move_pictures(here, there)  # nothing is there
    assert len(read_pictures(there)) == 3


def test_what_is_shown_is_spread() -> None:
    assert [spread(n) for n in (0, 1, 3, 4, 10)] == [[], [0], [0, 1, 2], [0, 1, 2, 3], [0, 3, 6, 9]]
    assert isinstance(json.dumps(spread(9)), str)
    assert Strip(("a",), np.zeros((1, 2, 2, 3), np.uint8)).legend == {}
