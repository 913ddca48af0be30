"""BEiT v2: BEiT with tokens that tell a teacher's features, predicted once more through one vector of the image.

    minimise  mean over hidden patches i of  H_i(f_L)  +  H_i(a([cls of f_L ; patches of f_l]))
    H_i(y) = - log softmax(h(y_i))[token_i(x)]

f: an encoder of L layers that gets a mask token in place of each hidden patch; a: two shallow blocks that see patches
of an early layer l only, so that cls must bring what is missing; h: one norm and linear map for both; token(x): what
`vqkd`, trained before and frozen, calls each patch of the whole image. Peng et al. 2022, arXiv:2208.06366.

Verified against: the official network, both losses and gradients with learned positions, 1e-9; the official masks, in
distribution.
Deviations: positions of patches are learned or fixed tables instead of a relative bias; the tokenizer is a run of this
library (vqkd), and sees the same copy of the view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.encoders import ViT, ViTLike
from visrep.encoders.frozen import load_tokenizer
from visrep.encoders.patches import patch_grid
from visrep.functional import displayed, feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method, Tokens
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

COLOUR = View(
    scale=(0.2, 1.0), jitter=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.0, gray=0.0, blur=0.0
)
"""the paper's view: crop, flip and changes of colour"""
SMALL = replace(COLOUR, size=32, jitter=0.0)
"""for small images: crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    tokenizer: str = "runs/vqkd-paper"
    """folder of a finished run of a tokenizer: `visrep pretrain vqkd:small32 --data FOLDER --method.teacher RUN --out
    runs/vqkd-small32`, with RUN of an encoder, such as dino's"""
    encoder: ViTLike = ViT(width=768, heads=12, mask_token=True, layer_scale=0.1, drop_path=0.1)
    views: OneView = OneView(COLOUR)
    mask_ratio: float = 0.383
    """greatest share of patches that is hidden: 75 of 196; rectangles that fit badly hide less"""
    smallest_block: int = 16
    """patches in the smallest rectangle: about a twelfth of the grid"""
    early: int = 9
    """l: the layer whose patches the shallow blocks see; two or three below the last"""
    head_depth: int = 2
    """shallow blocks: more need less of cls"""


def token_loss(
    logits: Float[Tensor, "m k"], tokens: Int[Tensor, " m"], expected: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Cross-entropy of hidden patches with their tokens, their sum over how many each rank is ``expected`` to hide."""
    return F.cross_entropy(logits, tokens, reduction="sum") / expected


@final
class BEiTv2(Method):
    captions: ClassVar[dict[str, str]] = {"tokens": PREDICTED}

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.tokenizer = load_tokenizer(cfg.tokenizer, cfg.views.preprocessing, method="vqkd")
        self.backbone = cfg.encoder.build()
        shrink_residuals(self.backbone.blocks)
        self.shallow = nn.ModuleList(_shallow(cfg))
        shrink_residuals(self.shallow, first=cfg.early + 1)
        self.head = linear(cfg.encoder.width, self.tokenizer.encoder.codes)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        images, cfg = batch.crops[0][0], self.cfg
        tokens = self._tokens(images)  # b n
        hidden = hidden_rectangles(at, len(images), self._grid(images), cfg.mask_ratio, cfg.smallest_block)
        found, aggregated = self._patches(images, hidden)
        target = tokens[hidden]  # m hidden patches
        logits, through_cls = (widen(self.head(x[hidden])) for x in (found.patches, aggregated))  # m k
        expected = expected_hidden(hidden).to(logits)
        with torch.autocast(images.device.type, enabled=False):
            terms = {
                "tokens": token_loss(logits, target, expected),
                "tokens_through_cls": token_loss(through_cls, target, expected),
            }

        def accuracy(logits: Tensor) -> Tensor:
            return (logits.detach().argmax(1) == target).to(logits).sum() / expected

        monitor = {
            "pretext_accuracy": accuracy(logits),
            "accuracy_through_cls": accuracy(through_cls),
            "token_perplexity": perplexity(torch.bincount(tokens.flatten()).to(logits)),
            "masked_share": hidden.float().mean(),
            "feature_std": feature_std(found.pool("cls")),
        }
        return Losses(terms, monitor)

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images, cfg, view = batch.crops[0][0], self.cfg, self.cfg.views.view
        grid = self._grid(images)
        hidden = hidden_rectangles(at, len(images), grid, cfg.mask_ratio, cfg.smallest_block)
        predicted = self.head(self.backbone(images, mask=hidden).patches).argmax(-1)
        colours = code_colours(self.tokenizer.encoder.vectors())
        shown = displayed(images, view.mean, view.std)
        return {"tokens": prediction_picture(shown, self._tokens(images), predicted, hidden, colours, grid)}

    def _patches(self, images: Tensor, hidden: Tensor) -> tuple[Tokens, Float[Tensor, "b n d"]]:
        """What the encoder finds, and the patches that the shallow blocks make of an early layer and cls."""
        layers = (self.cfg.early, self.backbone.depth)
        found = self.backbone(images, mask=hidden, layers=layers, layer_kind="raw")
        early, last = found.layers
        x = torch.cat([last.pool("cls").unsqueeze(1), early.patches], dim=1)
        for block in self.shallow:
            x = block(x)
        return found, self.backbone.norm(x[:, 1:])

    @torch.no_grad()
    def _tokens(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b n"]:
        return self.tokenizer.encoder.tokens(self.tokenizer.fit(images, self._grid(images)))

    def _grid(self, images: Float[Tensor, "b c h w"]) -> tuple[int, int]:
        return patch_grid(images.shape[2], images.shape[3], self.cfg.encoder.patch)


def _shallow(cfg: Config) -> list[nn.Module]:
    """Blocks like the encoder's. Raises ValueError unless they see an early layer and a cls token."""
    vit = cfg.encoder
    if not (vit.cls and 1 <= cfg.early < vit.depth):
        raise ValueError(
            f"early={cfg.early} of an encoder with depth={vit.depth} and cls={vit.cls}: the shallow blocks need a cls "
            f"token and patches of an earlier layer than the last. Set method.early to 1 to {vit.depth - 1}."
        )
    last = max(vit.depth, cfg.early + cfg.head_depth) - 1
    return [vit.block(vit.drop_path * (cfg.early + i) / last) for i in range(cfg.head_depth)]


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            tokenizer="runs/vqkd-tiny",
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, mask_token=True),
            views=OneView(SMALL),
            mask_ratio=0.5,
            smallest_block=2,
            early=1,
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT, tokens of 4 x 4 pixels; make runs/vqkd-small32 first.

    What short runs need: no LayerScale, which would first have to grow, no drop path, no changes of colour, and one
    shallow block.
    """
    vit = ViT(image=32, patch=4, width=128, depth=4, heads=4, position="sincos", mask_token=True)
    return Run(
        method=Config(
            tokenizer="runs/vqkd-small32",
            encoder=vit,
            views=OneView(SMALL),
            mask_ratio=0.5,
            smallest_block=4,
            early=3,
            head_depth=1,
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=1),
        limit=10_000,
        epochs=9,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16; make runs/vqkd-imagenette128 first. Unverified: not run here."""
    method = Config(
        tokenizer="runs/vqkd-imagenette128",
        encoder=ViT(image=128, mask_token=True, drop_path=0.05),
        views=OneView(replace(COLOUR, size=128)),
        smallest_block=5,
    )
    return Run(method=method, optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10), epochs=200, batch=256)


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 1600 epochs, batch 2048; make runs/vqkd-paper first. Unverified: not run here."""
    optim = replace(_adamw(lr=1.5e-3, lr_scaling="none", warmup=10), betas=(0.9, 0.999))
    return Run(method=Config(), optim=optim, epochs=1600, batch=2048)


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 1e-5)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.05),
        betas=(0.9, 0.98),
        clip=3.0,
    )
