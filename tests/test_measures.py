"""Label-free measures against reference numbers, independent implementations, and what each must see.

The reference numbers are those that metrics_golden.py of the shared reference prints: numpy only, seed 0. Its draws
are made here again, in its order.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from conformance import Case, moment, views
from visrep.analysis.measures.base import Measure, Reading, Sample
from visrep.analysis.measures.clusters import clid, cluster_learnability
from visrep.analysis.measures.coding import coding_rate
from visrep.analysis.measures.intrinsic import two_nn
from visrep.analysis.measures.lidar import LIDAR, lidar
from visrep.analysis.measures.power_law import ALPHA_REQ, alpha_req
from visrep.analysis.measures.prototypes import code_entropy, prototype_entropy, prototype_use
from visrep.analysis.measures.registry import MEASURES, ONLINE, measure, selector
from visrep.analysis.measures.spectral import RANKME
from visrep.analysis.measures.tokens import token_entropy
from visrep.analysis.spectra import nesum

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def features() -> Tensor:
    """5,000 x 256 with variances 1/i."""
    x = np.random.default_rng(0).standard_normal((5000, 256))
    return torch.from_numpy(x * np.sqrt(np.arange(1, 257) ** -1.0))


def reference_views() -> tuple[Tensor, Tensor]:
    """300 images of 10 views in 64 dimensions, and the same views dealt to the images at random."""
    rng = np.random.default_rng(0)
    n, q, d = 300, 10, 64
    centres = rng.standard_normal((n, 1, d)) * np.sqrt(np.arange(1, d + 1) ** -1.0)
    views = centres + 0.3 * rng.standard_normal((n, q, d)) * np.sqrt(np.full(d, 1 / d))
    dealt = views.reshape(-1, d)[rng.permutation(n * q)].reshape(n, q, d)
    return torch.from_numpy(views), torch.from_numpy(dealt)


def test_lidar_is_the_reference() -> None:
    views, dealt = reference_views()
    assert lidar(views) == pytest.approx(25.483, abs=5e-4)
    assert lidar(views, delta=1e-2, eps=1e-7) == pytest.approx(26.126, abs=5e-4)
    assert lidar(dealt) == pytest.approx(56.755, abs=5e-4)


def test_lidar_by_the_generalised_eigenproblem() -> None:
    from scipy.linalg import eigh

    views = torch.randn(40, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    views = (views + 2 * views.mean(1, keepdim=True)).numpy()
    within = sum(np.cov(image.T) for image in views) / len(views) + 1e-4 * np.eye(8)
    values = eigh(np.cov(views.mean(1).T), within, eigvals_only=True)
    p = values / values.sum() + 1e-8
    assert lidar(torch.from_numpy(views)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)


def test_lidar_ignores_the_order_of_images_and_of_views() -> None:
    views, _ = reference_views()
    assert lidar(views.flip(0)) == pytest.approx(lidar(views), rel=1e-9)
    assert lidar(views.flip(1)) == pytest.approx(lidar(views), rel=1e-9)
    assert lidar(views + 5) == pytest.approx(lidar(views), rel=1e-6)


def test_alpha_req_is_the_reference(features: Tensor) -> None:
    assert alpha_req(features) == pytest.approx(1.0040, abs=5e-5)
    assert alpha_req(features, first=0, last=256) == pytest.approx(1.032, abs=5e-4)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_alpha_req_finds_an_exact_power_law(alpha: float) -> None:
    n = 128
    axes = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0]
    axes = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=torch.float64), axes], 1)[:, :n])[0][:, 1:]
    z = axes * torch.arange(1, n, dtype=torch.float64) ** (-alpha / 2)
    assert alpha_req(z) == pytest.approx(alpha, abs=1e-6)


def test_nesum_is_the_reference(features: Tensor) -> None:
    assert nesum(features) == pytest.approx(6.1054, abs=5e-5)
    assert nesum(features + 3) == pytest.approx(nesum(features), rel=1e-9)
    assert nesum(torch.ones(10, 4)) == 0


def test_coding_rate_by_its_determinant() -> None:
    z = np.random.default_rng(0).standard_normal((50, 12))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected = np.linalg.slogdet(np.eye(12) + 12 / (50 * 0.5) * unit.T @ unit)[1] / 2
    assert coding_rate(torch.from_numpy(z)) == pytest.approx(expected, rel=1e-9)
    assert coding_rate(torch.from_numpy(7 * z)) == pytest.approx(expected, rel=1e-9)
    one = torch.ones(50, 12)
    assert coding_rate(one) == pytest.approx(math.log(1 + 12 / 0.5) / 2, rel=1e-6)
    assert coding_rate(torch.eye(12)) == pytest.approx(12 * math.log(1 + 1 / 0.5) / 2, rel=1e-6)


def test_two_nn_is_the_reference() -> None:
    rng = np.random.default_rng(0)  # its draws, skipping what comes before
    for shape in ((5000, 256), 4096, 4096, (64, 8192), (64, 8192), (2000, 128)):
        rng.standard_normal(shape)
    z = torch.from_numpy(rng.standard_normal((3000, 5)) @ rng.standard_normal((5, 64)))
    assert two_nn(z) == pytest.approx(4.987, abs=5e-4)


def test_two_nn_with_the_neighbours_of_scikit_learn() -> None:
    z = np.random.default_rng(1).uniform(size=(400, 3))
    distances = NearestNeighbors(n_neighbors=3).fit(z).kneighbors(z)[0]
    mu = np.sort(distances[:, 2] / distances[:, 1])[:360]
    y = -np.log(1 - np.arange(1, 361) / 400)
    expected = (np.log(mu) * y).sum() / (np.log(mu) ** 2).sum()
    assert two_nn(torch.from_numpy(z)) == pytest.approx(expected, rel=1e-9)
    assert two_nn(torch.from_numpy(np.r_[z, z[:50]])) == pytest.approx(
        expected, rel=1e-9
    )  # copies do not count
    assert two_nn(torch.from_numpy(z + 1e4)) == pytest.approx(expected, rel=1e-4)  # far from the origin


def naive_learnability(z: np.ndarray, labels: np.ndarray, order: np.ndarray) -> float:
    z, right = z / np.linalg.norm(z, axis=1, keepdims=True), 0
    for i in range(1, len(z)):
        before = order[:i]
        nearest = before[np.argmin(np.linalg.norm(z[before] - z[order[i]], axis=1))]
        right += int(labels[nearest] == labels[order[i]])
    return right / len(z)


def test_cluster_learnability_by_a_loop() -> None:
    from sklearn.cluster import KMeans

    z = np.random.default_rng(2).standard_normal((150, 6))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    starts: Any = 3
    labels = KMeans(12, n_init=starts, random_state=0).fit_predict(unit)
    order = np.random.default_rng(0).permutation(150)
    found = cluster_learnability(torch.from_numpy(z))
    assert found == pytest.approx(naive_learnability(z, labels, order), abs=1e-9)
    assert clid(torch.from_numpy(z)) == pytest.approx(found * two_nn(torch.from_numpy(z)), rel=1e-9)


def test_far_clusters_are_learned_from_one_row_each() -> None:
    rng = np.random.default_rng(0)
    z = torch.from_numpy(np.eye(4)[np.arange(200) % 4] + 0.01 * rng.standard_normal((200, 4)))
    assert cluster_learnability(z, clusters=4) == pytest.approx(1 - 4 / 200)


def test_token_entropy_from_none_to_all() -> None:
    alike = torch.ones(2, 9, 16) * torch.tensor([[[1.0]], [[3.0]]])
    assert token_entropy(alike) == pytest.approx(0, abs=1e-6)
    assert token_entropy(torch.eye(16)[None, :9]) == pytest.approx(1, abs=1e-6)
    tokens = np.random.default_rng(0).standard_normal((3, 6, 4))
    expected = []
    for image in tokens:
        unit = image / np.linalg.norm(image, axis=1, keepdims=True)
        p = np.linalg.eigvalsh(unit @ unit.T / 6)
        p = p[p > 1e-12]
        expected.append(-(p * np.log(p)).sum() / math.log(4))
    assert token_entropy(torch.from_numpy(tokens)) == pytest.approx(np.mean(expected), rel=1e-9)


def test_prototypes_in_use() -> None:
    one_hot = torch.eye(4)[torch.tensor([0, 1, 1, 0, 1, 0])]
    assert prototype_use(one_hot) == 0.5
    assert prototype_entropy(one_hot) == pytest.approx(0.5)
    assert code_entropy(one_hot) == pytest.approx(0, abs=1e-9)
    even = torch.full((6, 4), 0.25)
    assert (prototype_entropy(even), code_entropy(even)) == pytest.approx((1, 1))
    with pytest.raises(ValueError, match="sum to 1"):
        prototype_use(torch.ones(3, 4))


def test_what_a_method_logs_of_its_prototypes_is_the_measure() -> None:
    case, at = Case("dino"), moment()
    method, batch = cast(Any, case.build()), views(case)
    logged = method.loss(batch, at).monitor
    codes = case.module.targets(method.teacher(batch.crops[:1]), method.center, method.cfg.tau_teacher(at))
    measured = [known for known in MEASURES if known.key in logged]
    assert [known.key for known in measured] == ["prototype_use", "prototype_entropy"]
    for known in measured:
        assert float(logged[known.key]) == pytest.approx(known.of(codes.flatten(0, 1)), rel=1e-5)
    assert float(logged["teacher_entropy"]) == pytest.approx(code_entropy(codes.flatten(0, 1)), rel=1e-5)


def sample(n: int = 400, d: int = 16) -> Sample:
    rng = torch.Generator().manual_seed(0)
    scales = torch.arange(1, d + 1) ** -0.5
    vectors = torch.randn(n, d, generator=rng) * scales
    views = vectors[:, None] + 0.2 * torch.randn(n, 4, d, generator=rng)
    tokens = torch.randn(8, 9, d, generator=rng)
    return Sample(vectors, views, tokens, torch.randn(n, 8, generator=rng).softmax(1))


@pytest.mark.parametrize("known", MEASURES, ids=lambda known: known.name)
def test_every_measure_reads_a_sample_and_says_what_it_is(known: Measure) -> None:
    reading = known.read(sample(2000, 120))
    assert reading.value is not None and math.isfinite(reading.value), reading
    assert reading.value == pytest.approx(known(sample(2000, 120)), rel=1e-9)
    assert known.variant and known.compares.endswith(".") and known.compares.count(". ") == 0


@pytest.mark.parametrize("known", MEASURES, ids=lambda known: known.name)
def test_the_page_quotes_every_measure(known: Measure) -> None:
    page = " ".join((DOCS / "diagnostics.md").read_text().split())
    assert known.variant in page and known.compares in page and f"`{known.name}`" in page


@pytest.mark.parametrize("known", [m for m in MEASURES if m.over_width], ids=lambda known: known.name)
def test_too_few_images_get_a_caution_and_no_number(known: Measure) -> None:
    width = 8 if known.needs == "codes" else 120
    few = sample(width, 120)
    assert known.read(few).value is None and "Use more than" in known.read(few).caution
    some = known.read(sample(3 * width, 120))
    assert some.value is not None and str(4 * width) in some.caution


def test_what_cannot_be_measured_is_said() -> None:
    assert LIDAR.read(Sample(torch.randn(9, 3))) == Reading(None, 0, "not measured: there are no views.")
    (pairs,) = [known for known in MEASURES if known.needs == "pair"]
    assert pairs.read(Sample(torch.randn(9, 3))).caution == "not measured: there are no pairs of views."
    assert "11 and on" in ALPHA_REQ.read(Sample(torch.randn(100, 8))).caution
    assert "too few" in measure("intrinsic-dimension").read(Sample(torch.randn(50, 3))).caution
    assert "1 different vectors" in measure("intrinsic-dimension").read(Sample(torch.ones(200, 3))).caution
    z = torch.randn(100, 3)
    z[0] = math.nan
    assert "diverged" in RANKME.read(Sample(z)).caution
    with pytest.raises(ValueError, match="needs views"):
        LIDAR(Sample(torch.randn(9, 3)))


def test_measures_of_training_need_nothing_that_training_lacks() -> None:
    z = torch.randn(30, 4)
    assert all(math.isfinite(known(Sample(z, views=z[:, None].repeat(1, 2, 1)))) for known in ONLINE)


def test_choosing() -> None:
    assert selector("lidar").best_first(3.0) < selector("lidar").best_first(2.0)
    assert selector("uniformity").best_first(-3.0) < selector("uniformity").best_first(-2.0)
    assert selector("alpha-req").best_first(1.1) < selector("alpha-req").best_first(0.5)
    for wrong in ("alignment", "prototype-use", "accuracy"):
        with pytest.raises(ValueError, match="choose by one of rankme, lidar"):
            selector(wrong)
    with pytest.raises(ValueError, match="no measure 'rank'"):
        measure("rank")
    with pytest.raises(ValueError, match="no better end"):
        measure("alignment").best_first(0.0)
