"""LocalMIM: loss and gradients of the authors' ViT; cells of all sizes; MAE's targets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from conformance import Case, doubled, moment, views
from test_golden import Noise, arrays, close
from visrep.encoders import ViT
from visrep.functional import patch_statistics, patchify
from visrep.masking import random_split
from visrep.method import Batch
from visrep.methods.masked import localmim
from visrep.nn.decoder import CellDecoder, mean_of_squares
from visrep.nn.hog import hog
from visrep.views import OneView, View

CASE = Case("localmim")
TINY = CASE.run.method
LAYERS, CELLS = (2, 4, 5, 7), (1, 2, 4, 8)


@pytest.fixture
def gold() -> dict[str, Tensor]:
    return {name: value.double() for name, value in arrays("localmim.npz").items()}


def upsampled(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A transposed convolution of 2 x 2 pixels, one apart, as a linear map of a pixel to (row, column, channel)."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4)


def then(first: tuple[Tensor, Tensor], weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """``first``, which gives four times some channels, and then a convolution of one pixel, as one linear map."""
    w, b = (x.unflatten(0, (4, -1)) for x in first)
    kernel = weight.flatten(1)
    return torch.einsum("oc,scd->sod", kernel, w).flatten(0, 1), (b @ kernel.T + bias).flatten()


def official(gold: dict[str, Tensor]) -> localmim.LocalMIM:
    """Ours with the published weights; each layer's norm goes into the linear map after it."""
    cfg = localmim.Config(
        encoder=ViT(image=32, patch=4, width=16, depth=7, heads=2, position="sincos"),
        views=OneView(View(size=32)),
        layers=LAYERS,
        cells=CELLS,
        decoder_width=8,
        decoder_heads=2,
    )
    method = localmim.LocalMIM(cfg).double()
    w = {name.removeprefix("w."): value for name, value in gold.items() if name.startswith("w.")}
    ours = {
        f"backbone.{k}": v for k, v in w.items() if k.startswith(("blocks.", "patch_embed.", "cls_token"))
    }
    ours["backbone.patch_embed.proj.weight"] = ours["backbone.patch_embed.proj.weight"].flatten(1)
    ours |= {"backbone.norm.weight": torch.ones(16).double(), "backbone.norm.bias": torch.zeros(16).double()}
    for i in range(4):
        mine, theirs = f"decoders.{i}.decode.", f"decoder.{i}."
        ours |= {
            mine + k.removeprefix(theirs): v
            for k, v in w.items()
            if k.startswith((theirs + "blocks", theirs + "norm"))
        }
        ours[mine + "mask_token"] = w[theirs + "mask_token"]
        embed, scale, shift = w[theirs + "embed.weight"], w[f"norm.{i}.weight"], w[f"norm.{i}.bias"]
        ours[mine + "embed.weight"], ours[mine + "embed.bias"] = (
            embed * scale,
            w[theirs + "embed.bias"] + embed @ shift,
        )
        head = [
            w[f"{theirs}pred.{j}.{kind}"]
            for j in (0, 1, 3, 4)
            for kind in ("weight", "bias")
            if f"{theirs}pred.{j}.weight" in w
        ]
        if i == 0:  # upsample, norm, GELU, upsample, one pixel
            predict, refine = upsampled(*head[:2]), then(upsampled(*head[4:6]), *head[6:])
            ours |= {"decoders.0.refine.0.weight": head[2], "decoders.0.refine.0.bias": head[3]}
            ours |= {"decoders.0.refine.2.weight": refine[0], "decoders.0.refine.2.bias": refine[1]}
        elif i == 1:  # upsample, one pixel
            predict = then(upsampled(*head[:2]), *head[2:])
        else:  # one pixel, of patches or of their means
            predict = head[0].flatten(1), head[1]
        ours[mine + "predict.weight"], ours[mine + "predict.bias"] = predict
    method.load_state_dict(ours)
    return method


def test_losses_and_gradients(gold: dict[str, Tensor]) -> None:
    method = official(gold)
    images, none = gold["images"][None], torch.zeros(1, 2, 4)
    batch = Batch((images,), (none,), (none[..., 0] > 0,), torch.arange(2))
    at = Noise(0, 1, 1, torch.Generator(), noise=gold["noise"])
    terms = method.loss(batch, at).terms
    for i, layer in enumerate(LAYERS):
        close(terms[f"layer{layer}"], gold[f"loss{i}"])
    total = torch.stack(list(terms.values())).sum()
    close(total, gold["loss"])
    total.backward()

    def gradient(name: str) -> Tensor:
        grad = method.get_parameter(name).grad
        assert grad is not None
        return grad

    close(gradient("backbone.patch_embed.proj.weight"), gold["grad.patch_embed.proj.weight"].flatten(1))
    close(gradient("backbone.cls_token"), gold["grad.cls_token"])
    close(gradient("backbone.blocks.0.attn.qkv.weight"), gold["grad.blocks.0.attn.qkv.weight"])
    close(gradient("decoders.0.decode.mask_token"), gold["grad.decoder.0.mask_token"])
    first = gold["grad.decoder.0.pred.0.weight"].permute(2, 3, 1, 0).flatten(0, 2)
    close(gradient("decoders.0.decode.predict.weight"), first)
    # Through the norm that went into our map: their map's gradient.
    embed = "decoders.3.decode.embed."
    scale, shift = gold["w.norm.3.weight"], gold["w.norm.3.bias"]
    close(
        gradient(embed + "weight") * scale + torch.outer(gradient(embed + "bias"), shift),
        gold["grad.decoder.3.embed.weight"],
    )


@pytest.mark.parametrize("cell", [2, 4, 8, 16, 32])
def test_targets_lie_where_predictions_are(cell: int) -> None:
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cells, per_side = hog(images, cell), max(1, 8 // cell)
    ours = localmim.targets(images, "hog", 8, cell, 9)
    side = 32 // max(8, cell)
    assert ours.shape == (2, side * side, per_side**2 * 27)
    for n in range(side * side):
        row, column = (per_side * place for place in divmod(n, side))
        here = cells[..., row : row + per_side, column : column + per_side]
        close(ours[:, n], here.permute(0, 3, 4, 1, 2).flatten(1))


def test_pixels_are_normalised_cell_by_cell() -> None:
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    patches = patchify(images, 8)
    mean, std = patch_statistics(patches)
    close(localmim.targets(images, "pixels", 8, 8, 9), (patches - mean) / std)  # those of MAE
    halves = localmim.targets(images, "pixels", 8, 4, 9).unflatten(-1, (4, 48))
    corner = patchify(images[..., :4, :4], 4)
    close(
        halves[:, 0, 0],
        ((corner - corner.mean(-1, True)) / (corner.var(-1, keepdim=True) + 1e-6).sqrt())[:, 0],
    )
    method = CASE.build(cfg=replace(TINY, target="pixels", cells=(4, 16)))
    losses = method.loss(views(CASE), moment())
    assert {"layer1", "layer2"} == set(losses.terms) and method.pictures(views(CASE), moment()) == {}


def test_large_cells_count_by_their_hidden_share() -> None:
    method, batch = CASE.build().double(), doubled(views(CASE))
    assert isinstance(method, localmim.LocalMIM)
    images = batch.crops[0][0]
    keep, hidden = random_split(moment().rand(16, 16), 0.75)
    layers = method.backbone(images, keep=keep, layers=(1, 2)).layers
    prediction = method.decoders[1](layers[1], keep, hidden)
    target, total, weights = hog(images, 16).flatten(1, 2).flatten(2).transpose(1, 2), 0.0, 0.0
    for i in range(16):
        for n in range(4):
            inside = [(2 * (n // 2) + r) * 4 + 2 * (n % 2) + c for r in (0, 1) for c in (0, 1)]
            share = np.isin(inside, hidden[i].numpy()).mean()
            total += share * (prediction[i, n] - target[i, n]).square().mean()
            weights += share
    assert isinstance(total, Tensor)
    close(method.loss(batch, moment()).terms["layer2"], total / weights)


def test_means_of_squares() -> None:
    x = torch.arange(24.0).view(1, 24, 1)  # 4 x 6
    close(mean_of_squares(x, (4, 6), 2)[0, :, 0], torch.tensor([3.5, 5.5, 7.5, 15.5, 17.5, 19.5]))
    close(mean_of_squares(x, (4, 6), 1), x)


def test_bad_settings_say_what_to_change() -> None:
    cfg = replace(TINY)
    object.__setattr__(cfg, "target", "colour")  # the annotation, executed here, would refuse it
    with pytest.raises(ValueError, match="target='colour'"):
        CASE.fresh(cfg=cfg)
    for layers, cells in (((1,), (4, 8)), ((), ())):
        with pytest.raises(ValueError, match="belong together"):
            CASE.fresh(cfg=replace(TINY, layers=layers, cells=cells))
    with pytest.raises(ValueError, match="3"):
        CASE.fresh(cfg=replace(TINY, layers=(1, 3))).loss(views(CASE), moment())
    for cell in (0, 1, 3, 12, 24):
        with pytest.raises(ValueError, match=f"Cells of {cell} pixels"):
            CellDecoder(8, 27, (4, 4), patch=8, cell=cell, width=8, depth=1, heads=1)
    with pytest.raises(ValueError, match="mask_ratio"):
        CASE.fresh(cfg=replace(TINY, mask_ratio=0.0)).loss(views(CASE), moment())
