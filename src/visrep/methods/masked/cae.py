"""CAE: make the latent tokens of hidden patches from visible ones, then, from these alone, their names.

    minimise  mean over hidden i of  - log softmax(d(z + e)_i)[token_i(x)]  +  w_align | z_i - sg f(x_hidden)_i |^2 / d
    z = r(f(x_visible))        block of r:  q <- q + A(q + e, [f; q] + e, [f; q]),  then norm, then q + mlp(q)

f: an encoder, of visible patches and once more of hidden ones; r: a regressor, queries q of hidden places that attend
to visible tokens and to themselves; e: places; d: a decoder that sees no visible token, which leaves guessing to r and
understanding to f; token(x): what a tokenizer, trained before and frozen, calls each patch; sg: no gradient.
Chen et al. 2022, arXiv:2202.03026.

Verified against: the official network, both losses and gradients, 1e-9; share and raggedness of its masks.
Deviations: where rectangles fit badly, the rest is hidden patch by patch; the tokenizer is a run of this library (dvae)
instead of DALL-E's; keys have no bias, which changes no attention; the patch embedding starts as other layers do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.encoders import ViT
from visrep.encoders.frozen import load_tokenizer
from visrep.encoders.patches import patch_grid
from visrep.functional import displayed, feature_std, widen
from visrep.masking import exact_mask
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.cross import CrossAttention
from visrep.nn.positions import sincos_2d
from visrep.nn.quantizer import perplexity
from visrep.nn.tokens import PREDICTED, code_colours, hidden_rectangles, prediction_picture
from visrep.nn.transformer import Block, DropPath, LayerScale, Mlp, linear, xavier
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.08, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""the paper's view: crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    tokenizer: str = "runs/dvae-paper"
    """folder of a finished run of a tokenizer: `visrep pretrain dvae:small32 --data FOLDER --out runs/dvae-small32`"""
    encoder: ViT = ViT(width=768, heads=12, position="sincos", layer_scale=0.1, drop_path=0.1)
    """regressor and decoder have its width, heads, LayerScale and stochastic depth"""
    views: OneView = OneView(PLAIN)
    mask_ratio: float = 0.5
    """share of the patches that is hidden"""
    smallest_block: int = 16
    """patches in the smallest rectangle: about a twelfth of the grid"""
    regressor_depth: int = 4
    decoder_depth: int = 4
    w_align: float = 2.0
    """of the distance between predicted and true latents; 0 lets them drift apart"""


def cae_loss(
    logits: Float[Tensor, "m k"], tokens: Int[Tensor, " m"], z: Float[Tensor, "m d"], y: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy of m hidden patches with their tokens; mean squared distance of latents z from true ones y."""
    return F.cross_entropy(logits, tokens), F.mse_loss(z, y)


class RegressorBlock(nn.Module):
    """One step from what was seen to what was not."""

    def __init__(self, encoder: ViT, drop_path: float) -> None:
        super().__init__()
        d, start = encoder.width, encoder.layer_scale
        self.norm_q, self.norm_v, self.norm = (nn.LayerNorm(d, eps=1e-6) for _ in range(3))
        self.norm_k = nn.LayerNorm(d, eps=1e-6, bias=False)  # which would change no attention
        self.cross_attn = CrossAttention(d, encoder.heads, n_in=d)
        self.mlp = Mlp(d, int(d * encoder.mlp_ratio))
        self.ls1, self.ls2 = (LayerScale(d, start) if start else nn.Identity() for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def forward(
        self, q: Float[Tensor, "b m d"], seen: Float[Tensor, "b n d"], places: Float[Tensor, "b nm d"]
    ) -> Float[Tensor, "b m d"]:
        """``places``: of what was seen, then of the queries."""
        known, q_at = torch.cat([seen, q], dim=1), places[:, seen.shape[1] :]
        found = self.cross_attn(self.norm_q(q + q_at), self.norm_k(known + places), self.norm_v(known))
        q = self.norm(q + self.drop_path(self.ls1(found)))
        return q + self.drop_path(self.ls2(self.mlp(q)))


@final
class CAE(Method):
    captions: ClassVar[dict[str, str]] = {"tokens": PREDICTED}
    position: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        vit = cfg.encoder
        self.backbone = vit.build()
        self.grid = patch_grid(cfg.views.size, cfg.views.size, vit.patch)
        self.register_buffer("position", sincos_2d(self.grid, vit.width), persistent=False)  # n d
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, vit.width), std=0.02))
        self.regressor = nn.ModuleList(RegressorBlock(vit, rate) for rate in self._rates(cfg.regressor_depth))
        self.regressor_norm, self.decoder_norm = (nn.LayerNorm(vit.width, eps=1e-6) for _ in range(2))
        block = partial(Block, vit.width, vit.heads, mlp_ratio=vit.mlp_ratio, layer_scale=vit.layer_scale)
        self.decoder = nn.ModuleList(block(drop_path=rate) for rate in self._rates(cfg.decoder_depth))
        self.tokenizer = load_tokenizer(cfg.tokenizer, cfg.views.preprocessing, method="dvae")
        self.head = linear(vit.width, self.tokenizer.encoder.codes)
        for part in (self.backbone, self.regressor, self.decoder, self.head):
            part.apply(xavier)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        images = batch.crops[0][0]
        mask, tokens = self._mask(len(images), at), self._tokens(images)
        hidden = _places(mask)
        z, logits = self._predict(images, mask)
        target = tokens.gather(1, hidden)
        with torch.no_grad():
            y = widen(self.backbone(images, keep=hidden).patches)
        with torch.autocast(images.device.type, enabled=False):
            rows = (x.flatten(0, 1) for x in (logits, target, z, y))
            naming, aligning = cae_loss(*rows)
        monitor = {
            "pretext_accuracy": (logits.argmax(-1) == target).float().mean(),
            "token_perplexity": perplexity(torch.bincount(tokens.flatten()).to(logits)),
            # 1: no better than the mean of all hidden patches
            "unexplained_latents": aligning.detach() / y.var((0, 1), correction=0).mean(),
            "feature_std": feature_std(y.mean(1)),
        }
        return Losses({"tokens": naming, "alignment": self.cfg.w_align * aligning}, monitor)

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images, view = batch.crops[0][0], self.cfg.views.view
        mask, tokens = self._mask(len(images), at), self._tokens(images)
        predicted = tokens.scatter(1, _places(mask), self._predict(images, mask)[1].argmax(-1))
        colours = code_colours(self.tokenizer.encoder.vectors())
        shown = displayed(images, view.mean, view.std)
        return {"tokens": prediction_picture(shown, tokens, predicted, mask, colours, self.grid)}

    def _predict(self, images: Tensor, mask: Tensor) -> tuple[Float[Tensor, "b m d"], Float[Tensor, "b m k"]]:
        """Latents and logits of the hidden patches."""
        keep, hidden = _places(~mask), _places(mask)
        seen = self.backbone(images, keep=keep).patches
        places = self.position[torch.cat([keep, hidden], dim=1)]
        z = self.mask_token.expand(*hidden.shape, -1)
        for block in self.regressor:
            z = block(z, seen, places)
        z = self.regressor_norm(z)
        x = z + self.position[hidden]
        for block in self.decoder:
            x = block(x)
        return widen(z), widen(self.head(self.decoder_norm(x)))

    @torch.no_grad()
    def _tokens(self, images: Tensor) -> Int[Tensor, "b n"]:
        return self.tokenizer.encoder.tokens(self.tokenizer.fit(images, self.grid))

    def _mask(self, b: int, at: At) -> Bool[Tensor, "b n"]:
        """As many hidden patches in each image, so that only visible ones are encoded."""
        ratio, n = self.cfg.mask_ratio, len(self.position)
        blocks = hidden_rectangles(at, b, self.grid, ratio, self.cfg.smallest_block)
        noise = at.rand(b, n)
        return exact_mask(noise, noise.new_full((b,), int(ratio * n)), blocks)

    def _rates(self, depth: int) -> list[float]:
        return [self.cfg.encoder.drop_path * i / max(1, depth - 1) for i in range(depth)]


def _places(mask: Bool[Tensor, "b n"]) -> Int[Tensor, "b m"]:
    """Where a mask with as many marks in each row has them."""
    return mask.nonzero()[:, 1].unflatten(0, (len(mask), -1))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            tokenizer="runs/dvae-tiny",
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, position="sincos"),
            views=OneView(replace(PLAIN, size=32)),
            smallest_block=2,
            regressor_depth=1,
            decoder_depth=1,
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT, tokens of 4 x 4 pixels; make runs/dvae-small32 first.

    What short runs need: no LayerScale, which would first have to grow, a shallow regressor and decoder.
    """
    return Run(
        method=Config(
            tokenizer="runs/dvae-small32",
            encoder=ViT(image=32, patch=4, width=128, depth=4, heads=4, position="sincos", cls=False),
            views=OneView(replace(PLAIN, size=32, scale=(0.2, 1.0))),
            smallest_block=4,
            regressor_depth=2,
            decoder_depth=1,
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=1),
        limit=10_000,
        epochs=9,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16; make runs/dvae-imagenette128 first. Unverified: not run here."""
    method = Config(
        tokenizer="runs/dvae-imagenette128",
        encoder=ViT(image=128, position="sincos", drop_path=0.05),
        views=OneView(replace(PLAIN, size=128, scale=(0.2, 1.0))),
        smallest_block=5,
        regressor_depth=2,
        decoder_depth=2,
    )
    return Run(method=method, optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10), epochs=200, batch=256)


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 800 epochs, batch 2048; make runs/dvae-paper first. Unverified: not run here."""
    optim = replace(_adamw(lr=1.5e-3, lr_scaling="none", warmup=20), betas=(0.9, 0.999))
    return Run(method=Config(), optim=optim, epochs=800, batch=2048)


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 1e-5)),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.05),
        betas=(0.9, 0.95),
        no_decay=("*.bias",),  # and what has one axis; the official code decays the tokens
        clip=3.0,
    )
