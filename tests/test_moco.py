"""MoCo v1, v2 and v3: the official numbers, identities with SimCLR, BatchNorm that gives nothing away."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance import Case, moment, views
from visrep.encoders import ViT
from visrep.encoders.vit import VisionTransformer
from visrep.methods.contrastive import moco, mocov3
from visrep.methods.contrastive.simclr import nt_xent
from visrep.nn.batchnorm import GatheredBatchNorm, SplitBatchNorm, convert_batchnorm, split_batchnorm
from visrep.schedules import Constant

GOLDEN = Path(__file__).parent / "golden"


def arrays(file: str, prefix: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / file) as stored:
        names = [name for name in stored.files if name.startswith(prefix)]
        return {name.removeprefix(prefix): torch.from_numpy(stored[name]) for name in names}


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def unit(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=-1)


def build(cfg: moco.Config | None = None) -> moco.MoCo:
    method = Case("moco").build(cfg=cfg)
    assert isinstance(method, moco.MoCo)
    return method.double()


def double(seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(x.double() for x in views(Case("moco"), step=seed).crops)


def test_moco_loss_and_gradient() -> None:
    gold = arrays("moco.npz", "v2.")
    q = gold["q_raw"].clone().requires_grad_()
    k, queue = F.normalize(gold["k_raw"], dim=1), gold["queue_before"].T
    loss, accuracy = moco.info_nce(F.normalize(q, dim=1), k, queue, gold["T"].item())
    loss.backward()
    close(loss, gold["loss"])
    assert q.grad is not None
    close(q.grad, gold["grad_q_raw"])
    assert accuracy == (gold["logits"].argmax(1) == 0).float().mean()


def test_moco_queue_moves_as_the_official_one() -> None:
    gold = arrays("moco.npz", "v2.")
    method = build(replace(moco.tiny().method, out=16, queue=36, teacher_decay=Constant(1.0)))
    method.queue.rows.copy_(gold["queue_before"].T)
    method.queue.next.copy_(gold["ptr_before"])
    method.after_step(moment(), {"keys": F.normalize(gold["k_raw"], dim=1)})
    close(method.queue.rows, gold["queue_after"].T)
    assert method.queue.next == gold["ptr_after"][0]


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_moco_is_simclr_when_the_queue_holds_the_rest_of_the_batch(tau: float) -> None:
    """Each of SimCLR's 2b rows is MoCo's with the other view for a key and all views of other images for a queue."""
    gold = arrays("methods.npz", "ntxent.")
    z = torch.stack([gold["z1"], gold["z2"]]).requires_grad_()
    simclr, _ = nt_xent(z, z, 0, tau)
    (expected,) = torch.autograd.grad(simclr, z)

    length_1 = F.normalize(z, dim=-1)
    losses: list[Tensor] = []
    for i in range(z.shape[1]):
        others = torch.cat([length_1[:, :i], length_1[:, i + 1 :]], dim=1).flatten(0, 1)
        first, second = length_1[0, i : i + 1], length_1[1, i : i + 1]
        losses += [
            moco.info_nce(first, second, others, tau)[0],
            moco.info_nce(second, first, others, tau)[0],
        ]
    loss = torch.stack(losses).mean()
    (gradient,) = torch.autograd.grad(loss, z)
    close(loss, simclr)
    close(gradient, expected)
    close(loss, gold[f"solo_loss_T{tau}"])


def test_moco_v3_is_moco_when_the_queue_holds_the_other_keys() -> None:
    q, k, tau = unit(6, 8, seed=1), unit(6, 8, seed=2), 0.3
    rows = [
        moco.info_nce(q[i : i + 1], k[i : i + 1], torch.cat([k[:i], k[i + 1 :]]), tau)[0] for i in range(6)
    ]
    close(mocov3.contrast(q, k, 0, tau)[0], 2 * tau * torch.stack(rows).mean())
    # as rank 1 sees it
    close(mocov3.contrast(q[3:], k, 3, tau)[0], 2 * tau * torch.stack(rows[3:]).mean())


def test_accuracy_counts_keys_found_first() -> None:
    q, nothing = torch.eye(4), torch.zeros(1, 4)
    assert moco.info_nce(q, q, nothing, 0.2)[1] == 1
    assert moco.info_nce(q, q.roll(1, 0), q, 0.2)[1] == 0
    assert mocov3.contrast(q, q, 0, 0.2)[1] == 1
    assert mocov3.contrast(q, q.roll(1, 0), 0, 0.2)[1] == 0


def test_every_image_finds_its_own_key_again() -> None:
    """Dealing images out anew changes BatchNorm's groups and nothing else."""
    method = build()
    method.eval()  # running statistics, the same for all
    (crops,) = double()
    batch = replace(views(Case("moco")), crops=(crops,))
    losses = method.loss(batch, moment())
    (_, q), (_, k) = method.student(crops[0]), method.teacher(crops[1])
    close(losses.carry["keys"], k)
    close(losses.terms["info_nce"], moco.info_nce(q, k, method.queue.rows, 0.2)[0])


def test_keys_share_statistics_with_other_images_than_queries() -> None:
    method = build()
    (crops,) = double()
    seen: list[list[int]] = []

    def record(view: Tensor) -> object:
        def hook(_module: nn.Module, images: tuple[Tensor]) -> None:
            seen.append([int((view == image).flatten(1).all(1).nonzero()) for image in images[0]])

        return hook

    method.student.register_forward_pre_hook(record(crops[0]))  # pyright: ignore[reportArgumentType]
    method.teacher.module.register_forward_pre_hook(record(crops[1]))  # pyright: ignore[reportArgumentType]
    batch = replace(views(Case("moco")), crops=(crops,))
    for step in range(3):
        method.loss(batch, moment(step))
    assert all(sorted(order) == list(range(16)) for order in seen)
    groups = [frozenset({frozenset(order[:8]), frozenset(order[8:])}) for order in seen]
    assert len(set(groups)) == 6  # of queries and of keys, in three steps


def test_a_key_depends_on_its_own_group_alone() -> None:
    """What leaks through BatchNorm is a group's, not the batch's."""
    network = build().student
    images = double()[0][0]
    other = images.clone()
    other[9] += 1.0
    moved = (network(images)[1] - network(other)[1]).abs().amax(1) > 1e-9
    assert moved.tolist() == [False] * 8 + [True] * 8


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(64))
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net.double()


def test_split_batchnorm_is_batchnorm_group_by_group() -> None:
    plain, split = normed(), normed()
    names = plain.state_dict().keys()
    split_batchnorm(split, 4)
    assert split.state_dict().keys() == names
    x = torch.randn(12, 3, 6, 6, dtype=torch.float64)
    weight = torch.randn(12, 64, dtype=torch.float64)

    each = [normed() for _ in range(3)]
    expected, actual = torch.cat([net(part) for net, part in zip(each, x.split(4), strict=True)]), split(x)
    close(actual, expected)
    for name, value in split.state_dict().items():
        close(value.double(), torch.stack([net.state_dict()[name].double() for net in each]).mean(0))

    loss = (expected * weight).sum()
    by_part = [torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for net in each]
    expected_gradients = [sum(parts) for parts in zip(*by_part, strict=True)]
    actual_gradients = torch.autograd.grad((actual * weight).sum(), list(split.parameters()))
    for left, right in zip(actual_gradients, expected_gradients, strict=True):
        assert isinstance(right, Tensor)
        close(left, right)

    plain.load_state_dict(split.state_dict())
    close(split.eval()(x[:5]), plain.eval()(x[:5]))  # any number of images


def test_split_batchnorm_stays_split_on_several_ranks() -> None:
    net = normed()
    split_batchnorm(net, 4)
    convert_batchnorm(net)
    assert sum(isinstance(module, SplitBatchNorm) for module in net) == 2
    assert not any(isinstance(module, GatheredBatchNorm) for module in net)


def test_what_cannot_be_is_said() -> None:
    cfg = moco.tiny().method
    with pytest.raises(ValueError, match="group that divides"):
        method = build(replace(cfg, group=5))
        method.loss(replace(views(Case("moco")), crops=double()), moment())
    with pytest.raises(ValueError, match="at least 2"):
        moco.MoCo(replace(cfg, group=1))
    with pytest.raises(ValueError, match="at least one layer"):
        moco.MoCo(replace(cfg, layers=0))
    method = build(replace(cfg, queue=40))
    keys = method.loss(replace(views(Case("moco")), crops=double()), moment()).carry
    with pytest.raises(ValueError, match="does not divide a queue of 40"):
        method.after_step(moment(), keys)
    with pytest.raises(ValueError, match="Wrap it"):
        split_batchnorm(nn.BatchNorm1d(3), 4)
    with pytest.raises(ValueError, match="at least 2 axes"):
        inspect.unwrap(SplitBatchNorm.forward)(SplitBatchNorm(3, 2, 1e-5, 0.1, True), torch.zeros(3))


def test_papers() -> None:
    """v1 and v2 differ in head, temperature, views and schedule."""
    first, second = (
        replace(run.method, encoder=moco.tiny().method.encoder, queue=64)
        for run in (moco.paper_v1(), moco.paper())
    )
    assert (first.tau, second.tau) == (0.07, 0.2)
    assert [type(m).__name__ for m in moco.Network(first).head] == ["Linear"]
    assert [type(m).__name__ for m in moco.Network(second).head] == ["Linear", "ReLU", "Linear"]
    assert first.views.first.blur == 0 and second.views.first.blur == 0.5


def test_moco_v3_loss_and_gradients() -> None:
    gold = arrays("moco.npz", "v3.")
    q1, q2 = (gold[name].clone().requires_grad_() for name in ("q1", "q2"))
    tau = gold["T"].item()
    forth, _ = mocov3.contrast(q1, gold["k2"], 0, tau)
    back, _ = mocov3.contrast(q2, gold["k1"], 0, tau)
    (forth + back).backward()
    close(forth, gold["loss_q1k2"])
    close(back, gold["loss_q2k1"])
    close(forth + back, gold["loss"])
    assert q1.grad is not None and q2.grad is not None
    close(q1.grad, gold["grad_q1"])
    close(q2.grad, gold["grad_q2"])


def test_moco_v3_pairs_each_view_with_the_teacher_of_the_other() -> None:
    method, batch = Case("mocov3").build(), views(Case("mocov3"))
    assert isinstance(method, mocov3.MoCoV3)
    first, second = batch.crops[0]
    q = [method.predictor(method.student(view)) for view in (first, second)]
    expected = sum(
        mocov3.contrast(query, method.teacher(view), 0, 0.2)[0]
        for query, view in zip(q, (second, first), strict=True)
    )
    loss = method.loss(batch, moment()).terms["contrast"]
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(loss, expected)
    swapped = method.loss(replace(batch, crops=(batch.crops[0].flip(0),)), moment()).terms["contrast"]
    torch.testing.assert_close(swapped, loss)


def test_moco_v3_starts_a_vit_as_the_official_code_and_freezes_its_patch_embedding() -> None:
    cfg = replace(mocov3.tiny().method, encoder=ViT(image=32, patch=8, width=64, depth=1, heads=2))
    frozen, trained = mocov3.Network(cfg).encoder, mocov3.Network(replace(cfg, freeze_patches=False)).encoder
    assert isinstance(frozen, VisionTransformer) and isinstance(trained, VisionTransformer)
    assert not any(p.requires_grad for p in frozen.patch_embed.parameters())
    assert all(p.requires_grad for p in trained.patch_embed.parameters())
    for name, fans in {
        "patch_embed.proj": 3 * 8 * 8 + 64,
        "blocks.0.attn.qkv": 64 + 64,  # not 64 + 192: three layers in one
        "blocks.0.mlp.fc1": 64 + 256,
    }.items():
        layer = frozen.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        bound = (6 / fans) ** 0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    assert frozen.cls_token is not None and 0 < frozen.cls_token.abs().max() < 1e-5
