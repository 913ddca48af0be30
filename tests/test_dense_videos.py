"""Labels carried through a video: against DINO's published code and loops; J and F against the code of DAVIS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visrep.data.dense import nearest
from visrep.evaluation.dense import propagation as module
from visrep.evaluation.dense.boundaries import boundary_f, jaccard, outline
from visrep.evaluation.dense.propagation import Propagation, carried, decided, step

GOLDEN = Path(__file__).parent / "golden" / "dense_free.npz"
"""see golden/README_dense_free.md"""


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def one_hot(labels: np.ndarray) -> Tensor:
    return F.one_hot(torch.from_numpy(labels.astype(np.int64)).flatten()).double()


@pytest.mark.parametrize("largest", [2**24, 1])
def test_a_video_is_labelled_as_published(
    golden: dict[str, Any], largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All frames at once, and a row of patches at a time."""
    monkeypatch.setattr(module, "LARGEST", largest)
    features = torch.from_numpy(golden["propagation.features"]).double()
    grid = (features.shape[1], features.shape[2])
    shape = golden["propagation.first"].shape
    first = one_hot(golden["propagation.small"])
    shares = list(carried(features.flatten(1, 2), first, grid, Propagation(radius=3)))
    predicted = [nearest(decided(each, grid, (40, 52)).numpy(), shape) for each in shares]
    assert (np.stack(predicted) == golden["propagation.predicted"]).all()
    assert len(np.unique(golden["propagation.predicted"])) == 3


def test_shares_are_the_published_ones(golden: dict[str, Any]) -> None:
    features = F.normalize(torch.from_numpy(golden["propagation.features"]).double(), dim=-1).flatten(1, 2)
    grid = golden["propagation.small"].shape
    first = one_hot(golden["propagation.small"])
    moved = first.unflatten(0, grid).roll(1, 1).flatten(0, 1)
    labels = torch.stack([first, moved])
    shares = step(features[2], features[:2], labels, grid, Propagation(radius=3))
    wanted = torch.from_numpy(golden["propagation.soft"]).flatten(1).T
    torch.testing.assert_close(shares, wanted, rtol=0, atol=1e-12)


def test_a_step_in_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    h, w, t, k, radius, tau = 4, 5, 3, 3, 1, 0.2
    x = F.normalize(torch.randn(t + 1, h * w, 6, generator=generator, dtype=torch.float64), dim=-1)
    labels = torch.rand(t, h * w, 2, generator=generator, dtype=torch.float64)
    wanted = torch.zeros(h * w, 2, dtype=torch.float64)
    for p in range(h * w):
        near = [
            (float(x[t, p] @ x[s, q]), s, q)
            for s in range(t)
            for q in range(h * w)
            if abs(p // w - q // w) <= radius and abs(p % w - q % w) <= radius
        ]
        best = sorted(near, reverse=True)[:k]
        weights = np.exp([cosine / tau for cosine, _, _ in best])
        for weight, (_, s, q) in zip(weights / weights.sum(), best, strict=True):
            wanted[p] += weight * labels[s, q]
    found = step(x[t], x[:t], labels, (h, w), Propagation(radius=radius, temperature=tau, nearest=k))
    torch.testing.assert_close(found, wanted)


def test_a_still_video_keeps_its_labels() -> None:
    """Distinct patches that do not change: each finds itself, so nothing is lost at a low temperature."""
    x = torch.eye(30, dtype=torch.float64)
    labels = one_hot(np.arange(30) % 3)
    frames = carried([x] * 12, labels, (5, 6), Propagation(temperature=0.01))
    for shares in frames:
        torch.testing.assert_close(shares, labels, rtol=0, atol=1e-9)


def test_only_the_first_and_some_frames_before_count() -> None:
    """A label that only frame 2 has is gone once frame 2 is too far back."""
    x = torch.ones(1, 2)
    first = torch.tensor([[1.0, 0.0]])
    settings = Propagation(before=2)
    lasting = list(carried([x] * 6, first, (1, 1), settings))
    assert all((shares == first).all() for shares in lasting)
    assert len(lasting) == 5


def test_j_and_f_are_those_of_davis(golden: dict[str, Any]) -> None:
    pairs = [*zip(golden["davis.predicted"], golden["davis.true"], strict=True)]
    pairs.append((golden["davis.large.predicted"], golden["davis.large.true"]))
    f = [*golden["davis.F"].tolist(), golden["davis.large.F"].item()]
    j = [*golden["davis.J"].tolist(), golden["davis.large.J"].item()]
    assert [boundary_f(*pair) for pair in pairs] == pytest.approx(f, abs=1e-12)
    assert [jaccard(*pair) for pair in pairs] == pytest.approx(j, abs=1e-12)
    assert 0 in f and len(set(f)) == 7


def test_f_in_loops() -> None:
    rng = np.random.default_rng(0)
    one, other = np.zeros((2, 14, 17), dtype=bool)
    one[3:9, 4:12] = True
    other[4:11, 3:9] = True
    one ^= rng.random(one.shape) < 0.03

    def points(mask: np.ndarray) -> list[tuple[int, int]]:
        h, w = mask.shape
        return [
            (y, x)
            for y in range(h)
            for x in range(w)
            if any(
                mask[y, x] != mask[min(y + dy, h - 1), min(x + dx, w - 1)]
                for dy, dx in ((0, 1), (1, 0), (1, 1))
            )
        ]

    def matched(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> float:
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= 9 for v, u in others) for y, x in some) / len(some)

    precision, recall = matched(points(one), points(other)), matched(points(other), points(one))
    wanted = 2 * precision * recall / (precision + recall)
    assert sorted(zip(*np.nonzero(outline(one)), strict=True)) == points(one)
    assert boundary_f(one, other, tolerance=2.5 / np.hypot(14, 17)) == pytest.approx(wanted)
    assert 0.3 < wanted < 0.99


def test_f_of_empty_masks() -> None:
    empty, full = np.zeros((5, 6), dtype=bool), np.ones((5, 6), dtype=bool)
    some = empty.copy()
    some[1:3, 1:3] = True
    assert boundary_f(empty, empty) == boundary_f(full, full) == 1.0
    assert boundary_f(empty, some) == boundary_f(some, full) == 0.0
    assert jaccard(empty, empty) == 1.0 and jaccard(empty, some) == 0.0
    assert boundary_f(some, some) == jaccard(some, some) == 1.0
