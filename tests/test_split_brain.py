"""Split-Brain: Lab against scikit-image, bins and loss against loops, an encoder of two streams on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab
from torch import Tensor

from conformance import Case, doubled, moment, views
from test_golden import arrays, close
from visrep.config import from_json, to_json
from visrep.encoders import ConvNet, ResNet, load_encoder, save_encoder
from visrep.encoders.split import LabSplit
from visrep.functional import displayed
from visrep.method import Preprocessing
from visrep.methods.masked import split_brain
from visrep.nn.lab import colour_bins, lab_to_rgb, lightness_bin, nearest_colour, rgb_to_lab

CASE = Case("split_brain")
TINY = CASE.run.method
STREAM = ResNet(18, width=4, stem="small")


def colours(n: int = 8) -> Tensor:
    """Colours of sRGB from corner to corner and random ones, "b 3 h w"."""
    levels = torch.linspace(0, 1, n, dtype=torch.float64)
    cube = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).flatten(2)[None]
    noise = torch.rand(1, 3, n, n * n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([cube, noise])


def of_skimage(rgb: Tensor) -> Tensor:
    return torch.from_numpy(rgb2lab(rgb.movedim(1, -1).numpy())).movedim(-1, 1)


def build(cfg: split_brain.Config = TINY) -> split_brain.SplitBrain:
    torch.manual_seed(0)
    return split_brain.SplitBrain(cfg).double()


def test_lab_is_that_of_scikit_image() -> None:
    rgb = colours()
    close(rgb_to_lab(rgb), of_skimage(rgb))
    close(rgb_to_lab(rgb.float()).double(), of_skimage(rgb), 1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rgb_to_lab(rgb.float()), rgb_to_lab(rgb.clone().float()))
        close(rgb_to_lab(rgb.float()).double(), of_skimage(rgb), 1e-3)


def test_lab_and_back() -> None:
    rgb = colours()
    close(lab_to_rgb(rgb_to_lab(rgb)), rgb, 1e-5)  # the constants of the standard have few digits
    lab = rgb_to_lab(rgb) * torch.tensor([1.0, 1.3, 1.2]).view(3, 1, 1)  # also colours that sRGB lacks
    theirs = torch.from_numpy(lab2rgb(lab.movedim(1, -1).numpy())).movedim(-1, 1)
    close(lab_to_rgb(lab), theirs)


def test_colours_are_the_official_ones() -> None:
    assert torch.equal(colour_bins().double(), arrays("split_brain.npz")["pts_in_hull"].double())


def test_bins_are_the_nearest() -> None:
    lab = rgb_to_lab(colours(5))
    found = nearest_colour(lab[:, 1:], colour_bins().double())
    table = arrays("split_brain.npz")["pts_in_hull"].tolist()
    for b, (a_map, b_map) in enumerate(lab[:, 1:]):
        for i in range(5):
            for j in range(0, 25, 3):
                x, y = a_map[i, j].item(), b_map[i, j].item()
                distances = [(x - p) ** 2 + (y - q) ** 2 for p, q in table]
                assert found[b, i, j] == int(np.argmin(distances))
    assert (nearest_colour(colour_bins().T[None, :, None], colour_bins()) == torch.arange(313)).all()


def test_steps_of_lightness() -> None:
    lightness = torch.tensor([0.0, 1.99, 2.0, 50.0, 99.9, 100.0, 100.0001]).view(1, 1, 1, -1)
    assert lightness_bin(lightness, 50).flatten().tolist() == [0, 0, 1, 25, 49, 49, 49]
    assert lightness_bin(lightness, 10).flatten().tolist() == [0, 0, 0, 5, 9, 9, 9]


@pytest.mark.parametrize("detail", [1, 2])
def test_loss_as_loops(detail: int) -> None:
    cfg = replace(TINY, detail=detail)
    method, batch = build(cfg), doubled(views(CASE, n=4))
    losses = method.loss(batch, moment()).terms
    images = batch.crops[0][0]
    lab = of_skimage(displayed(images, cfg.views.view.mean, cfg.views.view.std))
    tokens, half = method.backbone(images).patches.flatten(0, 1), method.backbone.width // 2
    table, side = arrays("split_brain.npz")["pts_in_hull"], 8 // detail  # pixels of a cell; a token has 8

    def nats(logits: Tensor, k: int, target: int) -> float:
        return (logits.logsumexp(0) - logits[target]).item() if len(logits) == k else float("nan")

    total = {"colours": 0.0, "lightness": 0.0}
    on_colours, on_lightness = method.to_colours(tokens[:, :half]), method.to_lightness(tokens[:, half:])
    for b in range(4):
        for row in range(4):
            for column in range(4):
                token = (b * 4 + row) * 4 + column
                for i in range(detail):
                    for j in range(detail):
                        top, left = row * 8 + i * side, column * 8 + j * side
                        cell = lab[b, :, top : top + side, left : left + side].mean((1, 2))
                        nearest = int((cell[1:] - table).square().sum(1).argmin())
                        step = min(int(cell[0] / 2), 49)
                        place = i * detail + j
                        total["colours"] += nats(on_colours[token, place * 313 :][:313], 313, nearest)
                        total["lightness"] += nats(on_lightness[token, place * 50 :][:50], 50, step)
    cells = 4 * 16 * detail**2
    for name, value in total.items():
        close(losses[name], torch.tensor(value / cells, dtype=torch.float64))


def _moves(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def test_no_stream_sees_what_it_predicts() -> None:
    method, batch = build(), doubled(views(CASE))
    terms = method.loss(batch, moment()).terms
    terms["colours"].backward(retain_graph=True)
    assert not any(_moves(p) for p in method.backbone.colours.parameters())
    assert any(_moves(p) for p in method.backbone.lightness.parameters())
    method.zero_grad(set_to_none=True)
    terms["lightness"].backward()
    assert not any(_moves(p) for p in method.backbone.lightness.parameters())
    assert any(_moves(p) for p in method.backbone.colours.parameters())

    method.eval()
    rgb = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double() * 0.2 + 0.4
    lab = rgb_to_lab(rgb)
    brighter, redder = lab.clone(), lab.clone()
    brighter[:, 0] += 5
    redder[:, 1] += 5
    view = TINY.views.view
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (view.mean, view.std))
    first, by_light, by_colour = (
        method.backbone((lab_to_rgb(x) - mean) / std).pool().chunk(2, dim=-1) for x in (lab, brighter, redder)
    )
    for half, other in ((0, by_colour), (1, by_light)):
        close(other[half], first[half], 1e-5)
    for half, other in ((0, by_light), (1, by_colour)):
        assert (other[half] - first[half]).abs().max() > 1e-3


@pytest.mark.parametrize("stream", [STREAM, ConvNet(width=4)])
def test_two_streams_are_one_encoder(stream: ResNet | ConvNet, tmp_path: Path) -> None:
    config = LabSplit(stream)
    assert from_json(to_json(config)) == config
    torch.manual_seed(0)
    encoder = config.build().eval()
    whole = replace(stream, width=8).build()
    assert (encoder.width, encoder.depth, encoder.stride) == (whole.width, whole.depth, whole.stride)
    encoder.preprocessing = Preprocessing(32, ratio=1.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    images = torch.randn(2, 3, 32, 48)
    tokens = encoder(images, layers=(1, 4))
    assert tokens.grid == (4, 6) and tokens.patches.shape == (2, 24, encoder.width)
    assert torch.equal(tokens.layers[1].patches, tokens.patches)
    assert tokens.layers[0].patches.shape == (2, 32 * 48, 2 * 4) and tokens.layers[0].grid == (32, 48)

    lab = of_skimage(displayed(images.double(), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))).float()
    light, colour = encoder.lightness(lab[:, :1] / 50 - 1), encoder.colours(lab[:, 1:] / 50)
    close(tokens.patches, torch.cat([light.patches, colour.patches], dim=-1), 1e-4)

    save_encoder(tmp_path, encoder)
    loaded = load_encoder(tmp_path)
    assert loaded.preprocessing == encoder.preprocessing and loaded.config == config
    assert torch.equal(loaded(images).patches, tokens.patches)
    with pytest.raises(ValueError, match="keep="):
        encoder(images, keep=torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="layers 1 to 4"):
        encoder(images, layers=(5,))
    with pytest.raises(ValueError, match="3 channels"):
        encoder(images[:, :1])


def test_the_views_normalisation_is_the_encoders() -> None:
    view = replace(TINY.views.view, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    method = build(replace(TINY, views=replace(TINY.views, view=view)))
    assert method.encoder.preprocessing.mean == view.mean and method.encoder.preprocessing.std == view.std


def test_pictures_show_the_image_and_its_lightness_first() -> None:
    method, batch = build(), doubled(views(CASE))
    (picture,) = method.pictures(batch, moment()).values()
    pixels = displayed(batch.crops[0][0], TINY.views.view.mean, TINY.views.view.std)
    close(picture[:, 0], pixels, 1e-5)
    grey = picture[:, 1]
    close(grey[:, 0], grey[:, 2], 1e-3)
    close(of_skimage(grey)[:, 0], of_skimage(pixels)[:, 0], 1e-3)


@pytest.mark.parametrize("changed", [{"detail": 0}, {"lightness_bins": 1}])
def test_bad_settings(changed: dict) -> None:
    with pytest.raises(ValueError, match="leave nothing to predict"):
        build(replace(TINY, **changed))
