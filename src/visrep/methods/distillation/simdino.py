"""SimDINO: give all crops of an image the teacher's direction, and spread the directions by their coding rate.

    minimise  - mean over g != v of  t(x_g) . s(x_v)  -  gamma R(z)        z = (s(x_g) + t(x_g)) / 2
    R(z) = log det(I + d / (m eps) z' z) / 2        gamma = 1/d + 1/m        t <- decay t + (1 - decay) s

s, t: student and teacher, encoder and head, outputs of length 1 in d dimensions; g: global crops (teacher), v: all
crops (student); m: images in the batch; gamma makes of R the nats that one value of z takes. No prototypes, centre or
temperatures: collapse costs coding rate. Wu et al. 2025, arXiv:2502.10385.

Verified against: the official loss and both its parts, values and gradients, 1e-9.
Deviations: the coding rate is that of the batch of all ranks. By default the official code takes one on each GPU,
of its own images, yet divides by those of all: its eps on n GPUs is worth n * eps here, 0.05 on 8 GPUs 0.4. Blur is a
true Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.distributed import gather
from visrep.encoders import EncoderConfig, ViT
from visrep.functional import coding_rate, crop_similarity, feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import gelu_mlp
from visrep.nn.teacher import Teacher
from visrep.schedules import Constant, Cosine, Schedule, Warmup
from visrep.views import MultiCrop, crops


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ViT(width=768, heads=12, drop_path=0.1)
    views: MultiCrop = crops(size=224, local=96, n_local=10, scale=(0.4, 1.0), local_scale=(0.05, 0.4))
    hidden: int = 2048
    """width of the head's two hidden layers"""
    out: int = 256
    """d, width in which crops are compared: at most the batch, or it cannot be filled"""
    batch_norm: bool = False
    """BatchNorm in the head: convolutional encoders need it"""
    eps: float = 0.4
    """squared error that the code allows: less pushes harder into directions that are hardly used"""
    w_similarity: float = 1.0
    """weight of the similarity; that of the coding rate is gamma"""
    teacher_decay: Schedule = Cosine(0.996, 1.0)
    """less for runs of few steps"""


def simdino_loss(
    s: Float[Tensor, "v b d"], t: Float[Tensor, "g b d"], z: Float[Tensor, "g m d"], eps: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Minus the similarity of crops, and minus gamma times the coding rate of ``z``, mean over its crops."""
    m, d = z.shape[1:]
    return -crop_similarity(s, t), -(1 / d + 1 / m) * coding_rate(z, eps).mean()


class Network(nn.Module):
    """Encoder and head: crops of one or several sizes to vectors of length 1, one a crop and image."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.encoder: Encoder = cfg.encoder.build()
        self.head = gelu_mlp(self.encoder.width, cfg.hidden, cfg.out, batch_norm=cfg.batch_norm)

    def forward(self, groups: tuple[Float[Tensor, "_ b c _ _"], ...]) -> Float[Tensor, "v b d"]:
        features = [self.encoder(group.flatten(0, 1)).pool() for group in groups]
        z = F.normalize(widen(self.head(torch.cat(features))), dim=-1)
        return z.unflatten(0, (-1, groups[0].shape[1]))


@final
class SimDINO(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.student = Network(cfg)
        self.teacher = Teacher(self.student)

    @property
    def encoder(self) -> Encoder:
        return self.teacher.module.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        t = self.teacher(batch.crops[:1])  # 2 b d: only the global crops
        s = self.student(batch.crops)  # v b d
        z = gather(((s[: len(t)] + t) / 2).transpose(0, 1)).transpose(0, 1)  # 2 m d
        with torch.autocast(s.device.type, enabled=False):
            compression, expansion = simdino_loss(s, t, z, self.cfg.eps)
        monitor = {"similarity": -compression.detach(), "feature_std": feature_std(t.flatten(0, 1))}
        return Losses({"compression": self.cfg.w_similarity * compression, "expansion": expansion}, monitor)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.teacher.follow(self.student, self.cfg.teacher_decay(at))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2),
            views=crops(size=32, local=16, n_local=2, scale=(0.4, 1.0), local_scale=(0.1, 0.4)),
            hidden=64,
            out=16,
            teacher_decay=Cosine(0.9, 1.0),
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT of large patches, two large crops without blur.

    What short runs need: many cheap steps (patches of 8, batches of 64), a head of at most twice the batch, a fast
    teacher, and a small eps, or the coding rate spreads images over few directions. A narrow ResNet learns half as
    much: it was no better than raw pixels after 600 steps.
    """
    views = crops(size=32, local=16, n_local=0, scale=(0.2, 1.0), local_scale=(0.05, 0.2))
    view = replace(views.global_1, blur=0.0)
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=128, depth=4, heads=4),
            views=replace(views, global_1=view, global_2=view),
            hidden=512,
            out=128,
            eps=0.1,
            teacher_decay=Cosine(0.9, 1.0),
        ),
        optim=replace(_adamw(lr=2e-3, lr_scaling="none", warmup=1.0), weight_decay=Constant(0.04)),
        limit=10_000,
        epochs=16,
        batch=64,
        monitor_epochs=4,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(image=128, drop_path=0.1),
            views=crops(size=128, local=64, n_local=6, scale=(0.4, 1.0), local_scale=(0.05, 0.4)),
            teacher_decay=Cosine(0.99, 1.0),
        ),
        optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 100 epochs, batch 512. Unverified: not run here."""
    return Run(
        method=Config(), optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10.0), epochs=100, batch=512
    )


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    """DINO's optimiser."""
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 1e-6)),
        lr_scaling=lr_scaling,
        weight_decay=Cosine(0.04, 0.4),
        no_decay=("*.bias",),  # and what has one axis; DINO decays tokens and positions
        clip=3.0,
        clip_each=True,
    )
