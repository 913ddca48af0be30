"""LatentMIM: tell what a teacher makes of each hidden patch from what it makes of the image's other hidden patches.

    minimise  mean over hidden i of  -2 tau log  exp(z_i . y_i / tau) / sum over hidden k of exp(z_i . y_k / tau)
              + w_similarity  sum over z and f(x_visible) of  (mean cosine of an image's patches - similarity)^2
    y = t(x_hidden)                                   t <- decay t + (1 - decay) f

f, t: student and teacher, encoder and projector of each patch; the student sees few patches, the teacher only the
others; z: what a decoder makes of f(x_visible), standardised over the patches of the image; z and y: of length 1. Gaps
between patches keep edges from telling what is next to them. Wei, Gupta & Morgado 2024, arXiv:2407.15837.

Verified against: the official model, losses and gradients, 1e-9.
Deviations: positions are 1 apart instead of 14/13.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from visrep.config import Optim, Run
from visrep.distributed import gather
from visrep.encoders import ViT, ViTLike
from visrep.functional import feature_std, widen, without_gaps
from visrep.masking import random_split
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.cross_decoder import CrossDecoder
from visrep.nn.feature_pictures import feature_pictures
from visrep.nn.projected import ProjectedTokens
from visrep.nn.teacher import Teacher
from visrep.nn.transformer import xavier
from visrep.schedules import Constant, Cosine, Schedule, Warmup
from visrep.views import GappedView, View

PLAIN = View(size=280, scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""the paper's view: crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(width=768, heads=12, position="sincos")
    views: GappedView = GappedView(PLAIN)
    mask_ratio: float = 0.8975
    """share of the patches that are hidden, all but 20 of 196; less makes hidden patches too easy to tell"""
    tau: float = 0.2
    """temperature"""
    hidden: int = 4096
    """width of the projector's hidden layers"""
    decoder_width: int = 512
    decoder_depth: int = 3
    decoder_heads: int = 16
    w_similarity: float = 0.1
    similarity: Schedule = Cosine(0.75, 0.25)
    """mean cosine of two patches of an image, for predictions and for visible patches: first alike, later less so"""
    teacher_decay: Schedule = Cosine(0.99, 1.0)


def patch_infonce(
    z: Float[Tensor, "b n d"], y: Float[Tensor, "b n d"], tau: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Each prediction's own target among all of its image, and the share of patches told right."""
    b, n = z.shape[:2]
    logits = unit(standardised(z)) @ unit(y).mT / tau  # b n n
    itself = torch.arange(n, device=z.device).expand(b, -1)
    loss = 2 * tau * F.cross_entropy(logits.flatten(0, 1), itself.flatten())
    return loss, (logits.argmax(-1) == itself).float().mean()


def unit(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    return F.normalize(x, dim=-1)


def standardised(x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Mean 0 and deviation 1 over the patches of an image."""
    return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-4)


def similarity(x: Float[Tensor, "b n d"]) -> Float[Tensor, " b"]:
    """Mean cosine of two patches of an image, a patch with itself included."""
    return unit(x).mean(1).square().sum(-1)


@final
class LatentMIM(Method):
    captions: ClassVar[dict[str, str]] = {
        "predicted features": "Columns: the image; the patches that the encoder sees; the teacher's features of hidden "
        "patches; those predicted. Colours are the first three principal components; visible patches are grey."
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        patch, image, size = cfg.encoder.patch, cfg.views.image, cfg.views.size
        if image % patch or size < image or size * patch % image:
            raise ValueError(
                f"A view of {size} pixels less the gaps between patches of {patch} cannot be {image}. "
                f"Let views.image be a multiple of {patch}, and views.view.size a multiple of views.image / {patch}."
            )
        side = image // patch
        self.grid = (side, side)
        self.student = ProjectedTokens(cfg.encoder.build(), cfg.hidden)
        self.decoder = CrossDecoder(
            cfg.encoder.width,
            self.grid,
            width=cfg.decoder_width,
            depth=cfg.decoder_depth,
            heads=cfg.decoder_heads,
        )
        self.apply(xavier)
        self.teacher = Teacher(self.student)

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        cfg = self.cfg
        images, keep, hidden = self._draw(batch, at)
        y = widen(self.teacher(images, hidden)[0])  # b q d
        h, cls = self.student(images, keep)
        z, h = widen(self.decoder(h, cls, keep, hidden)), widen(h)
        with torch.autocast(z.device.type, enabled=False):
            loss, accuracy = patch_infonce(z, y, cfg.tau)
            terms = {"infonce": loss}
            goal = cfg.similarity(at)
            alike = torch.stack([similarity(z), similarity(h)], dim=1)  # b 2
            terms["similarity"] = cfg.w_similarity * (gather(alike).mean(0) - goal).square().sum()
            monitor = {
                "accuracy": accuracy,
                "prediction_similarity": alike[:, 0].detach().mean(),
                "visible_similarity": alike[:, 1].detach().mean(),
                "target_similarity": similarity(y).mean(),  # 1: collapsed, all patches of an image alike
                "feature_std": feature_std(y.mean(1)),
            }
        return Losses(terms, monitor)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.teacher.follow(self.student, self.cfg.teacher_decay(at))

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images, keep, hidden = self._draw(batch, at)
        h, cls = self.student(images, keep)
        z, y = self.decoder(h, cls, keep, hidden), self.teacher(images, hidden)[0]
        n = keep.shape[1] + hidden.shape[1]
        features = []  # of hidden patches; nothing, in grey, in the place of visible ones
        for x in (unit(standardised(widen(y))), unit(standardised(widen(z)))):
            empty = x.new_zeros(len(x), n, x.shape[-1])
            features.append(empty.scatter(1, hidden.unsqueeze(-1).expand_as(x), x))
        mask = torch.ones_like(features[0][:, :, 0]).scatter(1, keep, 0.0) > 0
        view = self.cfg.views.view
        return {"predicted features": feature_pictures(images, mask, *features, mean=view.mean, std=view.std)}

    def _draw(self, batch: Batch, at: At) -> tuple[Tensor, Int[Tensor, "b m"], Int[Tensor, "b q"]]:
        """Images without gaps, their visible and their hidden patches."""
        views = batch.crops[0][0]
        b, (rows, columns) = len(views), self.grid
        images = without_gaps(views, at.rand(b, rows, columns, 2), self.cfg.encoder.patch)
        return images, *random_split(at.rand(b, rows * columns), self.cfg.mask_ratio)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, position="sincos"),
            views=GappedView(replace(PLAIN, size=40), image=32),
            mask_ratio=0.7,
            hidden=64,
            decoder_width=32,
            decoder_depth=1,
            decoder_heads=2,
        ),
        optim=_adamw(lr=3e-3, lr_scaling="none", warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT, views of 40 px with gaps of one.

    What short runs need: a small projector and decoder, and an eighth of the patches visible instead of a tenth,
    because a grid of 8 x 8 has few.
    """
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=4, width=128, depth=4, heads=4, position="sincos", cls=False),
            views=GappedView(replace(PLAIN, size=40), image=32),
            mask_ratio=0.875,
            hidden=256,
            decoder_width=64,
            decoder_depth=2,
            decoder_heads=4,
            teacher_decay=Cosine(0.98, 1.0),
        ),
        optim=_adamw(lr=2e-3, lr_scaling="none", warmup=1.0),
        limit=10_000,
        epochs=9,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """160-px views with gaps of 4, so 128-px images, ViT-S/16. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(image=128, position="sincos", cls=False),
            views=GappedView(replace(PLAIN, size=160), image=128),
            mask_ratio=0.875,
            hidden=1024,
            decoder_width=256,
            decoder_depth=3,
            decoder_heads=8,
        ),
        optim=_adamw(lr=5e-4, lr_scaling="linear", warmup=10.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-B/16, 800 epochs, batch 4096. Unverified: not run here."""
    return Run(
        method=Config(), optim=_adamw(lr=1.5e-4, lr_scaling="linear", warmup=40.0), epochs=800, batch=4096
    )


def _adamw(*, lr: float, lr_scaling: Literal["none", "linear"], warmup: float) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, lr / 4), start=lr / 4),
        lr_scaling=lr_scaling,
        weight_decay=Constant(0.05),
        betas=(0.9, 0.95),
        no_decay=("*.bias",),  # and what has one axis; the official code decays the tokens
    )
