"""Dense protocols without training give the numbers of published evaluation code; see golden/README_dense_judged.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visrep.evaluation.dense.attention_masks import head_overlaps, masks_of
from visrep.evaluation.dense.correspondence import by_image, by_point, correct, matched
from visrep.evaluation.dense.hummingbird import look_up, shares_of
from visrep.evaluation.dense.miou import Counts
from visrep.evaluation.dense.segmentation import named

GOLDEN = Path(__file__).parent / "golden/dense_judged.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def test_hummingbird_is_the_published_search_and_miou(golden: dict[str, np.ndarray]) -> None:
    def read(name: str) -> Tensor:
        return torch.from_numpy(golden[f"hummingbird.{name}"])

    k, side, truth = 4, read("train_masks").shape[-1], read("test_masks")
    values = shares_of(read("train_masks"), (6, 6), k).flatten(0, 1).double()
    keys = F.normalize(read("train").double(), dim=-1).flatten(0, 1)
    found = look_up(read("test").double().flatten(0, 1), keys, values).unflatten(0, (len(truth), 6, 6))
    torch.testing.assert_close(found.flatten(1, 2), read("shares"), atol=1e-9, rtol=0)
    answers = named(found.permute(0, 3, 1, 2).float(), side)
    miou = Counts.of(answers, truth, k).iou().mean()
    assert float(miou) == pytest.approx(float(golden["hummingbird.miou"]), abs=1e-6)
    assert 0.2 < float(miou) < 0.95


def test_attention_masks_and_jaccard_are_the_published_ones(golden: dict[str, np.ndarray]) -> None:
    looks = torch.from_numpy(golden["attention.looks"])
    width = 56
    theirs = np.unpackbits(golden["attention.masks"], axis=-1, count=width).astype(bool)
    foregrounds = np.unpackbits(golden["attention.foreground"], axis=-1, count=width).astype(bool)
    best = []
    for attention, large, foreground in zip(looks, theirs, foregrounds, strict=True):
        mine = masks_of(attention)
        cells = mine.unflatten(1, (5, 7)).numpy()
        np.testing.assert_array_equal(cells.repeat(8, axis=1).repeat(8, axis=2), large)
        best.append(max(head_overlaps(mine, (5, 7), foreground, np.ones_like(foreground))))
    np.testing.assert_allclose(best, golden["attention.jaccard"], atol=1e-6)


def test_correspondence_is_the_published_pck(golden: dict[str, np.ndarray]) -> None:
    rows, columns = golden["correspondence.size"].tolist()
    ends = np.cumsum(golden["correspondence.count"])[:-1]
    # theirs are pixels, columns first; ours places between the borders of pixels, rows first
    points, partners = (
        np.split(golden[f"correspondence.{name}"][:, ::-1] + 0.5, ends) for name in ("points", "partners")
    )
    maps = torch.from_numpy(golden["correspondence.maps"]).double()
    right = [
        correct(matched(source, target, asked, (rows, columns)), true, extent)
        for (source, target), asked, true, extent in zip(
            maps, points, partners, golden["correspondence.extents"].tolist(), strict=True
        )
    ]
    np.testing.assert_allclose(by_image(right)[0], golden["correspondence.by_image"], atol=1e-12)
    assert by_point(right)[0].mean() == pytest.approx(float(golden["correspondence.by_point"]), abs=1e-12)
    assert 0.1 < float(golden["correspondence.by_point"]) < 0.95
