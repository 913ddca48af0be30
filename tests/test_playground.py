"""The playground: deterministic, balanced, labelled by shape and by nothing else, and true in all it says."""

import inspect
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2_contingency, f_oneway

from visrep.data.playground import Playground
from visrep.data.scene import Plan, Thing, draw, render
from visrep.data.shapes import SHAPES
from visrep.data.surfaces import BACKDROPS, PATTERNS, Backdrop, hue_name, rgb, synthesise

SIDE = 64
WORLD = Playground(n=200, size=SIDE)


def thing(shape: str = "circle", **changes: object) -> Thing:
    base = Thing(
        shape=shape,
        texture="plain",
        hue=0.0,
        colour=(0.9, 0.1, 0.1),
        accent=(0.4, 0.1, 0.1),
        x=0.5,
        y=0.5,
        size=0.6,
        mirrored=False,
        rotation=0.0,
        stretch=1.0,
        grain=4.0,
        weave=0.0,
        depth=0.5,
    )
    return replace(base, **changes)  # pyright: ignore[reportArgumentType] - field names are checked by replace


def backdrop(kind: str = "gradient") -> Backdrop:
    grey = (0.5, 0.5, 0.5)
    waves = np.ones((3, 32, 32), dtype=np.float32)
    waves[:, 0, 0] = 0
    return Backdrop(kind, (grey, grey, grey), 0.0, waves, np.full((4, 5), 0.1, dtype=np.float32))


def labels_of(world: Playground) -> np.ndarray:
    assert world.labels is not None
    return world.labels


def plan(main: Thing, *others: Thing) -> Plan:
    return Plan(main, others, backdrop(), light=-1.5)


def test_an_image_depends_on_seed_split_and_index_only():
    again, longer = Playground(n=200), Playground(n=5000)
    for i in (0, 7, 199):
        np.testing.assert_array_equal(WORLD.read(i), again.read(i))
        np.testing.assert_array_equal(WORLD.read(i), longer.read(i))
    np.testing.assert_array_equal(labels_of(WORLD), labels_of(longer)[:200])
    for other in (Playground(n=200, seed=1), Playground(n=200, split="test")):
        assert not np.array_equal(labels_of(WORLD), labels_of(other))
        assert all(not np.array_equal(WORLD.read(i), other.read(i)) for i in range(5))


def test_images_are_what_a_source_promises():
    image = WORLD.read(3)
    assert image.dtype == np.uint8 and image.shape == (SIDE, SIDE, 3) and image.flags.c_contiguous
    assert len(WORLD) == 200 and len({WORLD.key(i) for i in range(200)}) == 200
    assert WORLD.key(3) != Playground(n=200, split="test").key(3)
    assert WORLD.classes == tuple(SHAPES) and len(SHAPES) == 10


def test_labels_are_balanced_in_every_ten():
    labels = labels_of(WORLD)
    assert labels.dtype == np.int64
    assert (np.sort(labels.reshape(-1, 10), axis=1) == np.arange(10)).all()
    assert len(labels_of(Playground(n=25))) == 25


def test_a_scene_agrees_with_its_image_label_and_mask():
    for i in range(60):
        scene = WORLD.scene(i)
        np.testing.assert_array_equal(scene.image, WORLD.read(i))
        label = labels_of(WORLD)[i]
        assert scene.classes[scene.main] == label
        assert scene.factors["shape"] == scene.things[scene.main].shape == list(SHAPES)[label]
        ids, areas = np.unique(scene.mask, return_counts=True)
        assert ids.tolist() == list(range(len(scene.things) + 1)), (
            "every object is visible, and some background"
        )
        shares = dict(zip(ids.tolist(), areas / SIDE**2, strict=True))
        assert 0.03 < shares[scene.main + 1] < 0.5
        assert max(shares, key=lambda i: shares[i] if i else 0) == scene.main + 1, (
            "the main object is the largest"
        )
        for number, seen in enumerate(scene.things, start=1):
            rows, columns = np.nonzero(scene.mask == number)
            assert np.hypot(rows.mean() / SIDE - seen.y, columns.mean() / SIDE - seen.x) < 0.45 * seen.size
            assert (scene.depth[scene.mask == number] == np.float32(seen.depth)).all()
        assert (scene.depth[scene.mask == 0] == 1).all()


def test_masks_cover_the_area_and_the_colour_of_the_object():
    radius = 0.3 * SIDE
    for shape, area in (
        ("circle", np.pi * 0.85**2),
        ("square", 1.48**2),
        ("ring", np.pi * (0.89**2 - 0.43**2)),
    ):
        scene = render(plan(thing(shape)), SIDE)
        assert scene.mask.sum() == pytest.approx(area * radius**2, rel=0.03), shape
        red, green, blue = scene.image[scene.mask == 1].astype(float).T
        assert (red > 2 * green).all() and (red > 2 * blue).all(), shape


def test_pixels_away_from_objects_are_the_background():
    scene = render(plan(thing(size=0.4)), SIDE)
    bare = np.clip(backdrop().draw(SIDE), 0, 1).transpose(1, 2, 0) * 255
    np.testing.assert_allclose(scene.image[:10], bare[:10], atol=0.51)
    assert np.abs(scene.image[28:36, 28:36] - bare[28:36, 28:36]).min() > 20


def test_the_nearer_object_hides_the_other():
    near, far = thing(depth=0.2, x=0.4), thing("square", depth=0.7, x=0.6)
    scene = render(plan(far, near), SIDE)
    assert scene.things == (near, far) and scene.main == 1
    assert scene.mask[SIDE // 2, SIDE // 2] == 1
    assert scene.mask[SIDE // 2, round(0.8 * SIDE)] == 2


@pytest.mark.parametrize("index", range(6))
def test_a_plan_is_the_same_scene_at_any_size(index: int):
    planned = WORLD.plan(index)
    coarse, fine = render(planned, 64), render(planned, 128)
    assert (fine.mask[::2, ::2] == coarse.mask).mean() > 0.95
    shrunk = fine.image.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(shrunk - coarse.image).mean() < 8


def test_things_can_be_moved_for_a_film():
    still = thing(size=0.3, x=0.3)
    centres = [
        np.nonzero(render(plan(replace(still, x=x)), SIDE).mask)[1].mean() / SIDE for x in (0.3, 0.5, 0.7)
    ]
    np.testing.assert_allclose(np.diff(centres), 0.2, atol=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_signed_distances_within_their_circle(shape: str):
    at = np.linspace(-1.5, 1.5, 301, dtype=np.float32)
    x, y = np.broadcast_to(at[None, :], (301, 301)), np.broadcast_to(at[:, None], (301, 301))
    distance = SHAPES[shape](x, y)
    assert distance.dtype == np.float32
    assert np.hypot(x, y)[distance < 0].max() < 1.08
    assert 0.2 < (distance < 0).mean() * 9 / np.pi < 0.8, "neither a speck nor the whole circle"
    slope = np.hypot(*np.gradient(distance, 0.01))[np.abs(distance) < 0.03]
    assert np.median(slope) == pytest.approx(1, abs=0.02), "else edges are not one pixel wide"


def test_rotation_stretch_and_mirror_do_what_they_say():
    def mask(**changes: object) -> np.ndarray:
        return render(plan(thing("arrow", **changes)), SIDE).mask > 0

    right = mask()
    np.testing.assert_array_equal(mask(mirrored=True), right[:, ::-1])
    assert (mask(rotation=np.pi / 2) == right.T).mean() > 0.99, "clockwise: an arrow to the right turns down"
    rows, columns = np.nonzero(render(plan(thing("square", stretch=1.4)), SIDE).mask)
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(1.4, abs=0.1)


def test_nothing_but_the_shape_tells_the_label():
    world = Playground(n=3000)
    labels = labels_of(world)
    plans = [world.plan(i) for i in range(3000)]
    factors = {
        "texture": [p.main.texture for p in plans],
        "colour": [p.main.colour_name for p in plans],
        "background": [p.backdrop.kind for p in plans],
        "others": [len(p.others) for p in plans],
        "other's shape": [p.others[0].shape if p.others else "" for p in plans],
        "mirrored": [p.main.mirrored for p in plans],
    }
    for name, values in factors.items():
        levels, codes = np.unique(np.array(values), return_inverse=True)
        table = np.zeros((10, len(levels)))
        np.add.at(table, (labels, codes), 1)
        chance = chi2_contingency(table).pvalue  # pyright: ignore[reportAttributeAccessIssue] - untyped
        assert chance > 0.001, name
    for name in ("hue", "size", "x", "y", "rotation", "stretch", "grain", "depth"):
        values = np.array([getattr(p.main, name) for p in plans])
        assert f_oneway(*(values[labels == c] for c in range(10))).pvalue > 0.001, name
    assert {len(p.others) for p in plans} == {0, 1, 2}
    assert set(factors["texture"]) == set(PATTERNS) and set(factors["background"]) == set(BACKDROPS)


def test_raw_pixels_hardly_tell_the_label():
    def pixels(split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
        world = Playground(n=n, size=32, split="test" if split == "test" else "train")
        rows = np.stack([world.read(i).ravel() for i in range(n)]).astype(np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels_of(world)

    (known, labels), (asked, truth) = pixels("train", 2000), pixels("test", 400)
    nearest = labels[np.argsort(-(asked @ known.T), axis=1)[:, :20]]
    guessed = np.array([np.bincount(row, minlength=10).argmax() for row in nearest])
    assert (guessed == truth).mean() < 0.25


def test_captions_say_what_is_there():
    a_thing = r"a (?:tiny|small|medium-sized|large) (\w+) (\w+) (\w+)"
    for i in range(100):
        scene = WORLD.scene(i)
        said = scene.caption
        assert said[0].isupper() and said.endswith(".") and "  " not in said
        assert BACKDROPS[str(scene.factors["background"])] in said
        shown = [(t.texture, t.colour_name, t.shape) for t in scene.things]
        assert sorted(re.findall(a_thing, said[0].lower() + said[1:])) == sorted(shown)


def test_captions_name_sizes_and_places():
    one = thing("star", size=0.7)
    assert render(plan(one), 32).caption == "A large plain red star, against a smooth gradient."
    small = replace(thing("heart"), size=0.15, hue=0.6, texture="dotted")
    for place, words in (
        ((0.9, 0.5), "to its right"),
        ((0.1, 0.4), "to its left"),
        ((0.5, 0.1), "above it"),
        ((0.6, 0.9), "below it"),
    ):
        said = render(plan(one, replace(small, x=place[0], y=place[1])), 32).caption
        assert (
            said
            == f"A large plain red star with a tiny dotted blue heart {words}, against a smooth gradient."
        )


def test_hues_have_their_everyday_names():
    named = {hue_name(h): rgb(h, 1, 1) for h in (0.0, 0.08, 0.16, 0.33, 0.5, 0.63, 0.77, 0.9)}
    assert list(named) == ["red", "orange", "yellow", "green", "teal", "blue", "purple", "pink"]
    assert hue_name(0.99) == "red" and named["green"][1] == max(named["green"])


def test_background_fields_are_standardised_at_every_size():
    waves = np.random.default_rng(0).standard_normal((3, 32, 32)).astype(np.float32)
    waves[:, 0, :] = waves[:, :, 0] = 0
    for size in (16, 64, 96):
        fields = synthesise(waves, size)
        assert fields.shape == (3, size, size)
        np.testing.assert_allclose(fields.mean((1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(fields.std((1, 2)), 1, rtol=1e-3)


@pytest.mark.parametrize("kind", BACKDROPS)
def test_every_background_mixes_its_palette(kind: str):
    palette = ((0.5, 0.4, 0.3), (0.7, 0.4, 0.3), (0.5, 0.6, 0.3))
    for i in range(5):
        red, green, blue = replace(WORLD.plan(i).backdrop, kind=kind, palette=palette).draw(SIDE)
        brightness = blue / 0.3  # no colour of the palette differs in blue
        assert 0.5 < brightness.min() < 1 < brightness.max() < 1.5
        for channel, least in ((red, 0.5), (green, 0.4)):
            share = (channel / brightness - least) / 0.2
            assert share.min() > -1e-4 and share.max() < 1 + 1e-4
            assert share.std() > 0.02, "else it is one colour"


def test_drawing_is_fast_enough_to_stream():
    for i in range(10):
        WORLD.read(i)
    start = time.process_time()
    for i in range(100):
        WORLD.read(i)
    assert 100 / (time.process_time() - start) > 300, (
        "images a second of one core; about 2,500 when it is idle"
    )


def test_small_and_odd_sizes_draw():
    for size in (8, 33, 224):
        assert draw(WORLD.plan(1), size).shape == (size, size, 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"size": 4}, "size=4"),
        ({"seed": -1}, "seed not negative"),
        ({"split": "val"}, "split=train or split=test"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], said: str):
    # without the annotations that only the tests execute, which would speak first of a wrong type
    construct = inspect.unwrap(Playground.__init__)
    with pytest.raises(ValueError, match=said):
        construct(object.__new__(Playground), **settings)


def test_indices_beyond_the_end_are_refused():
    with pytest.raises(IndexError, match="image 200 of a playground of 200"):
        WORLD.read(200)
    with pytest.raises(IndexError):
        WORLD.read(-1)
