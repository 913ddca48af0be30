"""MaskFeat: the official histograms, targets and loss; scikit-image's histograms; masks and pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.feature import hog as skimage_hog
from torch import Tensor

from conformance import Case, doubled, moment, views
from test_golden import GOLDEN, arrays, close
from test_masking import alike
from visrep.encoders import ViT
from visrep.masking import ATTEMPTS, block_mask
from visrep.methods.masked import maskfeat
from visrep.nn.hog import draw_hog, hog, hog_patches, orientation_histograms, sobel

CASE = Case("maskfeat")
TINY = CASE.run.method
GOLD = arrays("maskfeat.npz")

with np.load(GOLDEN / "maskfeat.npz") as stored:
    MASK = torch.from_numpy(stored["mask"])


def images() -> Tensor:
    """The two images of the oracle's loss, made from one."""
    return torch.stack([GOLD["image"], GOLD["image"].flip(-1).roll(5, -2)])


def in_their_order(targets: Tensor) -> Tensor:
    """Theirs are listed as (channel, bin, row, column), ours as (row, column, channel, bin)."""
    return targets.unflatten(-1, (2, 2, 27)).movedim(-1, -3).flatten(-3)


@pytest.mark.parametrize("cell", [8, 7])
def test_histograms_are_the_official_ones(cell: int) -> None:
    ours = hog(GOLD["image"][None], cell)  # cells of 7 pixels leave one row and column over
    close(ours, GOLD[f"hog_bins9_pool{cell}_gauss0"], 1e-5)
    if cell == 8:
        raw = orientation_histograms(*sobel(GOLD["image"]), 8, 9)
        close(raw[None], GOLD["hist_unnormalised_pool8_gauss0"], 1e-5)


def test_targets_and_loss_are_the_official_ones() -> None:
    target = hog_patches(images(), 16, 8)
    close(in_their_order(target)[MASK], GOLD["labels"], 1e-5)
    prediction = torch.zeros(2, 16, 108)
    prediction[MASK] = GOLD["prediction"].unflatten(-1, (27, 2, 2)).movedim(-3, -1).flatten(-3)
    prediction.requires_grad_()
    loss = maskfeat.maskfeat_loss(prediction, target, MASK)
    loss.backward()
    close(loss, GOLD["loss"].float(), 1e-6)
    assert prediction.grad is not None and (prediction.grad[~MASK] == 0).all()
    close(in_their_order(prediction.grad)[MASK], GOLD["grad"], 1e-6)


def test_targets_of_frames_are_the_official_ones() -> None:
    clip = torch.stack([images()[0].roll(3 * t, -1) for t in range(4)])[None]  # b t c h w
    every_second = hog_patches(clip[:, ::2], 16, 8)  # b t n q: a step in time of two frames
    close(in_their_order(every_second).flatten(1, 2).flatten(0, 1), GOLD["clip_labels"], 1e-5)


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((40, 48)) * 255


def inner(cells: Tensor) -> Tensor:
    """Without the cells at the border, where one difference is exactly 0: a direction between two bins, of which
    scikit-image takes one and the official code the other."""
    return cells[:, 1:-1, 1:-1]


def of_skimage(image: np.ndarray, bins: int) -> Tensor:
    cells = skimage_hog(image, bins, (8, 8), (1, 1), block_norm="L2", feature_vector=False)
    theirs = torch.from_numpy(cells[:, :, 0, 0]).movedim(-1, 0)  # k rows columns
    # Theirs are angles from the horizontal, ours from the vertical, turning the other way: with an even number of bins
    # the same directions in another order.
    return inner(theirs[[(bins // 2 - 1 - k) % bins for k in range(bins)]])


@pytest.mark.parametrize("bins", [6, 8, 18])
def test_histograms_of_given_gradients_are_scikit_images(bins: int) -> None:
    x = torch.from_numpy(pixels())
    across, down = torch.zeros_like(x), torch.zeros_like(x)
    across[:, 1:-1], down[1:-1] = x[:, 2:] - x[:, :-2], x[2:] - x[:-2]
    ours = torch.nn.functional.normalize(orientation_histograms(across, down, 8, bins), dim=0)
    close(inner(ours), of_skimage(pixels(), bins), 1e-6)


@pytest.mark.parametrize("bins", [6, 8, 18])
def test_of_rows_plus_columns_histograms_are_scikit_images(bins: int) -> None:
    """Smoothing along the other axis then changes no difference, so Sobel's are four times the central ones."""
    image = pixels()[:, :1] + pixels(1)[:1]
    close(inner(hog(torch.from_numpy(image)[None], 8, bins)[0]), of_skimage(image, bins), 1e-6)


def test_contrast_brightness_and_inversion_change_nothing() -> None:
    x = images().double()
    close(hog(3 * x + 1, 8), hog(x, 8))
    # Inverting turns each gradient by 180 degrees; a pixel whose direction lies on the border of two bins may change.
    assert (hog(-x, 8) - hog(x, 8)).abs().max() < 1e-3
    assert (hog(torch.ones(1, 3, 16, 16), 8) == 0).all()


def test_an_edge_votes_for_its_direction_and_is_drawn_along_it() -> None:
    edge = torch.zeros(1, 1, 16, 16)
    edge[..., 8:] = 1.0  # brightness changes across: the edge runs down
    histogram = hog(edge, 16)
    assert (
        histogram.argmax() == 4 and histogram.max() == 1
    )  # of nine bins the middle one, 90 degrees from the vertical
    picture = draw_hog(histogram, 17)[0, 0]
    assert picture[2:15, 8].min() > 0.9 and picture[8, 2:6].max() < 0.1
    assert draw_hog(hog(edge.mT, 16, 8), 17).shape == (1, 1, 17, 17)
    lying = draw_hog(hog(edge.mT.contiguous(), 16), 17)[0, 0]
    assert lying[8, 4:13].mean() > 0.5 > lying[4:6, 8].mean()


def test_the_loss_is_of_hidden_patches() -> None:
    method, batch = CASE.build().double(), doubled(views(CASE))
    assert isinstance(method, maskfeat.MaskFeat)
    x = batch.crops[0][0]
    mask = block_mask(moment().rand(16, ATTEMPTS, 4), torch.full((16,), 6.0), (4, 4), smallest=1)
    prediction, total, n = method.head(method.backbone(x, mask=mask).patches), 0.0, 0
    cells = hog(x, 4)  # b c k rows columns
    for i in range(16):
        for j in mask[i].nonzero().flatten().tolist():
            row, column = 2 * (j // 4), 2 * (j % 4)
            target = cells[i, :, :, row : row + 2, column : column + 2].permute(2, 3, 0, 1).flatten()
            total += (prediction[i, j] - target).square().mean()
            n += 1
    assert isinstance(total, Tensor)
    close(method.loss(batch, moment()).terms["maskfeat"], total / n)


def test_masks_are_the_official_ones() -> None:
    encoder = ViT(image=224, patch=16, width=8, depth=1, heads=1, mask_token=True, position="sincos")
    method = CASE.build(cfg=maskfeat.Config(encoder=encoder))
    assert isinstance(method, maskfeat.MaskFeat)
    with np.load(GOLDEN / "maskfeat.npz") as theirs:
        mask = torch.cat([method._mask(torch.zeros(500, 3, 224, 224), moment(step)) for step in range(8)])
        alike(mask.sum(1), theirs["mask_count"])
        share = theirs["mask_freq"].flatten()
    error = np.sqrt(share * (1 - share) * (1 / 4000 + 1 / 2000))
    assert (np.abs(mask.double().mean(0).numpy() - share) < 4.5 * error).all()


def test_pictures_show_hidden_patches_as_predicted() -> None:
    method, batch = CASE.build(), views(CASE)
    assert isinstance(method, maskfeat.MaskFeat)
    rows = method.pictures(batch, moment())["histograms"]
    assert rows.shape == (16, 4, 3, 128, 128)
    mask = method._mask(batch.crops[0][0], moment())
    hidden = mask.unflatten(1, (4, 4)).repeat_interleave(32, 1).repeat_interleave(32, 2).unsqueeze(1)
    seen, true, mixed = rows[:, 1], rows[:, 2], rows[:, 3]
    assert (seen.masked_select(hidden) == 0.5).all()
    assert torch.equal(true.masked_select(~hidden), mixed.masked_select(~hidden))
    assert not torch.equal(true.masked_select(hidden), mixed.masked_select(hidden))
    close(true, draw_hog(hog(batch.crops[0][0], 4), 16), 1e-6)


def test_bad_settings_say_what_to_change() -> None:
    with pytest.raises(ValueError, match="Try cell=8"):
        CASE.fresh(cfg=replace(TINY, cell=3))
    for ratio in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"mask_ratio={ratio} hides"):
            CASE.fresh(cfg=replace(TINY, mask_ratio=ratio))
    with pytest.raises(ValueError, match="Use a cell that divides 16"):
        hog_patches(images(), 16, 6)
    with pytest.raises(ValueError, match="60x64"):
        hog_patches(images()[..., :60, :], 16, 8)
