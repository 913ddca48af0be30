"""PeCo's tokenizer: name each patch by one of k codes, so that what is painted from them looks alike to a trained eye.

    minimise  | g(q) - x |^2 / (h w c)  +  w_features sum over l of | F_l(g(q)) - F_l(x) |^2 / (n d_l)
              + w_commit | z - sg(q) |^2 / d
    z = f(x)        q = the code nearest to z        code <- moving average of its z

f, g: convolutional encoder and decoder; F_l: layer l of a frozen encoder that learned without labels, of n patches;
sg: no gradient. The gradient of q goes to z. Dong et al. 2021, arXiv:2111.12710.

Verified against: nothing official, as no code is public; the codebook is checked as VQ-VAE's.
Deviations: encoder and decoder are DALL-E's convolutions; F is a run of this library; its layers pass its final norm;
codes used too seldom are put where patches are (revive); there is no adversary; the weights of the terms are our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.encoders.dalle import DalleNet
from visrep.encoders.frozen import load_frozen
from visrep.encoders.tokenizer import CodebookTokenizer
from visrep.functional import displayed, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.dalle import PixelDecoder
from visrep.nn.quantizer import perplexity
from visrep.nn.tokens import code_colours, token_map
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    eye: str = "runs/dino-paper"
    """folder of a finished run; its encoder, F, judges what is painted"""
    layers: tuple[int, ...] = (3, 6, 9, 12)
    """of the eye, 1 = first; those of a ResNet are 1 to 4"""
    encoder: DalleNet = DalleNet(width=64, groups=5)
    """2 ** (groups - 1) pixels each way are one token"""
    views: OneView = OneView(PLAIN)
    codes: int = 8192
    """k: few for small data, so that all are used"""
    code_width: int = 256
    """d"""
    w_features: float = 1.0
    """0 leaves a VQ-VAE, whose codes say little about what is in the image"""
    w_commit: float = 0.25
    decay: float = 0.99
    """of the codes; less for runs of few steps"""
    revive: float = 0.01
    """a code used less than this share of the average is put where a patch of the batch is; 0: never"""


def perceptual_loss(
    painted: tuple[Float[Tensor, "b _ _"], ...], true: tuple[Float[Tensor, "b _ _"], ...]
) -> Float[Tensor, ""]:
    """Squared difference of features, mean over patches and channels of a layer, then the sum over layers."""
    return torch.stack([F.mse_loss(x, y) for x, y in zip(painted, true, strict=True)]).sum()


@final
class PeCoTokenizer(Method):
    captions: ClassVar[dict[str, str]] = {
        "tokens": "Columns: the image; its tokens, each code in its colour; the image painted from them."
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.eye = load_frozen(cfg.eye, cfg.views.preprocessing, field="eye", methods=("dino", "mae"))
        self.tokenizer = CodebookTokenizer(cfg.encoder, cfg.codes, cfg.code_width, "euclidean").build()
        net = cfg.encoder
        self.decoder = PixelDecoder(cfg.code_width, 3, width=net.width, groups=net.groups, blocks=net.blocks)

    @property
    def encoder(self) -> Encoder:
        return self.tokenizer

    def before_epoch(self, images: Iterable[Batch], at: At) -> None:
        latents = (self.tokenizer.latents(self.tokenizer(batch.crops[0][0]).patches) for batch in images)
        self.tokenizer.codebook.begin(latents, at)

    def loss(self, batch: Batch, at: At) -> Losses:
        cfg, x = self.cfg, batch.crops[0][0]
        found = self.tokenizer(x)
        codebook = self.tokenizer.codebook
        q = codebook(self.tokenizer.latents(found.patches))
        painted = widen(self.decoder(q.vectors, found.grid))
        with torch.no_grad():
            true = self._seen(x)
        seen = self._seen(painted)
        with torch.autocast(x.device.type, enabled=False):
            error = F.mse_loss(painted, x)
            terms = {
                "pixels": error,
                "features": cfg.w_features * perceptual_loss(seen, true),
                "commitment": cfg.w_commit * q.commitment,
            }
        carry = codebook.counted(q, at.rand(len(x)))
        monitor = {
            "unexplained_variance": error.detach() / x.var(correction=0),  # 1: the mean colour of the batch
            "code_perplexity": perplexity(carry["code_counts"][0]),  # codes in use in this batch
            "codes_alive": (codebook.size > 0.01 * codebook.size.mean()).float().mean(),
        }
        return Losses(terms, monitor, carry)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.tokenizer.codebook.follow(carry, decay=self.cfg.decay, revive=self.cfg.revive)

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images, view = batch.crops[0][0], self.cfg.views.view
        found = self.tokenizer(images)
        q = self.tokenizer.codebook(self.tokenizer.latents(found.patches))
        painted = self.decoder(q.vectors, found.grid)
        names = token_map(q.index, code_colours(self.tokenizer.vectors()), found.grid, images)
        shown, painted = (displayed(x, view.mean, view.std) for x in (images, painted))
        return {"tokens": torch.stack([shown, names.to(images), painted], dim=1)}

    def _seen(self, images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b _ _"], ...]:
        """The eye's layers, with gradient to the images."""
        layers = self.eye.encoder(self.eye.fit(images), layers=self.cfg.layers).layers
        return tuple(widen(layer.patches) for layer in layers)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            eye="runs/dino-tiny",
            layers=(1, 2),
            encoder=DalleNet(width=8, groups=4, blocks=1),
            views=OneView(replace(PLAIN, size=32)),
            codes=32,
            code_width=8,
            decay=0.9,
            revive=0.1,
        ),
        optim=_adamw(lr=3e-3, warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, tokens of 4 x 4 pixels; make runs/dino-small32 first.

    What short runs need: few codes, which move fast (decay) and are moved early where nobody uses them (revive).
    """
    return Run(
        method=Config(
            eye="runs/dino-small32",
            layers=(1, 2, 3, 4),
            encoder=DalleNet(width=32, groups=3),
            views=OneView(replace(PLAIN, size=32)),
            codes=512,
            code_width=32,
            decay=0.97,
            revive=0.1,
        ),
        optim=_adamw(lr=3e-3, warmup=0.5),
        limit=10_000,
        epochs=6,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, tokens of 16 x 16 pixels; make runs/dino-imagenette128 first. Unverified: not run here."""
    method = Config(eye="runs/dino-imagenette128", views=OneView(replace(PLAIN, size=128)), codes=1024)
    return Run(method=method, optim=_adamw(lr=1e-3, warmup=2), epochs=100, batch=128)


def paper() -> Run[Config]:
    """ImageNet, 8192 codes, 100 epochs. Unverified: not run here."""
    return Run(method=Config(), optim=_adamw(lr=5e-5, warmup=5), epochs=100, batch=128)


def _adamw(*, lr: float, warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 0.0)), lr_scaling="none", weight_decay=Constant(1e-4)
    )
