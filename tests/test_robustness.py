"""Protocols of robustness: moves against scikit-image, corruptions against their package, counts by hand, errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.transform import AffineTransform, warp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity

from _extras import needs
from _stubs import Stub, grid_colours, mean_colour
from visrep.data import CanvasSet, Source, open_source
from visrep.data.playground import Playground
from visrep.data.scene import Plan
from visrep.data.shapes import SHAPES
from visrep.data.source import Subset
from visrep.evaluation.evaluate import evaluate
from visrep.evaluation.features import extract
from visrep.evaluation.fitting import Images
from visrep.evaluation.linear import linear
from visrep.evaluation.protocols import check_protocols, without_all
from visrep.evaluation.results import Inapplicable, Measure
from visrep.evaluation.robustness import corruptions as corruptions_module
from visrep.evaluation.robustness.backgrounds import backgrounds
from visrep.evaluation.robustness.base import (
    Subjects,
    answers,
    cosine_of_others,
    cosines,
    invariance,
    near_chance,
    normalised,
    squares,
)
from visrep.evaluation.robustness.corrupting import KINDS, corrupted, severities_in_turn
from visrep.evaluation.robustness.corruptions import corruptions, kept
from visrep.evaluation.robustness.moves import WINDOW, Move, windows
from visrep.evaluation.robustness.ood_layers import mixed, ood_layers
from visrep.evaluation.robustness.registry import ROBUST, judge_robust
from visrep.evaluation.robustness.shifts import agreement_by_chance, random_moves, shifts
from visrep.evaluation.robustness.swaps import other_backgrounds, other_textures, scenes, textured
from visrep.method import Canvases, Encoder, Preprocessing
from visrep.views import center

SIZE = 32
CPU = torch.device("cpu")
PLAIN = Preprocessing(SIZE, 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def cells() -> Encoder:
    """Two layers: the mean colour, and mean colours of a 4 x 4 grid."""
    return Stub(SIZE, mean_colour(16), grid_colours(4), width=48, stride=8)


def of(source: Source) -> Images:
    assert source.labels is not None
    return Images(CanvasSet(source, SIZE), torch.arange(len(source)), torch.from_numpy(source.labels))


def subjects(train: Source, test: Source, encoder: Encoder | None = None) -> Subjects:
    network = cells() if encoder is None else encoder
    fitted, judged = of(train), of(test)
    features = [
        extract(network, images.canvases, np.arange(len(images)), layers=tuple(range(1, network.depth)))
        for images in (fitted, judged)
    ]
    last = (network.depth, "mean")
    train_features, test_features = (
        replace(part, vectors={last: part.vectors[last]}, parts=part.vectors) for part in features
    )
    return Subjects(network, train_features, fitted, test_features, judged, CPU)


@pytest.fixture(scope="module")
def world() -> Subjects:
    return subjects(Playground(160, size=SIZE), Playground(120, size=SIZE, split="test"))


def coloured(n: int) -> Source:
    """Two classes that differ in brightness, with noise."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 80, (n, SIZE, SIZE, 3)) + 120 * (np.arange(n) % 2)[:, None, None, None]
    return open_source([(image.astype(np.uint8), i % 2) for i, image in enumerate(images)])


# --- what the numbers are made of


def test_cosines_and_invariance() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 5, generator=rng), torch.randn(7, 5, generator=rng)
    table = cosine_similarity(x.numpy(), y.numpy())
    np.testing.assert_allclose(cosines(x, y).numpy(), table.diagonal(), atol=1e-6)
    own = cosine_similarity(x.numpy())
    expected = own[~np.eye(7, dtype=bool)].mean()
    assert cosine_of_others(x) == pytest.approx(expected, abs=1e-6)
    assert invariance(torch.tensor([1.0, 0.4]), 0.4).tolist() == pytest.approx([1.0, 0.0])


def test_answers_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(300, 4)))
    labels = (x @ torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=x.dtype) > 0).long()
    one, other = torch.from_numpy(rng.normal(size=(200, 4))), torch.from_numpy(rng.normal(size=(60, 4)))
    found = answers(x, labels, [one, other], 0)
    assert [len(part) for part in found] == [200, 60]
    mean, std = x.mean(0), x.std(0, correction=0)
    c = float(linear(x, labels, one)[0].settings["C"])
    oracle = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(((x - mean) / std).numpy(), labels.numpy())
    for part, answer in zip((one, other), found, strict=True):
        np.testing.assert_array_equal(answer.numpy(), oracle.predict(((part - mean) / std).numpy()))


def test_kept_is_a_ratio_of_means() -> None:
    before, after = np.array([1.0, 1.0, 1.0, 0.0] * 20), np.array([1.0, 0.5, 0.0, 0.0] * 20)
    value, low, high = kept(after, before, seed=0)
    assert value == pytest.approx(0.5)
    assert low < value < high and high - low < 0.4
    assert kept(before, before, seed=0) == (1.0, 1.0, 1.0)


def test_probes_near_chance_are_said_to_be() -> None:
    labels = torch.arange(200) % 4
    assert near_chance("x", torch.arange(200) % 3 > 0, labels) == ""
    said = near_chance("x", torch.arange(200) % 4 == 0, labels)
    assert said.startswith(
        "x: on images as they are the probe is hardly better than chance (25 % right, 25 %"
    )


# --- corruptions


def test_corruptions_are_the_packages_and_repeat() -> None:
    package = needs("imagecorruptions")
    images = squares(of(coloured(4)), PLAIN)
    assert tuple(package.get_corruption_names()) == KINDS
    for kind in KINDS:
        if kind == "glass_blur":  # compiles for seconds
            continue
        found = corrupted(images[:2], kind, [1, 5], seed=3)
        assert found.shape == images[:2].shape and found.dtype == np.uint8
        assert not np.array_equal(found, images[:2])
        np.testing.assert_array_equal(corrupted(images[:2], kind, [1, 5], seed=3), found)
    for kind in ("contrast", "jpeg_compression", "pixelate", "brightness", "defocus_blur"):  # draw nothing
        expected = package.corrupt(images[1], severity=4, corruption_name=kind)
        np.testing.assert_array_equal(corrupted(images[1:2], kind, [4], seed=0)[0], expected)
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.rand(3)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    corrupted(images[:1], "gaussian_noise", [3], seed=0)
    np.testing.assert_array_equal(np.random.rand(3), expected)  # noqa: NPY002 - it draws on where it was
    other = corrupted(images[:1], "gaussian_noise", [3], seed=1)
    assert not np.array_equal(corrupted(images[:1], "gaussian_noise", [3], seed=0), other)


def test_gaussian_noise_has_the_published_deviations() -> None:
    needs("imagecorruptions")
    grey = np.full((5, 64, 64, 3), 128, dtype=np.uint8)
    found = corrupted(grey, "gaussian_noise", [1, 2, 3, 4, 5], seed=0).astype(float) / 255
    for image, published in zip(found[:2], (0.08, 0.12), strict=True):  # larger ones are clipped
        assert image.std() == pytest.approx(published, rel=0.05)
    assert (np.diff([image.std() for image in found]) > 0).all()


def test_severities_take_turns() -> None:
    turns = np.array([severities_in_turn(50, kind) for kind in KINDS])
    assert (np.sort(np.unique(turns, return_counts=True)[1]) == 150).all()
    for row in (*turns, *turns.T):
        assert len(set(np.unique(row, return_counts=True)[1])) == 1


def test_a_corruption_that_changes_nothing_keeps_everything(
    world: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corruptions_module, "corrupted", lambda images, kind, severities, *, seed: images)
    top_1, kept_share, same = corruptions(world)[2, "mean"]
    assert top_1.value == pytest.approx(float(top_1.settings["clean"]) / 100, abs=0.02)
    assert kept_share.value == pytest.approx(1.0, abs=0.05)
    assert same.value == pytest.approx(1.0, abs=1e-3)
    assert abs(float(top_1.settings["relative_mCE"])) < 2


def test_corruptions_that_leave_nothing_cost_everything(
    world: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def black(images: np.ndarray, kind: str, severities: list[int], *, seed: int) -> np.ndarray:
        return np.zeros_like(images) if kind == "fog" else images

    monkeypatch.setattr(corruptions_module, "corrupted", black)
    top_1, _, same = corruptions(world)[2, "mean"]
    # of a single answer for every image, one tenth is right: classes are balanced
    assert top_1.details["fog"] == pytest.approx(10.0)
    others = [top_1.details[kind] for kind in KINDS if kind != "fog"]
    assert top_1.value == pytest.approx((np.sum(others) + 10.0) / 1500)
    assert float(top_1.settings["mCE"]) == pytest.approx(100 - 100 * top_1.value)
    assert same.details["fog"] < 99 < same.details["snow"]


def test_what_corruptions_need(world: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    small = cells()
    small.preprocessing = Preprocessing(16, 1.0)
    with pytest.raises(Inapplicable, match="32 pixels and more, and this encoder sees 16"):
        corruptions(replace(world, encoder=small))
    with pytest.raises(ValueError, match="there is no corruption 'rain'"):
        corrupted(np.zeros((1, 32, 32, 3), np.uint8), "rain", [1], seed=0)
    with pytest.raises(ValueError, match="these have 16"):
        corrupted(np.zeros((1, 16, 16, 3), np.uint8), "fog", [1], seed=0)

    def missing(images: np.ndarray, kind: str, severities: list[int], *, seed: int) -> np.ndarray:
        raise ImportError('pip install "visrep[corruptions]"')

    monkeypatch.setattr(corruptions_module, "corrupted", missing)
    with pytest.raises(Inapplicable, match=r"visrep\[corruptions\]"):
        judge_robust("trained", world, "corruptions")


# --- moves


def picture() -> Canvases:
    """A smooth picture of 60 x 40 pixels on a square canvas."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 3, 6, 6))).float()
    wide = torch.nn.functional.interpolate(coarse, (64, 64), mode="bicubic").clamp(0, 1)
    return Canvases((wide * 255).byte(), torch.tensor([[40.0, 60.0]]), torch.arange(1))


def test_a_moved_window_is_scikit_images_warp() -> None:
    canvases, move = picture(), Move(right=0.05, down=-0.08, degrees=20, zoom=1.3)
    found = windows(canvases, [move], PLAIN)[0].permute(1, 2, 0).numpy()
    # window -> true pixels -> canvas, in scikit-image's pixel centres, at twice the size and then averaged
    side = WINDOW * 40.0
    fine = 2 * SIZE
    turn = np.deg2rad(move.degrees)
    to_unit = np.array([[1 / fine, 0, 0.5 / fine - 0.5], [0, 1 / fine, 0.5 / fine - 0.5], [0, 0, 1]])
    turned = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    zoomed = np.diag([1 / move.zoom, 1 / move.zoom, 1])
    moved = np.array([[1, 0, move.right], [0, 1, move.down], [0, 0, 1]])
    to_canvas = np.array([[side * 64 / 60, 0, 31.5], [0, side * 64 / 40, 31.5], [0, 0, 1]])
    matrix = to_canvas @ moved @ zoomed @ turned @ to_unit
    image = canvases.pixels[0].permute(1, 2, 0).numpy() / 255
    large = warp(image, AffineTransform(matrix=matrix), output_shape=(fine, fine), order=1, mode="edge")
    expected = large.reshape(SIZE, 2, SIZE, 2, 3).mean((1, 3))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_moves_do_what_they_say() -> None:
    canvases = picture()
    rest = windows(canvases, [Move()], PLAIN)
    turned = windows(canvases, [Move(degrees=90)], PLAIN)
    torch.testing.assert_close(turned, rest.rot90(1, (2, 3)), atol=1e-4, rtol=0)
    step = 4 / SIZE
    moved = windows(canvases, [Move(right=step)], PLAIN)
    torch.testing.assert_close(moved[..., :-4], rest[..., 4:], atol=1e-4, rtol=0)
    down = windows(canvases, [Move(down=step)], PLAIN)
    torch.testing.assert_close(down[..., :-4, :], rest[..., 4:, :], atol=1e-4, rtol=0)
    zoomed = windows(canvases, [Move(zoom=1.5)], PLAIN)
    both = Canvases(canvases.pixels.repeat(2, 1, 1, 1), canvases.sizes.repeat(2, 1), torch.arange(2))
    together = windows(both, [Move(), Move(zoom=1.5)], PLAIN)
    torch.testing.assert_close(together, torch.cat([rest, zoomed]))
    for far in (Move(degrees=45), Move(zoom=WINDOW), Move(right=0.2)):
        assert not torch.allclose(windows(canvases, [far], PLAIN), rest, atol=0.01)
    with pytest.raises(ValueError, match=r"0\.5 is the border"):
        Move(right=0.3)
    with pytest.raises(ValueError, match="Move less or zoom in"):
        Move(zoom=0.6)


def test_the_window_at_rest_is_the_centre() -> None:
    """Against our own views, which crop and resize with other kernels."""
    canvases = picture()
    small = replace(PLAIN, ratio=WINDOW)
    torch.testing.assert_close(windows(canvases, [Move()], PLAIN), center(canvases, small), atol=0.03, rtol=0)


def test_agreement_by_chance_is_counted() -> None:
    first, second = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 1])
    pairs = [(int(a) == int(b)) for a in first for b in second]
    assert agreement_by_chance(first, second) == pytest.approx(float(np.mean(pairs)))


def test_shifts_of_a_single_colour_change_nothing() -> None:
    rng = np.random.default_rng(0)
    flat = np.broadcast_to(rng.integers(0, 256, (40, 1, 1, 3), dtype=np.uint8), (40, SIZE, SIZE, 3))
    source = open_source([(image.copy(), int(image[0, 0, 0] > 127)) for image in flat])
    consistency, *curves = shifts(subjects(source, source))[2, "mean"]
    assert consistency.value == 1.0
    assert [curve.value for curve in curves] == pytest.approx([1.0] * 3, abs=1e-5)


def test_shifts_of_pictures(world: Subjects) -> None:
    consistency, *curves = shifts(world)[2, "mean"]
    assert [m.metric for m in curves] == [
        f"{kind} invariance" for kind in ("translation", "rotation", "scale")
    ]
    assert float(consistency.settings["by_chance"]) < 100 * consistency.value < 100
    translation, rotation, _ = curves
    steps = [translation.details[far] for far in ("0.025", "0.05", "0.1", "0.2")]
    assert steps == sorted(steps, reverse=True) and steps[0] < 100
    turns = [rotation.details[degrees] for degrees in ("5", "15", "30", "45")]
    assert turns == sorted(turns, reverse=True)
    assert 100 * float(rotation.settings["cosine_of_others"]) < turns[-1]
    for measure in curves:
        assert measure.low < measure.value < measure.high <= 1
    assert shifts(world)[2, "mean"][0] == consistency
    assert len({(m.right, m.down) for m in random_moves(50, 0)}) == 50
    assert max(abs(m.right) for m in random_moves(500, 0)) <= 1 / 14


# --- swaps


def test_swapped_scenes_keep_their_object() -> None:
    images = of(Subset(Playground(40, size=SIZE), np.arange(5, 35)))
    plans, side = scenes(images, "backgrounds")
    assert side == SIZE and [list(SHAPES).index(plan.main.shape) for plan in plans] == images.labels.tolist()
    for before, after in zip(plans, other_backgrounds(plans, 0), strict=True):
        assert after.main is before.main and after.others is before.others
        assert after.backdrop is not before.backdrop
        assert any(after.backdrop is other.backdrop for other in plans)
    for before, after in zip(plans, other_textures(plans, 0), strict=True):
        assert after.main.texture != before.main.texture
        assert replace(after.main, texture=before.main.texture) == before.main
        assert after.backdrop is before.backdrop
    with pytest.raises(Inapplicable, match="only the playground can"):
        scenes(of(coloured(4)), "backgrounds")


def _named(measures: list[Measure]) -> dict[str, Measure]:
    return {measure.metric: measure for measure in measures}


@pytest.mark.parametrize("cue", ["shape", "texture"])
def test_cue_conflict_tells_what_decides(cue: str, world: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that sees only one of the two: the cue is one bright cell."""
    from visrep.evaluation.robustness import swaps

    names = {"shape": list(SHAPES), "texture": list(swaps.TEXTURES)}[cue]

    def coded(plan: Plan, side: int) -> np.ndarray:
        value = names.index(plan.main.shape if cue == "shape" else plan.main.texture)
        image = np.zeros((side, side, 3), np.uint8)
        row, column = 8 * (value // 4), 8 * (value % 4)  # one of the encoder's cells
        image[row : row + 8, column : column + 8] = 255
        return image

    monkeypatch.setattr(swaps, "draw", coded)
    found = _named(backgrounds(world)[2, "mean"])
    follows = found["follows shape"]
    assert follows.value == (1.0 if cue == "shape" else 0.0)
    assert follows.details[cue] == 100 and follows.details["neither"] == 0


def test_backgrounds(world: Subjects) -> None:
    found = _named(backgrounds(world)[2, "mean"])
    assert list(found) == [
        "other background, top-1", "other background, kept", "other texture, top-1", "other texture, kept",
        "follows shape",
    ]  # fmt: skip
    unchanged = float(found["other background, top-1"].settings["unchanged"]) / 100
    for what in ("background", "texture"):
        top_1, kept_share = found[f"other {what}, top-1"], found[f"other {what}, kept"]
        assert kept_share.value == pytest.approx(top_1.value / unchanged)
    shares = found["follows shape"].details
    assert sum(shares[name] for name in ("shape", "texture", "neither")) == pytest.approx(100)
    assert _named(backgrounds(world)[2, "mean"]) == found


def test_textured_scenes_have_these_textures() -> None:
    plans = [Playground(3, size=SIZE).plan(i) for i in range(3)]
    assert [p.main.texture for p in textured(plans, ["dotted", "plain", "wavy"])] == [
        "dotted",
        "plain",
        "wavy",
    ]


# --- layers


def test_layers_out_of_distribution(world: Subjects) -> None:
    found = ood_layers(world)
    assert list(found) == [(1, "mean"), (2, "mean")]
    for measures in found.values():
        assert [m.metric for m in measures] == ["out of distribution", "in distribution"]
        assert all(m.settings == {"changed": "other backgrounds"} for m in measures)
    # where nothing else differs, the background is in the mean colour: that of the whole image cannot survive
    rows = world.chosen("ood-layers")
    labels = world.train.labels
    assert labels is not None
    ((said),) = answers(world.train.parts[1, "mean"], labels, [world.judged.parts[1, "mean"][rows]], 0)
    right = float((said == world.test.labels[rows]).double().mean())
    assert found[1, "mean"][1].value == pytest.approx(right)


def test_other_images_are_corrupted_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    from visrep.evaluation.robustness import ood_layers as module

    def mark(images: np.ndarray, kind: str, severities: list[int], *, seed: int) -> np.ndarray:
        marks = np.array([10 * KINDS.index(kind) + severity for severity in severities], np.uint8)
        return np.broadcast_to(marks[:, None, None, None], images.shape)

    monkeypatch.setattr(module, "corrupted", mark)
    marks = mixed(np.zeros((152, 2, 2, 3), np.uint8), seed=0)[:, 0, 0, 0].tolist()
    assert [m // 10 for m in marks] == [i % 15 for i in range(152)]
    for kind in range(15):
        severities = [m % 10 for m in marks if m // 10 == kind][:10]
        assert sorted(severities) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_layers_of_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    from visrep.evaluation.robustness import ood_layers as module

    monkeypatch.setattr(module, "mixed", lambda images, *, seed: images)
    monkeypatch.setattr(corruptions_module, "corrupted", lambda images, kind, severities, *, seed: images)
    source = coloured(40)
    for outside, inside in ood_layers(subjects(source, source)).values():
        assert outside.settings == {"changed": "corrupted"}
        assert outside.value == inside.value == 1.0  # brightness tells the class, and nothing was changed


# --- together


def test_protocols_know_them() -> None:
    check_protocols(tuple(ROBUST))
    every, lenient = without_all(("all",))
    assert lenient and set(ROBUST) <= set(every)


@pytest.mark.parametrize("protocol", list(ROBUST))
def test_all_of_them_need_images(protocol: str, world: Subjects) -> None:
    few = replace(world, test=world.test.rows(torch.arange(5)))
    with pytest.raises(Inapplicable, match="at least 20 test images, there are 5"):
        ROBUST[protocol](few)


def test_clips_are_left_out(world: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.test.canvases.source, "frames", 4)
    for protocol in ROBUST.values():
        with pytest.raises(Inapplicable, match="these are clips"):
            protocol(world)


def test_normalised_is_what_center_gives() -> None:
    images = of(coloured(4))
    expects = Preprocessing(SIZE, 1.0)
    found = normalised(squares(images, expects), expects)
    torch.testing.assert_close(found, center(images.canvases.get(np.arange(4)), expects), atol=0.02, rtol=0)


def test_evaluate_adds_them_with_a_twin() -> None:
    from visrep.encoders import ViT

    torch.manual_seed(0)
    encoder = ViT(image=SIZE, patch=8, width=24, depth=2, heads=2).build().eval()
    encoder.preprocessing = Preprocessing(SIZE, ratio=1.0)
    train, test = Playground(60, size=SIZE), Playground(60, size=SIZE, split="test")
    found = evaluate(encoder, train, test, protocols=("ood-layers",))
    of_each = {(r.encoder, r.layer, r.metric) for r in found.results}
    assert of_each == {
        (who, layer, f"{where} distribution")
        for who in ("trained", "untrained") for layer in (1, 2) for where in ("in", "out of")
    }  # fmt: skip
