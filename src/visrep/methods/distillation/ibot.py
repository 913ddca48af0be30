"""iBOT: DINO, and from the patches that are left, predict the teacher's codes of the hidden ones.

    minimise    w_cls   mean over g != v of               H(p_g, q_v)       DINO's loss: cls tokens
              + w_patch mean over g and hidden i of       H(p_gi, q_gi)     hidden patches of one crop
    p = softmax((t(x) - c) / tau_t)        q = softmax(s(x with hidden patches) / tau_s)

g: global crops, of which the teacher t sees all patches and the student s only some; v: all crops; cls tokens and
patches have centres c and temperatures tau_t of their own. Zhou et al. 2021, arXiv:2111.07832.

Verified against: the official loss, both centres and both temperatures, values and gradients, 1e-9; the official
masks, in distribution.
Deviations: the student's head sees only hidden patches, as others enter no loss; separate heads are separate in the
teacher too (the official default is a teacher with one head); tau_teacher rises every step; blur is a true Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.distributed import mean_over_ranks
from visrep.encoders import ViT, ViTLike
from visrep.encoders.checks import check_choice
from visrep.functional import dino_loss, entropy, masked_patch_loss, share_in_use
from visrep.masking import ATTEMPTS, block_mask, check_ratios, exact_mask
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import PrototypeHead
from visrep.nn.teacher import Teacher
from visrep.nn.twolevels import TwoLevels
from visrep.schedules import Constant, Cosine, Ramp, Schedule, Step, Warmup
from visrep.views import MultiCrop, View, crops

Shape = Literal["block", "random"]


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(drop_path=0.1, mask_token=True)
    views: MultiCrop = crops(size=224, local=96, n_local=10, scale=(0.25, 1.0), local_scale=(0.05, 0.25))
    mask_probability: float = 0.5
    """share of global crops of which patches are hidden: the others keep the student used to whole images"""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """least and greatest share of a masked crop's patches that is hidden"""
    mask_shape: Shape = "block"
    """rectangles, or single patches, which are easier to guess: hide more of them"""
    w_cls: float = 1.0
    w_patch: float = 1.0
    shared_head: bool = True
    """one set of prototypes for cls tokens and patches; else two, behind the same MLP"""
    prototypes: int = 8192
    """k: small data wants few (128 to 1024), or the teacher stays uniform for a long time"""
    hidden: int = 2048
    """width of the head's two hidden layers"""
    bottleneck: int = 256
    """width in which features are compared with the prototypes"""
    learn_norm: bool = False
    """also learn the prototypes' lengths: better for a ViT-S, less stable"""
    tau_student: float = 0.1
    tau_teacher: Schedule = Ramp(0.04, 0.07, epochs=30)
    """of cls tokens; lower it when the loss stays at log(prototypes)"""
    tau_teacher_patch: Schedule = Ramp(0.04, 0.07, epochs=30)
    teacher_decay: Schedule = Cosine(0.996, 1.0)
    """0.9995 at batch 256; less for runs of few steps"""
    center_momentum: float = 0.9


def targets(t: Float[Tensor, "*any k"], center: Float[Tensor, " k"], tau: float) -> Float[Tensor, "*any k"]:
    """The teacher's centred and sharpened codes p; what is compared with them: `dino_loss`, `masked_patch_loss`."""
    return ((t - center) / tau).softmax(-1)


@final
class IBOT(Method):
    center: Tensor
    patch_center: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        check_ratios(cfg.mask_probability, cfg.mask_ratio)
        check_choice("mask_shape", cfg.mask_shape, get_args(Shape))
        head, patch_head = (
            PrototypeHead(
                cfg.encoder.width,
                cfg.prototypes,
                hidden=cfg.hidden,
                bottleneck=cfg.bottleneck,
                learn_norm=cfg.learn_norm,
            )
            for _ in range(2)
        )
        patch_head.mlp = head.mlp  # prototypes apart, one MLP
        self.student = TwoLevels(cfg.encoder.build(), head, head if cfg.shared_head else patch_head)
        self.teacher = Teacher(self.student)
        self.register_buffer("center", torch.zeros(cfg.prototypes))
        self.register_buffer("patch_center", torch.zeros(cfg.prototypes))

    @property
    def encoder(self) -> Encoder:
        return self.teacher.module.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        cfg = self.cfg
        hidden = self._hidden(batch.crops[0], at)
        # The teacher sees only the global crops, and codes all their patches: their mean is the centre.
        _, t, t_patch = self.teacher(batch.crops[:1], torch.ones_like(hidden), False)  # 2 b k, 2bn k
        _, s, s_patch = self.student(batch.crops, hidden, True)  # v b k, m k: m hidden patches
        with torch.autocast(s.device.type, enabled=False):
            p = targets(t, self.center, cfg.tau_teacher(at))
            p_patch = targets(t_patch[hidden.flatten()], self.patch_center, cfg.tau_teacher_patch(at))
            terms = {
                "cls": cfg.w_cls * dino_loss(p, s, cfg.tau_student),
                "patch": cfg.w_patch * masked_patch_loss(p_patch, s_patch, hidden, cfg.tau_student),
            }
        log_k = math.log(cfg.prototypes)
        monitor = {
            "teacher_entropy": entropy(p).mean() / log_k,  # 1: every code uniform
            "prototype_use": share_in_use(p),  # 1: each is the likeliest one of some crop of the batch
            "prototype_entropy": entropy(p.mean((0, 1))) / log_k,  # 0: one prototype for all images
            "patch_prototype_entropy": entropy(p_patch.mean(0)) / log_k,
            "masked_share": hidden.to(t).mean(),
        }
        carry = {"teacher_mean": t.mean((0, 1))[None], "patch_mean": t_patch.mean(0)[None]}
        return Losses(terms, monitor, carry)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        for center, mean in ((self.center, "teacher_mean"), (self.patch_center, "patch_mean")):
            center.lerp_(mean_over_ranks(carry[mean].mean(0)), 1 - self.cfg.center_momentum)
        self.teacher.follow(self.student, self.cfg.teacher_decay(at))

    def _hidden(self, images: Float[Tensor, "g b c h w"], at: At) -> Bool[Tensor, "i n"]:
        """Which patches to hide, one row a crop in the order of ``images``."""
        cfg, (g, b) = self.cfg, images.shape[:2]
        rows, columns = (side // cfg.encoder.patch for side in images.shape[-2:])

        def noise(*shape: int) -> Tensor:
            return at.rand(b, g, *shape).transpose(0, 1).flatten(0, 1)

        chance, u = noise(2).unbind(1)
        low, high = cfg.mask_ratio
        count = torch.where(chance < cfg.mask_probability, low + (high - low) * u, 0.0) * rows * columns
        if cfg.mask_shape == "random":
            return exact_mask(noise(rows * columns), count)
        smallest = (min(rows, columns) // 3) ** 2
        return block_mask(noise(ATTEMPTS, 4), count, (rows, columns), smallest=smallest)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, mask_token=True),
            views=crops(size=32, local=16, n_local=2, scale=(0.4, 1.0), local_scale=(0.1, 0.4)),
            prototypes=32,
            hidden=64,
            bottleneck=64,
            shared_head=False,
            tau_teacher=Constant(0.02),
            tau_teacher_patch=Constant(0.02),
            teacher_decay=Cosine(0.99, 1.0),
        ),
        optim=_adamw(lr=1e-3, lr_scaling="none", warmup=0.2, frozen=0.0),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT, two large crops.

    What short runs need: few prototypes, sharp codes (tau_teacher), a teacher that moves fast (teacher_decay) and
    centres that keep up with it.
    """
    view = View(size=32, scale=(0.2, 1.0), blur=0.0)
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=4, width=128, depth=4, heads=4, mask_token=True),
            views=MultiCrop(view, view, n_local=0),
            prototypes=256,
            hidden=512,
            bottleneck=64,
            tau_teacher=Constant(0.03),
            tau_teacher_patch=Constant(0.03),
            teacher_decay=Cosine(0.98, 1.0),
            center_momentum=0.5,
        ),
        optim=replace(
            _adamw(lr=2e-3, lr_scaling="none", warmup=1.0, frozen=0.0), weight_decay=Constant(0.04)
        ),
        limit=10_000,
        epochs=6,
        batch=64,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(image=128, drop_path=0.1, mask_token=True),
            views=crops(size=128, local=64, n_local=6, scale=(0.25, 1.0), local_scale=(0.05, 0.25)),
            prototypes=4096,
            tau_teacher=Ramp(0.03, 0.05, epochs=20),
            tau_teacher_patch=Ramp(0.03, 0.05, epochs=20),
            teacher_decay=Cosine(0.99, 1.0),
        ),
        optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10.0, frozen=1.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-S/16, 800 epochs, batch 1024. Unverified: not run here."""
    optim = _adamw(lr=5e-4, lr_scaling="linear", warmup=10.0, frozen=1.0)
    return Run(method=Config(learn_norm=True), optim=optim, epochs=800, batch=1024)


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float, frozen: float) -> Optim:
    """The paper's optimiser; the prototypes do not move in the first ``frozen`` epochs."""
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 1e-6)),
        lr_scaling=lr_scaling,
        weight_decay=Cosine(0.04, 0.4),
        no_decay=("*.bias",),  # and what has one axis; the paper decays tokens and positions
        multipliers=(("student.*prototypes*", Step((0.0, 1.0), (frozen,))),) if frozen else (),
        clip=3.0,
        clip_each=True,
    )
