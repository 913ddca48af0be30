"""MaskFeat on clips: the official targets and masks of cuboids; the loss written out; pictures, errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from conformance import Case, doubled, moment, views
from test_golden import GOLDEN, arrays, close
from test_maskfeat import images, in_their_order
from test_masking import alike
from visrep.encoders import VideoViT
from visrep.masking import CUBES, cube_mask
from visrep.methods.masked import maskfeat, maskfeat_video
from visrep.methods.masked.maskfeat_video import Config, MaskFeatVideo
from visrep.nn.hog import draw_hog, hog
from visrep.views import OneView, View

CASE = Case("maskfeat_video")
TINY = CASE.run.method
N = 2000


def noise(seed: int = 0) -> Tensor:
    return torch.rand(N, CUBES, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_targets_are_the_official_ones() -> None:
    clip = torch.stack([images()[0].roll(3 * t, -1) for t in range(4)])[None]
    encoder = VideoViT(frames=4, image=64, width=12, depth=1, heads=1, position="sincos", mask_token=True)
    method = CASE.build(cfg=Config(encoder=encoder, views=OneView(View(size=64), frames=4)))
    assert isinstance(method, MaskFeatVideo)
    close(in_their_order(method._targets(clip)).flatten(0, 1), arrays("maskfeat.npz")["clip_labels"], 1e-5)


def test_its_loss_is_that_of_images() -> None:
    prediction, target = torch.randn(2, 3, 8, 5).double().unbind()
    mask = torch.rand(3, 8) < 0.5
    close(
        maskfeat_video.maskfeat_loss(prediction, target, mask),
        maskfeat.maskfeat_loss(prediction, target, mask),
    )
    close(
        maskfeat_video.maskfeat_loss(prediction, target, mask),
        (prediction[mask] - target[mask]).square().mean(),
    )


def test_the_loss_is_of_hidden_patches() -> None:
    method, batch = CASE.build().double(), doubled(views(CASE))
    assert isinstance(method, MaskFeatVideo)
    clips = batch.crops[0][0]
    mask = method._mask(16, moment())
    prediction, errors = method.head(method.backbone(clips, mask=mask).patches), []
    cells = hog(clips, 4)  # b t c k rows columns
    for i, j in mask.nonzero().tolist():
        time, row, column = j // 16, 2 * (j % 16 // 4), 2 * (j % 4)
        target = cells[i, 2 * time, :, :, row : row + 2, column : column + 2].permute(2, 3, 0, 1).flatten()
        errors.append((prediction[i, j] - target).square().mean())
    close(method.loss(batch, moment()).terms["maskfeat"], torch.stack(errors).mean())


def test_hidden_pixels_do_not_reach_the_prediction() -> None:
    method, clips = CASE.build().double(), doubled(views(CASE)).crops[0][0]
    assert isinstance(method, MaskFeatVideo)
    mask = method._mask(16, moment())
    places = mask.view(16, 2, 1, 4, 4).repeat_interleave(2, 1).repeat_interleave(8, 3).repeat_interleave(8, 4)
    covered = clips.masked_fill(places, 7.0)
    assert torch.equal(method.backbone(clips, mask=mask).patches, method.backbone(covered, mask=mask).patches)


@pytest.mark.parametrize(("window", "count"), [((8, 7, 7), 157), ((4, 4, 4), 26)])
def test_masks_are_the_official_ones(window: tuple[int, int, int], count: int) -> None:
    face = window[1] * window[2]
    mask = cube_mask(noise(), count, window, smallest=face // 5, largest=face)
    name = "x".join(map(str, window))
    with np.load(GOLDEN / "maskfeat_cubes.npz") as theirs:
        alike(mask.sum(1), theirs[f"count_{name}"])
        mask = mask.view(-1, *window)
        alike((mask[:, 1:] != mask[:, :-1]).sum((1, 2, 3)), theirs[f"changes_{name}"])
        share = theirs[f"share_{name}"]
    error = np.sqrt(share * (1 - share) * 2 / N)
    assert (np.abs(mask.double().mean(0).numpy() - share) < 4.5 * error).all()


def test_masks_one_by_one() -> None:
    """A plain loop over clips and attempts with the same random numbers."""
    u, window = noise(1)[:20], (4, 5, 6)
    masks = cube_mask(u, 40, window, smallest=4, largest=20).view(-1, *window)
    for numbers, mask in zip(u.tolist(), masks, strict=True):
        expected, failed = torch.zeros(window, dtype=torch.bool), 0
        for share, aspect, length, front, top, left in numbers:
            area, ratio = 4 + share * 16, 0.3 ** (1 - 2 * aspect)
            sides = (int(length * 4) + 1, round((area * ratio) ** 0.5), round((area / ratio) ** 0.5))
            start = [int(x * (n - s + 1)) for x, n, s in zip((front, top, left), window, sides, strict=True)]
            t, y, x = (slice(a, a + s) for a, s in zip(start, sides, strict=True))
            new = expected[t, y, x].numel() - int(expected[t, y, x].sum())
            fits = sides[1] < 5 and sides[2] < 6 and 0 < new <= 40 - int(expected.sum()) and failed < 100
            failed = 0 if fits else failed + 1
            if fits:
                expected[t, y, x] = True
        assert torch.equal(mask, expected)


def test_units_hide_whole_squares_of_patches() -> None:
    encoder = replace(TINY.encoder, patch=4)
    method = CASE.build(cfg=replace(TINY, encoder=encoder, mask_unit=2))
    assert isinstance(method, MaskFeatVideo)
    mask = method._mask(64, moment()).view(64, 2, 4, 2, 4, 2)  # b t rows within columns within
    assert torch.equal(mask, mask[:, :, :, :1, :, :1].expand_as(mask))
    assert 8 <= mask[:, :, :, 0, :, 0].sum((1, 2, 3)).max() <= round(0.4 * 32)


def test_pictures_show_hidden_patches_as_predicted() -> None:
    method, batch = CASE.build(), views(CASE)
    assert isinstance(method, MaskFeatVideo)
    picture = method.pictures(batch, moment())["histograms"]
    assert picture.shape == (3, 4, 2, 3, 128, 128)
    mask = method._mask(3, moment()).view(3, 2, 1, 4, 4)
    hidden = mask.repeat_interleave(32, 3).repeat_interleave(32, 4)
    _, seen, true, mixed = picture.unbind(1)
    assert (seen.masked_select(hidden) == 0.5).all()
    assert torch.equal(true.masked_select(~hidden), mixed.masked_select(~hidden))
    assert not torch.equal(true.masked_select(hidden), mixed.masked_select(hidden))
    close(true, draw_hog(hog(batch.crops[0][0][:3, ::2], 4), 16), 1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell": 3}, "Try cell=8"),
        ({"mask_unit": 3}, "mask_unit=3 does not divide 4 x 4 patches"),
        ({"mask_ratio": 0.0}, "hides 0 of 32 units"),
        ({"mask_ratio": 1.0}, "hides 32 of 32 units"),
    ],
)
def test_bad_settings_say_what_to_change(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CASE.fresh(cfg=replace(TINY, **settings))


def test_grids_without_room() -> None:
    with pytest.raises(ValueError, match="1 x 1 units has no room"):
        cube_mask(noise()[:2], 1, (4, 1, 1), smallest=1, largest=1)
