"""Masks: those of the published generators in distribution, and of a plain loop one by one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visrep.masking import ATTEMPTS, block_mask, check_ratios, exact_mask, spread_ratios

with np.load(Path(__file__).parent / "golden" / "masking.npz") as stored:
    GOLDEN = {name.removeprefix("stats."): stored[name] for name in stored.files}

GRID = (14, 14)
N = 4000


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alike(ours: Tensor, theirs: np.ndarray, sigmas: float = 4.5) -> None:
    """Mean and deviation agree up to what chance explains."""
    a, b = ours.double().numpy(), theirs.astype(float)
    error = math.sqrt(a.var() / a.size + b.var() / b.size)
    assert abs(a.mean() - b.mean()) <= sigmas * error, (a.mean(), b.mean(), error)
    # The variance of a variance, from the fourth moment, also for counts that nearly always are the greatest.
    spread = [((x - x.mean()) ** 2).var() / x.size for x in (a, b)]
    assert abs(a.var() - b.var()) <= sigmas * math.sqrt(sum(spread)), (a.var(), b.var(), spread)


def blocks(count: Tensor, smallest: float) -> Tensor:
    return block_mask(noise(len(count), ATTEMPTS, 4), count, GRID, smallest=smallest)


def test_blocks_are_those_of_beit():
    mask = blocks(torch.full((N,), 75.0), smallest=16)
    alike(mask.sum(1), GOLDEN["beit_count"])
    alike(mask.sum(1) == 75, GOLDEN["beit_count"] == 75)
    share, theirs = mask.double().mean(0).numpy(), GOLDEN["beit_freq"].flatten()
    error = np.sqrt(theirs * (1 - theirs) * (1 / N + 1 / len(GOLDEN["beit_count"])))
    assert (np.abs(share - theirs) < 4.5 * error).all()
    assert 0.5 < np.square((share - theirs) / error).mean() < 1.5  # no more and no less than chance


@pytest.mark.parametrize("row", range(5))
def test_blocks_are_those_of_dinov2(row: int):
    asked = GOLDEN["dinov2_requested"][row].item()
    count = blocks(torch.full((N,), float(asked)), smallest=4).sum(1)
    alike(count, GOLDEN["dinov2_count"][row])
    assert count.max() == asked


@pytest.mark.parametrize("name", ["0.3_0.2", "mix0_0.3"])
def test_blocks_are_those_of_ibot(name: str):
    u = noise(N, 2, seed=1)
    masked = u[:, 0] < (0.5 if name.startswith("mix") else 1)
    count = torch.where(masked, 0.1 + 0.4 * u[:, 1], 0.0) * 196
    alike(blocks(count, smallest=16).sum(1), GOLDEN[f"ibot_block_{name}_count"])


def test_single_patches_are_those_of_ibot():
    count = (0.1 + 0.4 * noise(N, seed=1)) * 196
    mask = exact_mask(noise(N, 196), count)
    assert torch.equal(mask.sum(1), count.long())
    alike(mask.sum(1), GOLDEN["ibot_rand_0.3_0.2_count"])


def test_ratios_and_blocks_together_are_those_of_dinov2s_batches():
    drawn = [spread_ratios(noise(64, 2, seed=i), 0.5, (0.1, 0.5)) for i in range(30)]
    count = blocks((torch.cat(drawn) * 196).floor(), smallest=4).sum(1).view(30, 64)
    theirs = GOLDEN["dinov2_collate_counts"]
    assert ((count == 0).sum(1) == 32).all() and ((theirs == 0).sum(1) == 32).all()
    # Sorted, batches hardly differ: each masked crop has a part of the range of its own.
    ours = count.sort(1).values[:, 32:].double().mean(0).numpy()
    np.testing.assert_allclose(ours, np.sort(theirs)[:, 32:].mean(0), atol=1.5)


def plain_block_mask(u: Tensor, count: float, grid: tuple[int, int], smallest: float) -> Tensor:
    """One image, one attempt after the other, patch by patch."""
    rows, columns = grid
    mask, tries = torch.zeros(grid, dtype=torch.bool), iter(u.tolist())
    while int(mask.sum()) < count:
        room = count - int(mask.sum())
        for _ in range(10):
            numbers = next(tries, None)
            if numbers is None:
                return mask.flatten()
            area, aspect, down, across = numbers
            area = smallest + area * (room - smallest)
            aspect = math.exp(math.log(0.3) + aspect * (math.log(1 / 0.3) - math.log(0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= rows or w >= columns:
                continue
            top, left = math.floor(down * (rows - h + 1)), math.floor(across * (columns - w + 1))
            places = [(i, j) for i in range(top, top + h) for j in range(left, left + w) if not mask[i, j]]
            if 0 < len(places) <= room:
                for i, j in places:
                    mask[i, j] = True
                break
        else:
            break
    return mask.flatten()


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (4, 4), (3, 9)])
def test_blocks_equal_a_plain_loop(grid: tuple[int, int]):
    n = grid[0] * grid[1]
    count, tries = n * 0.6 * noise(60, seed=1), noise(60, 40, 4)
    masks = block_mask(tries, count, grid, smallest=4)
    for i in range(60):
        assert torch.equal(masks[i], plain_block_mask(tries[i], count[i].item(), grid, 4)), i


def test_attempts_suffice():
    tries, count = noise(N, 4 * ATTEMPTS, 4), (0.1 + 0.4 * noise(N, seed=1)) * 196
    few, many = (block_mask(u, count, GRID, smallest=4) for u in (tries[:, :ATTEMPTS], tries))
    assert (few != many).any(1).double().mean() < 0.001


def test_each_image_has_its_own_mask():
    tries, count = noise(6, ATTEMPTS, 4), torch.tensor([0.0, 5, 10, 20, 30, 40])
    masks = block_mask(tries, count, (8, 8), smallest=4)
    assert not masks[0].any()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(block_mask(tries[order], count[order], (8, 8), smallest=4), masks[order])


def test_exact_masks_add_and_take_away():
    start = block_mask(noise(200, ATTEMPTS, 4), torch.full((200,), 30.0), (8, 8), smallest=4)
    for count in (5, 64, 36):
        mask = exact_mask(noise(200, 64, seed=1), torch.full((200,), float(count)), start)
        assert (mask.sum(1) == count).all()
        kept = (mask & start).sum(1)
        assert torch.equal(kept, start.sum(1).clamp(max=count))


def test_spread_ratios_fill_the_range():
    ratios = spread_ratios(noise(20, 2), 0.5, (0.1, 0.5))
    masked = ratios[ratios > 0].sort().values
    edges = torch.linspace(0.1, 0.5, 11, dtype=torch.float64)
    assert len(masked) == 10 and ((edges[:-1] <= masked) & (masked <= edges[1:])).all()
    assert not torch.equal(ratios[ratios > 0], masked)  # in no order
    assert (spread_ratios(noise(20, 2), 1.0, (0.1, 0.5)) > 0).all()


def test_bad_settings_say_what_to_change():
    with pytest.raises(ValueError, match="smaller patch"):
        block_mask(noise(2, 5, 4), torch.ones(2), (1, 7), smallest=1)
    with pytest.raises(ValueError, match="masks none of 4 crops"):
        spread_ratios(noise(4, 2), 0.2, (0.1, 0.5))
    with pytest.raises(ValueError, match="mask_probability=0"):
        check_ratios(0.0, (0.1, 0.5))
    for ratio in ((0.5, 0.1), (0.0, 0.5), (0.1, 1.0)):
        with pytest.raises(ValueError, match="mask_ratio"):
            check_ratios(0.5, ratio)
