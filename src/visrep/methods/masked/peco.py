"""PeCo: BEiT whose tokens come from a codebook for the eye: patches that look alike have the same token.

    minimise  mean over hidden patches i of  - log softmax(h(f(x with hidden patches)_i))[token_i(x)]

f: an encoder that gets a mask token in place of each hidden patch; h: a linear map to k logits; token(x): what
`peco_tokenizer`, trained before and frozen, calls each patch of the whole image. Dong et al. 2021, arXiv:2111.12710.

Verified against: the official network, loss and gradients of BEiT, which PeCo takes over, 1e-9; of its own no code is
public.
Deviations: those of beit and of peco_tokenizer; crop and flip only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from visrep.config import Optim, Run
from visrep.encoders import ViT, ViTLike
from visrep.encoders.frozen import load_tokenizer
from visrep.encoders.patches import patch_grid
from visrep.functional import displayed, feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.quantizer import perplexity
from visrep.nn.tokens import (
    PREDICTED,
    code_colours,
    expected_hidden,
    hidden_rectangles,
    prediction_picture,
    shrink_residuals,
)
from visrep.nn.transformer import linear
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    tokenizer: str = "runs/peco_tokenizer-paper"
    """folder of a finished run of a tokenizer: `visrep pretrain peco_tokenizer:small32 --data FOLDER --method.eye RUN
    --out runs/peco_tokenizer-small32`, with RUN of an encoder, such as dino's"""
    encoder: ViTLike = ViT(width=768, heads=12, mask_token=True, layer_scale=0.1, drop_path=0.1)
    views: OneView = OneView(PLAIN)
    mask_ratio: float = 0.383
    """greatest share of patches that is hidden: 75 of 196; rectangles that fit badly hide less"""
    smallest_block: int = 16
    """patches in the smallest rectangle: about a twelfth of the grid"""


def token_loss(
    logits: Float[Tensor, "m k"], tokens: Int[Tensor, " m"], expected: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Cross-entropy of hidden patches with their tokens, their sum over how many each rank is ``expected`` to hide."""
    return F.cross_entropy(logits, tokens, reduction="sum") / expected


@final
class PeCo(Method):
    captions: ClassVar[dict[str, str]] = {"tokens": PREDICTED}

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.tokenizer = load_tokenizer(cfg.tokenizer, cfg.views.preprocessing, method="peco_tokenizer")
        self.backbone = cfg.encoder.build()
        shrink_residuals(self.backbone.blocks)
        self.head = linear(cfg.encoder.width, self.tokenizer.encoder.codes)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        images, cfg = batch.crops[0][0], self.cfg
        tokens = self._tokens(images)  # b n
        hidden = hidden_rectangles(at, len(images), self._grid(images), cfg.mask_ratio, cfg.smallest_block)
        patches = self.backbone(images, mask=hidden).patches  # b n d
        logits, target = widen(self.head(patches[hidden])), tokens[hidden]  # m k, m: m hidden patches
        expected = expected_hidden(hidden).to(logits)
        with torch.autocast(images.device.type, enabled=False):
            loss = token_loss(logits, target, expected)
        monitor = {
            "pretext_accuracy": (logits.detach().argmax(1) == target).to(logits).sum() / expected,
            "token_perplexity": perplexity(torch.bincount(tokens.flatten()).to(logits)),
            "masked_share": hidden.float().mean(),
            "feature_std": feature_std(patches.mean(1)),
        }
        return Losses({"tokens": loss}, monitor)

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images, cfg, view = batch.crops[0][0], self.cfg, self.cfg.views.view
        grid = self._grid(images)
        hidden = hidden_rectangles(at, len(images), grid, cfg.mask_ratio, cfg.smallest_block)
        predicted = self.head(self.backbone(images, mask=hidden).patches).argmax(-1)
        colours = code_colours(self.tokenizer.encoder.vectors())
        shown = displayed(images, view.mean, view.std)
        return {"tokens": prediction_picture(shown, self._tokens(images), predicted, hidden, colours, grid)}

    @torch.no_grad()
    def _tokens(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b n"]:
        return self.tokenizer.encoder.tokens(self.tokenizer.fit(images, self._grid(images)))

    def _grid(self, images: Float[Tensor, "b c h w"]) -> tuple[int, int]:
        return patch_grid(images.shape[2], images.shape[3], self.cfg.encoder.patch)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            tokenizer="runs/peco_tokenizer-tiny",
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, mask_token=True),
            views=OneView(replace(PLAIN, size=32)),
            mask_ratio=0.5,
            smallest_block=2,
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT, tokens of 4 x 4 pixels; make runs/peco_tokenizer-small32 first.

    What short runs need: no LayerScale, which would first have to grow, and no drop path.
    """
    vit = ViT(image=32, patch=4, width=128, depth=4, heads=4, position="sincos", cls=False, mask_token=True)
    return Run(
        method=Config(
            tokenizer="runs/peco_tokenizer-small32",
            encoder=vit,
            views=OneView(replace(PLAIN, size=32)),
            mask_ratio=0.5,
            smallest_block=4,
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=1),
        limit=10_000,
        epochs=9,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16; make runs/peco_tokenizer-imagenette128 first. Unverified: not run here."""
    method = Config(
        tokenizer="runs/peco_tokenizer-imagenette128",
        encoder=ViT(image=128, mask_token=True, drop_path=0.05),
        views=OneView(replace(PLAIN, size=128)),
        smallest_block=5,
    )
    return Run(method=method, optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10), epochs=200, batch=256)


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 800 epochs, batch 2048; make runs/peco_tokenizer-paper first. Unverified: not run here."""
    optim = replace(_adamw(lr=1.5e-3, lr_scaling="none", warmup=10), betas=(0.9, 0.999))
    return Run(method=Config(), optim=optim, epochs=800, batch=2048)


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 1e-5)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.05),
        betas=(0.9, 0.98),
        clip=3.0,
    )
