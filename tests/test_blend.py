"""Targets from several layers of a teacher, against a naive loop; the loud start of narrow networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from visrep.encoders import VideoViT, ViT
from visrep.method import Encoder
from visrep.methods.predictive import ijepa, vjepa
from visrep.nn.blend import blended

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CLIPS = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("encoder", "inputs"),
    [
        (ViT(image=16, patch=4, width=8, depth=3, heads=2, cls=False).build(), IMAGES),
        (VideoViT(frames=4, image=16, patch=8, width=8, depth=3, heads=2).build(), CLIPS),
    ],
    ids=["images", "clips"],
)
def test_layers_are_normalised_over_the_patches_and_averaged(encoder: Encoder, inputs: torch.Tensor) -> None:
    assert torch.equal(blended(encoder, inputs, 1), encoder(inputs).patches)
    layers = encoder(inputs, layers=(2, 3)).layers
    total = torch.zeros_like(layers[0].patches)
    for layer in layers:
        for i, patches in enumerate(layer.patches):
            for c in range(patches.shape[1]):
                x = patches[:, c]
                total[i, :, c] += (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() / 2
    torch.testing.assert_close(blended(encoder, inputs, 2), total, rtol=1e-4, atol=1e-5)


def test_what_all_patches_share_is_no_target() -> None:
    encoder = ViT(image=16, patch=4, width=8, depth=3, heads=2, cls=False).build()
    assert blended(encoder, IMAGES, 2).mean(1).abs().max() < 1e-5


@pytest.mark.parametrize("method", [ijepa, vjepa])
def test_a_loud_start_is_that_of_mae_and_of_the_teacher_too(method) -> None:
    cfg = replace(method.tiny().method, loud=True)
    torch.manual_seed(0)
    made = method.IJEPA(cfg) if method is ijepa else method.VJEPA(cfg)
    for part in (made.backbone, made.predictor, made.teacher.module):
        weight = part.blocks[0].mlp.fc1.weight
        deviation = (2 / sum(weight.shape)) ** 0.5  # of Glorot's uniform distribution
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.05)
