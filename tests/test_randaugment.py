"""RandAugment and random erasing: each operation and what is drawn against timm's (golden/README_randaugment.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visrep.method import At
from visrep.views import Erasing, RandAugment, erase, rand_augment
from visrep.views.erasing import draw_boxes
from visrep.views.randaugment import HIGHEST, OPERATIONS, choose, operate

FILL = (124, 116, 104)
WARPS = ("rotate", "shear-x", "shear-y", "translate-x", "translate-y")


def at(seed: int = 0, rank: int = 0, world: int = 1) -> At:
    return At(0, 1, 1, torch.Generator().manual_seed(seed), rank, world)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "golden" / "randaugment.npz") as arrays:
        return dict(arrays)


def same_share(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two samples differ by no more than chance, 5 standard deviations, in how often each thing occurs."""
    n, m = found.sum(), expected.sum()
    share = (found + expected) / (n + m)
    deviation = np.sqrt(share * (1 - share) * (1 / n + 1 / m))
    return bool((np.abs(found / n - expected / m) <= 5 * deviation).all())


@pytest.mark.parametrize("number", range(15), ids=OPERATIONS)
def test_operations_are_timms(golden: dict[str, np.ndarray], number: int) -> None:
    """Equal to the last bit; resampled values, which are cut off, are one lower or higher where double precision is."""
    images, name = torch.from_numpy(golden["images"]), OPERATIONS[number]
    for level, expected in zip(golden["levels"], golden["changed"][number], strict=True):
        found = operate(name, images, torch.full((2,), level), FILL)
        off = (found.int() - torch.from_numpy(expected).int()).abs()
        assert off.max() <= (name in WARPS) and (off > 0).float().mean() < 0.015
    whole = operate(name, images, torch.from_numpy(golden["levels"])[:2], FILL)
    alone = operate(name, images[1:], torch.from_numpy(golden["levels"])[1:2], FILL)
    torch.testing.assert_close(whole[1:], alone, atol=0, rtol=0)


def test_operations_and_levels_are_drawn_as_timms(golden: dict[str, np.ndarray]) -> None:
    number, level = choose(RandAugment(), 100_000, at())
    drawn = number >= 0
    assert same_share(np.bincount(number[drawn], minlength=15), golden["operations"])
    assert same_share(np.bincount(drawn.sum(1), minlength=3), golden["done"])
    magnitudes = np.histogram(level[drawn].abs(), bins=np.linspace(6.5, 10.001, 36))[0]
    assert same_share(magnitudes, golden["magnitudes"])
    assert level.abs().max() == HIGHEST and abs(float((level > 0).double().mean()) - 0.5) < 0.01
    first, second = number[drawn.all(1)].T
    pairs = np.bincount(15 * first + second, minlength=225)
    assert same_share(pairs, np.full(225, 10**6))  # with replacement, one independent of the other


def test_operations_follow_each_other(golden: dict[str, np.ndarray]) -> None:
    images, how = torch.from_numpy(golden["images"]).repeat(20, 1, 1, 1), RandAugment()
    number, level = choose(how, 40, at(3))
    expected = images.clone()
    for i in range(40):
        for k in range(2):
            if number[i, k] >= 0:
                name = OPERATIONS[int(number[i, k])]
                expected[i] = operate(name, expected[i : i + 1], level[i : i + 1, k], FILL)[0]
    before = images.clone()
    assert torch.equal(rand_augment(images, how, FILL, at(3)), expected) and torch.equal(images, before)
    parts = [rand_augment(images[r * 20 :][:20], how, FILL, at(3, r, 2)) for r in (0, 1)]
    assert torch.equal(torch.cat(parts), expected), "two ranks are one"
    clips = rand_augment(images[:, None].repeat(1, 3, 1, 1, 1), how, FILL, at(3))
    assert all(torch.equal(clips[:, t], expected) for t in range(3)), "all frames alike"


def test_unknown_operations_are_named() -> None:
    with pytest.raises(ValueError, match=r"no operation 'blur'\. Use one of: autocontrast"):
        operate("blur", torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(1).double(), FILL)


def test_boxes_are_drawn_as_timms(golden: dict[str, np.ndarray]) -> None:
    boxes = draw_boxes(Erasing(), 100_000, 24, 32, at())
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    erased = area > 0
    n = golden["areas"].sum()
    assert same_share(np.array([erased.sum(), 100_000 - erased.sum()]), np.array([n, 200_000 - n]))
    assert same_share(np.bincount(area[erased] // 16, minlength=17), golden["areas"])
    for side, expected in zip(boxes[erased].T, golden["sides"], strict=True):
        assert same_share(np.bincount(side, minlength=33), expected)


def test_boxes_become_noise() -> None:
    images = torch.full((400, 3, 24, 32), 7.0)
    found, boxes = erase(images, Erasing(), at(1)), draw_boxes(Erasing(), 400, 24, 32, at(1))
    noise: list[Tensor] = []
    for image, (top, bottom, left, right) in zip(found, boxes.tolist(), strict=True):
        noise.append(image[:, top:bottom, left:right].flatten())
        rest = image.clone()
        rest[:, top:bottom, left:right] = 7
        assert (rest == 7).all()
    values = torch.cat(noise)
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02 and values.unique().numel() > 1000
    parts = [erase(images[:200], Erasing(), at(1, rank, 2)) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), found), "two ranks are one"
    clips = erase(torch.full((50, 2, 3, 8, 8), 7.0), Erasing(probability=1.0), at())
    assert ((clips[:, 0] != 7) == (clips[:, 1] != 7)).all() and (clips[:, 0] != clips[:, 1]).any()
