"""ST-DIM: the official loss and gradients; which frames it compares; its encoder stays one of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import visrep
from conformance import Case, doubled, moment, views
from test_golden import arrays, close
from visrep.methods.predictive.stdim import STDIM, info_nce
from visrep.views import OneView, View

CASE = Case("stdim")
DATA = "playground-video:n=48,size=32,frames=4"


def test_loss_and_gradients_are_the_official_ones() -> None:
    gold = arrays("stdim.npz")
    names = ("whole", "now", "before", "weight_1", "bias_1", "weight_2", "bias_2")
    given = {name: gold[name].requires_grad_() for name in names}
    whole, now, before = given["whole"], given["now"], given["before"]
    by_frame = F.linear(whole, given["weight_1"], given["bias_1"]).unsqueeze(1).expand_as(now)
    by_place = F.linear(now, given["weight_2"], given["bias_2"])
    first, second = (info_nce(q, before, 0)[0].mean() for q in (by_frame, by_place))
    close(first, gold["loss1"])
    close(second, gold["loss2"])
    close(first + second, gold["loss"])
    (first + second).backward()
    for name, tensor in given.items():
        assert tensor.grad is not None and tensor.grad.any(), name
        close(tensor.grad, gold[f"grad_{name}"])


def test_the_loss_written_out() -> None:
    """Queries are made of the later frame, keys of the earlier one, at each place among the clips of the batch."""
    method, batch = CASE.build().double().eval(), doubled(views(CASE))
    assert isinstance(method, STDIM)
    clips = batch.crops[0][0]
    before, now = (method.backbone(clips[:, t]).patches for t in (0, 1))
    losses = method.loss(batch, moment())
    for name, q in (
        ("global_local", method.from_frame(now.mean(1)).unsqueeze(1).expand_as(now)),
        ("local_local", method.from_place(now)),
    ):
        cost, right = 0.0, 0
        for n in range(now.shape[1]):
            for i in range(16):
                scores = torch.stack([q[i, n] @ before[j, n] for j in range(16)])
                cost += (scores.logsumexp(0) - scores[i]).item() / (16 * now.shape[1])
                right += int(scores.argmax() == i)
        close(losses.terms[name].detach(), torch.tensor(cost, dtype=torch.float64))
        assert info_nce(q, before, 0)[1].sum() == right


def test_rows_of_a_rank_among_all() -> None:
    q, k = torch.randn(6, 3, 4).double(), torch.randn(6, 3, 4).double()
    whole, parts = info_nce(q, k, 0), [info_nce(q[rows], k, rows[0]) for rows in ([0, 1, 2], [3, 4, 5])]
    for i in range(2):
        assert torch.equal(whole[i], torch.cat([part[i] for part in parts]))


def test_the_encoder_is_one_of_images(tmp_path: Path) -> None:
    """Trained on clips; exported for images; judged and embedded on images and, frame by frame, on clips."""
    run = visrep.pretrain("stdim:tiny", DATA, str(tmp_path / "run"))
    encoder = visrep.load_encoder(run)
    assert encoder.preprocessing.frames == 0 and encoder.preprocessing.size == 32
    assert encoder(torch.randn(2, 3, 32, 32)).patches.shape == (2, 16, 32)
    for data, shape in ((DATA, (48, 32)), ("playground:n=48,size=32", (48, 32))):
        evaluation = visrep.evaluate(run, data, protocols=("knn",))
        assert {result.encoder for result in evaluation.results} == {"trained", "untrained", "pixels"}
        with np.load(visrep.embed(run, data, tmp_path / "vectors.npz")) as embedded:
            assert embedded["vector"].shape == shape
    with np.load(run / "pictures.npz") as pictures:
        assert pictures["views"].shape == (8, 2, 4, 32, 32, 3)
        assert pictures["found places"].shape == (8, 4, 32, 32, 3)
    assert "Found places" in visrep.report(run).read_text()


def test_pictures_show_both_frames_and_how_surely_they_are_found() -> None:
    method, batch = CASE.build().eval(), views(CASE)
    picture = method.pictures(batch, moment())["found places"]
    assert picture.shape == (16, 4, 3, 32, 32)
    view: View = CASE.run.method.views.view
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (view.mean, view.std))
    close(picture[:, :2], (batch.crops[0][0] * std + mean).clamp(0, 1).flip(1), 1e-5)
    found = F.avg_pool2d(picture[:, 2:].flatten(0, 1), 8).unflatten(0, (16, 2))
    losses = method.loss(batch, moment()).terms
    for i, name in enumerate(("global_local", "local_local")):
        close(-found[:, i, 0].log().mean(), losses[name].detach(), 1e-4)


def test_other_numbers_of_frames() -> None:
    with pytest.raises(ValueError, match=r"views.frames=3: .* Use 2"):
        CASE.fresh(cfg=replace(CASE.run.method, views=OneView(View(size=32), frames=3)))
