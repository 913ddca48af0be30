"""LocalMIM: from a quarter of the patches, several layers predict the others, low layers finely, high ones coarsely.

    minimise  sum over layers l of  mean over hidden cells of size s_l of  | g_l(f_l(x_visible)) - h_l(x) |^2 / q

f_l: the first l blocks of an encoder that sees only visible patches; g_l: a decoder of one block, another for each l;
h_l: gradient histograms of cells of s_l pixels, each channel and cell at length 1, or pixels, normalised cell by cell.
A cell of several patches counts by the share of them that is hidden. Wang et al. 2023, arXiv:2303.05251.

Verified against: the paper, and loss and gradients, 1e-9, of what seems the authors' ViT: the official repository holds
only a README, so this is a copy in another one, zhaozh10/LocalMIM, whose header names an author.
Deviations: one last norm for all layers, which before a linear map is no other function than a norm a layer. Decided by
us: pixels as targets, as MAE has them (no code of the authors for these is to be had), and every small preset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.encoders import ViT, ViTLike
from visrep.encoders.checks import check_choice
from visrep.functional import displayed, patch_statistics, patchify, unpatchify, widen
from visrep.masking import random_split
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.decoder import CellDecoder, mean_of_squares
from visrep.nn.hog import draw_hog, hog_patches
from visrep.nn.transformer import xavier
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

Target = Literal["hog", "pixels"]

PLAIN = View(scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""the paper's view: crop and flip"""
ZOOM = 4
"""pixels of a picture for a pixel of an image, so that strokes can be told apart"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(width=768, heads=12, position="sincos")
    views: OneView = OneView(PLAIN)
    mask_ratio: float = 0.75
    """share of the patches that are hidden"""
    layers: tuple[int, ...] = (2, 4, 10, 12)
    """which layers predict, counted from 1"""
    cells: tuple[int, ...] = (4, 8, 16, 32)
    """side in pixels of what each of them predicts: a quarter or half of a patch, a patch, or several"""
    target: Target = "hog"
    bins: int = 9
    """directions in a histogram"""
    decoder_width: int = 256
    decoder_depth: int = 1
    """blocks of each decoder: one is enough, and there are several decoders"""
    decoder_heads: int = 8


def local_loss(
    prediction: Float[Tensor, "b m q"], target: Float[Tensor, "b m q"], weight: Float[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """Squared error, mean over the numbers of a cell, then over all cells of the batch by ``weight``."""
    return ((prediction - target).square().mean(-1) * weight).sum() / weight.sum()


def targets(
    images: Float[Tensor, "b c h w"], kind: Target, patch: int, cell: int, bins: int
) -> Float[Tensor, "b m q"]:
    """What to predict of each patch, its cells row by row, or of each cell where cells are larger."""
    if kind == "hog":
        return hog_patches(images, max(patch, cell), cell, bins)
    pixels = patchify(images, cell)
    mean, std = patch_statistics(pixels)
    grid = (images.shape[-2] // cell, images.shape[-1] // cell)
    return patchify(((pixels - mean) / std).transpose(1, 2).unflatten(-1, grid), max(1, patch // cell))


@final
class LocalMIM(Method):
    captions: ClassVar[dict[str, str]] = {
        "histograms": "Columns: the image; what the encoder sees of it; the histograms of gradients that each layer "
        "predicts of all patches, fine to coarse. Strokes run along edges."
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        check_choice("target", cfg.target, get_args(Target))
        if len(cfg.layers) != len(cfg.cells) or not cfg.layers:
            raise ValueError(
                f"layers={cfg.layers} and cells={cfg.cells} belong together: give each layer the size of its cells."
            )
        self.backbone = cfg.encoder.build()
        patch, channels = cfg.encoder.patch, cfg.encoder.channels
        self.grid = (cfg.views.size // patch, cfg.views.size // patch)
        self.decoders = nn.ModuleList(
            CellDecoder(
                cfg.encoder.width,
                channels * (cfg.bins if cfg.target == "hog" else cell * cell),
                self.grid,
                patch=patch,
                cell=cell,
                width=cfg.decoder_width,
                depth=cfg.decoder_depth,
                heads=cfg.decoder_heads,
            )
            for cell in cfg.cells
        )
        self.apply(xavier)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        images, cfg = batch.crops[0][0], self.cfg
        covered, predictions = self._predict(images, at)
        terms, monitor = {}, {}
        for layer, cell, prediction in zip(cfg.layers, cfg.cells, predictions, strict=True):
            target = targets(images, cfg.target, cfg.encoder.patch, cell, cfg.bins)
            weight = mean_of_squares(covered, self.grid, max(1, cell // cfg.encoder.patch)).squeeze(-1)
            loss = terms[f"layer{layer}"] = local_loss(widen(prediction), target, weight)
            # What the mean target would leave: 1 means that nothing is predicted.
            monitor[f"unexplained_layer{layer}"] = loss.detach() / target.var((0, 1), correction=0).mean()
        return Losses(terms, monitor)

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        """None for pixels, of which a prediction lacks the mean and contrast of each cell."""
        if self.cfg.target == "pixels":
            return {}
        images, patch, view = batch.crops[0][0], self.cfg.encoder.patch, self.cfg.views.view
        covered, predictions = self._predict(images, at)
        seen = images * (1 - unpatchify(covered.expand(-1, -1, patch * patch), patch, self.grid))
        columns = [
            F.interpolate(displayed(x, view.mean, view.std), scale_factor=ZOOM) for x in (images, seen)
        ]
        for cell, prediction in zip(self.cfg.cells, predictions, strict=True):
            grid = tuple(n // max(1, cell // patch) for n in self.grid)
            cells = unpatchify(prediction, max(1, patch // cell), grid).unflatten(1, (-1, self.cfg.bins))
            columns.append(draw_hog(cells, cell * ZOOM))
        return {"histograms": torch.stack(columns, dim=1)}

    def _predict(self, images: Tensor, at: At) -> tuple[Float[Tensor, "b n 1"], list[Tensor]]:
        """1 for hidden patches, 0 for others; what each layer predicts."""
        n = self.grid[0] * self.grid[1]
        keep, hidden = random_split(at.rand(len(images), n), self.cfg.mask_ratio)
        covered = images.new_zeros(len(images), n, 1).scatter(1, hidden.unsqueeze(-1), 1.0)
        layers = self.backbone(images, keep=keep, layers=self.cfg.layers).layers
        return covered, [decode(x, keep, hidden) for decode, x in zip(self.decoders, layers, strict=True)]


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, position="sincos"),
            views=OneView(replace(PLAIN, size=32)),
            layers=(1, 2),
            cells=(2, 16),
            decoder_width=32,
            decoder_heads=2,
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT of four layers, of which three predict: half patches, patches, squares of four.

    Short runs profit from targets at low layers, which give every block a gradient of its own from the first step; the
    decoders are narrow, as there are three of them.
    """
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=4, width=128, depth=4, heads=4, position="sincos", cls=False),
            views=OneView(replace(PLAIN, size=32)),
            layers=(1, 3, 4),
            cells=(2, 4, 8),
            decoder_width=64,
            decoder_heads=4,
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=1.0),
        limit=10_000,
        epochs=9,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(image=128, position="sincos", cls=False), views=OneView(replace(PLAIN, size=128))
        ),
        optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 1600 epochs, batch 2048. Unverified: not run here."""
    return Run(
        method=Config(), optim=_adamw(lr=2e-4, lr_scaling="linear", warmup=40.0), epochs=1600, batch=2048
    )


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 1e-6)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.05),
        betas=(0.9, 0.95),
        no_decay=("*.bias",),  # and what has one axis; the authors' code decays the tokens
    )
