"""What methods draw is what they saw and predicted: pixels put together again here, patch by patch, with loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance import Case, moment, views
from visrep.methods.masked.mae import OTHER_RATIOS, SHOWN_RATIOS
from visrep.nn.tokens import hidden_rectangles

N = 4  # images that are looked at


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def drawn(name: str) -> tuple[Any, Tensor, Tensor, dict[str, Tensor]]:
    """The method, its images "b c h w" as it gets them and as they look, and its pictures at `moment`."""
    case = Case(name)
    with torch.enable_grad():  # tokenizers and teachers may have to be trained
        method, images = case.build().eval(), views(case).crops[0][0]
    with torch.no_grad():
        return method, images, looks(method, images), method.pictures(views(case), moment())


def looks(method: Any, images: Tensor) -> Tensor:
    view = method.cfg.views.view
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (view.mean, view.std))
    return (images * std + mean).clamp(0, 1)


def corners(side: int, patch: int) -> list[tuple[int, int]]:
    """Of the patches, row by row."""
    return [(y, x) for y in range(0, side, patch) for x in range(0, side, patch)]


def repainted(method: Any, images: Tensor, keep: Tensor, prediction: dict[tuple[int, int], Tensor]) -> Tensor:
    """What is seen of each image, and this with predictions, flattened as (row, column, channel): "b 2 c h w"."""
    patch = method.cfg.encoder.patch
    seen, filled = torch.zeros_like(images[:N]), images[:N].clone()
    for b in range(N):
        for i, (y, x) in enumerate(corners(images.shape[-1], patch)):
            true = images[b, :, y : y + patch, x : x + patch]
            if i in keep[b].tolist():
                seen[b, :, y : y + patch, x : x + patch] = true
                continue
            values = prediction[b, i]
            if method.cfg.norm_pixels:
                values = values * (true.var() + 1e-6).sqrt() + true.mean()
            filled[b, :, y : y + patch, x : x + patch] = values.view(patch, patch, 3).permute(2, 0, 1)
    return torch.stack([looks(method, seen), looks(method, filled)], dim=1)


def of_all(prediction: Tensor) -> dict[tuple[int, int], Tensor]:
    return {(b, i): x for b, row in enumerate(prediction[:N]) for i, x in enumerate(row)}


@torch.no_grad()
def test_mae_at_all_ratios() -> None:
    mae, images, shown, pictures = drawn("mae")
    at = moment()
    parts = [mae._predict(images, ratio, at) for ratio in (*SHOWN_RATIOS, mae.cfg.mask_ratio)]
    assert [len(keep[0]) for keep, _, _ in parts] == [8, 4, 1, int(16 * (1 - mae.cfg.mask_ratio))]
    rows = [repainted(mae, images, keep, of_all(prediction)) for keep, _, prediction in parts]
    close(pictures["reconstructions"][:, 0], shown)
    close(pictures["reconstructions"][:N, 1:], rows[3])
    close(pictures[OTHER_RATIOS][:N], torch.cat(rows[:3], dim=1))
    assert all(f"{ratio:.0%}" in OTHER_RATIOS for ratio in SHOWN_RATIOS)


@torch.no_grad()
def test_crossmae() -> None:
    """All hidden patches are predicted, though training asks for some."""
    crossmae, images, shown, pictures = drawn("crossmae")
    keep, hidden = crossmae._split(images, moment())
    found = crossmae._predict(images, keep, hidden)
    prediction = {(b, int(i)): found[b, k] for b in range(N) for k, i in enumerate(hidden[b])}
    assert sorted([*keep[0].tolist(), *hidden[0].tolist()]) == list(range(16))
    close(pictures["reconstructions"][:, 0], shown)
    close(pictures["reconstructions"][:N, 1:], repainted(crossmae, images, keep, prediction))


@torch.no_grad()
def test_hpm() -> None:
    """The last column grows from 0 to 1 in the order of what the teacher expects."""
    hpm, images, shown, pictures = drawn("hpm")
    expected, keep, hidden = hpm._masks(images, moment())
    prediction = hpm.decoder(hpm.student.encoder(images, keep=keep), keep, hidden)
    picture = pictures["reconstructions"]
    close(picture[:, 0], shown)
    close(picture[:N, 1:3], repainted(hpm, images, keep, of_all(prediction)))
    patch = hpm.cfg.encoder.patch
    for b in range(N):
        ranks = sorted(expected[b].tolist())
        for value, (y, x) in zip(expected[b].tolist(), corners(32, patch), strict=True):
            cell = picture[b, 3, :, y : y + patch, x : x + patch]
            close(cell, torch.full_like(cell, ranks.index(value) / 15))


@torch.no_grad()
def test_dbot() -> None:
    """Features as colours: principal components by numpy's decomposition, whose signs the targets' column tells."""
    dbot, images, shown, pictures = drawn("dbot")
    keep, hidden = dbot._split(images, moment())
    prediction, y = dbot.student(images, keep, hidden)[:, -16:], dbot._targets(images)[:, -16:]
    picture, patch = pictures["predicted features"], dbot.cfg.encoder.patch
    close(picture[:, 0], shown)
    flat = y.flatten(0, 1).double()
    axes = torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:3].T
    scale = 4 * ((flat - flat.mean(0)) @ axes).std(0)  # from 0 to 1: two deviations either way
    colours = [0.5 + (x.double() - flat.mean(0)) @ axes / scale for x in (y, prediction)]
    centres = [(row + patch // 2, column + patch // 2) for row, column in corners(32, patch)]
    target = torch.stack([picture[:, 2, :, row, column] for row, column in centres], dim=1).double()
    sign = torch.sign(((colours[0] - 0.5) * (target - 0.5)).sum((0, 1)))
    true, told = (((x - 0.5) * sign + 0.5).clamp(0, 1).float() for x in colours)
    assert (true - told).abs().max() > 0.1
    for b in range(N):
        for i, (row, column) in enumerate(corners(32, patch)):
            cell = picture[b, ..., row : row + patch, column : column + patch]
            seen = i in keep[b].tolist()
            close(cell[1], cell[0] if seen else torch.zeros_like(cell[0]))
            for place, colour in ((2, true[b, i]), (3, true[b, i] if seen else told[b, i])):
                wanted = colour.view(3, 1, 1).expand(-1, patch, patch)
                torch.testing.assert_close(cell[place], wanted, atol=1e-3, rtol=0)


def check_colours(maps: list[Tensor], codes: list[Tensor], patch: int) -> None:
    """Each code has one colour, all over the picture, and no other code has it. ``maps`` "b 3 h w", codes "b n"."""
    colours: dict[int, Tensor] = {}
    for shown, tokens in zip(maps, codes, strict=True):
        for b in range(len(tokens)):
            for code, (y, x) in zip(tokens[b].tolist(), corners(shown.shape[-1], patch), strict=True):
                cell = shown[b, :, y : y + patch, x : x + patch]
                colour = colours.setdefault(code, cell[:, 0, 0])
                assert torch.equal(cell, colour.view(3, 1, 1).expand_as(cell)), code
    assert len(colours) > 1 and len({tuple(x.tolist()) for x in colours.values()}) == len(colours)


@torch.no_grad()
@pytest.mark.parametrize("name", ["beitv2", "peco"])
def test_predicted_tokens(name: str) -> None:
    method, images, shown, pictures = drawn(name)
    cfg, picture = method.cfg, pictures["tokens"]
    hidden = hidden_rectangles(moment(), len(images), (4, 4), cfg.mask_ratio, cfg.smallest_block)
    predicted = method.head(method.backbone(images, mask=hidden).patches).argmax(-1)
    tokens = method._tokens(images)
    assert 0 < hidden.float().mean() < 1 and (predicted != tokens)[hidden].any()
    close(picture[:, 0], shown)
    for b in range(len(images)):
        for i, (y, x) in enumerate(corners(32, 8)):
            seen, true = picture[b, 1, :, y : y + 8, x : x + 8], shown[b, :, y : y + 8, x : x + 8]
            close(seen, torch.full_like(true, 0.5) if hidden[b, i] else true)
    check_colours([picture[:, 2], picture[:, 3]], [tokens, torch.where(hidden, predicted, tokens)], 8)


@torch.no_grad()
@pytest.mark.parametrize("name", ["dvae", "vqkd", "peco_tokenizer"])
def test_tokens(name: str) -> None:
    """The codes of all patches, and what the decoder paints, told nothing else."""
    method, images, shown, pictures = drawn(name)
    picture, tokens = pictures["tokens"], method.tokenizer.tokens(images)
    close(picture[:, 0], shown)
    check_colours([picture[:, 1]], [tokens], method.tokenizer.stride)
    grid = method.tokenizer(images).grid
    if name == "dvae":
        painted = method.decoder(F.one_hot(tokens, method.cfg.codes).float(), grid)
        if method.laplace:  # undo OpenAI's map_pixels: a tenth at either end is left free
            painted = (torch.sigmoid(painted[:, :3]) - 0.1) / 0.8
        close(picture[:, 2], painted.clamp(0, 1))
    elif name == "peco_tokenizer":
        close(picture[:, 2], looks(method, method.decoder(method.tokenizer.vectors()[tokens], grid)))
    assert picture.shape[1] == (2 if name == "vqkd" else 3)
