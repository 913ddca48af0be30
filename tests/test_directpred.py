"""DirectPred, DirectSet and DirectCopy: published numbers, the spectrum written out, and BYOL with the same matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance import Case, doubled, views
from visrep.method import At
from visrep.methods.distillation import byol
from visrep.methods.distillation.directpred import DirectPred, directpred_loss, linear_predictor, tiny
from visrep.nn.teacher import Teacher

GOLDEN = Path(__file__).parent / "golden" / "directpred.npz"


def arrays() -> dict[str, Tensor]:
    with np.load(GOLDEN) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def moment(step: int) -> At:
    return At(step, 100, 10, torch.Generator().manual_seed(0))


def correlation(rows: Tensor) -> Tensor:
    """The mean of z z^T, row by row."""
    return torch.stack([torch.outer(z, z) for z in rows]).mean(0)


def test_loss() -> None:
    gold = arrays()
    p = torch.stack([gold["rl_x"], gold["rl_x"].flip(0)])
    t = torch.stack(
        [gold["rl_y"].flip(0), gold["rl_y"]]
    )  # each prediction is compared with the other's target
    close(directpred_loss(p, t), 2 * gold["regression_loss_l2"].mean())


@pytest.mark.parametrize(
    ("name", "power", "eps", "shrink"),
    [
        ("w_boost_eps0.01", 0.5, 0.01, 1.0),
        ("w_boost_eps0.1", 0.5, 0.1, 1.0),
        ("w_boost_convert4_reg0.1", 0.25, 0.01, 0.9),
    ],
)
def test_predictor(name: str, power: float, eps: float, shrink: float) -> None:
    gold = arrays()
    close(shrink * linear_predictor(gold["corr"], power, eps), gold[name])


def test_predictor_of_directcopy_is_the_official_one_up_to_its_length() -> None:
    gold = arrays()
    largest = torch.linalg.eigvalsh(gold["corr"])[-1]
    close(largest * linear_predictor(gold["corr"], 1.0, 0.1 / largest.item()), gold["w_direct"])


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0, 2.0])
def test_predictor_shares_eigenvectors_with_the_correlation(power: float) -> None:
    values, vectors = torch.linalg.eigh(arrays()["corr"])
    expected = sum(
        ((values[i] / values[-1]) ** power + 0.05) * torch.outer(vectors[:, i], vectors[:, i])
        for i in range(16)
    )
    assert isinstance(expected, Tensor)
    close(linear_predictor(arrays()["corr"], power, 0.05), expected)


def test_predictor_of_few_rows_is_finite() -> None:
    """Fewer projections than dimensions: eigenvalues of 0, which rounding may put below."""
    z = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    w = linear_predictor(z.T @ z / 3, 0.5, 0.1)
    assert w.isfinite().all()
    torch.testing.assert_close(torch.linalg.eigvalsh(w)[:13], torch.full((13,), 0.1), atol=5e-3, rtol=0)


def test_running_correlation_and_predictor() -> None:
    gold = arrays()
    cfg = tiny().method
    assert (cfg.out, cfg.correlation_decay, cfg.power, cfg.eps) == (16, 0.3, 0.5, 0.01)
    method = DirectPred(cfg).double()
    method.after_step(moment(0), {"correlation": correlation(gold["features"][:20])[None]})
    close(method.correlation, gold["corr_first"])
    # Accumulated micro-batches come one after the other.
    halves = [correlation(rows) for rows in gold["features"][20:].chunk(2)]
    method.after_step(moment(1), {"correlation": torch.stack(halves)})
    close(method.correlation, gold["corr"])
    close(method.predictor, gold["predictor_weight_corr"])


def test_correlation_is_that_of_the_online_projections_of_both_views() -> None:
    method, batch = DirectPred(tiny().method).double(), doubled(views(Case("directpred")))
    losses = method.loss(batch, moment(1))
    rows = method.online(batch.crops[0]).detach().flatten(0, 1)
    (found,) = losses.carry["correlation"]
    close(found, correlation(rows))
    spectrum = torch.linalg.eigvalsh(found)
    close(losses.monitor["projection_rank"], spectrum.sum() ** 2 / spectrum.square().sum())


def test_predictor_rests_between_its_settings() -> None:
    method = DirectPred(replace(tiny().method, every=2))
    gold = arrays()["corr"].float()[None]
    seen = []
    for step in range(3):
        method.after_step(moment(step), {"correlation": (step + torch.arange(16.0)).diag()[None] + gold})
        seen.append((method.correlation.clone(), method.predictor.clone()))
    (f0, w0), (f1, w1), (f2, w2) = seen
    assert torch.equal(w0, w1) and not torch.equal(w1, w2)
    assert not torch.equal(f0, f1) and not torch.equal(f1, f2)
    torch.testing.assert_close(w2, linear_predictor(f2, 0.5, 0.01))


def test_byol_with_the_same_matrix_is_directpred() -> None:
    torch.manual_seed(0)
    method = DirectPred(tiny().method).double()
    method.predictor.copy_(linear_predictor(arrays()["corr"], 0.5, 0.01))
    bootstrap = byol.BYOL(byol.tiny().method).double()
    bootstrap.online.encoder, bootstrap.online.projector = method.online.encoder, method.online.projector
    bootstrap.target = Teacher(bootstrap.online)
    linear = nn.Linear(16, 16, bias=False).double()
    linear.weight.data.copy_(method.predictor)
    bootstrap.predictor = nn.Sequential(linear)

    batch = doubled(views(Case("directpred")))
    gradients = []
    for model, constant in ((method, 4.0), (bootstrap, 0.0)):
        model.zero_grad()
        (loss,) = model.loss(batch, moment(1)).terms.values()
        loss.backward()
        gradients.append(
            [
                loss.detach() + constant,
                *(p.grad.clone() for p in method.online.parameters() if p.grad is not None),
            ]
        )
    assert len(gradients[0]) > 10
    for one, other in zip(*gradients, strict=True):
        close(one, other)


@pytest.mark.parametrize("setting", [{"power": 0.0}, {"eps": -0.1}, {"every": 0}])
def test_settings_that_cannot_be(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs power > 0"):
        DirectPred(replace(tiny().method, **setting))
