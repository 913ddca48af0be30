"""Swin: timm's network with a mask token of ours, and SimMIM that trains it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from _extras import joined, needs, randomised
from conformance import moment
from visrep.api import with_encoder
from visrep.encoders import NAMED, Swin, load_encoder, save_encoder
from visrep.encoders.pyramid import Pyramid
from visrep.functional import displayed
from visrep.masking import unit_mask
from visrep.method import Batch
from visrep.methods.masked import simmim
from visrep.views import OneView, View

timm = needs("timm")

SMALL = Swin(image=32, patch=2, width=16, depths=(1, 2, 1), heads=(1, 2, 4), window=4, mask_token=True)


def images(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
def test_without_a_mask_it_is_timms_network(size: tuple[int, int]) -> None:
    encoder: Any = randomised(SMALL.build())
    own: Any = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=size, patch_size=2, embed_dim=16, depths=(1, 2, 1),
        num_heads=(1, 2, 4), window_size=4, num_classes=0,
    )  # fmt: skip
    own.load_state_dict(encoder.model.state_dict())
    pixels = images(2, 3, *size)
    with torch.no_grad():
        expected, stages = own.eval().forward_intermediates(pixels, norm=True)
        tokens = encoder(pixels, layers=(1, 2, 3))
        assert torch.equal(expected, own.forward_features(pixels))
    torch.testing.assert_close(joined(tokens), expected.flatten(1, 2), rtol=1e-5, atol=1e-5)
    for layer, stage in zip(tokens.layers, stages, strict=True):
        assert layer.grid == tuple(stage.shape[2:])
        torch.testing.assert_close(layer.patches, stage.flatten(2).mT, rtol=1e-5, atol=1e-5)
    assert tokens.grid == (size[0] // 8, size[1] // 8) and (encoder.width, encoder.stride) == (64, 8)
    assert [tokens.grid[0] for tokens in Pyramid(encoder).maps(pixels)] == [size[0] // n for n in (2, 4, 8)]


def test_the_mask_token_stands_for_embedded_patches() -> None:
    encoder: Any = randomised(SMALL.build())
    pixels, mask = images(2, 3, 32, 32), torch.rand(2, 256, generator=torch.Generator().manual_seed(2)) < 0.5
    own = encoder.model
    with torch.no_grad():
        x = own.patch_embed(pixels)
        w = mask.view(2, 16, 16, 1).float()
        x = x * (1 - w) + encoder.mask_token.view(1, 1, 1, -1) * w  # as the published code writes it
        expected = own.norm(own.layers(x)).flatten(1, 2)
        found = encoder(pixels, mask=mask).patches
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        cells = mask.view(2, 1, 16, 16).float()
        hidden = F.interpolate(cells, scale_factor=2).bool()
        other = torch.where(hidden, images(2, 3, 32, 32).flip(0), pixels)  # what is hidden is not seen
        assert torch.allclose(encoder(other, mask=mask).patches, found, atol=1e-5)
        assert not torch.allclose(encoder(other).patches, encoder(pixels).patches, atol=1e-2)


def test_published_sizes_and_windows() -> None:
    with torch.device("meta"):
        encoder: Any = NAMED["swin_tiny"].build()
    assert sum(p.numel() for p in encoder.parameters()) == 28_288_354 - 769_000  # the paper's, no classifier
    assert tuple(encoder.model.layers[0].blocks[0].window_size) == (7, 7)
    assert [Swin(image=side).window_size for side in (192, 224, 256, 96, 32)] == [6, 7, 8, 4, 4]


def test_simmim_loss_is_that_of_the_published_code() -> None:
    """The decoder there is a 1x1 convolution and a pixel shuffle, and the mask is enlarged to pixels."""
    config = simmim.Config(encoder=SMALL, views=OneView(View(size=32)), mask_unit=4)
    method, pixels = simmim.SimMIM(config), images(2, 3, 32, 32)
    batch = Batch(
        crops=(pixels.unsqueeze(0),), boxes=(torch.zeros(1, 2, 4),), flipped=(torch.zeros(1, 2, dtype=torch.bool),),
        index=torch.arange(2),
    )  # fmt: skip
    mask = unit_mask(moment().rand(2, 8, 8), 0.6, 2)
    seen: Any = method.backbone(pixels, mask=mask)
    z = seen.patches.mT.unflatten(2, (4, 4))
    order = torch.arange(8 * 8 * 3).view(8, 8, 3).permute(2, 0, 1).flatten()  # theirs: (channel, row, column)
    convolution = method.head.weight[order][:, :, None, None]
    painted = F.pixel_shuffle(F.conv2d(z, convolution, method.head.bias[order]), 8)
    hidden = mask.view(2, 16, 16).repeat_interleave(2, 1).repeat_interleave(2, 2).unsqueeze(1).float()
    expected = ((pixels - painted).abs() * hidden).sum() / hidden.sum() / 3
    found = method.loss(batch, moment()).terms["simmim"]
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    columns = method.pictures(batch, moment())["reconstructions"]
    where = hidden.bool().expand(2, 3, 32, 32)
    wanted = displayed(torch.where(where, painted, pixels), config.views.view.mean, config.views.view.std)
    torch.testing.assert_close(columns[:, 2], wanted.detach(), rtol=1e-5, atol=1e-5)


def test_simmim_takes_it_by_name() -> None:
    run = with_encoder(simmim.small32(), "swin_narrow")
    assert run.method.encoder == replace(NAMED["swin_narrow"], mask_token=True)  # pyright: ignore
    method = simmim.SimMIM(run.method)
    optimiser = torch.optim.Adam(method.parameters(), 3e-3)
    pixels = images(4, 3, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    batch = Batch(
        (pixels.unsqueeze(0),), (torch.zeros(1, 4, 4),), (torch.zeros(1, 4).bool(),), torch.arange(4)
    )
    losses: list[float] = []
    for _ in range(15):
        loss = method.loss(batch, moment()).terms["simmim"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert math.isfinite(losses[-1]) and losses[-1] < 0.95 * losses[0]


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    encoder = SMALL.build().eval()
    save_encoder(tmp_path, encoder)
    back, pixels = load_encoder(tmp_path), images(1, 3, 32, 32)
    assert back.config == SMALL and torch.equal(back(pixels).patches, encoder(pixels).patches)


def test_errors() -> None:
    with pytest.raises(ValueError, match="need a number for each stage"):
        Swin(depths=(2, 2))
    with pytest.raises(ValueError, match=r"heads=5 of stage 2 must divide its width 192"):
        Swin(heads=(3, 5, 12, 24))
    encoder = replace(SMALL, mask_token=False).build()
    with pytest.raises(ValueError, match="needs a mask token"):
        encoder(images(1, 3, 32, 32), mask=torch.zeros(1, 256, dtype=torch.bool))
    with pytest.raises(ValueError, match="does not divide into patches of 8 x 8"):
        encoder(images(1, 3, 36, 32))
    with pytest.raises(ValueError, match=r"A Swin cannot do keep="):
        encoder(images(1, 3, 32, 32), keep=torch.zeros(1, 2).long())
    with pytest.raises(ValueError, match=r"mask has shape \(1, 16\)"):
        SMALL.build()(images(1, 3, 32, 32), mask=torch.zeros(1, 16, dtype=torch.bool))
