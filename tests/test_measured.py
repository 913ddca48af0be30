"""Episodes, clustering and retrieval: against scikit-learn, enumeration and naive loops."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, average_precision_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from torch import Tensor

from visrep.evaluation.clustering import accuracy, ari, clustering, counts, nmi
from visrep.evaluation.episodes import draw_episodes, episodes, nearest_mean
from visrep.evaluation.results import Inapplicable, bootstrap_mean
from visrep.evaluation.retrieval import ranked, retrieval, retrieval_within

UNUSED = torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)


def blobs(n: int, k: int, seed: int, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    centres = torch.randn(k, 6, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(n) % k
    return centres[labels] + spread * noise, labels


def test_episodes_are_scikit_learns_nearest_centroid() -> None:
    x, y = blobs(200, 7, seed=1)
    drawn = draw_episodes((10 * y + 3).numpy(), seed=0)
    assert drawn.shape == (600, 5, 20)
    for episode in drawn[::60]:
        assert episode.unique().numel() == 100  # no image twice, none both learned from and asked for
        assert all(len(y[rows].unique()) == 1 for rows in episode) and len(y[episode[:, 0]].unique()) == 5
        for n in (1, 5):
            learned, asked = episode[:, :n], episode[:, 5:]
            oracle = NearestCentroid() if n > 1 else KNeighborsClassifier(1)
            oracle.fit(x[learned.flatten()].numpy(), y[learned.flatten()].numpy())
            predicted = oracle.predict(x[asked.flatten()].numpy())
            right = nearest_mean(x[episode][None], n)
            np.testing.assert_array_equal(right.flatten().numpy(), predicted == y[asked.flatten()].numpy())


def test_episodes_interval_is_of_the_mean_over_episodes() -> None:
    x, y = blobs(200, 7, seed=1)
    one, five = episodes(*UNUSED, x, y)
    drawn = draw_episodes(y.numpy(), seed=0)
    rights = nearest_mean(x[drawn], 5).double().mean((1, 2)).numpy()
    assert five.value == pytest.approx(rights.mean())
    assert five.high - five.value == pytest.approx(1.96 * rights.std() / np.sqrt(600))
    assert five.value - five.low == pytest.approx(five.high - five.value)
    assert one.value < five.value and (one.settings["n"], five.settings["n"]) == (1, 5)
    assert episodes(*UNUSED, x, y, seed=1)[0].value != one.value
    assert episodes(*UNUSED, x, y)[0] == one


def test_episodes_of_noise_are_chance() -> None:
    x, y = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 8
    for found in episodes(*UNUSED, x, y):
        assert found.value == pytest.approx(0.2, abs=0.02)


def test_episodes_say_what_they_need() -> None:
    x, y = blobs(95, 5, seed=1)  # 19 of each class
    with pytest.raises(Inapplicable, match=r"5 classes with 20 images each .* and 0 of the 5 classes"):
        episodes(*UNUSED, x, y)
    x, y = blobs(400, 4, seed=1)
    with pytest.raises(Inapplicable, match="4 of the 4 classes"):
        episodes(*UNUSED, x, y)


def test_agreements_are_scikit_learns_and_enumerated() -> None:
    rng = np.random.default_rng(0)
    for k in (2, 4, 5):
        truth, found = rng.integers(k, size=60), rng.integers(k, size=60)
        found = np.where(rng.random(60) < 0.5, (truth + 1) % k, found)
        truth[:k], found[:k] = np.arange(k), np.arange(k)
        table = counts(found, truth, k)
        assert table.sum() == 60 and table[found[7], truth[7]] >= 1
        assert nmi(table) == pytest.approx(normalized_mutual_info_score(truth, found), abs=1e-12)
        assert ari(table) == pytest.approx(adjusted_rand_score(truth, found), abs=1e-12)
        best = max((np.array(order)[found] == truth).mean() for order in permutations(range(k)))
        assert accuracy(table) == pytest.approx(best, abs=1e-12)


def test_agreements_at_their_ends() -> None:
    same = np.diag([5, 7, 3])[[2, 0, 1]]
    assert (accuracy(same), nmi(same), ari(same)) == pytest.approx((1, 1, 1))
    one = np.array([[6, 4], [0, 0]])
    assert (accuracy(one), nmi(one), ari(one)) == pytest.approx((0.6, 0, 0))


def test_clustering_is_scikit_learns_k_means() -> None:
    x, y = blobs(150, 4, seed=1, spread=1.0)
    found = {measure.metric: measure for measure in clustering(*UNUSED, x, 10 * y + 3)}
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    starts: Any = 10  # scikit-learn's types know only "auto"
    runs = [KMeans(4, n_init=starts, random_state=run).fit_predict(unit) for run in range(5)]
    assert list(found) == ["accuracy", "NMI", "ARI"]
    expected = np.mean([normalized_mutual_info_score(y, run) for run in runs])
    assert found["NMI"].value == pytest.approx(expected, abs=1e-6)
    assert found["ARI"].value == pytest.approx(
        np.mean([adjusted_rand_score(y, run) for run in runs]), abs=1e-6
    )
    for measure in found.values():
        assert -1 <= measure.low < measure.value < measure.high <= 1


def test_clustering_interval_covers_the_choice_of_images() -> None:
    """Its half width is that of scores of other images under the same, here obvious, clusters."""
    rng = np.random.default_rng(0)
    half = {m.metric: (m.high - m.low) / 2 for m in clustering(*UNUSED, *_noisy_labels(rng, 400))}
    others = [_score_of_true_clusters(rng, 400) for _ in range(300)]
    assert half["accuracy"] == pytest.approx(1.96 * np.std(others), rel=0.25)


def _noisy_labels(rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
    cluster = rng.integers(2, size=n)
    x = torch.eye(2, 6)[torch.from_numpy(cluster)] + 0.01 * torch.from_numpy(rng.normal(size=(n, 6))).float()
    return x, torch.from_numpy(np.where(rng.random(n) < 0.2, 1 - cluster, cluster))


def _score_of_true_clusters(rng: np.random.Generator, n: int) -> float:
    x, y = _noisy_labels(rng, n)
    return float((x[:, :2].argmax(1) == y).double().mean())


def test_clustering_of_a_collapsed_encoder_is_chance() -> None:
    accuracies, mutual, adjusted = clustering(*UNUSED, torch.ones(60, 6), torch.arange(60) % 3)
    assert (accuracies.value, mutual.value, adjusted.value) == pytest.approx((1 / 3, 0, 0), abs=1e-6)


def test_clustering_says_what_it_needs() -> None:
    with pytest.raises(Inapplicable, match="3 images of 3"):
        clustering(*UNUSED, torch.randn(3, 6), torch.arange(3))
    with pytest.raises(Inapplicable, match="8 images of 1"):
        clustering(*UNUSED, torch.randn(8, 6), torch.zeros(8, dtype=torch.long))


def test_retrieval_is_scikit_learns_average_precision() -> None:
    (x, y), (test, answers) = blobs(90, 4, seed=1), blobs(300, 4, seed=2)
    found = {measure.metric: measure for measure in retrieval(x, y, test, answers)}
    cosine = torch.nn.functional.cosine_similarity(test[:, None], x[None], dim=-1)
    relevant = answers[:, None] == y[None]
    expected = [average_precision_score(r.numpy(), c.numpy()) for r, c in zip(relevant, cosine, strict=True)]
    assert found["mAP"].value == pytest.approx(np.mean(expected), abs=1e-6)
    order = cosine.argsort(1, descending=True)
    for k in (1, 5, 10):
        hits = relevant.gather(1, order)[:, :k].any(1)
        assert found[f"R@{k}"].value == pytest.approx(float(hits.double().mean()), abs=1e-9)
    assert found["R@1"].value < found["R@5"].value < found["R@10"].value
    assert all(m.n_train == 90 and m.n_test == 300 and m.low <= m.value <= m.high for m in found.values())


def test_retrieval_within_leaves_the_query_out() -> None:
    x, y = blobs(300, 4, seed=1)
    found = {measure.metric: measure for measure in retrieval_within(*UNUSED, x, y)}
    expected, first = [], []
    for i in range(300):
        rest = np.delete(np.arange(300), i)
        cosine = torch.nn.functional.cosine_similarity(x[i][None], x[rest]).numpy()
        relevant = (y[rest] == y[i]).numpy()
        expected.append(average_precision_score(relevant, cosine))
        first.append(relevant[cosine.argmax()])
    assert found["mAP"].value == pytest.approx(np.mean(expected), abs=1e-6)
    assert found["R@1"].value == pytest.approx(np.mean(first), abs=1e-9)
    assert found["mAP"].settings["among"] == 299 and found["mAP"].n_train == 0


def test_retrieval_of_a_collapsed_encoder_is_chance() -> None:
    """All equally near, sorted by class as folders are: neither all right nor all wrong."""
    y = torch.arange(4).repeat_interleave(250)
    found = {m.metric: m.value for m in retrieval(torch.ones(1000, 3), y, torch.ones(80, 3), y[::12][:80])}
    assert found["mAP"] == pytest.approx(0.25, abs=0.03)


def test_retrieval_leaves_out_queries_without_an_answer() -> None:
    x, y = blobs(40, 4, seed=1)
    y = torch.where(torch.arange(40) == 7, 99, y)
    found = retrieval_within(*UNUSED, x, y)
    assert found[0].n_test == 39 and "1 of 40 test images have no other of their class" in found[0].caution
    precision, first = ranked(x, y, x, y, itself=True)
    assert first[7] == -1 and precision[7] == 0 and (first >= 0).sum() == 39
    with pytest.raises(Inapplicable, match="no class of the test images has any"):
        retrieval_within(*UNUSED, x, torch.arange(40))


def test_bootstrap_of_a_mean_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(0.4, 0.2, 500)
    half = 1.96 * values.std() / np.sqrt(500)
    assert bootstrap_mean(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.003)
    assert bootstrap_mean(values) == bootstrap_mean(values)
