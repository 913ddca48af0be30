"""SimDINOv2: SimDINO for whole images, and from the patches that are left, the teacher's directions of the hidden ones.

    minimise  - w_similarity  mean over g != v of         t(x_g) . s(x_v)        cls tokens, as in SimDINO
              - gamma R(z)                                                       z = (s(x_g) + t(x_g)) / 2
              - w_patch       mean over g and hidden i of  t(x_g)_i . s(x_g)_i   hidden patches of one crop
    R(z) = log det(I + d / (m eps) z' z) / 2        gamma = 1/d + 1/m        t <- decay t + (1 - decay) s

s, t: student and teacher, encoder and one head for cls tokens and patches, outputs of length 1 in d dimensions; g:
global crops, of which the teacher sees all patches and the student only some; v: all crops; m: images in the batch.
Wu et al. 2025, arXiv:2502.10385.

Verified against: the official losses of cls tokens and of patches, values and gradients, 1e-9.
Deviations: the coding rate and the spread of mask ratios are those of the batch of all ranks. By default the official
code takes one rate on each GPU, of its own images, yet divides by those of all: its eps on n GPUs is worth n * eps
here, 0.05 on 8 GPUs 0.4. Drop path grows with depth and drops images one by one; gradients are clipped jointly, not
network by network; blur is a true Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.distributed import gather
from visrep.encoders import ViT, ViTLike
from visrep.encoders.layer_decay import layer_decay
from visrep.functional import coding_rate, crop_similarity, feature_std, mean_over_hidden, widen
from visrep.masking import check_ratios
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import gelu_mlp
from visrep.nn.hidden import hidden_blocks
from visrep.nn.teacher import Teacher
from visrep.schedules import Constant, Cosine, Schedule, Warmup
from visrep.views import MultiCrop, crops


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(drop_path=0.2, layer_scale=0.1, registers=4, mask_token=True)
    views: MultiCrop = crops(size=224, local=96, n_local=10, scale=(0.4, 1.0), local_scale=(0.05, 0.4))
    mask_probability: float = 0.5
    """share of global crops of which patches are hidden"""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """least and greatest share of a masked crop's patches that is hidden"""
    hidden: int = 2048
    """width of the head's two hidden layers"""
    out: int = 256
    """d, width in which crops and patches are compared: at most the batch, or it cannot be filled"""
    eps: float = 0.4
    """squared error that the code allows: less pushes harder into directions that are hardly used"""
    w_similarity: float = 1.0
    """weight of the cls tokens' similarity; that of the coding rate is gamma"""
    w_patch: float = 1.0
    teacher_decay: Schedule = Cosine(0.9, 1.0)
    """far below DINO's: nothing but the coding rate has to prevent collapse"""


def simdinov2_loss(
    s: Float[Tensor, "v b d"],
    t: Float[Tensor, "g b d"],
    z: Float[Tensor, "g m d"],
    s_patch: Float[Tensor, "q d"],
    t_patch: Float[Tensor, "q d"],
    hidden: Bool[Tensor, "i n"],
    eps: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Minus the similarity of crops, gamma times the coding rate of ``z``, and the similarity of hidden patches."""
    m, d = z.shape[1:]
    rate = (1 / d + 1 / m) * coding_rate(z, eps).mean()
    return -crop_similarity(s, t), -rate, -mean_over_hidden((s_patch * t_patch).sum(-1), hidden)


class Network(nn.Module):
    """Encoder and head: vectors of length 1 for every crop's cls token, and for the hidden patches."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.encoder: Encoder = cfg.encoder.build()
        self.head = gelu_mlp(cfg.encoder.width, cfg.hidden, cfg.out)

    def forward(
        self, groups: tuple[Float[Tensor, "_ b c _ _"], ...], hidden: Bool[Tensor, "i n"], sees_all: bool
    ) -> tuple[Float[Tensor, "v b d"], Float[Tensor, "q d"]]:
        """``hidden`` are patches of the first group, one row a crop, which a teacher sees all the same."""
        first = self.encoder(groups[0].flatten(0, 1), mask=None if sees_all else hidden)
        others = [self.encoder(group.flatten(0, 1)).pool("cls") for group in groups[1:]]
        patches = first.patches[hidden]
        z = self.head(torch.cat([first.pool("cls"), *others, patches]))
        cls, patches = F.normalize(widen(z), dim=-1).split([len(z) - len(patches), len(patches)])
        return cls.unflatten(0, (-1, groups[0].shape[1])), patches


@final
class SimDINOv2(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        check_ratios(cfg.mask_probability, cfg.mask_ratio)
        if not (cfg.encoder.cls and cfg.encoder.mask_token):
            raise ValueError(
                "SimDINOv2 hides patches and compares cls tokens; the encoder has "
                f"cls={cfg.encoder.cls}, mask_token={cfg.encoder.mask_token}. Set both to True."
            )
        self.student = Network(cfg)
        self.teacher = Teacher(self.student)

    @property
    def encoder(self) -> Encoder:
        return self.teacher.module.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        cfg, (g, b, _, height, width) = self.cfg, batch.crops[0].shape
        grid = (height // cfg.encoder.patch, width // cfg.encoder.patch)
        hidden = hidden_blocks(at, b, g, grid, probability=cfg.mask_probability, ratio=cfg.mask_ratio)
        t, t_patch = self.teacher(batch.crops[:1], hidden, True)  # 2 b d, q d: only the global crops
        s, s_patch = self.student(batch.crops, hidden, False)  # v b d, q d: q hidden patches
        z = gather(((s[:g] + t) / 2).transpose(0, 1)).transpose(0, 1)  # 2 m d
        with torch.autocast(s.device.type, enabled=False):
            compression, expansion, patch = simdinov2_loss(s, t, z, s_patch, t_patch, hidden, cfg.eps)
        terms = {
            "compression": cfg.w_similarity * compression,
            "expansion": expansion,
            "patch": cfg.w_patch * patch,
        }
        monitor = {
            "similarity": -compression.detach(),
            "masked_share": hidden.to(s).mean(),
            "feature_std": feature_std(t.flatten(0, 1)),
        }
        return Losses(terms, monitor)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.teacher.follow(self.student, self.cfg.teacher_decay(at))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    encoder = ViT(
        image=32, patch=8, width=32, depth=2, heads=2, layer_scale=0.1, registers=2, mask_token=True
    )
    return Run(
        method=Config(
            encoder=encoder,
            views=crops(size=32, local=16, n_local=2, scale=(0.4, 1.0), local_scale=(0.1, 0.4)),
            hidden=64,
            out=16,
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT of large patches, two large crops without blur.

    What short runs need: many cheap steps (patches of 8, batches of 64), a head of at most twice the batch, and a small
    eps, or the coding rate spreads images over few directions (rank 21 instead of 47 after 300 steps); the method's
    teacher is fast as it is.
    """
    views = crops(size=32, local=16, n_local=0, scale=(0.2, 1.0), local_scale=(0.05, 0.2))
    view = replace(views.global_1, blur=0.0)
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=128, depth=4, heads=4, mask_token=True),
            views=replace(views, global_1=view, global_2=view),
            hidden=512,
            out=128,
            eps=0.1,
        ),
        optim=replace(_adamw(lr=2e-3, lr_scaling="none", warmup=1.0), weight_decay=Constant(0.04)),
        limit=10_000,
        epochs=16,
        batch=64,
        monitor_epochs=4,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16 with registers. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(image=128, drop_path=0.1, layer_scale=0.1, registers=4, mask_token=True),
            views=crops(size=128, local=64, n_local=6, scale=(0.4, 1.0), local_scale=(0.05, 0.4)),
        ),
        optim=_adamw(lr=2e-3, lr_scaling="sqrt", warmup=10.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-L/16 with registers, 100 epochs, batch 1024. Unverified: not run here."""
    encoder = replace(Config().encoder, width=1024, depth=24, heads=16)
    optim = replace(
        _adamw(lr=4e-3, lr_scaling="sqrt", warmup=10.0), multipliers=layer_decay("student.encoder", 24, 0.9)
    )
    return Run(method=Config(encoder=encoder), optim=optim, epochs=100, batch=1024)


def _adamw(*, lr: float, lr_scaling: Literal["none", "sqrt"], warmup: float) -> Optim:
    """DINOv2's optimiser."""
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 1e-6)),
        lr_scaling=lr_scaling,
        lr_batch=1024,
        weight_decay=Cosine(0.04, 0.4),
        no_decay=("*.bias", "*gamma*"),  # and what has one axis; the paper decays tokens and positions
        clip=3.0,
    )
