"""DINOv3: DINOv2, and late in training patches must stay as alike as an earlier teacher saw them.

    minimise            mean over g != v of               H(p_g, q_v)       cls tokens; times w_local for a local v
              + w_patch mean over g and hidden i of       H(p_gi, q_gi)     hidden patches
              - w_koleo sum over g, mean over images of   log |z_g - z'_g|  cls tokens before the head, at length 1
              + w_gram  mean over g and patches i, j of   (x_gi . x_gj - y_gi . y_gj)^2
    p = Sinkhorn codes of t(x) / tau_t                    q = softmax(s(x with hidden patches) / tau_s)

g: global crops, of which the teacher t sees all patches and the student s only some; v: all crops; z': the nearest z of
another image; x, y: patches before the head, at length 1, of the student and of the Gram teacher, which is t as it was
at one of gram_epochs, on larger copies of the crops. Siméoni et al. 2025, arXiv:2508.10104.

Verified against: the official Gram, DINO and KoLeo losses, values and gradients, 1e-6 (they have 32 bits); rotary
positions, also warped, 1e-9; the rest is DINOv2's.
Deviations: those of DINOv2; positions are warped crop by crop, officially block by block and all crops alike; KoLeo's
neighbours are those of the batch, not of 16 images; local cls tokens have no norm of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.distributed import gather, rank
from visrep.encoders import ViT, ViTLike
from visrep.encoders.layer_decay import layer_decay
from visrep.functional import dino_loss, entropy, feature_std, koleo, masked_patch_loss, share_in_use, widen
from visrep.masking import check_ratios
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import PrototypeHead
from visrep.nn.hidden import hidden_blocks
from visrep.nn.positions import Warp, resample
from visrep.nn.sinkhorn import sinkhorn
from visrep.nn.teacher import Teacher
from visrep.nn.twolevels import TwoLevels
from visrep.schedules import Constant, Cosine, Ramp, Schedule, Step, Warmup
from visrep.views import MultiCrop, View, crops

OPTIM = Optim(
    lr_scaling="sqrt", lr_batch=1024, weight_decay=Cosine(0.04, 0.4), no_decay=("*.bias", "*gamma*"), clip=3.0
)
"""that of DINOv2, in which tokens decay too"""
STEPS = 1000 * 4096 / 1.689e9
"""epochs of the paper's data in 1000 of its steps"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(position="rope", drop_path=0.1, layer_scale=1e-5, registers=4, mask_token=True)
    views: MultiCrop = crops(size=224, local=96, n_local=8, scale=(0.32, 1.0), local_scale=(0.05, 0.32))
    """``clean`` makes the Gram teacher's copies of the global crops, in the paper at twice their side"""
    warp: Warp = Warp(rescale=2.0)
    """of the student's positions, so that other image sizes are no surprise"""
    mask_probability: float = 0.5
    """share of global crops of which patches are hidden"""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """least and greatest share of a masked crop's patches that is hidden"""
    w_local: Schedule = Constant(1.0)
    """of cls tokens of local crops: less where patches count more"""
    w_patch: float = 1.0
    w_koleo: float = 0.1
    w_gram: Schedule = Constant(0.0)
    """2 from where dense features get worse though others still improve; 0 costs no time"""
    gram_epochs: tuple[float, ...] = ()
    """when the Gram teacher becomes a copy of the teacher: where w_gram begins, and perhaps later; 0: after a step"""
    prototypes: tuple[int, int] = (65_536, 65_536)
    """k of the heads of cls tokens and of patches: small data wants few (128 to 1024)"""
    hidden: tuple[int, int] = (2048, 2048)
    """width of the heads' two hidden layers"""
    bottleneck: tuple[int, int] = (256, 256)
    """width in which features are compared with the prototypes"""
    tau_student: float = 0.1
    tau_teacher: Schedule = Ramp(0.04, 0.07, epochs=30)
    teacher_decay: Schedule = Cosine(0.992, 1.0)
    """less for runs of few steps"""


def gram_loss(x: Float[Tensor, "i n d"], y: Float[Tensor, "i n d"]) -> Float[Tensor, ""]:
    """Mean squared difference between the cosines of all pairs of patches of an image in ``x`` and in ``y``."""
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    return F.mse_loss(x @ x.mT, y @ y.mT)


@final
class DINOv3(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        check_ratios(cfg.mask_probability, cfg.mask_ratio)
        head, patch_head = (
            PrototypeHead(cfg.encoder.width, k, hidden=hidden, bottleneck=bottleneck, learn_norm=True)
            for k, hidden, bottleneck in zip(cfg.prototypes, cfg.hidden, cfg.bottleneck, strict=True)
        )
        self.student = TwoLevels(cfg.encoder.build(), head, patch_head)
        self.teacher = Teacher(self.student)
        self.gram_teacher = Teacher(self.student.encoder)

    @property
    def encoder(self) -> Encoder:
        return self.teacher.module.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        cfg, (g, b, _, height, width) = self.cfg, batch.crops[0].shape
        grid = (height // cfg.encoder.patch, width // cfg.encoder.patch)
        hidden = hidden_blocks(at, b, g, grid, probability=cfg.mask_probability, ratio=cfg.mask_ratio)
        groups = batch.crops[: len(cfg.views.groups)]  # without the Gram teacher's copies
        warps = tuple(cfg.warp.draw(at.rand(b, len(x), 5).transpose(0, 1).flatten(0, 1)) for x in groups)
        _, t, t_patch = self.teacher(groups[:1], hidden, False)  # 2 b k, m k: m hidden patches
        seen, s, s_patch = self.student(groups, hidden, True, warps)  # of global crops, v b k, m k
        x, z = widen(seen.patches), widen(seen.pool("cls")).unflatten(0, (g, b))  # 2b n d, 2 b d
        everyone = gather(z.transpose(0, 1)).transpose(0, 1)  # 2 m d
        y, w_gram = x.detach(), cfg.w_gram(at)  # without weight x is compared with itself
        if w_gram:
            anchor = self.gram_teacher(batch.crops[-1 if cfg.views.clean else 0].flatten(0, 1))
            y = resample(widen(anchor.patches), anchor.grid, grid, antialias=False)
        with torch.autocast(s.device.type, enabled=False):
            tau = cfg.tau_teacher(at)
            p, p_patch = sinkhorn(t.flatten(0, 1), tau).view_as(t), sinkhorn(t_patch, tau)
            crowding = [koleo(*pair, rank() * b) for pair in zip(z, everyone, strict=True)]
            terms = {
                "cls": dino_loss(p, s, cfg.tau_student, cfg.w_local(at)),
                "patch": cfg.w_patch * masked_patch_loss(p_patch, s_patch, hidden, cfg.tau_student),
                "koleo": cfg.w_koleo * torch.stack(crowding).sum(),
                "gram": w_gram * gram_loss(x, y),
            }
        log_k, log_k_patch = (math.log(k) for k in cfg.prototypes)
        monitor = {
            "teacher_entropy": entropy(p).mean() / log_k,  # 1: every code uniform
            "prototype_use": share_in_use(p),  # 1: each is the likeliest one of some crop of the batch
            "prototype_entropy": entropy(p.mean((0, 1))) / log_k,  # 0: one prototype for all images
            "patch_prototype_entropy": entropy(p_patch.mean(0)) / log_k_patch,
            "feature_std": feature_std(z[0]),
        }
        return Losses(terms, monitor)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.teacher.follow(self.student, self.cfg.teacher_decay(at))
        if any(at.step < max(1, epoch * at.steps_per_epoch) <= at.step + 1 for epoch in self.cfg.gram_epochs):
            self.gram_teacher.follow(self.teacher.module.encoder, 0.0)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    run = small32()
    method = replace(
        run.method,
        encoder=replace(run.method.encoder, patch=8, width=32, depth=2, heads=2),
        views=crops(size=32, local=16, n_local=2, scale=(0.4, 1.0), local_scale=(0.1, 0.4), clean=64),
        w_local=Constant(0.5),
        w_gram=Step((0.0, 1.0), (0.5,)),
        gram_epochs=(0.5, 5.0),
        prototypes=(32, 24),
    )
    return replace(run, method=method, data="playground:n=64,size=32", limit=0, epochs=1, batch=16)


def small32() -> Run[Config]:
    """32-px images, a narrow ViT, two large crops; patches are anchored in the last third.

    What short runs need: few prototypes, a teacher that moves fast, and no LayerScale, which would first have to grow.
    """
    vit = ViT(image=32, patch=4, width=128, depth=4, heads=4, position="rope", registers=4, mask_token=True)
    view = View(size=32, scale=(0.2, 1.0), blur=0.0)
    method = Config(
        encoder=vit,
        views=MultiCrop(view, view, n_local=0),
        w_gram=Step((0.0, 1.0), (4.0,)),
        gram_epochs=(4.0,),
        prototypes=(256, 256),
        hidden=(512, 512),
        bottleneck=(64, 64),
        tau_teacher=Constant(0.03),
        teacher_decay=Cosine(0.98, 1.0),
    )
    optim = replace(OPTIM, lr=Warmup(epochs=1, then=Cosine(8e-3, 1e-6)), weight_decay=Constant(0.04))
    run = Run(method=method, optim=optim, limit=10_000, epochs=6, batch=64)
    return replace(run, monitor_epochs=2, monitor_images=1000)


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16; patches are anchored in the last fifth. Unverified: not run here."""
    method = Config(
        views=crops(size=128, local=64, n_local=6, scale=(0.32, 1.0), local_scale=(0.05, 0.32), clean=256),
        w_gram=Step((0.0, 2.0), (80.0,)),
        gram_epochs=(80.0, 90.0),
        prototypes=(4096, 4096),
        teacher_decay=Cosine(0.99, 1.0),
    )
    optim = replace(OPTIM, lr=Warmup(epochs=10, then=Cosine(2e-3, 1e-6)))
    return Run(method=method, optim=optim, epochs=100, batch=256)


def paper() -> Run[Config]:
    """First stage of the ViT-7B, a million steps; no single GPU holds it. Unverified: not run here."""
    vit = replace(Config.encoder, width=4096, depth=40, heads=32, drop_path=0.4)
    method = Config(
        encoder=replace(vit, mlp="swiglu", mlp_ratio=3.0, qkv_bias=False),
        views=crops(size=256, local=112, n_local=8, scale=(0.32, 1.0), local_scale=(0.05, 0.32), flip=0.0),
        prototypes=(262_144, 98_304),
        hidden=(8192, 4096),
        bottleneck=(512, 384),
        tau_teacher=Ramp(0.04, 0.07, epochs=100 * STEPS),
        teacher_decay=Constant(0.994),
    )
    frozen = ("student.*prototypes*", Step((0.0, 1.0), (5 * STEPS,)))
    multipliers = (frozen, *layer_decay("student.encoder", 40, 0.98))
    optim = replace(OPTIM, lr=Warmup(epochs=100 * STEPS, then=Constant(2e-4)), multipliers=multipliers)
    optim = replace(optim, weight_decay=Constant(0.04), betas=(0.9, 0.99), clip=30.0)
    return Run(method=method, optim=optim, epochs=1000 * STEPS, batch=4096)


def paper_gram() -> Run[Config]:
    """Second stage: 200,000 steps with anchored patches. Unverified: not run here.

    Continues from the weights of ``paper``: give that run as start_from. Alone, it anchors noise.
    """
    run = paper()
    method = replace(
        run.method,
        views=replace(run.method.views, clean=512),
        w_local=Ramp(1.0, 0.5, epochs=STEPS),  # officially half a cosine, as w_gram
        w_gram=Ramp(0.0, 2.0, epochs=STEPS),
        gram_epochs=(0.0, 10 * STEPS, 20 * STEPS, 30 * STEPS),
        tau_teacher=Constant(0.07),
        teacher_decay=Constant(0.999),
    )
    optim = replace(run.optim, lr=Constant(1.2e-4), multipliers=run.optim.multipliers[1:])
    return replace(run, method=method, optim=optim, epochs=200 * STEPS)


def paper_highres() -> Run[Config]:
    """Third stage: 30,000 steps of larger crops, here of one size, in the paper of five. Unverified: not run here.

    Continues from the weights of ``paper_gram``: give that run as start_from.
    """
    run = paper_gram()
    views = crops(size=768, local=168, n_local=8, scale=(0.32, 1.0), local_scale=(0.05, 0.32), flip=0.0)
    method = replace(run.method, views=replace(views, clean=1152), gram_epochs=(0.0,))
    method = replace(method, w_local=Constant(0.5), w_gram=Constant(1.5))
    optim = replace(run.optim, lr=Warmup(epochs=5 * STEPS, then=Constant(5e-5)))
    return replace(run, method=method, optim=optim, epochs=15 * STEPS, batch=2048)
