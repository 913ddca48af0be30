"""LeJEPA: all views of an image meet at their centre, while embeddings of images stay an isotropic Gaussian.

    minimise  (1 - w) mean over v of |z_v - c|^2 / d  +  w mean over v and directions a of T(a . z_v)
    T(x) = m  integral over |t| < t_max of  |mean exp(i t x) - phi(t)|^2 phi(t) dt        phi(t) = exp(-t^2 / 2)

z_v: embeddings of view v, d wide; c: the mean of an image's large views; a: random unit vectors, new every step;
T: the Epps-Pulley statistic of the m images of all ranks, 0 when x is standard normal. By Cramer and Wold an embedding
is an isotropic Gaussian when it is in all directions, so nothing collapses, without teacher, predictor or
stop-gradient. Balestriero & LeCun 2025, arXiv:2511.08544.

Verified against: the official statistic, values and gradients, 1e-9 given its constants (float32, 2e-7); the closed
form of the integral; the invariance of the official minimal code, written out.
Deviations: the projection takes the encoder's features directly, not through the minimal code's linear layer;
biases and norms are not decayed; blur is a true Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.distributed import gather, world
from visrep.encoders import NAMED, EncoderConfig, ViT
from visrep.functional import feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import projection
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import MultiCrop, View

COLOUR = View(blur=0.5, solarize=0.2)
"""the official colours, of large and small views alike"""


def crops(*, view: View, scale: float, local: int, n_local: int) -> MultiCrop:
    """Large views cover at least ``scale`` of an image, small ones of ``local`` pixels at most."""
    large = replace(view, scale=(scale, 1.0))
    small = replace(view, size=local, scale=(0.05, scale))
    return MultiCrop(global_1=large, global_2=large, local=small, n_local=n_local)


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ViT(patch=14, width=1024, depth=24, heads=16)
    views: MultiCrop = crops(view=COLOUR, scale=0.3, local=98, n_local=6)
    center: Literal["global", "all"] = "global"
    """views whose mean all views are drawn to: the large ones, or all, as in the official minimal code"""
    hidden: int = 2048
    """width of the projection's two hidden layers"""
    out: int = 64
    """width of the projection: 16 to 128; the wider, the more slices and w_sigreg it takes to keep it Gaussian"""
    w_sigreg: float = 0.02
    """w, from 0 to 1: the statistic grows with the batch, so a smaller one wants more. More when features collapse"""
    slices: int = 1024
    """random directions a step: the official minimal code is content with 256"""
    t_max: float = 3.0
    """where the integral ends"""
    knots: int = 17
    """points from 0 to t_max at which it is evaluated"""


def directions(n: int, d: int, rng: torch.Generator) -> Float[Tensor, "n d"]:
    """Random unit vectors, the same on every rank, as ``rng`` is: they belong to the step, not to an image."""
    return F.normalize(torch.empty(n, d, device=rng.device).normal_(generator=rng), dim=-1)


def quadrature(
    t_max: float, knots: int, like: Tensor
) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"], Float[Tensor, " t"]]:
    """Points t, phi there, and their weights: the trapezoid rule for -t_max to t_max, folded at 0, times phi."""
    t = torch.linspace(0, t_max, knots, dtype=like.dtype, device=like.device)
    weight = torch.full_like(t, 2 * t_max / (knots - 1))
    weight[[0, -1]] /= 2
    phi = torch.exp(-t.square() / 2)
    return t, phi, weight * phi


def epps_pulley(
    x: Float[Tensor, "v b s"], t: Float[Tensor, " t"], phi: Float[Tensor, " t"], weight: Float[Tensor, " t"]
) -> Float[Tensor, "v s"]:
    """T of every column, over the rows of all ranks: how far its characteristic function is from a Gaussian's."""
    tx = x.unsqueeze(-1) * t  # v b s t
    own = torch.stack([tx.cos().mean(1), tx.sin().mean(1)])  # mean exp(i t x): real and imaginary part
    real, imaginary = gather(own[None]).mean(0)  # ranks have equally many rows
    distance = (real - phi).square() + imaginary.square()  # v s t
    return x.shape[1] * world() * distance @ weight


def prediction(z: Float[Tensor, "v b d"], centers: Float[Tensor, "g b d"]) -> Float[Tensor, ""]:
    """Mean squared distance of every view to the mean of the image's ``centers``."""
    return (z - centers.mean(0)).square().mean()


@final
class LeJEPA(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        if not 0 <= cfg.w_sigreg <= 1:
            raise ValueError(f"w_sigreg={cfg.w_sigreg} is a share of the loss. Use a number from 0 to 1.")
        if cfg.knots < 2 or cfg.slices < 1:
            raise ValueError(
                f"knots={cfg.knots}, slices={cfg.slices}: an integral needs at least 2 knots, a mean at least 1 slice."
            )
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        self.head = projection(self.backbone.width, cfg.hidden, cfg.out, layers=3, last_norm=False)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        cfg = self.cfg
        features = torch.cat([self.backbone(group.flatten(0, 1)).pool() for group in batch.crops])
        z = widen(self.head(features)).unflatten(0, (-1, len(batch)))  # v b d
        with torch.autocast(z.device.type, enabled=False):
            x = z @ directions(cfg.slices, cfg.out, at.rng).to(z).T  # v b s
            sigreg = epps_pulley(x, *quadrature(cfg.t_max, cfg.knots, like=x)).mean()
            predicted = prediction(z, z if cfg.center == "all" else z[: len(batch.crops[0])])
        terms = {"prediction": (1 - cfg.w_sigreg) * predicted, "sigreg": cfg.w_sigreg * sigreg}
        monitor = {
            "projection_std": z.detach().std(1).mean(),  # SIGReg wants 1
            "feature_std": feature_std(features),
        }
        return Losses(terms, monitor)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2),
            views=crops(view=replace(COLOUR, size=32), scale=0.3, local=16, n_local=2),
            hidden=32,
            out=16,
            w_sigreg=0.1,
            slices=64,
        ),
        optim=_adamw(lr=2e-3, weight_decay=0.05, warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18.

    Two large views without blur, as is usual at this size, and small batches: the statistic grows with the batch, and
    where it weighs more (w_sigreg=0.05, batch 256) the views are drawn together too little: 38.5 instead of 46.3 % in
    the linear probe of one seed.
    """
    view = View(size=32, saturation=0.4, blur=0.0)
    return Run(
        method=Config(
            encoder=NAMED["resnet_narrow"],
            views=MultiCrop(global_1=view, global_2=view, n_local=0),
            hidden=512,
            slices=256,
        ),
        optim=_adamw(lr=3e-3, weight_decay=1e-4, warmup=1),
        limit=10_000,
        epochs=8,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """The official minimal example: 128-px images, four like views, ViT-S/8, 800 epochs. Unverified: not run here."""
    view = replace(COLOUR, size=128, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
    return Run(
        method=Config(
            encoder=ViT(image=128, patch=8, drop_path=0.1),
            views=MultiCrop(global_1=view, global_2=view, local=view, n_local=2),
            center="all",
            out=16,
            slices=256,
        ),
        optim=_adamw(lr=2e-3, end=1e-3, weight_decay=0.05, warmup=1),
        epochs=800,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-L/14, 100 epochs, what the official README states. Unverified: not run here.

    The README leaves the batch size and w_sigreg open: the minimal code's w_sigreg, and batch 512, are assumed.
    """
    optim = _adamw(lr=5e-4, end=5e-7, weight_decay=0.05, warmup=1)
    return Run(method=Config(), optim=optim, epochs=100, batch=512)


def _adamw(*, lr: float, weight_decay: float, warmup: float, end: float = 0.0) -> Optim:
    schedule = Warmup(epochs=warmup, then=Cosine(lr, end))
    return Optim(lr=schedule, lr_scaling="none", weight_decay=Constant(weight_decay))
