"""Distill: make a small encoder say what a larger one, that is finished, says of the same view.

    minimise    w_codes    (KL(p || q)          +  w_patch mean over some patches i of  KL(p_i || q_i))
              + w_features (D(t, h(s))          +  w_patch mean over patches i of       D(t_i, h'(s_i)))
              + w_relation (R over images of t, s  +  w_patch R over patches of an image of t_i, s_i)
    p = softmax(cos(t, a) / tau_teacher)       q = softmax(cos(h(s), a) / tau_student)
    D = 1 - cos or squared difference          R = mean over pairs of (cos(t, t') - cos(s, s'))^2

s, t: vectors of an image (cls, else mean patch) of student and teacher; s_i, t_i: of patch i, the teacher's resampled
to the student's grid; h, h': linear maps to the teacher's width; a: the teacher's vectors of earlier images, in place
of prototypes, and of earlier patches. Codes by a queue: Fang et al. 2021, arXiv:2101.04731; features: Romero et al.
2014, arXiv:1412.6550; relations: Park et al. 2019, arXiv:1904.05068; teacher and student see one view: Beyer et al.
2021, arXiv:2106.05237.

Verified against: nothing official as a whole; codes equal the cross-entropies of DINO and iBOT here (which equal the
official ones) but for the teacher's entropy, relations the Gram loss of DINOv3, 1e-12; both 0 for equal networks.
Deviations: SEED's queue for patches too; KL in place of the cross-entropy, the same in gradient; relations by cosines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.distributed import gather
from visrep.encoders import EncoderConfig, ViT, load_encoder
from visrep.encoders.checks import check_choice
from visrep.encoders.frozen import Frozen
from visrep.encoders.patches import take
from visrep.functional import entropy, feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method, Tokens
from visrep.nn.positions import resample
from visrep.nn.queue import Queue
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

Distance = Literal["cosine", "squared"]
VIEW = View(size=224, scale=(0.14, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""crop and flip: colours as the teacher knows them"""


@dataclass(frozen=True, kw_only=True)
class Config:
    teacher: str = ""
    """the finished encoder: a run folder, a checkpoint file, timm:NAME, hf:NAME, ...: what ``load_encoder`` knows"""
    teacher_size: int = 0
    """side in pixels at which it sees the views, 0 for its own: larger costs time and says more"""
    encoder: EncoderConfig = ViT(width=192, heads=3)
    views: OneView = OneView(VIEW)
    w_codes: float = 1.0
    """how an image compares with others: less depends on the teacher's scale and width than features do"""
    w_features: float = 1.0
    w_relation: float = 1.0
    w_patch: float = 1.0
    """of what is said of patches, beside images: 0 for a teacher whose patches mean little"""
    distance: Distance = "cosine"
    """of features; squared: of raw values, so that the teacher's scale weighs it"""
    tau_teacher: float = 0.05
    """lower: only the nearest anchors count"""
    tau_student: float = 0.1
    anchors: int = 4096
    """vectors of earlier images, and as many of patches, that codes compare with; batches must divide it"""
    sampled: int = 8
    """patches an image of which codes are made"""


def code_loss(s: Float[Tensor, "*any k"], t: Float[Tensor, "*any k"]) -> Float[Tensor, ""]:
    """KL divergence of the student's code from the teacher's, mean over rows; logits, temperatures already in them."""
    log_p, log_q = t.log_softmax(-1), s.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def feature_loss(
    s: Float[Tensor, "*any d"], t: Float[Tensor, "*any d"], distance: Distance
) -> Float[Tensor, ""]:
    """How far the student's vectors are from the teacher's, mean over rows."""
    return F.mse_loss(s, t) if distance == "squared" else 1 - F.cosine_similarity(s, t, dim=-1).mean()


def relation_loss(
    s: tuple[Float[Tensor, "*any n d"], Float[Tensor, "*any m d"]],
    t: tuple[Float[Tensor, "*any n e"], Float[Tensor, "*any m e"]],
) -> Float[Tensor, ""]:
    """Mean squared difference between the cosines of all pairs in the student's eyes and in the teacher's.

    The widths may differ: rows of the first of each pair are compared with those of the second.
    """
    ours, theirs = (F.normalize(x, dim=-1) @ F.normalize(others, dim=-1).mT for x, others in (s, t))
    return F.mse_loss(ours, theirs)


@final
class Distill(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        check_choice("distance", cfg.distance, get_args(Distance))
        self.teacher = Frozen(_load(cfg.teacher), cfg.views.preprocessing)
        self.backbone = cfg.encoder.build()
        width, wanted = self.backbone.width, self.teacher.encoder.width
        self.head, self.patch_head = nn.Linear(width, wanted), nn.Linear(width, wanted)
        self.images, self.patches = Queue(cfg.anchors, wanted), Queue(cfg.anchors, wanted)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        cfg, images = self.cfg, batch.crops[0][0]
        seen, known = self.backbone(images), self._teach(images)
        x, y = widen(seen.patches), resample(widen(known.patches), known.grid, seen.grid)  # b n d, b n e
        z, t = widen(seen.pool()), widen(known.pool())  # b d, b e
        h, h_patch = widen(self.head(seen.pool())), widen(self.patch_head(seen.patches))  # b e, b n e
        n = x.shape[1]
        some = at.rand(len(images), n).topk(min(cfg.sampled, n)).indices
        h_some, y_some = take(h_patch, some), take(y, some)
        with torch.autocast(z.device.type, enabled=False):
            p, p_some = self._logits(t, y_some, cfg.tau_teacher)
            q, q_some = self._logits(h, h_some, cfg.tau_student)
            codes = code_loss(q, p) + cfg.w_patch * code_loss(q_some, p_some)
            features = feature_loss(h, t, cfg.distance) + cfg.w_patch * feature_loss(h_patch, y, cfg.distance)
            among_images = relation_loss((z, gather(z)), (t, gather(t)))
            relation = among_images + cfg.w_patch * relation_loss((x, x), (y, y))
        monitor = {
            "similarity": F.cosine_similarity(h.detach(), t, dim=-1).mean(),  # 1: the teacher is repeated
            "patch_similarity": F.cosine_similarity(h_patch.detach(), y, dim=-1).mean(),
            "relation_error": among_images.detach().sqrt(),
            "teacher_entropy": entropy(p.softmax(-1)).mean()
            / math.log(max(2, cfg.anchors)),  # 1: every code uniform
            "feature_std": feature_std(z),
        }
        terms = {
            "codes": cfg.w_codes * codes,
            "features": cfg.w_features * features,
            "relation": cfg.w_relation * relation,
        }
        return Losses(
            terms, monitor, {"images": F.normalize(t, dim=-1), "patches": F.normalize(y_some[:, 0], dim=-1)}
        )

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.images.push(carry["images"])
        self.patches.push(carry["patches"])

    @torch.no_grad()
    def _teach(self, images: Float[Tensor, "b c h w"]) -> Tokens:
        """What the teacher makes of the views, at its own size."""
        encoder = self.teacher.encoder
        side = max(1, (self.cfg.teacher_size or encoder.preprocessing.size) // encoder.stride)
        return encoder(self.teacher.fit(images, (side, side)))

    def _logits(
        self, z: Float[Tensor, "b e"], patches: Float[Tensor, "b m e"], tau: float
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b m k"]]:
        """Cosines with the anchors of images and of patches, over the temperature."""
        pairs = ((z, self.images.rows), (patches, self.patches.rows))
        images, some = (F.normalize(x, dim=-1) @ anchors.T / tau for x, anchors in pairs)
        return images, some


def _load(teacher: str) -> Encoder:
    """The teacher. Raises ValueError, with what can be given, when there is none."""
    try:
        return load_encoder(teacher)
    except FileNotFoundError as error:
        raise ValueError(
            f"method.teacher={teacher!r} names no finished encoder: {error} Give one with --method.teacher."
        ) from error


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            teacher="runs/dinov2-tiny",
            encoder=ViT(image=32, patch=16, width=32, depth=2, heads=2),
            views=OneView(replace(VIEW, size=32)),
            anchors=64,
            sampled=2,
        ),
        optim=_adamw(lr=2e-3, warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT that learns from a SimDINOv2 run of ``runs/simdinov2-small32``.

    What short runs need: anchors that are all real after a few steps (a small queue), and a teacher that sees the
    images as they are.
    """
    return Run(
        method=Config(
            teacher="runs/simdinov2-small32",
            encoder=ViT(image=32, patch=8, width=128, depth=4, heads=4),
            views=OneView(replace(VIEW, size=32, scale=(0.3, 1.0))),
            anchors=1024,
        ),
        optim=_adamw(lr=2e-3, warmup=1.0),
        limit=10_000,
        epochs=9,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-Ti/16 from ``runs/dinov2-imagenette128`` or another teacher. Unverified: not run here."""
    return Run(
        method=Config(
            teacher="runs/dinov2-imagenette128",
            encoder=ViT(image=128, width=192, heads=3),
            views=OneView(replace(VIEW, size=128)),
        ),
        optim=_adamw(lr=1e-3, warmup=5.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet-1k, ViT-S/16 from a DINOv2 run, with SEED's queue; nobody's exact recipe. Unverified: not run here."""
    return Run(
        method=Config(teacher="runs/dinov2-paper", encoder=ViT(drop_path=0.1), anchors=65_536),
        optim=_adamw(lr=1e-3, warmup=10.0),
        epochs=300,
        batch=1024,
    )


def _adamw(*, lr: float, warmup: float) -> Optim:
    """One learning rate, half a cosine."""
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 1e-6)), lr_scaling="none", weight_decay=Constant(0.05)
    )
