"""Label-free measures against reference numbers, and what each of them can and cannot see."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from visrep.analysis.spectra import (
    alignment,
    feature_std,
    participation_ratio,
    rankme,
    sample_caution,
    spectrum,
    uniformity,
)


@pytest.fixture(scope="module")
def features() -> Tensor:
    """5,000 x 256 with variances 1/i, the draw that the reference numbers belong to."""
    x = np.random.default_rng(0).standard_normal((5000, 256))
    return torch.from_numpy(x * np.sqrt(np.arange(1, 257) ** -1.0))


def test_rankme_is_the_papers(features: Tensor) -> None:
    assert rankme(features) == pytest.approx(207.39534294726346, abs=1e-6)
    assert rankme(features, eps=1e-5) == pytest.approx(209.88385788376522, abs=1e-6)


def test_rankme_sees_a_common_offset(features: Tensor) -> None:
    assert rankme(features + 3) == pytest.approx(15.346423047526226, abs=1e-6)
    assert rankme(features - features.mean(0)) == pytest.approx(207.3926718061431, abs=1e-6)


@pytest.mark.parametrize(("n", "expected"), [(64, 54.08), (256, 166.76), (1024, 201.13)])
def test_rankme_grows_with_the_sample(features: Tensor, n: int, expected: float) -> None:
    assert rankme(features[:n]) == pytest.approx(expected, abs=0.005)


def test_rankme_of_one_direction() -> None:
    rng = np.random.default_rng(0)
    z = torch.from_numpy(np.outer(rng.standard_normal(500), rng.standard_normal(400)))
    p = np.array([1.0] + [0.0] * 399) + 1e-7  # its definition, on the only spectrum a rank of one can have
    assert rankme(z) == pytest.approx(np.exp(-(p * np.log(p)).sum()), abs=1e-9)


def test_participation_ratio(features: Tensor) -> None:
    assert participation_ratio(features) == pytest.approx(22.75393599009769, abs=1e-9)
    assert participation_ratio(features + 3) == pytest.approx(22.75393599009769, abs=1e-9)


def test_spectrum_is_the_covariance(features: Tensor) -> None:
    expected = np.linalg.eigvalsh(np.cov(features.numpy().T))[::-1]
    np.testing.assert_allclose(spectrum(features).numpy(), expected, rtol=1e-9)
    assert spectrum(features[:40]).shape == (40,)


def test_uniformity_of_random_directions() -> None:
    rng = np.random.default_rng(0)  # the reference draws, skipping what comes before
    rng.standard_normal((5000, 256))
    rng.standard_normal(4096)
    rng.standard_normal(4096)
    rng.standard_normal((64, 8192))
    rng.standard_normal((64, 8192))
    z = torch.from_numpy(rng.standard_normal((2000, 128)))
    assert uniformity(z) == pytest.approx(-3.937918227295092, abs=1e-9)
    assert uniformity(z, chunk=300) == pytest.approx(uniformity(z), abs=1e-12)


def test_uniformity_is_a_mean_over_pairs() -> None:
    z = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = torch.nn.functional.normalize(z, dim=-1)
    assert uniformity(z) == pytest.approx(
        float(torch.pdist(unit).square().mul(-2).exp().mean().log()), abs=1e-12
    )


def test_collapse_to_one_point() -> None:
    z = torch.ones(50, 8) * torch.tensor(3.0)
    assert feature_std(z) == pytest.approx(0, abs=1e-12)
    assert uniformity(z) == pytest.approx(0, abs=1e-12)
    assert rankme(z) == pytest.approx(1, abs=1e-3)
    assert participation_ratio(z) == 0


def test_feature_std_of_even_directions() -> None:
    z = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(0)) * 7
    assert feature_std(z) == pytest.approx(1 / math.sqrt(64), rel=0.01)


def test_alignment_ignores_length() -> None:
    z = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    assert alignment(z, 5 * z) == pytest.approx(0, abs=1e-12)
    assert alignment(z, -z) == pytest.approx(4, abs=1e-6)


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="3 x 4 and 3 x 5"):
        # without the annotations that only the tests execute, which would speak first
        inspect.unwrap(alignment)(torch.zeros(3, 4), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="at least 2 images"):
        rankme(torch.zeros(1, 4))
    z = torch.randn(10, 4)
    z[2, 1], z[7] = math.nan, math.inf
    with pytest.raises(ValueError, match="2 of 10 rows"):
        spectrum(z)


def test_caution_about_few_images() -> None:
    assert "at most 64 of 256" in sample_caution(64, 256)
    assert "1024 or more" in sample_caution(600, 256)
    assert sample_caution(1024, 256) == ""
