"""Similarities against reference numbers and independent implementations, and what each must be blind to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes, subspace_angles
from scipy.stats import spearmanr

from visrep.analysis.heatmap import colour, heat_map
from visrep.analysis.similarity.base import Similarity
from visrep.analysis.similarity.cca import CCA, PWCCA, SVCCA
from visrep.analysis.similarity.cka import BATCH, CKA, CKA_BIASED, CKA_MINIBATCH, hsic, minibatch_cka
from visrep.analysis.similarity.neighbours import MUTUAL_KNN
from visrep.analysis.similarity.procrustes import PROCRUSTES
from visrep.analysis.similarity.registry import SIMILARITIES, similarities
from visrep.analysis.similarity.rsa import RSA, mean_ranks

DOCS = Path(__file__).parents[1] / "docs"


def draw(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def related(n: int = 60, d1: int = 7, d2: int = 5) -> tuple[np.ndarray, np.ndarray]:
    x = draw(n, d1) * np.arange(1, d1 + 1) ** -0.5
    return x, x[:, :d2] @ draw(d2, d2, 1) + 0.5 * draw(n, d2, 2)


def of(similarity: Similarity, x: np.ndarray, y: np.ndarray) -> float:
    return similarity(torch.from_numpy(x), torch.from_numpy(y))


def test_cka_of_random_features_is_the_reference() -> None:
    rng = np.random.default_rng(0)  # the draws of metrics_golden.py, skipping what comes before
    for shape in ((5000, 256), 4096, 4096):
        rng.standard_normal(shape)
    x, y = rng.standard_normal((64, 8192)), rng.standard_normal((64, 8192))
    assert of(CKA_BIASED, x, y) == pytest.approx(0.99235, abs=5e-6)
    assert of(CKA, x, y) == pytest.approx(-0.01632, abs=5e-6)


def song(k: np.ndarray, m: np.ndarray) -> float:
    """Unbiased HSIC as it is printed, equation 5 of Song et al. 2012."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    cross = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + cross - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3))


def test_hsic_is_the_printed_formula() -> None:
    x, y = related()
    k, m = x @ x.T, y @ y.T
    assert float(hsic(torch.from_numpy(k), torch.from_numpy(m))) == pytest.approx(song(k, m), rel=1e-9)
    with pytest.raises(ValueError, match="4 or more"):
        hsic(torch.eye(3), torch.eye(3))


def test_biased_cka_is_the_ratio_of_norms() -> None:
    x, y = related()
    x, y = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert of(CKA_BIASED, x, y) == pytest.approx(expected, rel=1e-9)


def test_minibatch_cka_averages_before_dividing() -> None:
    x, y = (torch.from_numpy(z) for z in related(120))
    batches = list(zip(x.split(30), y.split(30), strict=True))
    parts = []
    for a, b in batches:
        k, m = a.numpy() @ a.numpy().T, b.numpy() @ b.numpy().T
        parts.append((song(k, m), song(k, k), song(m, m)))
    top, first, second = np.mean(parts, axis=0)
    assert minibatch_cka(batches) == pytest.approx(top / np.sqrt(first * second), rel=1e-9)
    assert minibatch_cka([(x, y)]) == pytest.approx(CKA(x, y), rel=1e-9)
    with pytest.raises(ValueError, match="no batches"):
        minibatch_cka([])
    with pytest.raises(ValueError, match="same vector"):
        minibatch_cka([(x, torch.ones_like(y))])


def test_minibatch_cka_of_the_command_line() -> None:
    """Batches of every third image, so that data in the order of its classes is no hindrance."""
    x, y = related(2 * BATCH + 90)
    parts = []
    for first in range(3):
        a, b = x[first::3], y[first::3]
        k, m = a @ a.T, b @ b.T
        parts.append((song(k, m), song(k, k), song(m, m)))
    top, first_side, second_side = np.mean(parts, axis=0)
    assert of(CKA_MINIBATCH, x, y) == pytest.approx(top / np.sqrt(first_side * second_side), rel=1e-9)
    assert of(CKA_MINIBATCH, x, y) == pytest.approx(of(CKA, x, y), abs=0.02)
    assert of(CKA_MINIBATCH, x[:BATCH], y[:BATCH]) == pytest.approx(of(CKA, x[:BATCH], y[:BATCH]), rel=1e-9)
    sides = np.arange(len(x)) > len(x) // 2
    assert (
        of(CKA_MINIBATCH, *(z + 5 * sides[:, None] for z in (x, y))) > 0.9
    )  # which consecutive batches do not see


def test_procrustes_is_scipys() -> None:
    x, y = related(d1=5)
    x, y = ((z - z.mean(0)) / np.linalg.norm(z - z.mean(0)) for z in (x, y))
    rotation, scale = orthogonal_procrustes(x, y)
    assert of(PROCRUSTES, x, y) == pytest.approx(scale, rel=1e-9)
    distance = np.linalg.norm(x @ rotation - y)
    assert of(PROCRUSTES, x, y) == pytest.approx(1 - distance**2 / 2, rel=1e-9)


def test_rsa_is_scipys_spearman() -> None:
    x, y = related()
    above = np.triu_indices(len(x), 1)
    expected: Any = spearmanr((1 - np.corrcoef(x))[above], (1 - np.corrcoef(y))[above])
    assert of(RSA, x, y) == pytest.approx(expected.statistic, rel=1e-9)


def test_ranks_of_ties_are_shared() -> None:
    ranks = mean_ranks(torch.tensor([3.0, 1.0, 3.0, 2.0], dtype=torch.float64))
    assert ranks.tolist() == [3.5, 1.0, 3.5, 2.0]


def test_mean_cca_is_the_cosine_of_scipys_angles() -> None:
    x, y = related()
    expected = np.cos(subspace_angles(x - x.mean(0), y - y.mean(0))).mean()
    assert of(CCA, x, y) == pytest.approx(expected, rel=1e-6)


def test_svcca_is_cca_of_the_strongest_axes() -> None:
    x, y = related(200, 12, 9)
    x = x * np.array([1.0] * 6 + [1e-4] * 6)  # half of the directions hold nothing to speak of
    kept = []
    for z in (x, y):
        u, s, _ = np.linalg.svd(z - z.mean(0), full_matrices=False)
        kept.append(u[:, : np.searchsorted(np.cumsum(s**2) / (s**2).sum(), 0.99) + 1])
    assert kept[0].shape[1] <= 6
    assert of(SVCCA, x, y) == pytest.approx(np.cos(subspace_angles(*kept)).mean(), rel=1e-6)
    assert of(SVCCA, x, y) != pytest.approx(of(CCA, x, y), rel=1e-3)


def reference_pwcca(x: np.ndarray, y: np.ndarray) -> float:
    """Weighted by the projections of the first, by way of covariances rather than bases."""
    x, y = x - x.mean(0), y - y.mean(0)
    inverse = np.linalg.inv(np.linalg.cholesky(x.T @ x))
    other = np.linalg.inv(np.linalg.cholesky(y.T @ y))
    u, correlations, _ = np.linalg.svd(inverse @ x.T @ y @ other.T, full_matrices=False)
    canonical = x @ inverse.T @ u
    weights = np.abs(canonical.T @ x).sum(1)
    return float((weights * correlations).sum() / weights.sum())


def test_pwcca_by_covariances() -> None:
    x, y = related()
    expected = (reference_pwcca(x, y) + reference_pwcca(y, x)) / 2
    assert of(PWCCA, x, y) == pytest.approx(expected, rel=1e-9)
    dead = np.c_[x, np.zeros((len(x), 3))]
    assert of(PWCCA, dead, y) == pytest.approx(expected, rel=1e-9)


def naive_mutual_knn(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    neighbours = []
    for z in (x, y):
        limit = np.quantile(np.abs(z), 0.95, axis=1).mean()
        z = np.clip(z, -limit, limit)
        z = z / np.linalg.norm(z, axis=1, keepdims=True)
        mine = [
            sorted((j for j in range(len(z)) if j != i), key=lambda j: -z[i] @ z[j])[:k]
            for i in range(len(z))
        ]
        neighbours.append(mine)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*neighbours, strict=True)]))


def test_mutual_knn_by_a_loop() -> None:
    x, y = related()
    assert of(MUTUAL_KNN, x, y) == pytest.approx(naive_mutual_knn(x, y), abs=1e-12)


def test_unrelated_features_share_as_many_neighbours_as_chance_gives() -> None:
    assert of(MUTUAL_KNN, draw(500, 20), draw(500, 20, 1)) == pytest.approx(10 / 499, abs=0.008)


ROTATION = np.linalg.qr(draw(7, 7, 3))[0]
BLIND: dict[str, tuple[str, ...]] = {
    "cka": ("rotation", "scale", "shift"),
    "cka-biased": ("rotation", "scale", "shift"),
    "cka-minibatch": ("rotation", "scale", "shift"),
    "procrustes": ("rotation", "scale", "shift"),
    "rsa": ("scale", "shift of an image"),
    "cca": ("rotation", "scale", "shift", "linear map"),
    "svcca": ("rotation", "scale", "shift"),
    "pwcca": ("scale", "shift", "linear map of the other"),
    "mutual-knn": ("scale",),
}
CHANGES = {
    "rotation": lambda x: x @ ROTATION,
    "scale": lambda x: 3.7 * x,
    "shift": lambda x: x + np.arange(7.0),
    "shift of an image": lambda x: 0.5 * x + 2.0,
    "linear map": lambda x: x @ (ROTATION * np.arange(1, 8)),
    "linear map of the other": lambda x: x,
}


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda s: s.name)
def test_invariances(similarity: Similarity) -> None:
    x, y = related(80)
    value = of(similarity, x, y)
    for change in BLIND[similarity.name]:
        assert of(similarity, CHANGES[change](x), y) == pytest.approx(value, rel=1e-6), change
    if similarity.name in ("cka", "cka-biased", "cka-minibatch", "procrustes", "svcca"):
        assert of(similarity, CHANGES["linear map"](x), y) != pytest.approx(value, rel=1e-3)
    if similarity.name == "rsa":
        assert of(similarity, CHANGES["rotation"](x), y) != pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda s: s.name)
def test_identities(similarity: Similarity) -> None:
    x, y = related(80)
    assert of(similarity, x, x) == pytest.approx(1, abs=1e-9)
    assert of(similarity, x, y) == pytest.approx(of(similarity, y, x), abs=1e-9)
    order = np.random.default_rng(0).permutation(80)
    assert of(similarity, x[order], y[order]) == pytest.approx(of(similarity, x, y), rel=1e-9)
    assert of(similarity, x, y) > of(similarity, x, y[order]) + 0.1  # a wrong pairing shows


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda s: s.name)
def test_reordering_what_is_prepared_is_preparing_what_is_reordered(similarity: Similarity) -> None:
    x, y = (torch.from_numpy(z) for z in related(40))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    moved = similarity.reordered(similarity.prepare(y), order)
    value = similarity.compare(similarity.prepare(x), moved)
    assert value == pytest.approx(similarity(x, y[order]), rel=1e-9)


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda s: s.name)
def test_what_cannot_be_compared_is_said(similarity: Similarity) -> None:
    with pytest.raises(ValueError, match="same images"):
        similarity(torch.randn(20, 3), torch.randn(19, 3))
    with pytest.raises(ValueError, match="needs"):
        similarity(torch.randn(3, 3), torch.randn(3, 3))
    broken = torch.randn(20, 3)
    broken[0, 0] = torch.nan
    with pytest.raises(ValueError, match="1 of 20 rows"):
        similarity(broken, torch.randn(20, 3))
    if similarity is not MUTUAL_KNN:
        with pytest.raises(ValueError, match=r"one vector|all one number"):
            similarity(torch.ones(20, 3), torch.randn(20, 3))


def test_too_few_images_are_cautioned_about() -> None:
    assert CCA.silent(50, 64, 8) and "Use more than 64" in CCA.caution(50, 64, 8)
    assert not CCA.silent(100, 64, 8) and "chance is high" in CCA.caution(100, 64, 8)
    assert CKA.silent(3, 8, 8) and CKA.caution(3, 8, 8) == (
        f"not shown: 3 images are too few for {CKA.title}. Use {CKA.least} or more."
    )
    assert not CCA.caution(1000, 64, 8) and not CKA.silent(50, 64, 64) and not CKA.caution(50, 64, 64)


def test_names() -> None:
    assert [s.name for s in similarities(("rsa", "cka"))] == ["cka", "rsa"]
    with pytest.raises(ValueError, match=r"no similarity 'ckaa'. Available: cka, mutual-knn"):
        similarities(("ckaa",))


@pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda s: s.name)
def test_the_page_quotes_every_similarity(similarity: Similarity) -> None:
    page = " ".join((DOCS / "similarity.md").read_text().split())
    assert similarity.variant in page and similarity.compares in page and f"`{similarity.name}`" in page


def test_heat_maps_show_their_numbers_and_escape_names() -> None:
    html = heat_map(
        [[0.123, None], [-0.001, 1.0]], ["a<b", "c"], ["1", "2"], titles=[["x", "y"], ["z", "<w>"]]
    )
    assert (
        "a&lt;b" in html
        and "0.12" in html
        and "&ndash;" in html
        and "&lt;w&gt;" in html
        and "-0.00" not in html
    )
    assert colour(-1) == colour(0) == (68, 1, 84) and colour(2) == colour(1) == (253, 231, 37)
    brightness = [sum(colour(value / 10)) for value in range(11)]
    assert brightness == sorted(brightness)
