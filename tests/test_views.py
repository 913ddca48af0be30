"""Views: each operation against torchvision's, what is drawn against what torchvision draws, independence of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from _torchvision import functional, v2
from visrep.config import from_json, to_json
from visrep.method import At, Batch, Canvases
from visrep.views import MultiCrop, OneView, Recipe, TwoViews, View, center, colour, draw, parameters
from visrep.views.geometry import Resize, make_axes, plan_resize, transform
from visrep.views.parameters import NUMBERS, ORDERS, Parameters, draw_parameters
from visrep.views.render import render

CPU = torch.device("cpu")
PLAIN = View(size=32, flip=0, jitter=0, gray=0, blur=0)
BUSY = View(
    size=32,
    jitter=0.8,
    gray=0.2,
    blur=0.5,
    solarize=0.3,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.2,
)


def canvases(b: int, s: int, *, size: tuple[float, float] | None = None, seed: int = 0) -> Canvases:
    """Smooth random images: noise alone would hide what resizing does."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(b, 3, s // 4, s // 4, generator=rng)
    pixels = torch.nn.functional.interpolate(coarse, (s, s), mode="bilinear")
    pixels = (pixels * 0.8 + 0.2 * torch.rand(b, 3, s, s, generator=rng)).mul(255).to(torch.uint8)
    return Canvases(pixels, torch.tensor([size or (s, s)] * b).float(), torch.arange(b), torch.arange(b) % 3)


def at(seed: int, rank: int = 0, world: int = 1) -> At:
    return At(0, 10, 10, torch.Generator().manual_seed(seed), rank, world)


def resized(
    pixels: Tensor, box: tuple[int, int, int, int], how: Resize, *, mirrored: bool = False, sigma: float = 0.0
) -> Tensor:
    """One box of every image by our matrices."""
    b = len(pixels)
    y, x = make_axes(
        torch.tensor([box] * b).float(), torch.full((b,), mirrored), torch.full((b,), sigma), how
    )
    return transform(pixels, torch.arange(b), y, x, how)


# --------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("tiles", [1, 4])
@pytest.mark.parametrize(
    "box", [(0, 0, 96, 96), (3, 40, 91, 17), (70, 5, 2, 1), (10, 20, 33, 60), (95, 95, 1, 1)]
)
def test_crop_and_resize_equal_torchvision(interpolation, tiles: int, box) -> None:
    pixels = canvases(2, 96).pixels
    ours = resized(pixels, box, Resize(96, 80, interpolation, 0.0, tiles))
    mode = v2.InterpolationMode(interpolation)
    theirs = functional.resized_crop(
        pixels / 255, *box, size=[80, 80], interpolation=mode, antialias=True
    ).clamp(0, 1)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tiles", [1, 5])
def test_mirrored_crop_is_the_flipped_crop(tiles: int) -> None:
    pixels = canvases(2, 64).pixels
    how = Resize(64, 100, "bicubic", 0.0, tiles)
    ours = resized(pixels, (5, 9, 40, 50), how, mirrored=True)
    torch.testing.assert_close(ours, resized(pixels, (5, 9, 40, 50), how).flip(-1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("tiles", [1, 2, 7])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_torchvision(sigma: float, tiles: int) -> None:
    pixels = canvases(2, 96).pixels
    box = (7, 20, 80, 50)
    ours = resized(pixels, box, Resize(96, 70, "bilinear", 2.0, tiles), sigma=sigma)
    sharp = functional.resized_crop(
        pixels / 255, *box, [70, 70], v2.InterpolationMode.BILINEAR, antialias=True
    )
    reach = int(np.ceil(4 * sigma))
    theirs = functional.gaussian_blur(sharp, [2 * reach + 1] * 2, [sigma] * 2)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_blur_of_a_view_smaller_than_the_kernel_keeps_the_mean_of_a_flat_image() -> None:
    pixels = torch.full((1, 3, 16, 16), 153, dtype=torch.uint8)
    ours = resized(pixels, (0, 0, 16, 16), plan_resize(16, 6, "bicubic", 2.0, CPU), sigma=2.0)
    torch.testing.assert_close(ours, torch.full_like(ours, 0.6), atol=1e-5, rtol=0)


@pytest.mark.parametrize("s", [20, 96, 300])
def test_tiles_make_what_whole_matrices_make(s: int) -> None:
    """Whatever the box, the blur and the size of the canvas: tiles only leave out zeros."""
    n, rng = 40, torch.Generator().manual_seed(14)
    pixels = canvases(n, s).pixels
    length = torch.rand(n, 2, generator=rng).square() * (s - 1) + 1
    boxes = torch.cat([torch.rand(n, 2, generator=rng) * (s - length), length], dim=1)
    mirrored, sigma = torch.rand(n, generator=rng) < 0.5, (torch.rand(n, generator=rng) * 3 - 1).clamp(min=0)
    made = []
    for tiles in (1, 4, 7):
        how = Resize(s, 112, "bicubic", 2.0, tiles)
        y, x = make_axes(boxes, mirrored, sigma, how)
        made.append(transform(pixels, torch.arange(n), y, x, how))
    torch.testing.assert_close(made[1], made[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(made[2], made[0], atol=1e-5, rtol=0)


def test_large_images_are_made_in_tiles_and_small_ones_and_gpus_are_not() -> None:
    assert plan_resize(32, 32, "bicubic", 2.0, CPU).tiles == 1
    assert plan_resize(256, 224, "bicubic", 2.0, CPU).tiles > 1
    assert plan_resize(256, 224, "bicubic", 2.0, torch.device("cuda")).tiles == 1


# --------------------------------------------------------------------------------------------- colour


@pytest.fixture
def image() -> Tensor:
    """Colourful, with some grey, black, white and saturated pixels."""
    image = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    image[:, :, 0] = image[:, :1, 0]
    image[:, :, 1, :8], image[:, :, 1, 8:] = 0, 1
    image[:, 0, 2], image[:, 1, 3], image[:, :2, 4] = 1, 0, 1
    return image


CHANGES: list[tuple[int, Callable[[Tensor, float], Tensor]]] = [
    (parameters.BRIGHTNESS, functional.adjust_brightness),
    (parameters.CONTRAST, functional.adjust_contrast),
    (parameters.SATURATION, functional.adjust_saturation),
    (parameters.HUE, functional.adjust_hue),
]


@pytest.mark.parametrize(("change", "theirs"), CHANGES)
@pytest.mark.parametrize("strength", [-0.5, -0.13, 0.0, 0.3, 0.5])
def test_colour_change_equals_torchvision(image: Tensor, change: int, theirs, strength: float) -> None:
    factor = strength if change == parameters.HUE else 1 + 2 * strength
    expected = theirs(image, factor)
    if change == parameters.HUE:
        colour.turn_hue_(image, torch.full((4, 1, 1), factor))
    else:
        colour.blend_(image, torch.full((4,), change), torch.full((4,), factor))
    torch.testing.assert_close(image.clamp(0, 1), expected, atol=2e-6, rtol=0)


def test_jitter_equals_torchvision_in_every_order() -> None:
    assert sorted(ORDERS.tolist()) == [list(p) for p in permutations(range(4))]
    rng = torch.Generator().manual_seed(2)
    image = torch.rand(24, 3, 16, 16, generator=rng)
    factors = torch.rand(24, 4, generator=rng) * 1.6 + 0.2
    factors[:, parameters.HUE] = torch.rand(24, generator=rng) - 0.5
    theirs = image.clone()
    for i, changes in enumerate(ORDERS.tolist()):
        for change in changes:
            theirs[i] = CHANGES[change][1](theirs[i], factors[i, change].item())
    colour.jitter_(image, factors, torch.arange(24))
    torch.testing.assert_close(image, theirs, atol=1e-5, rtol=0)


def test_gray_solarize_and_normalise_equal_torchvision(image: Tensor) -> None:
    ours = image.clone()
    colour.remove_colour_(ours, torch.tensor([1, 3]))
    torch.testing.assert_close(ours[[1, 3]], functional.rgb_to_grayscale(image[[1, 3]], 3), atol=1e-6, rtol=0)
    assert torch.equal(ours[[0, 2]], image[[0, 2]])
    ours = image.clone()
    colour.solarize_(ours, torch.tensor([0]))
    assert torch.equal(ours, torch.cat([functional.solarize(image[:1], 0.5), image[1:]]))
    ours = image.clone()
    colour.normalise_(ours, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    torch.testing.assert_close(ours, functional.normalize(image, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))


# --------------------------------------------------------------------------------------------- whole views


def by_torchvision(view: View, pixels: Tensor, p: Parameters, *, blur_last: bool) -> Tensor:
    """The views ``p`` one at a time: as the recipes do it (blur last) or in our order (blur with the crop)."""
    s = pixels.shape[-1]
    made = []
    for i in range(len(p.boxes)):
        box = (p.boxes[i] * s).round().int().tolist()
        mode = v2.InterpolationMode(view.interpolation)
        x = functional.resized_crop(
            pixels[i] / 255, *box, size=[view.size] * 2, interpolation=mode, antialias=True
        )
        x = x.flip(-1) if p.flipped[i] else x
        sigma = p.sigma[i].item()
        reach = int(np.ceil(4 * sigma))
        if sigma and not blur_last:
            x = functional.gaussian_blur(x, [2 * reach + 1] * 2, [sigma] * 2)
        x = x.clamp(0, 1)
        for change in ORDERS[p.order[i]].tolist() if p.jittered[i] else []:
            x = CHANGES[change][1](x, p.factors[i, change].item())
        x = functional.rgb_to_grayscale(x, 3) if p.gray[i] else x
        if sigma and blur_last:
            x = functional.gaussian_blur(x, [2 * reach + 1] * 2, [sigma] * 2)
        x = functional.solarize(x, 0.5) if p.solarized[i] else x
        made.append(functional.normalize(x, list(view.mean), list(view.std)))
    return torch.stack(made)


@pytest.mark.parametrize(("size", "s"), [(32, 40), (96, 128)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_whole_view_equals_torchvision(size: int, s: int, interpolation) -> None:
    view = replace(BUSY, size=size, interpolation=interpolation, solarize=0.0)
    images = canvases(40, s)
    numbers = at(3).rand(40, NUMBERS)
    p = draw_parameters(view, images.sizes, numbers)
    ours = draw(OneView(view), images, at(3)).crops[0][0]
    theirs = by_torchvision(view, images.pixels, p, blur_last=False)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    # blurring with the crop instead of after the colours is a small change, even of these noisy images
    usual = by_torchvision(view, images.pixels, p, blur_last=True)
    assert (ours - usual)[p.sigma > 0].abs().mean() * 0.225 < 1.5 / 255


def test_solarised_rows_alone_are_inverted() -> None:
    view = replace(PLAIN, solarize=0.5)
    images = canvases(20, 32)
    p = draw_parameters(view, images.sizes, at(4).rand(20, NUMBERS))
    assert 0 < p.solarized.sum() < 20
    ours = draw(OneView(view), images, at(4)).crops[0][0]
    plain = draw(OneView(PLAIN), images, at(4)).crops[0][0]
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (view.mean, view.std))
    values = plain * std + mean
    expected = torch.where(p.solarized.view(-1, 1, 1, 1) & (values >= 0.5), 1 - values, values)
    torch.testing.assert_close(ours, (expected - mean) / std, atol=1e-5, rtol=0)


def test_boxes_and_flips_say_what_the_crop_shows() -> None:
    """On a canvas whose red is its horizontal and green its vertical position, a crop's centre is its box's."""
    s = 64
    ramp = (torch.arange(s) + 0.5) / s * 255
    pixels = torch.stack([ramp.expand(s, s), ramp[:, None].expand(s, s), torch.zeros(s, s)]).to(torch.uint8)
    images = Canvases(pixels.repeat(50, 1, 1, 1), torch.tensor([[48.0, 100.0]] * 50), torch.arange(50))
    view = replace(PLAIN, flip=0.5, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
    batch = draw(TwoViews(view, view), images, at(5))
    crops, boxes, flipped = (
        batch.crops[0].flatten(0, 1),
        batch.boxes[0].flatten(0, 1),
        batch.flipped[0].flatten(),
    )
    torch.testing.assert_close(crops[:, 0].mean((1, 2)), boxes[:, 1] + boxes[:, 3] / 2, atol=0.01, rtol=0)
    torch.testing.assert_close(crops[:, 1].mean((1, 2)), boxes[:, 0] + boxes[:, 2] / 2, atol=0.01, rtol=0)
    rises = crops[:, 0, :, -1].mean(1) > crops[:, 0, :, 0].mean(1)
    assert torch.equal(rises, ~flipped)
    pixels_of_image = boxes * torch.tensor([48.0, 100.0, 48.0, 100.0])
    torch.testing.assert_close(pixels_of_image, pixels_of_image.round(), atol=1e-4, rtol=0)


# --------------------------------------------------------------------------------------------- distributions


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference between two empirical distribution functions."""
    values = np.unique(np.concatenate([a, b]))
    share = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (a, b)]
    return float(np.abs(share[0] - share[1]).max())


@pytest.mark.parametrize("size", [(40, 60), (32, 32), (20, 200), (200, 20)])
def test_boxes_have_the_distribution_of_random_resized_crop(size: tuple[int, int]) -> None:
    n = 3000
    view = View(scale=(0.3, 1.0)) if size == (32, 32) else View()
    p = draw_parameters(view, torch.tensor([size] * n).float(), at(6).rand(n, NUMBERS))
    ours = (p.boxes * torch.tensor([*size, *size])).round().numpy()
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= np.array(size)).all()
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(32, scale=view.scale, ratio=view.ratio)
    blank = torch.zeros(3, *size)
    drawn = [crop.make_params([blank]) for _ in range(n)]
    theirs = np.array([[d["top"], d["left"], d["height"], d["width"]] for d in drawn])
    for column in range(4):
        # two samples of n differ by more than 1.95 sqrt(2 / n) once in a thousand
        assert ks_distance(ours[:, column], theirs[:, column]) < 1.95 * np.sqrt(2 / n)
    areas = [x[:, 2] * x[:, 3] for x in (ours, theirs)]
    assert ks_distance(*areas) < 1.95 * np.sqrt(2 / n)


def test_box_when_nothing_fits_is_the_largest_central_one_of_an_allowed_ratio() -> None:
    view = View(scale=(1.0, 1.0))
    sizes = torch.tensor([[10.0, 100.0], [100.0, 10.0]])
    boxes = draw_parameters(view, sizes, torch.full((2, NUMBERS), 0.9)).boxes * sizes.repeat(1, 2)
    assert boxes.round().tolist() == [[0, 43, 10, 13], [43, 0, 13, 10]]


def test_colours_are_drawn_as_by_torchvision() -> None:
    n = 3000
    view = View(
        jitter=0.8, brightness=1.5, contrast=0.4, saturation=0.2, hue=0.1, gray=0.2, blur=0.5, solarize=0.1
    )
    p = draw_parameters(view, torch.full((n, 2), 32.0), at(7).rand(n, NUMBERS))
    torch.manual_seed(0)
    jitter = v2.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    drawn = [jitter.make_params([]) for _ in range(n)]
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    for change, name in enumerate(names):
        ours = p.factors[p.jittered, change].numpy()
        assert ks_distance(ours, np.array([float(d[name]) for d in drawn])) < 1.95 * np.sqrt(
            1 / n + 1 / len(ours)
        )
    assert torch.equal(
        p.factors[~p.jittered], torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(int((~p.jittered).sum()), 4)
    )
    counts = torch.bincount(p.order, minlength=24)
    assert len(counts) == 24
    assert ((counts - n / 24) ** 2 / (n / 24)).sum() < 49.7  # chi-squared, 23 degrees: once in a thousand
    for found, probability in (
        (p.flipped, 0.5),
        (p.jittered, 0.8),
        (p.gray, 0.2),
        (p.sigma > 0, 0.5),
        (p.solarized, 0.1),
    ):
        assert abs(found.float().mean() - probability) < 3.3 * np.sqrt(probability * (1 - probability) / n)
    sigma = p.sigma[p.sigma > 0].numpy()
    assert ks_distance(sigma, np.linspace(0.1, 2.0, 10_000)) < 1.95 / np.sqrt(len(sigma))


# --------------------------------------------------------------------------------------------- batches


RECIPES: list[Recipe] = [
    TwoViews(BUSY, replace(BUSY, blur=0.1)),
    MultiCrop(replace(BUSY, solarize=0), BUSY, replace(BUSY, size=16, interpolation="bilinear"), n_local=3),
    OneView(replace(BUSY, size=112)),
]


def same(a: Batch, b: Batch) -> bool:
    pairs = zip((*a.crops, *a.boxes, *a.flipped), (*b.crops, *b.boxes, *b.flipped), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_seed_repeats_and_another_differs(recipe: Recipe) -> None:
    images = canvases(6, 120)
    first = draw(recipe, images, at(8))
    assert same(first, draw(recipe, images, at(8)))
    assert not same(first, draw(recipe, images, at(9)))
    assert all(torch.isfinite(x).all() for x in first.crops)
    assert first.labels is images.labels
    assert torch.equal(first.index, images.index)


@pytest.mark.parametrize("recipe", RECIPES)
def test_two_ranks_make_what_one_makes(recipe: Recipe) -> None:
    images = canvases(8, 120)
    whole = draw(recipe, images, at(10))
    for rank, rows in enumerate((slice(0, 4), slice(4, 8))):
        part = Canvases(images.pixels[rows], images.sizes[rows], images.index[rows])
        assert same(draw(recipe, part, at(10, rank, 2)), whole.rows(rows))


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_image_matters_to_its_own_views_only(recipe: Recipe) -> None:
    images = canvases(7, 120)
    pixels = images.pixels.clone()
    pixels[3] = 255 - pixels[3]
    before, after = draw(recipe, images, at(11)), draw(recipe, replace(images, pixels=pixels), at(11))
    others = torch.tensor([0, 1, 2, 4, 5, 6])
    assert same(before.rows(others), after.rows(others))
    assert all(not torch.equal(x[:, 3], y[:, 3]) for x, y in zip(before.crops, after.crops, strict=True))


def test_views_of_some_rows_do_not_depend_on_the_others() -> None:
    view, images = replace(BUSY, size=96), canvases(9, 128)
    p = draw_parameters(view, images.sizes, at(12).rand(9, NUMBERS))
    whole, part = torch.empty(9, 3, 96, 96), torch.empty(2, 3, 96, 96)
    render((view,), images.pixels, p, out=whole)
    some = torch.tensor([7, 2])
    render((view,), images.pixels[some], p.rows(some), out=part)
    assert torch.equal(part, whole[some])


def test_two_views_of_an_image_differ() -> None:
    crops = draw(TwoViews(BUSY, BUSY), canvases(4, 32), at(13)).crops[0]
    assert (crops[0] - crops[1]).abs().mean() > 0.1


# --------------------------------------------------------------------------------------------- centre


@pytest.mark.parametrize("ratio", [1.0, 0.875])
def test_center_equals_torchvision(ratio: float) -> None:
    images = canvases(3, 64)
    recipe = OneView(View(size=48))
    ours = center(images, replace(recipe.preprocessing, ratio=ratio))
    side = int(64 * ratio)
    theirs = functional.center_crop(images.pixels / 255, [side, side])
    theirs = functional.resize(theirs, [48, 48], v2.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    theirs = functional.normalize(theirs, list(recipe.view.mean), list(recipe.view.std))
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


def test_center_keeps_the_true_aspect() -> None:
    """Of an image twice as wide as high, all rows and the middle half of the columns are seen."""
    s = 64
    ramp = (torch.arange(s) + 0.5) / s * 255
    pixels = torch.stack([ramp.expand(s, s), ramp[:, None].expand(s, s), torch.zeros(s, s)]).to(torch.uint8)
    preprocessing = replace(OneView(PLAIN).preprocessing, mean=(0, 0, 0), std=(1, 1, 1))
    seen = center(Canvases(pixels[None], torch.tensor([[30.0, 60.0]]), torch.tensor([0])), preprocessing)[0]
    across, down = seen[0].mean(0), seen[1].mean(1)
    torch.testing.assert_close(across, torch.linspace(0.25, 0.75, 65)[:64:2] + 0.25 / 32, atol=0.01, rtol=0)
    torch.testing.assert_close(down, (torch.arange(32) + 0.5) / 32, atol=0.015, rtol=0)


# --------------------------------------------------------------------------------------------- recipes


def test_groups_are_global_first_and_know_the_size() -> None:
    large, small = View(size=64), View(size=32)
    recipe = MultiCrop(large, replace(large, solarize=0.2), small, n_local=3)
    assert [len(views) for views in recipe.groups] == [2, 3]
    assert (recipe.size, recipe.preprocessing.size, recipe.preprocessing.ratio) == (64, 64, 1.0)
    assert len(replace(recipe, n_local=0).groups) == 1
    assert OneView(View(size=96)).preprocessing.ratio == 0.875
    batch = draw(recipe, canvases(2, 64), at(0))
    assert [tuple(x.shape) for x in batch.crops] == [(2, 2, 3, 64, 64), (3, 2, 3, 32, 32)]
    assert [tuple(x.shape) for x in batch.boxes] == [(2, 2, 4), (3, 2, 4)]


def test_recipes_survive_json() -> None:
    for recipe in RECIPES:
        assert from_json(to_json(recipe)) == recipe


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: View(size=0), "size=0"),
        (lambda: View(flip=1.5), r"flip=1\.5 is not a probability"),
        (lambda: View(hue=0.6), r"hue=0\.6"),
        (lambda: View(contrast=-1), "contrast=-1 is negative"),
        (lambda: View(scale=(0.5, 0.2)), r"scale=\(0\.5, 0\.2\) is not a range"),
        (lambda: View(scale=(0.5, 2.0)), "at most 1"),
        (lambda: View(std=(1, 0, 1)), "positive"),
        (lambda: TwoViews(View(size=32), View(size=16)), r"first\.size=32, second\.size=16"),
        (lambda: MultiCrop(View(size=32), View(size=16)), r"global_1\.size=32"),
        (lambda: MultiCrop(local=View(mean=(0, 0, 0))), "one mean and std"),
        (lambda: MultiCrop(n_local=-1), "n_local=-1"),
    ],
)
def test_impossible_views_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
