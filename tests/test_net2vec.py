"""Net2Vec: weights against scikit-learn's, IoU counted, and concepts that no channel shows alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from visrep.analysis.inside.concept_maps import sides
from visrep.analysis.inside.dissection import SHARE
from visrep.analysis.inside.net2vec import RIDGE, combinations, fit

FITTED, HELD_OUT = np.arange(16), np.arange(16, 24)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread() -> tuple[Tensor, Tensor]:
    """Activations "24 6 16 16" and masks: of one concept channel 2 shows the left part and channel 4 the right one."""
    halves = torch.zeros(24, 2, 16, 16, dtype=torch.bool)
    for image in range(24):
        top = image % 10
        halves[image, 0, top : top + 1, 4] = True
        halves[image, 1, top : top + 1, 5] = True
    activations = 0.1 * drawn(24, 6, 16, 16).clamp(-2, 2)
    activations[:, 2] += 5 * halves[:, 0]
    activations[:, 4] += 5 * halves[:, 1]
    return activations, halves.any(1, keepdim=True)


def test_a_concept_over_two_channels_needs_both() -> None:
    activations, masks = spread()
    (found,) = combinations(activations, masks, ("pair",), FITTED, HELD_OUT)
    assert found.combined > 0.95
    assert found.channel in (2, 4) and found.single == pytest.approx(0.5, abs=0.05)
    assert set(np.argsort(found.weights)[-2:]) == {2, 4}
    assert found.everywhere == pytest.approx(2 / 256)
    assert (found.fitted_on, found.judged_on) == (16, 8)


def test_weights_are_scikit_learns() -> None:
    """Every channel's ones enlarged by themselves, every pixel a row, the class weights as weights of rows."""
    ones = (drawn(5, 7, 4, 4) > 0.8).double()
    mask = (F.interpolate(ones[:, :1] + ones[:, 1:2], (12, 12), mode="bilinear")[:, 0] > 0.4) ^ (
        drawn(5, 12, 12, seed=1) > 1.5
    )
    rows = F.interpolate(ones, (12, 12), mode="bilinear").permute(0, 2, 3, 1).reshape(-1, 7).numpy()
    answers = mask.flatten().numpy()
    share = answers.mean()
    weights = np.where(answers, 1 - share, share)
    oracle = LogisticRegression(C=1 / (RIDGE * len(rows)), fit_intercept=False, tol=1e-10, max_iter=10000)
    oracle.fit(rows, answers, sample_weight=weights)
    found = fit(ones, mask)
    np.testing.assert_allclose(found.numpy(), oracle.coef_[0], rtol=1e-3, atol=1e-3)
    assert np.abs(oracle.coef_).max() > 1


def test_iou_is_counted_on_images_held_out_that_show_the_concept() -> None:
    activations = drawn(24, 5, 8, 8)
    masks = drawn(24, 3, 12, 12, seed=1) > 0.5
    masks[::3, 0] = False
    masks[16:, 2] = False
    found = combinations(activations, masks, ("some", "all", "never held out"), FITTED, HELD_OUT)
    assert [c.name for c in found] == ["some", "all"]
    values = activations[:16].transpose(0, 1).flatten(1).sort(1, descending=True).values
    threshold = values[:, int(SHARE * values.shape[1])]
    large = F.interpolate(activations, (12, 12), mode="bilinear")
    for k, combination in enumerate(found):
        shown = [[i for i in rows.tolist() if masks[i, k].any()] for rows in (FITTED, HELD_OUT)]
        assert (len(shown[0]), len(shown[1])) == (combination.fitted_on, combination.judged_on)

        def iou(predicted: Tensor, rows: list[int], k: int = k) -> float:
            a, b = predicted[rows].numpy(), masks[rows, k].numpy()
            return float((a & b).sum() / (a | b).sum())

        alone = [large[:, d] > threshold[d] for d in range(5)]
        best = int(np.argmax([iou(each, shown[0]) for each in alone]))
        assert combination.channel == best
        assert combination.single == pytest.approx(iou(alone[best], shown[1]))
        ones = (activations > threshold[:, None, None]).float()
        sums = sum(
            float(weight) * F.interpolate(ones[:, d : d + 1], (12, 12), mode="bilinear")[:, 0]
            for d, weight in enumerate(combination.weights)
        )
        assert isinstance(sums, Tensor)
        assert combination.combined == pytest.approx(iou(sums > 0, shown[1]), abs=1e-3)
        assert combination.everywhere == pytest.approx(float(masks[shown[1], k].double().mean()))
    assert not combinations(activations, masks, ("a", "b", "c"), FITTED, HELD_OUT, least=9)


def test_frames_of_a_video_stay_on_one_side() -> None:
    groups = np.repeat(np.arange(9), 3)
    fitted, held_out = sides(groups, seed=1)
    assert len(held_out) == 6 and len(fitted) == 21
    assert not set(groups[fitted]) & set(groups[held_out])
