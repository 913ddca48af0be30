"""Losses, heads and whole forward passes equal numbers made by running published code (golden/README.md)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visrep.encoders import ViT
from visrep.functional import patchify, unpatchify
from visrep.method import At, Batch
from visrep.methods.contrastive.simclr import nt_xent
from visrep.methods.distillation import dino
from visrep.methods.masked import mae
from visrep.methods.supervised.supervised import cross_entropy
from visrep.nn.heads import PrototypeHead
from visrep.schedules import Constant, Ramp
from visrep.views import OneView, View

GOLDEN = Path(__file__).parent / "golden"


def arrays(file: str, prefix: str = "") -> dict[str, Tensor]:
    with np.load(GOLDEN / file) as stored:
        return {
            name.removeprefix(prefix): torch.from_numpy(stored[name])
            for name in stored.files
            if name.startswith(prefix) and stored[name].dtype.kind in "fi"
        }


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def moment(epoch: float = 0.0, epochs: int = 10) -> At:
    return At(
        step=round(epoch * 10), total=10 * epochs, steps_per_epoch=10, rng=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_nt_xent(tau: float) -> None:
    gold = arrays("methods.npz", "ntxent.")
    z = torch.stack([gold["z1"], gold["z2"]]).requires_grad_()
    loss, _ = nt_xent(z, z, 0, tau)
    loss.backward()
    close(loss, gold[f"solo_loss_T{tau}"])
    close(loss, gold[f"lightly_loss_T{tau}"])
    assert z.grad is not None
    close(z.grad[0], gold[f"solo_grad_z1_T{tau}"])
    close(z.grad[1], gold[f"solo_grad_z2_T{tau}"])


def test_nt_xent_accuracy_counts_views_found_first() -> None:
    z = torch.eye(4)[:, None].expand(4, 2, 4).transpose(0, 1)  # 2 views of 4 images, all different
    assert nt_xent(z, z, 0, 0.5)[1] == 1
    swapped = torch.stack([z[0], z[1].roll(1, dims=0)])
    assert nt_xent(swapped, swapped, 0, 0.5)[1] == 0


@pytest.mark.parametrize("epoch", [0, 5])
def test_dino_loss_center_and_gradient(epoch: int) -> None:
    gold = arrays("methods.npz", "dino.")
    student = gold["student"].clone().requires_grad_()
    teacher = gold["teacher"].unflatten(0, (2, 8))
    center = (gold["center_before"] if epoch == 0 else gold["center_after_epoch0"])[0]
    # The official temperature moves once an epoch, ours every step: they meet at the start and the end.
    tau = Ramp(0.04, 0.07, epochs=3)(moment(epoch))
    assert tau == pytest.approx(gold["teacher_temp_schedule"][epoch].item(), abs=1e-12)

    loss = dino.dino_loss(dino.targets(teacher, center, tau), student.unflatten(0, (6, 8)), tau=0.1)
    loss.backward()
    close(loss, gold[f"loss_epoch{epoch}"])
    assert student.grad is not None
    close(student.grad, gold[f"grad_epoch{epoch}"])


def test_dino_center_moves_as_the_official_one() -> None:
    gold = arrays("methods.npz", "dino.")
    cfg = dino.tiny().method
    method = dino.DINO(replace(cfg, prototypes=64, teacher_decay=Constant(1.0))).double()
    method.center.copy_(gold["center_before"][0])
    carry = {"teacher_mean": gold["teacher"].unflatten(0, (2, 8)).mean((0, 1))[None]}
    for epoch in (0, 5):
        method.after_step(moment(epoch), carry)
        close(method.center, gold[f"center_after_epoch{epoch}"][0])


def test_prototype_head() -> None:
    gold = arrays("methods.npz", "head.")
    head = PrototypeHead(24, 40, hidden=32, bottleneck=16).double()
    official = {"last_layer.weight_g": "prototypes_norm", "last_layer.weight_v": "prototypes"}
    weights = {k.removeprefix("w.head."): v for k, v in gold.items() if k.startswith("w.head.")}
    head.load_state_dict({official.get(name, name): value for name, value in weights.items()})
    x = gold["head_x"].clone().requires_grad_()
    out = head(x)
    out.square().mean().backward()
    close(out, gold["head_out"])
    assert x.grad is not None and head.prototypes.grad is not None
    close(x.grad, gold["head_grad_x"])
    close(head.prototypes.grad, gold["head_grad_weight_v"])
    assert not head.prototypes_norm.requires_grad
    assert PrototypeHead(24, 40, hidden=32, bottleneck=16, learn_norm=True).prototypes_norm.requires_grad


@dataclass(frozen=True)
class Noise(At):
    """Hands out stored random numbers."""

    noise: Tensor = field(kw_only=True)

    def rand(self, b: int, *shape: int) -> Tensor:
        assert (b, *shape) == self.noise.shape
        return self.noise


def official_mae(gold: dict[str, Tensor], *, norm_pixels: bool) -> mae.MAE:
    """Our MAE with the weights of the published one, whose encoder is 48 wide and decoder 32 wide."""
    cfg = mae.Config(
        encoder=ViT(image=32, patch=4, width=48, depth=2, heads=4, position="sincos"),
        views=OneView(View(size=32)),
        norm_pixels=norm_pixels,
        decoder_width=32,
        decoder_depth=1,
        decoder_heads=4,
    )
    method = mae.MAE(cfg).double()
    names = {
        "decoder_embed": "decoder.embed",
        "decoder_blocks": "decoder.blocks",
        "decoder_norm": "decoder.norm",
    }
    names |= {"decoder_pred": "decoder.predict", "mask_token": "decoder.mask_token"}
    weights = {}
    for name, value in gold.items():
        if name.startswith("w."):
            first, dot, rest = name.removeprefix("w.").partition(".")
            weights[names.get(first, f"backbone.{first}") + dot + rest] = value
    # The patch embedding is a linear layer here and a convolution there.
    weights["backbone.patch_embed.proj.weight"] = weights["backbone.patch_embed.proj.weight"].flatten(1)
    method.load_state_dict(weights)
    return method


@pytest.mark.parametrize("norm_pixels", [False, True])
def test_mae_loss_and_gradients(norm_pixels: bool) -> None:
    gold = arrays("mae.npz")
    method = official_mae(gold, norm_pixels=norm_pixels)
    images, none = gold["imgs"][None], torch.zeros(1, 2, 4)
    batch = Batch((images,), (none,), (none[..., 0] > 0,), torch.arange(2))
    losses = method.loss(batch, Noise(0, 1, 1, torch.Generator(), noise=gold["noise"]))
    losses.terms["mae"].backward()

    variant = f"normpix{int(norm_pixels)}"
    close(losses.terms["mae"], gold[f"loss_{variant}"])
    token, patch = method.decoder.mask_token.grad, method.backbone.patch_embed.proj.weight.grad
    assert token is not None and patch is not None
    close(token, gold[f"grad_mask_token_{variant}"])
    close(patch, gold[f"grad_patch_proj_{variant}"].flatten(1))


def test_patches_are_cut_as_in_mae() -> None:
    gold = arrays("mae.npz")
    patches = patchify(gold["imgs"], 4)
    close(patches, gold["patchify"], 0)
    close(unpatchify(patches, 4, (8, 8)), gold["imgs"], 0)
    wide = torch.rand(2, 3, 8, 24)
    close(unpatchify(patchify(wide, 4), 4, (2, 6)), wide, 0)
    with pytest.raises(ValueError, match="32x30"):
        patchify(torch.rand(1, 3, 32, 30), 4)


def test_cross_entropy_with_smoothing() -> None:
    logits, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 2, 1, 3])
    log_q = logits.log_softmax(1)
    written_out = -(0.9 * log_q[range(6), labels] + 0.1 / 5 * log_q.sum(1)).mean()
    close(cross_entropy(logits, labels, 0.1), written_out, 1e-12)
