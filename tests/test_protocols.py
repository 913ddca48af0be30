"""kNN, linear and attentive probes against independent implementations, and intervals."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from visrep.evaluation.attentive import AttentiveProbe, AttentiveProbes, attentive
from visrep.evaluation.knn import knn
from visrep.evaluation.linear import fit, in_their_span, linear, standardise
from visrep.evaluation.protocols import check_protocols
from visrep.evaluation.results import Prediction, bootstrap, score


def blobs(n: int, d: int, k: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Gaussian classes with correlated dimensions."""
    rng = torch.Generator().manual_seed(0)
    centres, mixing = torch.randn(k, d, generator=rng), torch.randn(d, d, generator=rng)
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % k
    noise = torch.randn(n, d, generator=rng) @ mixing * spread / math.sqrt(d)
    return centres[labels] + noise, labels


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test features and labels of five classes that overlap."""
    return (*blobs(600, 20, 5, 3.0, seed=1), *blobs(300, 20, 5, 3.0, seed=2))


def test_knn_is_dinos(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, x_test, _ = (part.double() if part.is_floating_point() else part for part in data)
    for prediction in knn(x, y, x_test, chunk=77):
        oracle = KNeighborsClassifier(
            int(prediction.settings["k"]),
            weights=lambda d: np.exp((1 - d) / 0.07),  # pyright: ignore[reportArgumentType]
            metric="cosine",
            algorithm="brute",
        )
        expected = oracle.fit(x.numpy(), y.numpy()).predict(x_test.numpy())
        np.testing.assert_array_equal(prediction.predicted.numpy(), expected)


def test_knn_of_ten_thousand_is_quick() -> None:
    """1,000 queries, all k, in under 2 s of the processor on any number of cores; some 0.2 s are usual."""
    x = torch.randn(11_000, 384, generator=torch.Generator().manual_seed(0))
    began = time.process_time()
    knn(x[:10_000], torch.arange(10_000) % 100, x[10_000:])
    assert time.process_time() - began < 2


def test_knn_weighs_by_similarity() -> None:
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    (prediction,) = knn(train, torch.tensor([7, 3, 3]), torch.tensor([[5.0, 0.0]]), ks=(3,))
    assert prediction.predicted.tolist() == [7]  # one near neighbour outvotes two far ones


def test_knn_says_when_k_is_too_large() -> None:
    x, y = blobs(50, 4, 2, 1.0, seed=1)
    predictions = knn(x, y, x)
    assert [p.settings["k"] for p in predictions] == [10, 20, 50]
    assert "k=100 was asked for, there are 50" in predictions[-1].caution
    assert not predictions[0].caution
    with pytest.raises(ValueError, match="k=0"):
        knn(x, y, x, ks=(0,))


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_linear_fit_is_scikit_learns(data: tuple[Tensor, Tensor, Tensor, Tensor], c: float) -> None:
    x, x_test = standardise(data[0].double(), data[2].double())
    probe = fit(x, data[1], 5, c, tolerance=1e-9)
    oracle = LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(x.numpy(), data[1].numpy())
    np.testing.assert_allclose(probe.weight.T.numpy(), oracle.coef_, atol=1e-5)
    np.testing.assert_allclose(
        probe.logits(x_test).softmax(-1).numpy(), oracle.predict_proba(x_test.numpy()), atol=1e-5
    )
    assert probe.converged


def test_linear_fit_does_not_depend_on_the_start(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, _ = standardise(data[0].double(), data[2].double())
    far = fit(x, data[1], 5, 10.0)
    near = fit(x, data[1], 5, 0.01, start=far, gram=x.T @ x / len(x), tolerance=1e-9)
    torch.testing.assert_close(
        near.weight, fit(x, data[1], 5, 0.01, tolerance=1e-9).weight, atol=1e-6, rtol=0
    )


def test_linear_survives_dependent_and_constant_dimensions() -> None:
    x, y = blobs(200, 6, 3, 1.0, seed=1)
    x = torch.cat([x, x, x[:, :1] + x[:, 1:2], torch.full((200, 2), 7.3)], dim=1)
    standard, _ = standardise(x, x)
    assert standard[:, -2:].abs().max() == 0
    (prediction,) = linear(x, y, x)
    assert (prediction.predicted == y).float().mean() > 0.9


def test_linear_with_few_images_is_exact() -> None:
    x, y = blobs(40, 100, 4, 3.0, seed=1)
    x_test, _ = blobs(50, 100, 4, 3.0, seed=2)
    x, x_test = standardise(x.double(), x_test.double())
    z, z_test = in_their_span(x, x_test)
    assert z.shape == (40, 40) and z_test.shape == (50, 40)
    whole, reduced = fit(x, y, 4, 0.1, tolerance=1e-9), fit(z, y, 4, 0.1, tolerance=1e-9)
    torch.testing.assert_close(reduced.logits(z_test), whole.logits(x_test), atol=1e-6, rtol=0)
    assert in_their_span(x[:, :79], x_test[:, :79])[0].shape == (40, 79)


def test_linear_in_single_precision_agrees(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    single, double = (
        linear(data[0].to(kind), data[1], data[2].to(kind))[0] for kind in (torch.float, torch.double)
    )
    assert single.settings["C"] == double.settings["C"]
    assert (single.predicted == double.predicted).float().mean() > 0.99


def test_linear_regularises_noise() -> None:
    """With more dimensions than images, only one of which matters, a small C must win."""
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 200, generator=rng), torch.arange(300) % 2
    x[:, 0] += 1.5 * y
    (prediction,) = linear(x, y, x)
    assert float(prediction.settings["C"]) <= 0.1


def test_linear_looks_beyond_chance() -> None:
    """What tells the classes apart varies little: for small C the answers are at chance, and so for the next."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 6
    common = 3 * torch.randn(600, 1, generator=rng)
    x = common + 0.1 * torch.nn.functional.one_hot(y, 16) + 0.02 * torch.randn(600, 16, generator=rng)
    (found,) = linear(x[:400], y[:400], x[400:])
    assert (found.predicted == y[400:]).double().mean() > 0.9
    (weak,) = linear(x[:400], y[:400], x[400:], cs=(1e-5, 1e-4, 1e-3))
    assert (weak.predicted == y[400:]).double().mean() < 0.4


def test_labels_may_have_gaps(data: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, x_test, _ = data
    for protocol in (knn, linear):
        plain, gaps = protocol(x, y, x_test)[0].predicted, protocol(x, 10 * y + 3, x_test)[0].predicted
        torch.testing.assert_close(gaps, 10 * plain + 3)


def test_one_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        linear(torch.randn(10, 3), torch.zeros(10, dtype=torch.long), torch.randn(2, 3))


def test_attentive_pooling_is_multi_head_attention() -> None:
    """Of two probes read at once, each is BatchNorm, projections of all tokens, and torch's attention."""
    rng = torch.Generator().manual_seed(0)
    probes = [AttentiveProbe(d=12, k=3, heads=4, rng=rng) for _ in range(2)]
    together, norm = AttentiveProbes(probes), torch.nn.BatchNorm1d(12, affine=False, eps=1e-6)
    for training in (True, True, False):
        together.train(training)
        norm.train(training)
        tokens = 3 * torch.randn(5, 7, 12, generator=rng) + 1
        x = norm(tokens.transpose(1, 2)).transpose(1, 2)
        for probe, logits in zip(probes, together(tokens), strict=True):
            k, v = (x @ w.flatten(0, 1).T for w in (probe.key, probe.value))  # b p d
            q = probe.query[None, :, None].expand(5, -1, -1, -1)  # b h 1 e
            k, v = (part.unflatten(-1, (4, 3)).transpose(1, 2) for part in (k, v))
            pooled = torch.nn.functional.scaled_dot_product_attention(q, k, v)  # b h 1 e
            torch.testing.assert_close(logits, pooled.flatten(1) @ probe.head, atol=1e-6, rtol=1e-4)


def test_attentive_probes_do_not_see_each_other() -> None:
    """Chosen of three or tried alone: the same probe."""
    (tokens, labels), (test, _) = needles(300, 0), needles(50, 1)
    (several,) = attentive(tokens, labels, test, epochs=3)
    lr = several.settings["lr"]
    assert isinstance(lr, float)
    (alone,) = attentive(tokens, labels, test, epochs=3, lrs=(lr,))
    assert several.settings == alone.settings
    assert torch.equal(several.predicted, alone.predicted)


def needles(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """One token of sixteen is marked and carries the class, the others a random one."""
    rng = torch.Generator().manual_seed(seed)
    kinds = torch.randint(4, (n, 16), generator=rng)
    tokens = torch.nn.functional.one_hot(kinds, 8).float() + 0.1 * torch.randn(n, 16, 8, generator=rng)
    place = torch.randint(16, (n,), generator=rng)
    tokens[torch.arange(n), place, 6] += 3
    return tokens.half(), kinds[torch.arange(n), place]


def test_attentive_finds_what_the_mean_hides() -> None:
    (tokens, labels), (test, answers) = needles(1500, 0), needles(300, 1)
    (prediction,) = attentive(tokens, labels, test, lrs=(1e-2,), epochs=20)
    assert (prediction.predicted == answers).float().mean() > 0.9
    (mean,) = linear(tokens.float().mean(1), labels, test.float().mean(1))
    assert (mean.predicted == answers).float().mean() < 0.6
    (again,) = attentive(tokens, labels, test, lrs=(1e-2,), epochs=20)
    assert torch.equal(prediction.predicted, again.predicted)


def test_bootstrap_is_a_binomial_interval() -> None:
    correct = np.zeros(1000, dtype=bool)
    correct[:800] = True
    low, high = bootstrap(correct)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.003)
    assert bootstrap(correct) == (low, high)
    rng = np.random.default_rng(1)
    drawn = correct[rng.integers(1000, size=(1000, 1000))].mean(1)
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx((low, high), abs=0.004)


def test_score_is_in_percent() -> None:
    prediction = Prediction("knn", torch.tensor([1, 1, 2, 0]), {"k": 1})
    result = score(
        prediction, torch.tensor([1, 1, 1, 0]), encoder="trained", layer=3, pooling="cls", n_train=9
    )
    assert result.value == 75
    assert 0 <= result.ci_low < 75 < result.ci_high <= 100
    assert (result.n_train, result.n_test, result.metric) == (9, 4, "top-1")
    with pytest.raises(ValueError, match="0 test images"):
        bootstrap(np.zeros(0))


def test_unknown_protocol() -> None:
    with pytest.raises(ValueError, match=r"no protocol 'svm'\. Use some of: knn, .*linear, .*attentive"):
        check_protocols(("knn", "svm"))
