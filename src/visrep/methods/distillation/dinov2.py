"""DINOv2: DINO for whole images and iBOT for hidden patches, with features that keep their distance.

    minimise    w_cls   mean over g != v of               H(p_g, q_v)       cls tokens, as in DINO
              + w_patch mean over g and hidden i of       H(p_gi, q_gi)     hidden patches, as in iBOT
              - w_koleo sum over g, mean over images of   log |z_g - z'_g|  cls tokens before the head, at length 1
    p = softmax((t(x) - c) / tau_t), or Sinkhorn codes     q = softmax(s(x with hidden patches) / tau_s)

g: global crops, of which the teacher t sees all patches and the student s only some; v: all crops; z': the nearest
z of another image in the batch. Oquab et al. 2023, arXiv:2304.07193; registers: arXiv:2309.16588.

Verified against: the official DINO, patch and KoLeo losses and centres, values and gradients, 1e-9 (patches 1e-6: its
weights have 32 bits); Sinkhorn codes 1e-5 (32 bits there); the official masks, in distribution.
Deviations: KoLeo's neighbours, the spread of mask ratios and the patch centre are those of the whole batch, not of
one GPU's part, so that results do not depend on the number of GPUs; drop path grows with depth and drops images one
by one; gradients are clipped jointly, not network by network; blur is a true Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.distributed import gather, rank, sum_over_ranks
from visrep.encoders import ViT, ViTLike
from visrep.encoders.checks import check_choice
from visrep.encoders.layer_decay import layer_decay
from visrep.functional import dino_loss, entropy, feature_std, koleo, masked_patch_loss, share_in_use, widen
from visrep.masking import check_ratios
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import PrototypeHead
from visrep.nn.hidden import hidden_blocks
from visrep.nn.sinkhorn import sinkhorn
from visrep.nn.teacher import Teacher
from visrep.nn.twolevels import TwoLevels
from visrep.schedules import Constant, Cosine, Ramp, Schedule, Step, Warmup
from visrep.views import MultiCrop, View, crops

Codes = Literal["center", "sinkhorn"]


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(drop_path=0.1, layer_scale=1e-5, registers=4, mask_token=True)
    views: MultiCrop = crops(size=224, local=96, n_local=8, scale=(0.32, 1.0), local_scale=(0.05, 0.32))
    mask_probability: float = 0.5
    """share of global crops of which patches are hidden"""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """least and greatest share of a masked crop's patches that is hidden"""
    w_cls: float = 1.0
    w_patch: float = 1.0
    w_koleo: float = 0.1
    """with accumulation, neighbours are those of a micro-batch"""
    codes: Codes = "center"
    """how the teacher spreads images over prototypes: by centres, or by equal shares of the batch (largest models)"""
    shared_head: bool = True
    """one head for cls tokens and patches, else two (largest models)"""
    prototypes: int = 65_536
    """k of each head: small data wants few (128 to 1024)"""
    hidden: int = 2048
    """width of a head's two hidden layers"""
    bottleneck: int = 256
    """width in which features are compared with the prototypes"""
    tau_student: float = 0.1
    tau_teacher: Schedule = Ramp(0.04, 0.07, epochs=30)
    """lower it when the loss stays at log(prototypes)"""
    teacher_decay: Schedule = Cosine(0.992, 1.0)
    """less for runs of few steps"""
    center_momentum: float = 0.9
    """of codes by centres"""


def targets(
    t: Float[Tensor, "m k"], center: Float[Tensor, " k"], tau: float, codes: Codes
) -> Float[Tensor, "m k"]:
    """The teacher's codes p; what is compared with them: `dino_loss`, `masked_patch_loss`."""
    return sinkhorn(t, tau) if codes == "sinkhorn" else ((t - center) / tau).softmax(-1)


@final
class DINOv2(Method):
    center: Tensor
    patch_center: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        check_ratios(cfg.mask_probability, cfg.mask_ratio)
        check_choice("codes", cfg.codes, get_args(Codes))
        width = cfg.encoder.width
        head, patch_head = (
            PrototypeHead(
                width, cfg.prototypes, hidden=cfg.hidden, bottleneck=cfg.bottleneck, learn_norm=True
            )
            for _ in range(2)
        )
        self.student = TwoLevels(cfg.encoder.build(), head, head if cfg.shared_head else patch_head)
        self.teacher = Teacher(self.student)
        self.register_buffer("center", torch.zeros(cfg.prototypes))
        self.register_buffer("patch_center", torch.zeros(cfg.prototypes))

    @property
    def encoder(self) -> Encoder:
        return self.teacher.module.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        cfg, (g, b, _, height, width) = self.cfg, batch.crops[0].shape
        grid = (height // cfg.encoder.patch, width // cfg.encoder.patch)
        hidden = hidden_blocks(at, b, g, grid, probability=cfg.mask_probability, ratio=cfg.mask_ratio)
        _, t, t_patch = self.teacher(batch.crops[:1], hidden, False)  # 2 b k, m k: m hidden patches
        seen, s, s_patch = self.student(batch.crops, hidden, True)  # of global crops, v b k, m k
        z = widen(seen.pool("cls")).unflatten(0, (g, b))  # 2 b d
        everyone = gather(z.transpose(0, 1)).transpose(0, 1)  # 2 m d
        with torch.autocast(s.device.type, enabled=False):
            tau = cfg.tau_teacher(at)
            p = targets(t.flatten(0, 1), self.center, tau, cfg.codes).view_as(t)
            p_patch = targets(t_patch, self.patch_center, tau, cfg.codes)
            crowding = [koleo(*pair, rank() * b) for pair in zip(z, everyone, strict=True)]
            terms = {
                "cls": cfg.w_cls * dino_loss(p, s, cfg.tau_student),
                "patch": cfg.w_patch * masked_patch_loss(p_patch, s_patch, hidden, cfg.tau_student),
                "koleo": cfg.w_koleo * torch.stack(crowding).sum(),
            }
        log_k = math.log(cfg.prototypes)
        monitor = {
            "teacher_entropy": entropy(p).mean() / log_k,  # 1: every code uniform
            "prototype_use": share_in_use(p),  # 1: each is the likeliest one of some crop of the batch
            "prototype_entropy": entropy(p.mean((0, 1))) / log_k,  # 0: one prototype for all images
            "patch_prototype_entropy": entropy(p_patch.mean(0)) / log_k,
            "feature_std": feature_std(z[0]),
        }
        rows = {"center": t.flatten(0, 1), "patch_center": t_patch} if cfg.codes == "center" else {}
        sums = {name: torch.cat([x.sum(0), x.new_full((1,), len(x))])[None] for name, x in rows.items()}
        return Losses(terms, monitor, sums)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        for name, sums in carry.items():
            total = sum_over_ranks(sums.sum(0))  # ranks differ in how many patches they hid
            mean = total[:-1] / total[-1].clamp(min=1)
            self.get_buffer(name).lerp_(mean, 1 - self.cfg.center_momentum)
        self.teacher.follow(self.student, self.cfg.teacher_decay(at))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, registers=2, mask_token=True),
            views=crops(size=32, local=16, n_local=2, scale=(0.4, 1.0), local_scale=(0.1, 0.4)),
            shared_head=False,
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


def small32() -> Run[Config]:
    """32-px images, a narrow ViT, two large crops.

    What short runs need: many cheap steps (patches of 8, batches of 64) rather than detail, few prototypes, shared
    equally from the first step (codes), a teacher that moves fast (teacher_decay), a low learning rate, and no
    LayerScale, which would first have to grow. Cls tokens alone learn slowly: fewer than 3,000 steps end near pixels.
    """
    view = View(size=32, scale=(0.2, 1.0), blur=0.0)
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=128, depth=4, heads=4, mask_token=True),
            views=MultiCrop(view, view, n_local=0),
            codes="sinkhorn",
            prototypes=256,
            hidden=512,
            bottleneck=64,
            tau_teacher=Constant(0.03),
            teacher_decay=Cosine(0.98, 1.0),
        ),
        optim=replace(
            _adamw(lr=1e-3, lr_scaling="none", warmup=1.0, frozen=0.0), weight_decay=Constant(0.04)
        ),
        limit=10_000,
        epochs=20,
        batch=64,
        monitor_epochs=5,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16 with registers. Unverified: not run here."""
    return Run(
        method=Config(
            views=crops(size=128, local=64, n_local=6, scale=(0.32, 1.0), local_scale=(0.05, 0.32)),
            encoder=ViT(image=128, drop_path=0.1, layer_scale=1e-5, registers=4, mask_token=True),
            codes="sinkhorn",
            prototypes=4096,
            tau_teacher=Ramp(0.04, 0.06, epochs=20),
            teacher_decay=Cosine(0.99, 1.0),
        ),
        optim=_adamw(lr=2e-3, lr_scaling="sqrt", warmup=10.0, frozen=1.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet-1k, ViT-L/16, the official short recipe: 125,000 steps at batch 2048. Unverified: not run here.

    The official code counts epochs of 1250 steps, twice ours.
    """
    encoder = ViT(width=1024, depth=24, heads=16, drop_path=0.3, layer_scale=1e-5, mask_token=True)
    optim = _adamw(lr=4e-3, lr_scaling="sqrt", warmup=20.0, frozen=2.0)
    return Run(
        method=Config(encoder=encoder, tau_teacher=Ramp(0.04, 0.07, epochs=60)),
        optim=replace(optim, multipliers=(*optim.multipliers, *layer_decay("student.encoder", 24, 0.9))),
        epochs=200,
        batch=2048,
    )


def _adamw(*, lr: float, lr_scaling: Literal["none", "sqrt"], warmup: float, frozen: float) -> Optim:
    """The paper's optimiser; the prototypes do not move in the first ``frozen`` epochs."""
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 1e-6)),
        lr_scaling=lr_scaling,
        lr_batch=1024,
        weight_decay=Cosine(0.04, 0.4),
        no_decay=("*.bias", "*gamma*"),  # and what has one axis; the paper decays tokens and positions
        multipliers=(("student.*prototypes*", Step((0.0, 1.0), (frozen,))),) if frozen else (),
        clip=3.0,
    )
