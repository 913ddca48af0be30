"""LeJEPA's statistic equals the official one, the integral it stands for, and a loop; its slices suit all ranks."""

from __future__ import annotations

import math
from dataclasses import replace
from inspect import unwrap

import numpy as np
import pytest
import torch

from conformance import Case, moment, views
from test_golden import arrays, close
from visrep.methods.predictive import lejepa
from visrep.methods.predictive.lejepa import directions, epps_pulley, prediction, quadrature

SETTINGS = [(3.0, 17), (5.0, 21)]


@pytest.mark.parametrize(("t_max", "knots"), SETTINGS)
def test_the_statistic_equals_the_official_one(t_max: float, knots: int) -> None:
    gold, name = arrays("lejepa.npz"), f"tmax{t_max:.0f}_n{knots}"
    x = gold["x"].double().requires_grad_()
    sliced = (x @ gold["directions"].double())[None]
    statistic = epps_pulley(sliced, gold[f"t_{name}"], gold[f"phi_{name}"], gold[f"weights_{name}"])
    statistic.mean().backward()
    close(statistic[0], gold[f"stats64_{name}"])
    close(statistic.mean(), gold[f"mean64_{name}"])
    assert x.grad is not None
    close(x.grad, gold[f"grad_mean64_{name}"])


@pytest.mark.parametrize(("t_max", "knots"), SETTINGS)
def test_the_quadrature_equals_the_official_one(t_max: float, knots: int) -> None:
    """Up to the 32 bits in which that is computed."""
    gold, name = arrays("lejepa.npz"), f"tmax{t_max:.0f}_n{knots}"
    ours = quadrature(t_max, knots, like=torch.zeros((), dtype=torch.float64))
    for value, key in zip(ours, ("t", "phi", "weights"), strict=True):
        close(value, gold[f"{key}_{name}"], 2e-7)


def test_the_defaults_are_the_official_ones() -> None:
    cfg = lejepa.Config()
    assert (cfg.t_max, cfg.knots, cfg.slices, cfg.w_sigreg) == (3.0, 17, 1024, 0.02)


def test_the_statistic_in_a_loop() -> None:
    """The trapezoid rule over both halves, on complex numbers."""
    x = torch.randn(2, 10, 3, dtype=torch.float64) + 0.3
    t = np.linspace(-3, 3, 33)
    expected = np.zeros((2, 3))
    for v in range(2):
        for s in range(3):
            distance = [
                abs(np.exp(1j * at * x[v, :, s].numpy()).mean() - np.exp(-at * at / 2)) ** 2 for at in t
            ]
            expected[v, s] = 10 * np.trapezoid(distance * np.exp(-t * t / 2), t)
    close(epps_pulley(x, *quadrature(3.0, 17, like=x)), torch.from_numpy(expected), 1e-12)


def test_the_quadrature_approaches_the_integral() -> None:
    """Over the whole line the integral is known in closed form (Epps & Pulley 1983)."""
    x = torch.randn(20, dtype=torch.float64) * 1.5
    pairs = torch.exp(-(x[:, None] - x).square() / 2).sum() / 400
    cross = torch.exp(-x.square() / 4).sum() / 20
    integral = math.sqrt(2 * math.pi) * pairs - 2 * math.sqrt(math.pi) * cross + math.sqrt(2 * math.pi / 3)
    numeric = epps_pulley(x.view(1, -1, 1), *quadrature(10.0, 201, like=x))
    close(numeric.squeeze(), 20 * integral, 1e-9)


def test_the_statistic_is_least_for_a_gaussian() -> None:
    quantiles = math.sqrt(2) * torch.erfinv(torch.linspace(-1, 1, 1001, dtype=torch.float64)[1:-1])

    def statistic(x: torch.Tensor) -> float:
        return epps_pulley(x.view(1, -1, 1), *quadrature(3.0, 17, like=x)).item()

    others = [
        quantiles + 0.2,
        1.2 * quantiles,
        0.8 * quantiles,
        quantiles.sign(),
        torch.zeros_like(quantiles),
    ]
    assert all(statistic(other) > 20 * statistic(quantiles) for other in others)


def test_the_minimal_codes_invariance() -> None:
    """With all views as centre it is the variance over views, as in the official minimal code."""
    z = torch.randn(4, 5, 3, dtype=torch.float64)
    close(prediction(z, z), z.var(0, correction=0).mean(), 1e-12)
    by_hand = sum((z[v, i] - (z[0, i] + z[1, i]) / 2).square().sum() for v in range(4) for i in range(5))
    close(prediction(z, z[:2]), torch.as_tensor(by_hand) / 60, 1e-12)


def test_directions_are_those_of_the_step() -> None:
    """Of length 1, the same on every rank and for any number of them, new every step, and isotropic."""
    first = directions(4096, 6, moment(3).rng)
    close(first.norm(dim=1), torch.ones(4096), 1e-5)
    assert torch.equal(first, directions(4096, 6, moment(3, rank=1, world=2).rng))
    assert not torch.equal(first, directions(4096, 6, moment(4).rng))
    close(first.T @ first / 4096, torch.eye(6) / 6, 0.02)


def test_terms_are_weighted_shares() -> None:
    cfg = lejepa.tiny().method

    def terms(w: float, center: str) -> dict[str, float]:
        method = Case("lejepa").build(cfg=replace(cfg, w_sigreg=w, center=center))
        losses = method.loss(views(Case("lejepa")), moment())
        return {name: term.item() for name, term in losses.terms.items()}

    quarter, whole, none = terms(0.25, "global"), terms(1.0, "global"), terms(0.0, "global")
    assert quarter["sigreg"] == pytest.approx(0.25 * whole["sigreg"], rel=1e-6)
    assert quarter["prediction"] == pytest.approx(0.75 * none["prediction"], rel=1e-6)
    assert whole["prediction"] == none["sigreg"] == 0
    assert (
        terms(0.0, "all")["prediction"] < none["prediction"]
    )  # no point is nearer to all views than their mean


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"w_sigreg": 10.0}, "share of the loss"),
        ({"knots": 1}, "at least 2 knots"),
        ({"slices": 0}, "1 slice"),
    ],
)
def test_errors(wrong: dict[str, float], words: str) -> None:
    cfg = lejepa.tiny().method
    with pytest.raises(ValueError, match=words):
        unwrap(lejepa.LeJEPA.__init__)(object.__new__(lejepa.LeJEPA), replace(cfg, **wrong))
