"""Objects without labels: LOST and TokenCut against their published code, boxes, attention masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visrep.data.dense import Answers
from visrep.encoders import ResNet, ViT
from visrep.evaluation.dense.attention_masks import head_overlaps, masks_of
from visrep.evaluation.dense.boxes import (
    CENTRE,
    WHOLE,
    Box,
    around,
    connected_to,
    of_instances,
    overlap,
)
from visrep.evaluation.dense.keys import keys_or_tokens, kind_of
from visrep.evaluation.dense.lost import degrees, lost
from visrep.evaluation.dense.objects import counted, foreground, object_classes, true_boxes
from visrep.evaluation.dense.tokencut import second_eigenvector, tokencut
from visrep.evaluation.results import Inapplicable

GOLDEN = Path(__file__).parent / "golden" / "dense_free.npz"
"""see golden/README_dense_free.md"""
CASES = range(4)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def case(golden: dict[str, Any], i: int) -> tuple[Tensor, tuple[int, int]]:
    h, w = golden[f"grid.{i}"].tolist()
    return torch.from_numpy(golden[f"features.{i}"]).double(), (h, w)


def in_cells(box: Box, grid: tuple[int, int]) -> list[float]:
    h, w = grid
    return [box.top * h, box.left * w, box.bottom * h, box.right * w]


@pytest.mark.parametrize("i", CASES)
def test_lost_is_the_published_one(golden: dict[str, Any], i: int) -> None:
    features, grid = case(golden, i)
    found = lost(features, grid)
    assert found.seed == golden[f"lost.seed.{i}"]
    assert degrees(features @ features.T).tolist() == golden[f"lost.degree.{i}"].tolist()
    assert in_cells(found.box, grid) == pytest.approx(golden[f"lost.box.{i}"].tolist())


def test_lost_in_loops() -> None:
    """The paper's description, patch by patch, with an expansion that does not take everything."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5 * 6, 4)) + 0.7 * np.repeat(rng.normal(size=(5, 4)), 6, axis=0)
    degree = [sum(x[p] @ x[q] > 0 for q in range(30) if q != p) for p in range(30)]
    order = sorted(range(30), key=lambda p: (degree[p], p))
    seed = order[0]
    chosen = [p for p in order[:7] if x[p] @ x[seed] > 0]
    region = {p for p in range(30) if sum(x[p] @ x[s] for s in chosen) > 0}
    reached, waiting = {seed}, [seed]
    while waiting:
        p = waiting.pop()
        row, column = divmod(p, 6)
        beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        for q in (6 * r + c for r, c in beside if 0 <= r < 5 and 0 <= c < 6):
            if q in region and q not in reached:
                reached.add(q)
                waiting.append(q)
    found = lost(torch.from_numpy(x), (5, 6), k=7)
    assert found.seed == seed and set(np.flatnonzero(found.region).tolist()) == reached
    assert 1 < len(reached) < 30


@pytest.mark.parametrize("i", CASES)
def test_tokencut_is_the_published_one(golden: dict[str, Any], i: int) -> None:
    features, grid = case(golden, i)
    found = tokencut(features, grid)
    assert found.seed == golden[f"cut.seed.{i}"]
    assert (found.region == golden[f"cut.mask.{i}"]).all()
    assert in_cells(found.box, grid) == pytest.approx(golden[f"cut.box.{i}"].tolist())
    vector, published = second_eigenvector(features), golden[f"cut.vector.{i}"].ravel()
    assert np.abs(np.sign(vector @ published) * vector - published).max() < 1e-9


@pytest.mark.parametrize("search", [lost, tokencut])
def test_a_planted_object_is_found(search: Any) -> None:
    rng = np.random.default_rng(0)
    directions = np.eye(6)[:2]
    truth = np.zeros((12, 16), dtype=bool)
    truth[3:8, 5:11] = True
    x = np.where(truth.reshape(-1, 1), directions[0], directions[1] - 0.3 * directions[0])
    found = search(torch.from_numpy(x + 0.02 * rng.normal(size=x.shape)), (12, 16))
    assert (found.region == truth).all()
    assert found.box == around(truth)


@pytest.mark.parametrize("search", [lost, tokencut])
def test_patches_that_are_all_alike(search: Any) -> None:
    """Of a collapsed encoder: some box, and no error."""
    found = search(torch.zeros(12, 5), (3, 4))
    assert found.region.any() and 0 < found.box.area <= 1


@pytest.mark.parametrize("search", [lost, tokencut])
def test_features_that_do_not_fit(search: Any) -> None:
    with pytest.raises(ValueError, match=r"13 patch features do not fill a grid of 3 x 4"):
        search(torch.zeros(13, 5), (3, 4))


def test_boxes() -> None:
    region = np.zeros((4, 8), dtype=bool)
    region[1:3, 2:6] = True
    assert around(region) == Box(0.25, 0.25, 0.75, 0.75)
    assert overlap(WHOLE, CENTRE) == pytest.approx(0.5) == CENTRE.area
    assert overlap(Box(0, 0, 0.5, 1), Box(0.25, 0, 0.75, 1)) == pytest.approx(1 / 3)
    assert overlap(Box(0, 0, 0.2, 0.2), Box(0.5, 0.5, 1, 1)) == 0
    corner = np.eye(3, dtype=bool)
    assert connected_to(corner, (1, 1)).sum() == 1  # corners do not connect
    with pytest.raises(ValueError, match="no box"):
        around(np.zeros((2, 2), dtype=bool))


def test_true_boxes() -> None:
    instances = np.array([[1, 1, 0, 2], [0, 0, 0, 2], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert of_instances(instances) == [Box(0, 0, 0.75, 0.5), Box(0, 0.75, 0.5, 1)]


def test_true_boxes_of_classes() -> None:
    classes = np.array([[3, 3, 0, 255], [0, 0, 0, 255], [3, 0, 5, 5], [0, 0, 0, 0]])
    names = ("background", "a", "b", "c", "d", "e")
    boxes = [Box(0, 0, 0.25, 0.5), Box(0.5, 0, 0.75, 0.25), Box(0.5, 0.5, 0.75, 1)]
    assert true_boxes(Answers(classes), names) == boxes
    assert foreground(Answers(classes), names).tolist() == np.isin(classes, (3, 5)).tolist()
    assert counted(Answers(classes)).tolist() == (classes != 255).tolist()
    assert true_boxes(Answers(classes, (classes == 0).astype(np.int64)), names) == [Box(0, 0, 1, 1)]
    speck = np.zeros((50, 50), dtype=np.int64)
    speck[0, :2] = 1  # less than a thousandth
    speck[10, :3] = 1
    assert true_boxes(Answers(speck), names) == [Box(0.2, 0, 0.22, 0.06)]


def test_which_classes_are_objects() -> None:
    assert object_classes(("background", "sky", "dog")) == {1, 2}
    assert object_classes(("person", "sky-other-merged", "dog")) == {0, 2}
    with pytest.raises(Inapplicable, match=r"objects is not known: sky, sea\. Name the class around"):
        object_classes(("sky", "sea"))


def test_keys_are_those_of_the_last_block() -> None:
    torch.manual_seed(0)
    encoder = ViT(image=16, patch=4, width=24, depth=2, heads=3, registers=2).build().eval()
    pixels = torch.randn(2, 3, 24, 16)
    keys, grid = keys_or_tokens(encoder, pixels)
    assert kind_of(encoder) == "keys" and grid == (6, 4)
    tokens = encoder(pixels, layers=(1,), layer_kind="raw")
    before = tokens.layers[0]
    x = torch.cat([before.cls[:, None], before.registers, before.patches], dim=1)
    weight, bias = (encoder.get_parameter(f"blocks.1.attn.qkv.{name}") for name in ("weight", "bias"))
    wanted = encoder.get_submodule("blocks.1.norm1")(x) @ weight[24:48].T + bias[24:48]
    torch.testing.assert_close(keys, wanted[:, 3:].detach())
    assert not encoder.get_submodule("blocks.1.attn.qkv")._forward_hooks


def test_a_convolutional_network_gives_tokens() -> None:
    torch.manual_seed(0)
    encoder = ResNet(depth=18, width=8, stem="small").build().eval()
    pixels = torch.randn(2, 3, 48, 32)
    tokens, grid = keys_or_tokens(encoder, pixels)
    assert kind_of(encoder) == "tokens" and grid == (6, 4)
    plain = encoder(pixels).patches
    for each, raw in zip(tokens, plain, strict=True):
        mean, std = raw.mean(), raw.var(unbiased=False).add(1e-5).sqrt()
        torch.testing.assert_close(each, ((raw - mean) / std).detach(), rtol=1e-4, atol=1e-5)


def test_masks_keep_most_of_the_attention() -> None:
    attention = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1]])
    assert masks_of(attention).tolist() == [[False, True, True, False], [True, False, False, False]]
    random = torch.rand(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for head, mask in zip(random, masks_of(random), strict=True):
        total, wanted = 0.0, set()
        for patch in sorted(range(40), key=lambda p: -head[p].item()):
            wanted.add(patch)
            total += head[patch].item() / head.sum().item()
            if total >= 0.6:
                break
        assert set(mask.nonzero()[:, 0].tolist()) == wanted


def test_overlap_of_heads() -> None:
    masks = torch.tensor([[True, False, False, False], [True, True, False, False]])
    foreground = np.zeros((4, 4), dtype=bool)
    foreground[:2] = True
    counted = np.ones((4, 4), dtype=bool)
    assert head_overlaps(masks, (2, 2), foreground, counted) == [0.5, 1.0]
    counted[:, 2:] = False
    assert head_overlaps(masks, (2, 2), foreground, counted) == [1.0, 1.0]
