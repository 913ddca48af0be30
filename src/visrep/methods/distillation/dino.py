"""DINO: from any crop of an image, predict the teacher's centred and sharpened code of another crop.

    minimise  mean over g != v of  H(p_g, q_v)       g: global crops (teacher), v: all crops (student)
    p = softmax((t(x_g) - c) / tau_t)                q = softmax(s(x_v) / tau_s)
    c <- m c + (1 - m) mean t                        t <- decay t + (1 - decay) s

s, t: student and teacher, encoder and prototype head; c: the centre, which keeps one prototype from winning
everywhere, as the low tau_t keeps all from being equal. Caron et al. 2021, arXiv:2104.14294.

Verified against: the official loss, centre, head and schedules, values and gradients, 1e-9.
Deviations: tau_teacher rises every step instead of every epoch; blur is a true Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.distributed import mean_over_ranks
from visrep.encoders import NAMED, EncoderConfig, ViT
from visrep.functional import dino_loss, entropy, share_in_use, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import PrototypeHead
from visrep.nn.teacher import Teacher
from visrep.schedules import Constant, Cosine, Ramp, Schedule, Step, Warmup
from visrep.views import MultiCrop, crops


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ViT(drop_path=0.1)
    views: MultiCrop = crops(size=224, local=96, n_local=8, scale=(0.4, 1.0), local_scale=(0.05, 0.4))
    prototypes: int = 65_536
    """k: small data wants few (128 to 1024), or the teacher stays uniform for a long time"""
    hidden: int = 2048
    """width of the head's two hidden layers"""
    bottleneck: int = 256
    """width in which features are compared with the prototypes"""
    learn_norm: bool = False
    """also learn the prototypes' lengths: better for a ViT-S, less stable"""
    batch_norm: bool = False
    """BatchNorm in the head: convolutional encoders need it, or all images get nearly the same code for long"""
    tau_student: float = 0.1
    tau_teacher: Schedule = Ramp(0.04, 0.07, epochs=30)
    """lower it when the loss stays at log(prototypes)"""
    teacher_decay: Schedule = Cosine(0.996, 1.0)
    """0.9995 at batch 256; less for runs of few steps"""
    center_momentum: float = 0.9


def targets(t: Float[Tensor, "g b k"], center: Float[Tensor, " k"], tau: float) -> Float[Tensor, "g b k"]:
    """The teacher's centred and sharpened codes p."""
    return ((t - center) / tau).softmax(-1)


class Network(nn.Module):
    """Encoder and head: crops of one or several sizes to logits, one row of prototypes a crop and image."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.encoder: Encoder = cfg.encoder.build()
        self.head = PrototypeHead(
            self.encoder.width,
            cfg.prototypes,
            hidden=cfg.hidden,
            bottleneck=cfg.bottleneck,
            learn_norm=cfg.learn_norm,
            batch_norm=cfg.batch_norm,
        )

    def forward(self, groups: tuple[Float[Tensor, "_ b c _ _"], ...]) -> Float[Tensor, "v b k"]:
        features = [self.encoder(group.flatten(0, 1)).pool() for group in groups]
        return widen(self.head(torch.cat(features))).unflatten(0, (-1, groups[0].shape[1]))


@final
class DINO(Method):
    center: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.student = Network(cfg)
        self.teacher = Teacher(self.student)
        self.register_buffer("center", torch.zeros(cfg.prototypes))

    @property
    def encoder(self) -> Encoder:
        return self.teacher.module.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        t = self.teacher(batch.crops[:1])  # 2 b k: only the global crops
        s = self.student(batch.crops)  # v b k
        with torch.autocast(s.device.type, enabled=False):
            p = targets(t, self.center, self.cfg.tau_teacher(at))
            loss = dino_loss(p, s, self.cfg.tau_student)
        spread = entropy(p).mean()
        log_k = math.log(self.cfg.prototypes)
        monitor = {
            "teacher_entropy": spread / log_k,  # 1: every code uniform
            "prototype_use": share_in_use(p),  # 1: each is the likeliest one of some crop of the batch
            "prototype_entropy": entropy(p.mean((0, 1))) / log_k,  # 0: one prototype for all images
            "teacher_student_kl": loss.detach() - spread,
        }
        return Losses({"dino": loss}, monitor, carry={"teacher_mean": t.mean((0, 1))[None]})

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        mean = mean_over_ranks(carry["teacher_mean"].mean(0))
        self.center.lerp_(mean, 1 - self.cfg.center_momentum)
        self.teacher.follow(self.student, self.cfg.teacher_decay(at))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2),
            views=crops(size=32, local=16, n_local=2, scale=(0.4, 1.0), local_scale=(0.1, 0.4)),
            prototypes=32,
            hidden=64,
            bottleneck=64,
            tau_teacher=Constant(0.02),
            teacher_decay=Cosine(0.99, 1.0),
        ),
        optim=_adamw(lr=1e-3, lr_scaling="none", warmup=0.2, frozen=0.0),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def playground() -> Run[Config]:
    """The built-in images, in which colour says nothing about the shape: so it is changed at will."""
    run = small32()
    view = replace(run.method.views.global_1, scale=(0.3, 1.0), hue=0.5, gray=0.3)
    views = replace(run.method.views, global_1=view, global_2=view)
    return replace(
        run, method=replace(run.method, views=views), data="playground", epochs=6, monitor_epochs=1
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18; four minutes on two cores for 10,000 images.

    What short runs need: few prototypes, sharp codes (tau_teacher), a centre that is nearly the mean of the batch,
    because the teacher moves fast (teacher_decay), and BatchNorm in the head. Two large crops without blur, as is usual
    at this size.
    """
    views = crops(size=32, local=16, n_local=0, scale=(0.2, 1.0), local_scale=(0.05, 0.2))
    view = replace(views.global_1, blur=0.0)
    return Run(
        method=Config(
            encoder=NAMED["resnet_narrow"],
            views=replace(views, global_1=view, global_2=view),
            prototypes=256,
            hidden=256,
            bottleneck=64,
            batch_norm=True,
            tau_teacher=Constant(0.02),
            teacher_decay=Cosine(0.98, 1.0),
            center_momentum=0.2,
        ),
        optim=replace(
            _adamw(lr=3e-3, lr_scaling="none", warmup=0.5, frozen=0.0), weight_decay=Cosine(0.04, 0.1)
        ),
        limit=10_000,
        epochs=8,
        batch=64,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(image=128, drop_path=0.1),
            views=crops(size=128, local=64, n_local=6, scale=(0.4, 1.0), local_scale=(0.05, 0.4)),
            prototypes=4096,
            tau_teacher=Ramp(0.03, 0.05, epochs=20),
            teacher_decay=Cosine(0.99, 1.0),
        ),
        optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10.0, frozen=1.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-S/16, 100 epochs, batch 1024. Unverified: not run here."""
    optim = _adamw(lr=5e-4, lr_scaling="linear", warmup=10.0, frozen=1.0)
    return Run(method=Config(tau_teacher=Constant(0.04)), optim=optim, epochs=100, batch=1024)


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float, frozen: float) -> Optim:
    """The paper's optimiser; the prototypes do not move in the first ``frozen`` epochs."""
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 1e-6)),
        lr_scaling=lr_scaling,
        weight_decay=Cosine(0.04, 0.4),
        no_decay=("*.bias",),  # and what has one axis; the paper decays tokens and positions
        multipliers=(("student.head.prototypes*", Step((0.0, 1.0), (frozen,))),) if frozen else (),
        clip=3.0,
        clip_each=True,
    )
