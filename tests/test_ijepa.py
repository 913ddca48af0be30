"""I-JEPA: numbers of the official code (golden/README_ijepa.md), its masks in distribution, what masks keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visrep.encoders import ViT
from visrep.masking import block_size, outside, place_blocks
from visrep.method import At, Batch
from visrep.methods.predictive import ijepa
from visrep.nn.predictor import Predictor
from visrep.schedules import Ramp
from visrep.views import OneView, View

with np.load(Path(__file__).parent / "golden" / "ijepa.npz") as stored:
    GOLD = {name: torch.from_numpy(stored[name]) for name in stored.files}

MASKS = {name.removeprefix("masks."): value for name, value in GOLD.items() if name.startswith("masks.")}
KEEP, BLOCKS = GOLD["context"].long(), GOLD["blocks"].long()
SHARES = {"scale": (0.15, 0.2), "aspect": (0.75, 1.5)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(step: int = 0) -> At:
    return At(step, 100, 10, torch.Generator().manual_seed(step))


def close(actual: Tensor | None, expected: Tensor) -> None:
    assert actual is not None
    torch.testing.assert_close(actual, expected.double(), rtol=1e-9, atol=1e-9)


def weights(part: str) -> dict[str, Tensor]:
    """The official names are ours without a prefix, except for a projection that is a convolution there."""
    found = {n.removeprefix(f"w.{part}."): v for n, v in GOLD.items() if n.startswith(f"w.{part}.")}
    found = {name.removeprefix("predictor_"): value for name, value in found.items()}
    if "patch_embed.proj.weight" in found:
        found["patch_embed.proj.weight"] = found["patch_embed.proj.weight"].flatten(1)
    else:
        found["project.weight"], found["project.bias"] = found.pop("proj.weight"), found.pop("proj.bias")
        found["mask_token"] = found["mask_token"].unsqueeze(0)
    return found


def official() -> ijepa.IJEPA:
    """Our I-JEPA with the stored weights."""
    encoder = ViT(image=32, patch=4, width=24, depth=2, heads=4, position="sincos", cls=False)
    views = OneView(View(size=32))
    cfg = ijepa.Config(
        encoder=encoder, views=views, context_scale=(1.0, 1.0), predictor_width=16, predictor_depth=2
    )
    method = ijepa.IJEPA(cfg).double()
    method.backbone.load_state_dict(weights("encoder"))
    method.teacher.module.load_state_dict(weights("target"))
    method.predictor.load_state_dict(weights("predictor"))
    return method


def test_loss_and_gradients_are_the_official_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    method = official()
    monkeypatch.setattr(method, "_masks", lambda b, at: (KEEP, BLOCKS))
    images, box = GOLD["imgs"].double()[None], torch.zeros(1, 3, 4)
    losses = method.loss(Batch((images,), (box,), (box[..., 0] > 0,), torch.arange(3)), moment())
    losses.terms["smooth_l1"].backward()
    close(losses.terms["smooth_l1"], GOLD["loss"])

    parts = {"encoder": method.backbone, "predictor": method.predictor}
    stored = [(name.split(".", 2)[1:], value) for name, value in GOLD.items() if name.startswith("grad.")]
    assert len(stored) == 7
    for (part, name), value in stored:
        name = name.removeprefix("predictor_")
        mine = parts[part].get_parameter("project.weight" if name == "proj.weight" else name).grad
        assert mine is not None and value.abs().max() > 1e-6
        close(mine.view_as(value), value)


def test_predictions_and_targets_are_the_official_ones() -> None:
    method, images = official(), GOLD["imgs"].double()
    context = method.backbone(images, keep=KEEP).patches
    close(method.predictor(context, method.position[KEEP], method.position[BLOCKS]), GOLD["prediction"])
    close(ijepa.targets(method.teacher(images).patches, BLOCKS), GOLD["target"])


def test_targets_are_normalised_over_the_width() -> None:
    y = ijepa.targets(3 + 5 * noise(2, 9, 64), torch.tensor([[[0, 3], [8, 1]]] * 2))
    assert y.shape == (2, 2, 2, 64)
    torch.testing.assert_close(y.mean(-1), torch.zeros(2, 2, 2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(y.std(-1, correction=0), torch.ones(2, 2, 2).double(), atol=1e-4, rtol=0)


def test_predictor_asks_for_each_block_on_its_own() -> None:
    predictor = Predictor(12, width=8, depth=2, heads=2).double()
    context, seen, asked = noise(2, 5, 12), noise(2, 5, 8, seed=1), noise(2, 3, 4, 8, seed=2)
    together = predictor(context, seen, asked)
    assert together.shape == (2, 3, 4, 12)
    for i in range(3):
        torch.testing.assert_close(predictor(context, seen, asked[:, i : i + 1]), together[:, i : i + 1])
    order = torch.tensor([3, 0, 4, 1, 2])  # of the context, which has no order but its places
    torch.testing.assert_close(predictor(context[:, order], seen[:, order], asked), together)
    assert not torch.allclose(predictor(context, seen[:, order], asked), together)


def official_masks(u: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Masks of one image as the official sampler bounds them: on 14 x 14 patches, but never in the last row or column.

    Returns the context and the four blocks as masks of the 13 x 13 patches that remain, and the blocks' size.
    """
    scale, at_target, at_context = u[:2], u[2:10].view(1, 4, 2), u[10:].view(1, 1, 2)
    size = block_size(scale[0].item(), scale[0].item(), (14, 14), **SHARES)
    context = block_size(scale[1].item(), 0.0, (14, 14), scale=(0.85, 1.0), aspect=(1.0, 1.0))
    blocks = place_blocks(at_target, size, (13, 13))
    square = place_blocks(at_context, (min(context[0], 13), min(context[1], 13)), (13, 13))[:, 0]
    chosen = torch.zeros(4, 169, dtype=torch.bool).scatter(1, blocks[0], True)
    return outside(square, blocks, 169)[0], chosen, torch.tensor(size), size


def test_masks_are_the_official_ones_in_distribution() -> None:
    n = 2000
    drawn = [official_masks(u) for u in noise(n, 12)]
    context, blocks = torch.stack([x[0] for x in drawn]), torch.stack([x[1] for x in drawn])
    sizes = torch.stack([x[2] for x in drawn])

    def alike(ours: Tensor, theirs: Tensor) -> None:
        a, b = ours.double(), theirs.double()
        assert abs(a.mean() - b.mean()) <= 4 * ((a.var() + b.var()) / n).sqrt(), (a.mean(), b.mean())
        # Kolmogorov and Smirnov's distance between two distributions
        values = torch.cat([a, b]).unique()
        distance = ((a[:, None] <= values).double().mean(0) - (b[:, None] <= values).double().mean(0)).abs()
        assert distance.max() < 1.95 * (2 / n) ** 0.5

    alike(context.sum(1), MASKS["n_context"])
    alike(blocks[:, 0].sum(1), MASKS["n_target_per_block"])
    alike(blocks.any(1).sum(1), MASKS["n_target_union"])
    shapes = {tuple(size) for size in sizes.tolist()}
    assert shapes == {tuple(size) for size in MASKS["target_block_hw"].tolist()}
    for shape in shapes:
        found = (sizes == torch.tensor(shape)).all(1)
        alike(found, (MASKS["target_block_hw"] == torch.tensor(shape)).all(1))
    for ours, theirs in (
        (blocks.double().mean((0, 1)), MASKS["target_position_freq"]),
        (context.double().mean(0), MASKS["context_position_freq"]),
    ):
        assert (
            not theirs[13].any() and not theirs[:, 13].any()
        )  # the last row and column that theirs never reaches
        theirs = theirs[:13, :13].flatten().double()
        error = (theirs * (1 - theirs) * 2 / n).sqrt()
        assert ((ours - theirs).abs() < 4.5 * error).all()


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (3, 9)])
def test_blocks_equal_a_plain_loop(grid: tuple[int, int]) -> None:
    rows, columns = grid
    size = block_size(0.3, 0.8, grid, **SHARES)
    u, square = noise(20, 4, 2), torch.arange(rows * columns).expand(20, -1)
    blocks = place_blocks(u, size, grid)
    free = outside(square, blocks, rows * columns)
    for i in range(20):
        left = set(range(rows * columns))
        for j in range(4):
            top = int(u[i, j, 0] * (rows - size[0] + 1))
            side = int(u[i, j, 1] * (columns - size[1] + 1))
            places = [y * columns + x for y in range(top, top + size[0]) for x in range(side, side + size[1])]
            assert blocks[i, j].tolist() == places
            left -= set(places)
        assert free[i].nonzero().flatten().tolist() == sorted(left)


def test_block_sizes_take_scale_and_aspect_from_their_numbers() -> None:
    assert block_size(0.0, 0.0, (10, 10), scale=(0.16, 0.36), aspect=(1.0, 4.0)) == (4, 4)
    assert block_size(1.0, 0.0, (10, 10), scale=(0.16, 0.36), aspect=(1.0, 4.0)) == (6, 6)
    assert block_size(0.0, 1.0, (10, 10), scale=(0.16, 0.36), aspect=(1.0, 4.0)) == (8, 2)
    assert block_size(0.0, 0.0, (3, 10), scale=(1.0, 1.0), aspect=(1.0, 1.0)) == (
        3,
        5,
    )  # no higher than the grid


def test_blocks_reach_every_place_alike() -> None:
    corner = place_blocks(noise(4000, 1, 2), (3, 3), (5, 5))[:, 0, 0]
    share = torch.bincount(corner, minlength=25).view(5, 5) / 4000
    assert not share[3:].any() and not share[:, 3:].any()
    torch.testing.assert_close(share[:3, :3], torch.full((3, 3), 1 / 9), atol=0.025, rtol=0)


@pytest.mark.parametrize("step", range(5))
def test_context_and_blocks_share_no_patch(step: int) -> None:
    method = ijepa.IJEPA(ijepa.small32().method)
    keep, blocks = method._masks(64, moment(step))
    seen = torch.zeros(64, 64).scatter(1, keep, 1.0)
    hidden = torch.zeros(64, 64).scatter(1, blocks.flatten(1), 1.0)
    assert (seen.sum(1) == keep.shape[1]).all()  # no patch twice
    assert not (seen * hidden).any()
    assert keep.shape[1] == (64 - hidden.sum(1)).min()  # the longest that all images can have
    assert keep.shape[1] >= 28  # what small32 says
    # What is cut is cut anywhere: the official code would always keep the first rows.
    free = 1 - hidden
    assert abs((seen[:, :32].sum() / free[:, :32].sum()) - (seen[:, 32:].sum() / free[:, 32:].sum())) < 0.1


def test_contexts_too_small_are_refused() -> None:
    cfg = ijepa.small32().method
    with pytest.raises(ValueError, match=r"n_targets=4 blocks of 9 to 12 .* leave 1 of 64 .* context_scale"):
        ijepa.IJEPA(replace(cfg, target_scale=(0.15, 0.2), context_scale=(0.85, 1.0)))
    with pytest.raises(ValueError, match="blocks of 0 to"):
        ijepa.IJEPA(replace(cfg, target_scale=(0.005, 0.05)))


def test_a_collapsed_teacher_shows() -> None:
    method = ijepa.IJEPA(ijepa.tiny().method)
    images, box = torch.rand(1, 8, 3, 32, 32), torch.zeros(1, 8, 4)
    batch = Batch((images,), (box,), (box[..., 0] > 0,), torch.arange(8))
    before = method.loss(batch, moment()).monitor["target_std"]
    for module in (method.teacher.module.patch_embed.proj,):
        module.weight.zero_()  # only places are left, which differ from patch to patch
    after = method.loss(batch, moment()).monitor["target_std"]
    assert after < 1e-5 < 0.05 < before


def test_the_teacher_follows_along_a_line() -> None:
    method = ijepa.IJEPA(replace(ijepa.tiny().method, teacher_decay=Ramp(0.9, 1.0, epochs=10)))
    student, teacher = (
        part.get_parameter("norm.weight") for part in (method.backbone, method.teacher.module)
    )
    start = teacher.clone()
    with torch.no_grad():
        student.add_(1)
    method.after_step(moment(50), {})
    torch.testing.assert_close(teacher, start + 0.05)


def test_pictures_show_image_context_block_and_likeness() -> None:
    method = ijepa.IJEPA(ijepa.tiny().method)
    images, box = torch.rand(1, 8, 3, 32, 32), torch.zeros(1, 8, 4)
    batch = Batch((images,), (box,), (box[..., 0] > 0,), torch.arange(8))
    (picture,) = method.pictures(batch, moment()).values()
    assert picture.shape == (8, 4, 3, 32, 32)
    keep, blocks = method._masks(8, moment())
    lit = F.max_pool2d(picture.sum(2), 8).flatten(2) > 0
    assert torch.equal(lit[:, 1].sum(1), torch.full((8,), keep.shape[1]))
    assert torch.equal(lit[:, 2].sum(1), torch.full((8,), blocks.shape[2]))
