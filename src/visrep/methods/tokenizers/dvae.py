"""dVAE: name each patch by one of k codes, so that the image can be painted again from the names.

    minimise  - log p(x | z) / (h w c)  +  w_kl KL(q(. | x) || 1 / k) / (s s c)       z_i ~ q_i = softmax(f(x)_i)
    z_i = softmax((f(x)_i + gumbel) / tau)                           a soft draw, ever harder as tau falls
    p(x | z) = exp(- |logit x - m| / b) / (2 b x (1 - x))            (m, b) = g(z)

f: a convolutional encoder that gives k logits for each patch of s x s pixels; g: a decoder; pixels x lie between 0.1
and 0.9. KL: mean over patches. Ramesh et al. 2021, arXiv:2102.12092.

Verified against: the official encoder and decoder, forward and gradient, 1e-9 (no training code is public); the
density, its gradient and the divergence of torch.distributions, 1e-9.
Deviations: the encoder sees images normalised as usual, not pixels between 0.1 and 0.9, which a short run would answer
with one code; schedules of tau and w_kl span the run; the weights of the last step are used, not their average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.encoders.checks import check_choice
from visrep.encoders.dalle import DalleNet
from visrep.encoders.tokenizer import LogitTokenizer
from visrep.functional import displayed, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.dalle import PixelDecoder
from visrep.nn.quantizer import perplexity
from visrep.nn.tokens import code_colours, token_map
from visrep.schedules import Constant, Cosine, Ramp, Schedule, Warmup
from visrep.views import OneView, View

Reconstruction = Literal["logit_laplace", "l2"]

PLAIN = View(scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""crop and flip"""
MARGIN = 0.1
"""pixels are moved this far away from 0 and 1, where their logits would be infinite"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: DalleNet = DalleNet()
    """2 ** (groups - 1) pixels each way are one token"""
    views: OneView = OneView(PLAIN)
    codes: int = 8192
    """k: 512 for small images, of which little is to be said"""
    reconstruction: Reconstruction = "logit_laplace"
    """how far an image lies from what is painted: a likelihood of pixels in (0, 1), or squared error"""
    tau: Schedule = Cosine(1.0, 1 / 16)
    """temperature of the soft draw: 1 / 16 is nearly one code a patch"""
    w_kl: Schedule = Ramp(0.0, 6.6, epochs=2)
    """weight of the divergence from equal use of all codes; too much at once, and the codes say nothing"""


def logit_laplace(
    x: Float[Tensor, "b c h w"], location: Float[Tensor, "b c h w"], log_scale: Float[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    """- log p of pixels in (0, 1) whose logits follow Laplace distributions; mean over pixels and channels."""
    distance = (x.logit() - location).abs() * (-log_scale).exp()
    return (distance + log_scale + math.log(2) + (x * (1 - x)).log()).mean()


def kl_from_uniform(logits: Float[Tensor, "b n k"]) -> Float[Tensor, ""]:
    """Divergence of each patch's distribution of codes from equal shares, mean over patches, in nats."""
    log_q = logits.log_softmax(-1)
    return math.log(logits.shape[-1]) + (log_q.exp() * log_q).sum(-1).mean()


@final
class DVAE(Method):
    captions: ClassVar[dict[str, str]] = {
        "tokens": "Columns: the image; its tokens, each code in its colour; the image painted from them."
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        check_choice("reconstruction", cfg.reconstruction, get_args(Reconstruction))
        self.laplace = cfg.reconstruction == "logit_laplace"
        self.tokenizer = LogitTokenizer(cfg.encoder, cfg.codes).build()
        net = cfg.encoder
        self.decoder = PixelDecoder(
            cfg.codes, 6 if self.laplace else 3, width=net.width, groups=net.groups, blocks=net.blocks
        )

    @property
    def encoder(self) -> Encoder:
        return self.tokenizer

    def loss(self, batch: Batch, at: At) -> Losses:
        cfg, images = self.cfg, batch.crops[0][0]  # b c h w
        x = self._pixels(images)
        found = self.tokenizer(images)
        logits = widen(self.tokenizer.latents(found.patches))  # b n k
        gumbel = -(-at.rand(*logits.shape).to(logits).log()).log()
        z = ((logits + gumbel) / cfg.tau(at)).softmax(-1)
        painted = widen(self.decoder(z, found.grid))
        with torch.autocast(x.device.type, enabled=False):
            if self.laplace:
                error = logit_laplace(MARGIN + (1 - 2 * MARGIN) * x, *painted.chunk(2, dim=1))
            else:
                error = F.mse_loss(painted, x)
            kl = kl_from_uniform(logits)
        values = 3 * self.tokenizer.stride**2  # of a patch
        terms = {"reconstruction": error, "kl": cfg.w_kl(at) / values * kl}
        used = F.one_hot(logits.detach().argmax(-1).flatten(), cfg.codes).to(logits).sum(0)
        wrong = F.mse_loss(self._likeliest(painted.detach()), x)
        monitor = {
            "unexplained_variance": wrong / x.var(correction=0),  # 1: the mean colour of the batch
            "code_perplexity": perplexity(used),  # codes in use in this batch
            "kl_nats": kl.detach(),
        }
        return Losses(terms, monitor)

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images = batch.crops[0][0]
        found = self.tokenizer(images)
        tokens = self.tokenizer.choose(self.tokenizer.latents(found.patches))
        painted = self._likeliest(self.decoder(F.one_hot(tokens, self.cfg.codes).to(images), found.grid))
        names = token_map(tokens, code_colours(self.tokenizer.vectors()), found.grid, images)
        columns = [self._pixels(images), names.to(images), painted]
        return {"tokens": torch.stack(columns, dim=1).clamp(0, 1)}

    def _pixels(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """In [0, 1], as they were before the views normalised them."""
        return displayed(images, self.cfg.views.view.mean, self.cfg.views.view.std)

    def _likeliest(self, painted: Float[Tensor, "b q h w"]) -> Float[Tensor, "b c h w"]:
        """The most likely pixels."""
        if not self.laplace:
            return painted
        return (painted.chunk(2, dim=1)[0].sigmoid() - MARGIN) / (1 - 2 * MARGIN)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=DalleNet(width=8, groups=4, blocks=1), views=_view(32), codes=32, w_kl=Constant(1.0)
        ),
        optim=_adamw(lr=3e-3, warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, tokens of 4 x 4 pixels.

    What short runs need: few codes, a small weight of the divergence, which else wins before the codes say anything,
    and a high learning rate.
    """
    return Run(
        method=Config(
            encoder=DalleNet(width=32, groups=3), views=_view(32), codes=512, w_kl=Ramp(0.0, 2.0, epochs=1)
        ),
        optim=_adamw(lr=3e-3, warmup=0.5),
        limit=10_000,
        epochs=8,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, tokens of 8 x 8 pixels. Unverified: not run here."""
    method = Config(encoder=DalleNet(width=64), views=_view(128), codes=1024, w_kl=Ramp(0.0, 3.0, epochs=10))
    return Run(method=method, optim=_adamw(lr=1e-3, warmup=2), epochs=100, batch=128)


def paper() -> Run[Config]:
    """ImageNet for the paper's private data, 256 px, 8192 codes, batch 512. Unverified: not run here."""
    view = replace(PLAIN, size=256, scale=(0.79, 1.0), ratio=(1.0, 1.0))
    optim = replace(_adamw(lr=1e-4, warmup=0), lr=Cosine(1e-4, 1.25e-6))
    return Run(method=Config(views=OneView(view)), optim=optim, epochs=100, batch=512)


def _view(size: int) -> OneView:
    return OneView(replace(PLAIN, size=size))


def _adamw(*, lr: float, warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 0.0)), lr_scaling="none", weight_decay=Constant(1e-4)
    )
