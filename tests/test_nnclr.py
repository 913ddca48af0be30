"""NNCLR: published numbers, neighbours, the queue of first views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance import Case, moment, views
from visrep.methods.contrastive import mocov3, nnclr

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def gold() -> dict[str, Tensor]:
    with np.load(GOLDEN / "nnclr.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def build(cfg: nnclr.Config | None = None) -> nnclr.NNCLR:
    method = Case("nnclr").build(cfg=cfg)
    assert isinstance(method, nnclr.NNCLR)
    return method


def test_neighbours(gold: dict[str, Tensor]) -> None:
    z = F.normalize(torch.stack([gold["z1"], gold["z2"]]), dim=-1)
    found = nnclr.nearest(z, gold["queue"])
    close(found[0], gold["nn1"], 0)
    close(found[1], gold["nn2"], 0)
    close(found[0], gold["queue"][gold["nn_idx1"]], 0)


def test_loss_and_gradients(gold: dict[str, Tensor]) -> None:
    p1, p2 = (gold[name].clone().requires_grad_() for name in ("p1", "p2"))
    forth, _ = nnclr.nnclr_loss(gold["nn1"], p2, 0, tau=0.2)
    back, _ = nnclr.nnclr_loss(gold["nn2"], p1, 0, tau=0.2)
    loss = (forth + back) / 2
    loss.backward()
    close(forth, gold["loss_nn1_p2"])
    close(back, gold["loss_nn2_p1"])
    close(loss, gold["loss"])
    assert p1.grad is not None and p2.grad is not None
    close(p1.grad, gold["grad_p1"])
    close(p2.grad, gold["grad_p2"])


def test_with_the_vectors_themselves_for_neighbours_it_is_moco_v3_without_the_factor() -> None:
    q, k = torch.randn(2, 6, 8, dtype=torch.float64).unbind()
    queue = F.normalize(q, dim=-1)
    neighbours = nnclr.nearest(queue, queue)
    close(neighbours, queue, 0)
    loss, accuracy = nnclr.nnclr_loss(neighbours[2:], k, 2, tau=0.3)
    reference, expected = mocov3.contrast(q[2:], k, 2, tau=0.3)
    close(loss * 2 * 0.3, reference)
    assert accuracy == expected


def test_method_is_the_loss_of_both_directions_and_remembers_first_views() -> None:
    method, batch = build(), views(Case("nnclr"))
    losses = method.loss(batch, moment())
    z = [method.projector(method.backbone(view).pool()) for view in batch.crops[0]]
    p = [method.predictor(x) for x in z]
    neighbours = [nnclr.nearest(F.normalize(x, dim=-1), method.queue.rows) for x in z]
    tau = method.cfg.tau
    forth, back = (nnclr.nnclr_loss(neighbours[v], p[1 - v], 0, tau)[0] for v in (0, 1))
    torch.testing.assert_close(losses.terms["nnclr"], (forth + back) / 2)

    method.after_step(moment(), losses.carry)
    remembered = method.queue.rows[: len(batch)]
    torch.testing.assert_close(remembered, F.normalize(z[0], dim=-1).detach())
    again = method.loss(batch, moment())  # now every first view finds itself
    similarity = (
        F.normalize(z[0], dim=-1) * nnclr.nearest(F.normalize(z[0], dim=-1), method.queue.rows)
    ).sum(1)
    torch.testing.assert_close(similarity, torch.ones(len(batch)))
    assert again.monitor["neighbour_similarity"] > losses.monitor["neighbour_similarity"]


def test_a_queue_that_the_batch_does_not_divide_is_said() -> None:
    method = build(replace(nnclr.tiny().method, queue=40))
    losses = method.loss(views(Case("nnclr")), moment())
    with pytest.raises(ValueError, match="does not divide a queue of 40"):
        method.after_step(moment(), losses.carry)
