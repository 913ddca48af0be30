"""Few labels against closed forms written out, draws of labelled images, intervals over draws, kNN leave-one-out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from visrep.evaluation.draws import Amount, amount, draw_labelled
from visrep.evaluation.fewlabels import fewlabels, ridge
from visrep.evaluation.knn import knn, knn_leave_one_out
from visrep.evaluation.linear import standardise
from visrep.evaluation.results import Prediction, from_headline, interval_over_draws, score, variant


def blobs(n: int, d: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian classes that overlap, in float64."""
    centres = torch.randn(k, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.arange(n) % k
    return centres[labels] + 3 * noise, labels


@pytest.mark.parametrize("n", [12, 300])
def test_ridge_is_the_closed_form(n: int) -> None:
    """Both of scikit-learn's and the normal equations, with fewer images than dimensions and with more."""
    (x, y), (test, _) = blobs(n, 40, 3, seed=1), blobs(50, 40, 3, seed=2)
    scores = ridge(x, y, test, 3)
    a, b = (np.pad(part.numpy(), ((0, 0), (0, 1)), constant_values=100.0) for part in standardise(x, test))
    targets = 2.0 * np.eye(3)[y.numpy()] - 1
    written_out = b @ np.linalg.solve(a.T @ a + 1024 * np.eye(41), a.T @ targets)
    np.testing.assert_allclose(scores, written_out, atol=1e-9)
    oracle = Ridge(alpha=1024.0, fit_intercept=False, solver="cholesky").fit(a, targets).predict(b)
    np.testing.assert_allclose(scores, oracle, atol=1e-9)


@pytest.mark.parametrize("n", [12, 300])
def test_ridge_predicts_as_big_vision(n: int) -> None:
    """Its formula: 1e-5 added to the deviation, an eigendecomposition of the smaller Gram matrix."""
    (x, y), (test, _) = blobs(n, 40, 3, seed=1), blobs(400, 40, 3, seed=2)
    mean, std = x.numpy().mean(0), x.numpy().std(0) + 1e-5
    a, b = (
        np.pad((part.numpy() - mean) / std, ((0, 0), (0, 1)), constant_values=100.0) for part in (x, test)
    )
    targets = 2.0 * np.eye(3)[y.numpy()] - 1
    if n >= 41:
        values, q = np.linalg.eigh(a.T @ a)
        left, right = q, q.T @ (a.T @ targets)
    else:
        values, q = np.linalg.eigh(a @ a.T)
        left, right = a.T @ q, q.T @ targets
    expected = (b @ (left / (values + 1024)) @ right).argmax(1)
    np.testing.assert_array_equal(ridge(x, y, test, 3).argmax(1), expected)


def test_fewlabels_is_a_loop_over_draws() -> None:
    (x, y), (test, answers) = blobs(200, 20, 4, seed=1), blobs(120, 20, 4, seed=2)
    found = fewlabels(x.float(), 10 * y + 3, test.float(), seed=7, shots=(1, 5), draws=3)
    assert [p.settings["n"] for p in found] == [1, 5] and [p.n_train for p in found] == [4, 20]
    for prediction in found:
        n = int(prediction.settings["n"])
        accuracies = []
        for draw in range(3):
            rng = np.random.default_rng([7, draw])
            rows = np.concatenate([rng.permutation(np.flatnonzero(y.numpy() == c))[:n] for c in range(4)])
            scores = ridge(x.float().double()[rows], y[rows], test.float().double(), 4)
            accuracies.append(float((scores.argmax(1) == answers).double().mean()))
        result = score(prediction, 10 * answers + 3, encoder="trained", layer=1, pooling="mean", n_train=200)
        assert result.value == pytest.approx(100 * np.mean(accuracies), abs=1e-9)
        assert result.settings["sd_over_draws"] == pytest.approx(100 * np.std(accuracies, ddof=1), abs=1e-9)
        assert result.n_train == prediction.n_train
        assert result.ci_low < result.value < result.ci_high
    assert (found[1].predicted == 10 * answers + 3).double().mean() > (
        found[0].predicted == 10 * answers + 3
    ).double().mean()


def test_fewlabels_leaves_out_what_classes_do_not_have() -> None:
    (x, _), (test, _) = blobs(20, 5, 2, seed=1), blobs(10, 5, 2, seed=2)
    uneven = torch.tensor([0] * 6 + [1] * 14)
    found = fewlabels(x, uneven, test)
    assert [p.settings["n"] for p in found] == [1, 5]
    assert "the smallest class has 6 images, n=10, n=50 is left out" in found[0].caution
    assert not found[1].caution
    with pytest.raises(ValueError, match="at least 10 images of each class to fit on; one class has 6"):
        fewlabels(x, uneven, test, shots=(10, 50))


def test_draws_are_stratified_nested_and_repeatable() -> None:
    labels = torch.tensor([5] * 100 + [2] * 40 + [9] * 3)
    tenth = draw_labelled(labels, Amount(percent=10), seed=0, draw=0)
    assert torch.bincount(labels[tenth], minlength=10).tolist() == [0, 0, 4, 0, 0, 10, 0, 0, 0, 1]
    assert torch.equal(tenth, tenth.sort().values)
    two, five = (draw_labelled(labels, Amount(each=n), seed=0, draw=0) for n in (2, 5))
    assert torch.bincount(labels[five]).tolist() == [0, 0, 5, 0, 0, 5, 0, 0, 0, 3]
    assert set(two.tolist()) < set(five.tolist())
    assert torch.equal(two, draw_labelled(labels, Amount(each=2), seed=0, draw=0))
    for other in ({"seed": 1, "draw": 0}, {"seed": 0, "draw": 1}):
        assert not torch.equal(two, draw_labelled(labels, Amount(each=2), **other))
    assert torch.equal(draw_labelled(labels, Amount(), seed=0, draw=0), torch.arange(143))


def test_amounts_are_read() -> None:
    assert amount("") == Amount() and amount("5") == Amount(each=5) and amount("0.5%") == Amount(percent=0.5)
    for wrong in ("0", "0%", "100%", "-1", "1.5", "ten", "10 %"):
        with pytest.raises(ValueError, match="is no amount of labels"):
            amount(wrong)


def test_interval_over_draws_without_spread_of_draws() -> None:
    """Draws that agree leave the choice of test images: the normal interval of a share."""
    correct = np.tile(np.arange(400) < 300, (5, 1))
    half = 1.959964 * math.sqrt(0.75 * 0.25 / 400)
    assert interval_over_draws(correct) == pytest.approx((0.75 - half, 0.75 + half), abs=1e-6)


def test_interval_over_draws_without_spread_of_images() -> None:
    """Test images that are alike leave the choice of draws: Student's interval of their mean."""
    rng = np.random.default_rng(0)
    shares = np.array([0.50, 0.60, 0.52, 0.66])
    correct = np.stack([np.arange(100_000) < share * 100_000 for share in shares])
    correct = rng.permuted(correct, axis=1)
    low, high = stats.t.interval(0.95, 3, shares.mean(), stats.sem(shares))
    assert interval_over_draws(correct) == pytest.approx((low, high), abs=1e-4)
    with pytest.raises(ValueError, match="at least 2"):
        interval_over_draws(correct[:1])


def test_interval_over_draws_covers() -> None:
    """95 % or a little more when draws and test images both vary."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        chance = 0.7 + rng.normal(0, 0.05, (5, 1)) + rng.normal(0, 0.1, (1, 200))
        low, high = interval_over_draws(rng.random((5, 200)) < chance)
        hits += low <= 0.7 <= high
    assert 935 <= hits <= 995


def test_leave_one_out_is_a_loop() -> None:
    x, y = blobs(90, 8, 3, seed=1)
    for prediction in knn_leave_one_out(x, y, x[:1], ks=(5, 20)):
        k, expected = int(prediction.settings["k"]), []
        for i in range(90):
            rest = np.delete(np.arange(90), i)
            oracle = KNeighborsClassifier(
                k,
                weights=lambda d: np.exp((1 - d) / 0.07),  # pyright: ignore[reportArgumentType]
                metric="cosine",
                algorithm="brute",
            )
            expected.append(oracle.fit(x[rest].numpy(), y[rest].numpy()).predict(x[i : i + 1].numpy())[0])
        assert prediction.predicted.tolist() == expected
        assert (prediction.protocol, prediction.of_train, prediction.n_train) == ("knn-loo", True, 89)


def test_leave_one_out_leaves_itself_out() -> None:
    """In chunks as at once; a copy of an image stays its neighbour; all others are the most that k can be."""
    x, y = blobs(60, 8, 3, seed=1)
    one, many = (knn(x, y, x, ks=(5,), chunk=chunk, without_itself=True) for chunk in (7, 100))
    assert torch.equal(one[0].predicted, many[0].predicted)
    assert not torch.equal(one[0].predicted, knn(x, y, x, ks=(1,))[0].predicted)
    copies = torch.cat([x, x]), torch.cat([y, y])
    (found,) = knn_leave_one_out(*copies, x[:1], ks=(1,))
    assert torch.equal(found.predicted, copies[1])
    assert [p.settings["k"] for p in knn_leave_one_out(x, y, x[:1])] == [10, 20, 59]


def test_results_of_one_protocol_are_told_apart() -> None:
    assert variant({"k": 20, "tau": 0.07}) == ("k", 20) and variant({"n": 5, "draws": 3}) == ("n", 5)
    assert variant({"C": 1.0}) is None
    assert [from_headline(s) for s in ({"k": 10}, {"k": 20}, {"n": 10}, {"n": 50}, {})] == [10, 0, 0, 40, 0]


def test_score_of_one_draw_is_as_before() -> None:
    prediction = Prediction("finetune", torch.tensor([1, 0]), {"lr": 1.0}, n_train=7)
    result = score(prediction, torch.tensor([1, 1]), encoder="trained", layer=1, pooling="mean", n_train=50)
    assert (result.value, result.n_train, result.settings) == (50, 7, {"lr": 1.0})
