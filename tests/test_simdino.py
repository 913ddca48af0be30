"""SimDINO and SimDINOv2: losses equal published numbers, the coding rate equals its textbook forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visrep.functional import coding_rate, crop_similarity, mean_over_hidden
from visrep.method import At
from visrep.methods.distillation import simdino, simdinov2
from visrep.methods.distillation.simdino import simdino_loss
from visrep.methods.distillation.simdinov2 import simdinov2_loss
from visrep.nn.hidden import hidden_blocks

GOLDEN = Path(__file__).parent / "golden" / "simdino.npz"


def arrays() -> dict[str, Tensor]:
    with np.load(GOLDEN) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(loss, x)
    return grad


def rows(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def moment(step: int = 0) -> At:
    return At(step, 100, 10, torch.Generator().manual_seed(step))


@pytest.mark.parametrize(
    ("name", "with_teacher", "eps", "w"),
    [
        ("expa0_eps0.5", False, 0.5, 1),
        ("expa1_eps0.5", True, 0.5, 1),
        ("expa1_eps0.05_coeff2", True, 0.05, 2),
    ],
)
def test_simdino_loss(name: str, with_teacher: bool, eps: float, w: int) -> None:
    gold = arrays()
    student, t = gold["student"].requires_grad_(), gold["teacher"]
    z = (student[:2] + t) / 2 if with_teacher else student[:2]
    # The official similarity divides by the features' length once more, which is 1 but has a gradient.
    compression, expansion = simdino_loss(F.normalize(student, dim=-1), t, z, eps)
    close(-compression, gold[f"v1.comp_{name}"])
    close(-expansion, gold[f"v1.expa_{name}"])
    loss = w * compression + expansion
    close(loss, gold[f"v1.loss_{name}"])
    close(gradient(loss, student), gold[f"v1.grad_{name}"])


@pytest.mark.parametrize(
    ("name", "with_teacher", "eps", "w", "length"),
    [
        ("expa0", False, 0.5, 1, 1),
        ("expa1", True, 0.5, 1, 1),
        ("expa1_eps0.05_coeff2_unnorm", True, 0.05, 2, 3),
    ],
)
def test_simdinov2_loss_of_crops(name: str, with_teacher: bool, eps: float, w: int, length: int) -> None:
    gold = arrays()
    student, t = gold["student"].requires_grad_(), gold["teacher"]
    s = student if length == 1 else F.normalize(length * student, dim=-1)
    z = (s[:2] + t) / 2 if with_teacher else s[:2]
    patch, none = torch.zeros(0, 32, dtype=torch.float64), torch.zeros(6, 20, dtype=torch.bool)
    compression, expansion, nothing = simdinov2_loss(s, t, z, patch, patch, none, eps)
    close(-compression, gold[f"v2.comp_{name}"])
    close(-expansion, gold[f"v2.expa_{name}"])
    assert nothing == 0
    loss = w * compression + expansion
    close(loss, gold[f"v2.loss_{name}"])
    close(gradient(loss, student), gold[f"v2.grad_{name}"])


def test_simdinov2_loss_of_patches() -> None:
    gold = arrays()
    student = gold["v2.patch_student_masked"].requires_grad_()
    s, t = (F.normalize(x, dim=-1) for x in (student, gold["v2.patch_teacher_masked"]))
    crops = rows(2, 4, 32)
    *_, patch = simdinov2_loss(crops, crops, crops, s, t, gold["v2.patch_masks"], 0.5)
    close(patch, gold["v2.patch_loss"])
    close(gradient(patch, student), gold["v2.patch_grad"])


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 3), (3, 1)])
def test_coding_rate_is_the_log_determinant_of_either_gram_matrix(shape: tuple[int, int]) -> None:
    (m, d), eps = shape, 0.3
    z = rows(m, d).requires_grad_()
    gram = torch.eye(d, dtype=torch.float64)
    for i in range(m):
        gram = gram + d / (m * eps) * torch.outer(z[i], z[i])
    naive = torch.linalg.slogdet(gram)[1] / 2
    other = torch.linalg.slogdet(torch.eye(m, dtype=torch.float64) + d / (m * eps) * z @ z.T)[1] / 2
    rate = coding_rate(z, eps)
    close(rate, naive, 1e-12)
    close(rate, other, 1e-12)
    close(gradient(coding_rate(z, eps), z), gradient(naive, z), 1e-12)


def test_coding_rate_of_several_batches_is_that_of_each() -> None:
    z = rows(2, 3, 5, 4)
    each = torch.stack([torch.stack([coding_rate(z[i, j], 0.5) for j in range(3)]) for i in range(2)])
    close(coding_rate(z, 0.5), each, 1e-12)


def test_coding_rate_ranges_from_collapsed_to_even() -> None:
    m, d, eps = 12, 4, 0.05
    even = torch.eye(d, dtype=torch.float64).repeat(m // d, 1)
    collapsed = even[:1].expand(m, d)
    close(coding_rate(even, eps), torch.tensor(d / 2 * np.log(1 + 1 / eps)), 1e-12)
    close(coding_rate(collapsed, eps), torch.tensor(np.log(1 + d / eps) / 2), 1e-12)
    assert coding_rate(collapsed, eps) < coding_rate(rows(m, d), eps) < coding_rate(even, eps)
    for wrong in (0.0, -0.5):
        with pytest.raises(ValueError, match="not a squared error"):
            coding_rate(even, wrong)


def test_coding_rate_in_32_bits_is_near_the_exact_one() -> None:
    z = torch.cat([rows(300, 16), rows(300, 16)], dim=1) / 2**0.5  # half of the directions are unused
    assert torch.linalg.matrix_rank(z) == 16
    close(coding_rate(z.float(), 0.01), coding_rate(z, 0.01).float(), 1e-5)


def test_an_official_eps_on_n_gpus_is_worth_n_times_as_much() -> None:
    """Each GPU with the same rows, as the official default has it: its own covariance, divided by all rows."""
    z, n, eps = rows(6, 4), 3, 0.05
    m, d = z.shape
    official = torch.linalg.slogdet(torch.eye(d, dtype=torch.float64) + d / (m * n * eps) * z.T @ z)[1] / 2
    close(coding_rate(z.repeat(n, 1), n * eps), official, 1e-12)


def test_similarity_of_crops_is_that_of_all_pairs_but_a_crop_with_itself() -> None:
    s, t = rows(5, 3, 8), rows(2, 3, 8).flip(0)
    pairs = [(g, v) for g in range(2) for v in range(5) if g != v]
    naive = torch.stack([(t[g] * s[v]).sum(-1).mean() for g, v in pairs]).mean()
    close(crop_similarity(s, t), naive, 1e-12)
    distance = torch.stack([(t[g] - s[v]).square().sum(-1).mean() / 2 for g, v in pairs]).mean()
    close(1 - crop_similarity(s, t), distance, 1e-12)  # the paper's form


def test_mean_over_hidden_counts_images_alike() -> None:
    mask = torch.tensor([[True, True, False], [False, False, False], [False, False, True]])
    x = torch.tensor([1.0, 3.0, 7.0])
    assert mean_over_hidden(x, mask) == (2 + 0 + 7) / 3


def networks() -> tuple[simdino.Network, simdinov2.Network, tuple[Tensor, ...]]:
    """One network as SimDINO and as SimDINOv2 build it, and crops."""
    cfg = simdinov2.tiny().method
    second = simdinov2.Network(cfg).double().eval()
    plain = replace(simdino.tiny().method, encoder=cfg.encoder, hidden=cfg.hidden, out=cfg.out)
    first = simdino.Network(plain).double().eval()
    first.load_state_dict(second.state_dict())
    return first, second, (rows(2, 3, 3, 32, 32), rows(2, 3, 3, 16, 16))


def test_without_masks_simdinov2_is_simdino() -> None:
    first, second, groups = networks()
    cls, patches = second(groups, torch.zeros(6, 16, dtype=torch.bool), False)
    close(cls, first(groups), 1e-12)
    assert patches.shape == (0, 16)


def test_the_student_does_not_see_hidden_patches_and_the_teacher_does() -> None:
    _, network, (large, small) = networks()
    hidden = torch.zeros(6, 16, dtype=torch.bool)
    hidden[0, 0] = hidden[4, 5] = True  # first crop: rows and columns 0 to 7; fifth: 8 to 15
    changed = large.clone()
    changed[0, 0, :, :8, :8] += 1
    changed[1, 1, :, 8:16, 8:16] += 1
    for before, after in zip(
        network((large, small), hidden, False), network((changed, small), hidden, False), strict=True
    ):
        close(after, before, 1e-12)
    cls, patches = network((large, small), hidden, True)
    new_cls, new_patches = network((changed, small), hidden, True)
    moved = (cls - new_cls).abs().sum(-1) > 1e-6  # 4 crops of 3 images
    assert moved.nonzero().tolist() == [[0, 0], [1, 1]]
    assert ((patches - new_patches).abs().sum(-1) > 1e-6).all() and len(patches) == 2
    close(patches.norm(dim=-1), torch.ones(2, dtype=torch.float64), 1e-12)


def test_masks_hide_blocks_of_half_of_the_crops() -> None:
    shares = torch.stack(
        [hidden_blocks(moment(i), 32, 2, (8, 8), probability=0.5, ratio=(0.1, 0.5)) for i in range(8)]
    )
    assert shares.shape == (8, 64, 64)
    shares = shares.float().mean(-1)  # 8 64
    masked = shares > 0
    assert (masked.sum(1) <= 32).all() and masked.sum(1).float().mean() > 30
    assert shares.max() <= 0.5
    assert 0.25 < shares[masked].mean() < 0.31  # a little less than 0.3: the last patches may not fit a block
    first, second = masked.view(8, 2, 32).float().mean((0, 2))  # crop by crop: neither is left out
    assert abs(first - second) < 0.15
    with pytest.raises(ValueError, match="masks none of 4 crops"):
        hidden_blocks(moment(), 2, 2, (8, 8), probability=0.1, ratio=(0.1, 0.5))


class Reversed(At):
    """The same random numbers, handed out to the images in reverse order."""

    def rand(self, b: int, *shape: int) -> Tensor:
        return super().rand(b, *shape).flip(0)


def test_masks_belong_to_their_image_and_crop() -> None:
    def masks(at: At) -> Tensor:
        return hidden_blocks(at, 8, 2, (8, 8), probability=0.5, ratio=(0.1, 0.5)).unflatten(0, (2, 8))

    reversed_ = Reversed(0, 100, 10, torch.Generator().manual_seed(0))
    assert torch.equal(masks(reversed_), masks(moment()).flip(1))


def test_settings_that_cannot_be() -> None:
    cfg = simdinov2.tiny().method
    for wrong in ({"mask_token": False}, {"cls": False}):
        with pytest.raises(ValueError, match="hides patches and compares cls tokens"):
            simdinov2.SimDINOv2(replace(cfg, encoder=replace(cfg.encoder, **wrong)))
    with pytest.raises(ValueError, match="mask_ratio"):
        simdinov2.SimDINOv2(replace(cfg, mask_ratio=(0.5, 0.1)))


def test_the_paper_slows_every_layer_of_simdinov2_but_the_norm_and_the_head() -> None:
    run = simdinov2.paper()
    depth = run.method.encoder.depth
    factors = {pattern: schedule(moment()) for pattern, schedule in run.optim.multipliers}
    assert factors[f"student.encoder.blocks.{depth - 1}.*"] == pytest.approx(0.9)
    assert factors["student.encoder.blocks.0.*"] == pytest.approx(0.9**depth)
    assert factors["student.encoder.patch_embed.*"] == pytest.approx(0.2 * 0.9 ** (depth + 1))
    assert factors["student.encoder.[cmpr]*"] == pytest.approx(0.9 ** (depth + 1))
