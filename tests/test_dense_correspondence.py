"""Points that belong together: the playground's geometry against its drawings, and finding them by features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visrep.data.playground import Playground
from visrep.data.playground_pairs import (
    LOPSIDED,
    POINTS,
    PlaygroundPairs,
    PointPair,
    to_image,
    to_object,
)
from visrep.data.shapes import SHAPES
from visrep.evaluation.dense.correspondence import correct, matched
from visrep.evaluation.dense.intervals import few_videos, interval, resampled

SIZE = 64


def pairs(kind: str, n: int = 20) -> list[PointPair]:
    source = PlaygroundPairs(n, SIZE, seed=3, kind=kind)
    return [source.pair(index) for index in range(n)]


def test_coordinates_there_and_back() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, SIZE, (30, 2))
    for index in range(20):
        thing = replace(Playground(20, SIZE).plan(index).main, rotation=float(rng.uniform(-3, 3)))
        np.testing.assert_allclose(to_image(thing, to_object(thing, points, SIZE), SIZE), points, atol=1e-9)


def test_coordinates_are_those_that_shapes_are_drawn_in() -> None:
    """The outline in the drawing is where the shape's signed distance is zero."""
    playground = Playground(30, SIZE, seed=1)
    for index in range(30):
        scene = playground.scene(index)
        thing = scene.things[scene.main]
        pixels = np.argwhere(np.ones((SIZE, SIZE), dtype=bool)) + 0.5
        y, x = to_object(thing, pixels, SIZE).T.astype(np.float32)
        if thing.shape not in LOPSIDED and thing.mirrored:
            x = -x  # drawn mirrored, which shows in no pixel
        inside = SHAPES[thing.shape](x[None], y[None]).reshape(SIZE, SIZE) < 0
        nearer = np.isin(scene.mask, range(1, scene.main + 1))
        assert ((scene.mask == scene.main + 1) == inside)[~nearer].mean() > 0.999


def test_lopsided_shapes_are_those_with_another_mirror_image() -> None:
    line = np.linspace(-1, 1, 41, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    differ = {name for name, shape in SHAPES.items() if np.abs(shape(x, y) - shape(-x, y)).max() > 1e-3}
    assert differ == LOPSIDED


@pytest.mark.parametrize("kind", ["moved", "kin"])
def test_pairs_show_points_in_both_images(kind: str) -> None:
    scenes = PlaygroundPairs(20, SIZE, seed=3, kind=kind).scenes
    counts: set[int] = set()
    for index, pair in enumerate(pairs(kind)):
        assert 1 <= len(pair.points) == len(pair.partners) <= POINTS * 0.75**2
        assert (pair.points % 1 == 0.5).all() and (pair.partners >= 0).all() and (pair.partners < SIZE).all()
        assert (pair.source == scenes.read(index)).all()
        assert (pair.source != pair.target).any()
        counts.add(len(pair.points))
        far = np.linalg.norm(pair.partners - pair.partners.mean(0), axis=1).max()
        assert far <= 0.75 * pair.extent  # all within the box around the object
    assert len(counts) > 5  # so the averages by image and by point differ


def test_moved_points_keep_their_colour() -> None:
    """Light and shade change a little with place and turn; another point of the object has another colour."""

    def colours(image: np.ndarray, points: np.ndarray) -> np.ndarray:
        rows, columns = np.floor(points).astype(int).T
        return image[rows, columns].astype(float)

    same, other = [], []
    for pair in pairs("moved", 40):
        found = colours(pair.target, pair.partners)
        wanted = colours(pair.source, pair.points)
        same.append(np.abs(found - wanted).mean(1))
        other.append(np.abs(found - np.roll(wanted, 1, axis=0)).mean(1))
    assert np.median(np.concatenate(same)) < 10
    assert np.concatenate(same).mean() < 0.6 * np.concatenate(other).mean()


def test_kin_have_one_shape_and_differ() -> None:
    found = PlaygroundPairs(30, SIZE, seed=3, kind="kin")
    labels = np.asarray(found.scenes.labels)
    partners = [found._kin[index] for index in range(30)]
    assert all(labels[i] == labels[j] and i != j and j >= 30 for i, j in enumerate(partners))
    assert len(set(partners)) > 20


def test_pairs_repeat_and_say_what_is_wrong() -> None:
    one, again = (PlaygroundPairs(5, SIZE, seed=2).pair(4) for _ in range(2))
    assert (one.target == again.target).all() and (one.points == again.points).all()
    with pytest.raises(ValueError, match=r"no pairs of kind='others'\. Use one of: moved, kin"):
        PlaygroundPairs(5, SIZE, kind="others")
    with pytest.raises(IndexError, match="pair 5 of 5"):
        PlaygroundPairs(5, SIZE).pair(5)


def test_the_same_image_twice_is_matched_everywhere() -> None:
    generator = torch.Generator().manual_seed(0)
    for pair in pairs("moved", 10):
        features = torch.randn(24, 16, 16, generator=generator)
        found = matched(features, features, pair.points, (SIZE, SIZE))
        assert correct(found, pair.points, pair.extent).all()


def test_matching_in_loops() -> None:
    generator = torch.Generator().manual_seed(1)
    source, target = torch.randn(2, 5, 3, 4, generator=generator).double()
    shape = (9, 10)
    points = np.array([[0.5, 0.5], [4.2, 7.9], [8.5, 9.5]])
    large = [
        F.interpolate(x[None], size=shape, mode="bilinear", align_corners=False)[0] for x in (source, target)
    ]
    for point, found in zip(points, matched(source, target, points, shape), strict=True):
        wanted = large[0][:, int(point[0]), int(point[1])]
        cosines = {
            (r + 0.5, c + 0.5): float(F.cosine_similarity(wanted, large[1][:, r, c], dim=0))
            for r in range(9)
            for c in range(10)
        }
        best = max(cosines.values())
        assert cosines[(float(found[0]), float(found[1]))] == pytest.approx(best, abs=1e-12)


def test_what_is_near_enough() -> None:
    true = np.array([[10.0, 10.0], [10.0, 10.0], [10.0, 10.0]])
    found = np.array([[10.0, 13.0], [12.0, 12.3], [13.0, 10.1]])
    assert correct(found, true, 30.0).tolist() == [True, False, False]
    assert correct(found, true, 60.0).all()


def test_intervals_of_groups() -> None:
    """Against a loop over resamples; groups that are all alike inside count as single values."""
    rng = np.random.default_rng(0)
    values = rng.random(30)
    groups = np.sort(rng.integers(8, size=30))
    sums, counts = np.bincount(groups, weights=values), np.bincount(groups)
    times = np.random.default_rng(5).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=1000)
    wanted = [
        np.concatenate([values[groups == g] for g in np.repeat(np.arange(len(sums)), row)]).mean()
        for row in times
    ]
    np.testing.assert_allclose(resampled(sums, counts, 5), wanted)
    assert interval(values, groups, seed=5) == pytest.approx(np.quantile(wanted, [0.025, 0.975]))
    many, few = np.repeat(rng.random(10), 50), np.repeat(np.arange(10), 50)
    by_group, by_value = interval(many, few, seed=0), interval(many, np.arange(500), seed=0)
    assert by_group[1] - by_group[0] > 4 * (by_value[1] - by_value[0])


def test_one_group_has_no_interval() -> None:
    """All that a share can be, however many values it has; an error beyond 1 is in it."""
    values = np.random.default_rng(0).random(30)
    assert interval(values, np.zeros(30), seed=0) == (0, 1)
    assert interval(values + 3, np.zeros(30), seed=0) == (0, values.mean() + 3)


def test_few_videos_are_said() -> None:
    assert few_videos(["depth"], 10) == ""
    assert "depth, segmentation: judged on frames of 9 videos only" in few_videos(
        ["depth", "segmentation"], 9
    )
    assert "1 video only, so no interval can be given" in few_videos(["depth"], 1)
