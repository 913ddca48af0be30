"""PixPro: the official numbers, pairs by a loop over cells, boxes that mean what the views say."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import final

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance import Case, images, moment, views
from visrep.encoders import ResNet, ViT
from visrep.method import At, Batch, Canvases, Encoder, Tokens
from visrep.methods.contrastive.pixpro import PixPro, cell_centres, near_pairs, pixel_loss, propagate, tiny
from visrep.nn.heads import projection
from visrep.schedules import Cosine
from visrep.views import TwoViews, View, draw

GOLDEN = Path(__file__).parent / "golden" / "pixpro.npz"
TINY = tiny().method


def arrays(prefix: str) -> dict[str, Tensor]:
    with np.load(GOLDEN) as stored:
        names = [name for name in stored.files if name.startswith(prefix)]
        return {name.removeprefix(prefix): torch.from_numpy(stored[name]) for name in names}


def close(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def cells(maps: Tensor) -> Tensor:
    """The official "b c h w" as "b n d"."""
    return maps.flatten(2).mT


def boxes(*corners: Tensor) -> tuple[Tensor, Tensor]:
    """The official corners of each view as boxes "v b 4" and what is mirrored "v b"."""
    x0, y0, x1, y1 = torch.stack(corners).unbind(-1)
    left, right = torch.minimum(x0, x1), torch.maximum(x0, x1)
    return torch.stack([y0, left, y1 - y0, right - left], dim=-1), x0 > x1


@pytest.mark.parametrize("pos_ratio", [0.5, 0.7, 1.5])
def test_pixel_loss_equals_the_official_one(pos_ratio: float) -> None:
    gold = arrays("loss.")
    q = [gold["q1"].clone().requires_grad_(), gold["q2"].clone().requires_grad_()]
    near = near_pairs(*boxes(gold["coord1"], gold["coord2"]), (3, 4), pos_ratio)
    targets = torch.stack([cells(gold["k1"]), cells(gold["k2"])])
    loss = pixel_loss(torch.stack([cells(view) for view in q]), targets, near)
    loss.backward()
    close(loss, gold[f"value_{pos_ratio}"])
    close(q[0].grad, gold[f"grad_q1_{pos_ratio}"])
    close(q[1].grad, gold[f"grad_q2_{pos_ratio}"])
    assert near[:5].any(-1).any(-1).all() and not near[5].any()


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_propagation_equals_the_official_module(gamma: float) -> None:
    gold = arrays("ppm.")
    x = gold["x"].clone().requires_grad_()
    weight = gold[f"weight_{gamma}"].flatten(1).clone().requires_grad_()
    bias = gold[f"bias_{gamma}"].clone().requires_grad_()
    y = propagate(cells(x), F.linear(cells(x), weight, bias), gamma)
    y.pow(3).mean().backward()
    close(y, cells(gold[f"out_{gamma}"]))
    close(x.grad, gold[f"grad_x_{gamma}"])
    close(weight.grad, gold[f"grad_weight_{gamma}"].flatten(1))
    close(bias.grad, gold[f"grad_bias_{gamma}"])


@final
class Maps(Encoder):
    """Takes images for maps, so that only what comes after an encoder is tested."""

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        return Tokens(cells(images), (images.shape[2], images.shape[3]))


OFFICIAL = {
    "student.heads.pixel.": "projector.",
    "student.heads.instance.": "projector_instance.",
    "teacher.module.heads.pixel.": "projector_k.",
    "teacher.module.heads.instance.": "projector_instance_k.",
    "predictor.": "predictor.",
    "value.": "value_transform.",
}
LAYERS = {"0.": "linear1.", "1.": "bn1.", "3.": "linear2."}


def official(name: str) -> str:
    ours, theirs = next((a, b) for a, b in OFFICIAL.items() if name.startswith(a))
    rest = name.removeprefix(ours)
    return theirs + (LAYERS[rest[:2]] + rest[2:] if rest[:2] in LAYERS else rest)


def as_official(w_instance: float, weights: dict[str, Tensor]) -> PixPro:
    """The method with heads as wide as the official code's in the golden file, and its weights."""
    cfg = replace(TINY, hidden=10, out=5, w_instance=w_instance, decay=Cosine(0.99, 1.0))
    method = PixPro(cfg).double()
    for network in (method.student, method.teacher.module):
        network.encoder = Maps()
        for branch in network.heads:
            network.heads[branch] = projection(6, 10, 5, last_norm=False).double()
    method.teacher.requires_grad_(False)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            parameter.copy_(weights[official(name)].view_as(parameter))
    return method


def official_batch(gold: dict[str, Tensor]) -> tuple[Batch, Tensor]:
    crops = torch.stack([gold["x1"], gold["x2"]]).requires_grad_()
    where, flipped = boxes(gold["coord1"], gold["coord2"])
    return Batch((crops,), (where,), (flipped,), torch.arange(4)), crops


def test_whole_forward_pass_equals_the_official_one() -> None:
    gold = arrays("whole.")
    method = as_official(0.5, arrays("whole.w."))
    batch, crops = official_batch(gold)
    terms = method.loss(batch, moment()).terms
    loss = terms["pixel"] + terms["instance"]
    loss.backward()
    close(loss, gold["loss"])
    assert crops.grad is not None
    close(crops.grad[0], gold["grad_x1"])
    close(crops.grad[1], gold["grad_x2"])
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            close(parameter.grad, gold[f"grad.{official(name)}"].view_as(parameter))


def test_without_the_instance_branch() -> None:
    gold = arrays("whole.")
    method = as_official(0.0, arrays("whole.w."))
    losses = method.loss(official_batch(gold)[0], moment())
    assert losses.terms.keys() == {"pixel"}
    close(losses.terms["pixel"], gold["loss_without_instances"])
    assert method.predictor is None and "instance" not in method.student.heads


def test_teacher_moves_as_the_official_one() -> None:
    after, before = arrays("whole.w."), arrays("whole.before.")
    method = as_official(0.5, after | before)
    at = At(step=30, total=100, steps_per_epoch=10, rng=torch.Generator())
    method.after_step(at, {})
    moved = dict(method.teacher.module.named_parameters(prefix="teacher.module"))
    assert moved
    for name, parameter in moved.items():
        close(parameter, after[official(name)].view_as(parameter))


def some_boxes(b: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    size = 0.2 + 0.7 * torch.rand(2, b, 2, generator=g, dtype=torch.float64)
    start = torch.rand(2, b, 2, generator=g, dtype=torch.float64) * (1 - size)
    return torch.cat([start, size], -1), torch.rand(2, b, generator=g) < 0.5


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_near_pairs_equal_a_loop_over_cells(grid: tuple[int, int]) -> None:
    where, flipped = some_boxes(12)
    rows, columns = grid
    near = near_pairs(where, flipped, grid, 0.7)

    def centre(view: int, image: int, cell: int) -> tuple[float, float]:
        top, left, height, width = where[view, image].tolist()
        row, column = divmod(cell, columns)
        if flipped[view, image]:
            column = columns - 1 - column
        return top + (row + 0.5) * height / rows, left + (column + 0.5) * width / columns

    assert flipped.any(1).all() and not flipped.all(1).any() and near.any() and not near.all()
    for image, i, j in product(range(12), range(rows * columns), range(rows * columns)):
        diagonal = max(
            ((where[view, image, 2] / rows) ** 2 + (where[view, image, 3] / columns) ** 2).sqrt().item()
            for view in (0, 1)
        )
        (y, x), (y2, x2) = centre(0, image, i), centre(1, image, j)
        expected = ((y - y2) ** 2 + (x - x2) ** 2) ** 0.5 < 0.7 * diagonal
        assert near[image, i, j].item() == expected


def test_pairs_of_a_view_with_itself_and_with_its_mirror_image() -> None:
    where = torch.tensor([0.1, 0.2, 0.5, 0.4]).expand(2, 2, 4)
    flipped = torch.tensor([[False, True], [False, False]])  # image 0: the same view; image 1: mirrored once
    same, mirrored = near_pairs(where, flipped, (2, 3), 0.1)
    assert torch.equal(same, torch.eye(6, dtype=torch.bool))
    assert torch.equal(mirrored, torch.eye(6, dtype=torch.bool)[[2, 1, 0, 5, 4, 3]])


def test_exchanging_views_transposes_the_pairs() -> None:
    where, flipped = some_boxes(8)
    near = near_pairs(where, flipped, (4, 4), 0.7)
    assert torch.equal(near_pairs(where.flip(0), flipped.flip(0), (4, 4), 0.7), near.mT)
    g = torch.Generator().manual_seed(1)
    y, t = torch.randn(2, 2, 8, 16, 3, generator=g, dtype=torch.float64)
    close(pixel_loss(y.flip(0), t.flip(0), near.mT), pixel_loss(y, t, near))


def test_centres_are_where_the_views_show_them() -> None:
    """Views of an image whose colours are coordinates: the mean colour of a cell is the cell's centre."""
    ramp = torch.linspace(0, 255, 64).round().to(torch.uint8).expand(64, 64)
    pixels = torch.stack([ramp.t(), ramp, ramp])[None].repeat(16, 1, 1, 1)
    plain = View(
        size=32, scale=(0.3, 0.8), jitter=0.0, gray=0.0, blur=0.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    batch = draw(
        TwoViews(plain, plain), Canvases(pixels, torch.full((16, 2), 64.0), torch.arange(16)), moment(3)
    )
    shown = F.avg_pool2d(batch.crops[0].flatten(0, 1), 8)[:, :2].flatten(2).mT.unflatten(0, (2, 16))
    told = cell_centres(batch.boxes[0], batch.flipped[0], (4, 4))
    assert batch.flipped[0].any() and not batch.flipped[0].all()
    torch.testing.assert_close(shown, told, rtol=0, atol=0.02)


def test_an_image_without_pairs_counts_as_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    y, t = torch.randn(2, 2, 3, 4, 5, generator=g, dtype=torch.float64)
    near = torch.eye(4, dtype=torch.bool).repeat(3, 1, 1)
    near[1] = False
    y.requires_grad_()
    loss = pixel_loss(y, t, near)
    loss.backward()
    close(loss, pixel_loss(y[:, [0, 2]], t[:, [0, 2]], near[[0, 2]]) * 2 / 3)
    assert y.grad is not None and not y.grad[:, 1].any() and y.grad[:, 0].any()


def test_equal_cells_have_the_least_loss() -> None:
    y = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(0)).double().repeat(2, 1, 1, 1)
    near = torch.eye(4, dtype=torch.bool).repeat(2, 1, 1)
    torch.testing.assert_close(pixel_loss(y, 3 * y, near).item(), -4.0, rtol=1e-6, atol=0)


def test_monitor_says_how_many_overlap_and_how_alike_they_are() -> None:
    method, batch = Case("pixpro").build(), views(Case("pixpro"))
    apart = batch.boxes[0].clone()
    apart[:, :4] = torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]])[:, None]
    apart[:, 4:] = torch.tensor([0.1, 0.1, 0.5, 0.5])
    losses = method.loss(replace(batch, boxes=(apart,)), moment())
    assert losses.monitor["overlap"].item() == 0.75
    torch.testing.assert_close(losses.monitor["near_cosine"] * 0.75 * -4, losses.terms["pixel"].detach())
    nothing = apart[:, :1].repeat(1, 16, 1)
    losses = method.loss(replace(batch, boxes=(nothing,)), moment())
    assert losses.terms["pixel"] == 0 and losses.monitor["near_cosine"] == 0


def test_monitor_tells_projections_that_are_all_alike() -> None:
    method, batch = Case("pixpro").build(), views(Case("pixpro"))
    assert method.loss(batch, moment()).monitor["projection_std"] > 0.01
    weight = method.get_parameter("student.heads.pixel.3.weight")
    with torch.no_grad():
        weight.zero_()  # the bias stays: one direction for all
    monitor = method.loss(batch, moment()).monitor
    assert monitor["projection_std"] < 1e-6 < monitor["feature_std"]


def test_cells_are_the_tokens_of_a_vision_transformer() -> None:
    cfg = replace(TINY, encoder=ViT(image=32, patch=8, width=32, depth=1, heads=2))
    method = PixPro(cfg)
    losses = method.loss(draw(cfg.views, images(4), moment()), moment())
    sum(losses.terms.values(), torch.zeros(())).backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gamma": 0.5}, "gamma=0.5.*at least 1"),
        ({"pos_ratio": 0.0}, "pos_ratio=0.0 makes no pairs"),
        ({"encoder": ResNet(depth=18, width=4)}, "one cell.*at least 64 pixels"),
    ],
)
def test_impossible_settings(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PixPro(replace(TINY, **change))  # pyright: ignore[reportArgumentType]
