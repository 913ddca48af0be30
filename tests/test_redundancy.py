"""Barlow Twins and VICReg equal the official losses, loops written out, and each other where they meet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance import Case, moment, views
from test_golden import arrays, close
from visrep.method import Method
from visrep.methods.redundancy import barlow_twins as barlow
from visrep.methods.redundancy import vicreg
from visrep.optim import parameter_groups


def pair(gold: dict[str, Tensor]) -> Tensor:
    return torch.stack([gold["z1"], gold["z2"]]).requires_grad_()


def check_gradients(z: Tensor, gold: dict[str, Tensor], suffix: str = "") -> None:
    assert z.grad is not None
    close(z.grad[0], gold[f"grad_z1{suffix}"])
    close(z.grad[1], gold[f"grad_z2{suffix}"])


def test_barlow_twins_equals_the_official_loss() -> None:
    gold = arrays("redundancy.npz", "barlow.")
    z = pair(gold)
    agreement, redundancy = barlow.barlow_twins(barlow.cross_correlation(z[0], z[1]))
    assert barlow.Config().w_redundancy == gold["lambd"]
    loss = agreement + barlow.Config().w_redundancy * redundancy
    loss.backward()
    close(loss, gold["loss"])
    check_gradients(z, gold)


def test_barlow_twins_in_loops() -> None:
    z1, z2 = torch.randn(2, 9, 5, dtype=torch.float64).numpy()
    z2 = z2 + z1
    agreement = redundancy = 0.0
    for i in range(5):
        for j in range(5):
            a, b = z1[:, i] - z1[:, i].mean(), z2[:, j] - z2[:, j].mean()
            c = (a * b).mean() / np.sqrt((a.var() + 1e-5) * (b.var() + 1e-5))
            if i == j:
                agreement += (1 - c) ** 2
            else:
                redundancy += c**2
    ours = barlow.barlow_twins(barlow.cross_correlation(torch.from_numpy(z1), torch.from_numpy(z2)))
    close(torch.stack(ours), torch.tensor([agreement, redundancy], dtype=torch.float64), 1e-12)


def test_barlow_twins_is_least_for_equal_views_with_unrelated_features() -> None:
    signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).T[:, 1:]
    agreement, redundancy = barlow.barlow_twins(barlow.cross_correlation(signs, 7 * signs + 3))
    assert agreement < 1e-8 and redundancy < 1e-8
    copies = signs[:, :1].expand(-1, 3)
    assert barlow.barlow_twins(barlow.cross_correlation(copies, copies))[1] == pytest.approx(6, rel=1e-3)


WEIGHTS = {"total": (25.0, 25.0, 1.0), "sim": (1.0, 0.0, 0.0), "std": (0.0, 1.0, 0.0), "cov": (0.0, 0.0, 1.0)}


@pytest.mark.parametrize("term", WEIGHTS)
def test_vicreg_equals_the_official_loss(term: str) -> None:
    gold = arrays("redundancy.npz", "vicreg.")
    z = pair(gold)
    w_invariance, w_variance, w_covariance = WEIGHTS[term]
    loss = w_invariance * vicreg.invariance(z) + w_variance * vicreg.variance(z)
    loss = loss + w_covariance * vicreg.covariance(z)
    loss.backward()
    close(loss, gold[f"loss_{term}"])
    check_gradients(z, gold, f"_{term}")


def test_vicreg_weights_are_the_official_ones() -> None:
    cfg = vicreg.Config()
    assert (cfg.w_invariance, cfg.w_variance, cfg.w_covariance) == WEIGHTS["total"]


def test_vicreg_in_loops() -> None:
    z = torch.randn(2, 7, 4, dtype=torch.float64) * torch.tensor([0.1, 0.5, 1.0, 2.0])
    invariance = variance = covariance = 0.0
    for i in range(4):
        for row in range(7):
            invariance += (z[0, row, i] - z[1, row, i]).item() ** 2 / 28
        for view in z.numpy():
            variance += max(0.0, 1 - np.sqrt(view[:, i].var(ddof=1) + 1e-4)) / 8
            for j in range(4):
                if i != j:
                    covariance += np.cov(view[:, i], view[:, j])[0, 1] ** 2 / 4
    ours = torch.stack([vicreg.invariance(z), vicreg.variance(z), vicreg.covariance(z)])
    close(ours, torch.tensor([invariance, variance, covariance], dtype=torch.float64), 1e-12)


def test_both_mean_the_same_by_redundancy() -> None:
    """On standardised features, VICReg's covariance term is Barlow Twins' redundancy of a view with itself."""
    m, d = 12, 6
    z = torch.randn(m, d, dtype=torch.float64) @ torch.randn(d, d, dtype=torch.float64)
    redundancy = barlow.barlow_twins(barlow.cross_correlation(z, z))[1]
    standard = F.batch_norm(z, None, None, training=True)
    covariance = vicreg.covariance(torch.stack([standard, standard]))
    close(covariance, 2 / d * (m / (m - 1)) ** 2 * redundancy, 1e-12)


def losses(name: str, cfg: object = None) -> tuple[Method, dict[str, Tensor]]:
    method = Case(name).build(cfg=cfg)
    return method, method.loss(views(Case(name)), moment()).terms


def test_scale_multiplies_the_loss() -> None:
    cfg = barlow.tiny().method
    _, whole = losses("barlow_twins", cfg)
    _, tenth = losses("barlow_twins", replace(cfg, scale=0.1))
    for name, term in whole.items():
        close(tenth[name], 0.1 * term, 1e-6)


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_one_image_has_no_statistics(name: str) -> None:
    method = Case(name).build()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        method.loss(views(Case(name)).rows(slice(0, 1)), moment())


def test_the_papers_learning_rates() -> None:
    """Biases and norms, and nothing else, move 0.0048 / 0.2 times as fast, without decay and LARS scaling."""
    run = barlow.paper()
    method = barlow.BarlowTwins(replace(run.method, hidden=16, out=16))
    groups = parameter_groups(method.named_parameters(), run.optim)
    slow = [group for group in groups if group["multiplier"] >= 0]
    for group in slow:
        factor = run.optim.multipliers[group["multiplier"]][1](moment())
        assert factor * 0.2 == pytest.approx(0.0048) and not group["decay"]
    in_slow = {name for group in slow for name in group["names"]}
    assert in_slow == {name for name, p in method.named_parameters() if p.ndim == 1}
