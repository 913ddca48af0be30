"""I-JEPA: from a context of an image's patches, predict what a teacher makes of blocks outside of it.

    minimise  mean over blocks B, patches i in B of  smooth_l1(g(f(x_context), B)_i - norm(t(x))_i)
    t <- decay t + (1 - decay) f

f, t: student and teacher, the teacher sees the whole image; g: a narrow transformer told only where B lies; norm: layer
norm without parameters, over the width. No change of colour, no view to be alike. Assran et al. 2023, arXiv:2301.08243.

Verified against: the official encoder, predictor, targets and loss, with gradients, 1e-9; the sizes and places of 2000
of its masks, in distribution.
Deviations: blocks may reach the last row and column, which the official sampler never does; contexts are cut to one
length at random, not at the bottom; settings that may leave nearly no context are an error instead of drawn again; the
patch embedding starts as torch's linear layers do, about as loud as the positions. small32 predicts the mean of four
layers, as in data2vec, and starts its linear layers as MAE does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from visrep.config import Optim, Run
from visrep.encoders import ViT, ViTLike
from visrep.encoders.patches import patch_grid, take
from visrep.functional import displayed, feature_std, widen
from visrep.masking import block_size, outside, place_blocks
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.blend import blended
from visrep.nn.cut import cut_to_fewest
from visrep.nn.positions import sincos_2d
from visrep.nn.predictor import Predictor
from visrep.nn.teacher import Teacher
from visrep.nn.transformer import xavier
from visrep.schedules import Constant, Cosine, Line, Schedule, Warmup
from visrep.views import OneView, View

CROP = View(scale=(0.3, 1.0), flip=0.0, jitter=0.0, gray=0.0, blur=0.0, interpolation="bilinear")
CAPTION = "Columns: the image; what is seen; a block to predict; how like its prediction each place is, bright = alike."


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViTLike = ViT(width=768, heads=12, position="sincos", cls=False)
    views: OneView = OneView(CROP)
    n_targets: int = 4  # blocks, each predicted on its own
    target_scale: tuple[float, float] = (0.15, 0.2)
    """share of the image in a block; blocks too small ask for texture only, too large leave little context"""
    target_aspect: tuple[float, float] = (0.75, 1.5)  # height / width
    context_scale: tuple[float, float] = (0.85, 1.0)
    """share of the image in the square from which the targets are cut out; 1 keeps most on grids below 14 x 14"""
    predictor_width: int = 384
    """narrower than the encoder, or it does the encoder's work; with as many heads"""
    predictor_depth: int = 6
    target_layers: int = 1
    """last layers of the teacher to predict; more than one as in data2vec (see `blended`), which short runs need"""
    loud: bool = False
    """start linear layers as MAE does, not at a deviation of .02, which is too quiet for networks a hundred wide"""
    teacher_decay: Schedule = Line(0.996, 1.0)
    """begin at 0.98 to 0.99 in runs of few steps, and end the ramp with the run"""


def targets(h: Float[Tensor, "b n d"], blocks: Int[Tensor, "b k q"]) -> Float[Tensor, "b k q d"]:
    """The teacher's tokens in k blocks, each normalised over its width."""
    return take(F.layer_norm(h, h.shape[-1:]), blocks.flatten(1)).unflatten(1, blocks.shape[1:])


@final
class IJEPA(Method):
    captions: ClassVar[dict[str, str]] = {"predicted blocks": CAPTION}
    position: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        self.predictor = Predictor(
            cfg.encoder.width, width=cfg.predictor_width, depth=cfg.predictor_depth, heads=cfg.encoder.heads
        )
        if cfg.loud:
            self.apply(xavier)
        self.teacher = Teacher(self.backbone)
        self.grid = patch_grid(cfg.views.size, cfg.views.size, cfg.encoder.patch)
        self.register_buffer("position", sincos_2d(self.grid, cfg.predictor_width), persistent=False)  # n e
        self._check_sizes()

    @property
    def encoder(self) -> Encoder:
        return self.teacher.module

    def loss(self, batch: Batch, at: At) -> Losses:
        images = batch.crops[0][0]
        keep, blocks = self._masks(len(images), at)
        h = blended(self.teacher.module, images, self.cfg.target_layers)  # b n d
        z = self._predict(images, keep, blocks)  # b k q d
        with torch.autocast(z.device.type, enabled=False):
            y = targets(h, blocks)
            loss = F.smooth_l1_loss(z, y)
            # 1: no better than the mean of all targets
            unexplained = (z.detach() - y).square().mean() / y.var((0, 1, 2), correction=0).mean()
            # Over images, place by place: 0 when collapsed, also when only the place is left.
            target_std = F.layer_norm(h, h.shape[-1:]).std(0, correction=0).mean()
        monitor = {
            "unexplained_variance": unexplained,
            "target_std": target_std,
            "feature_std": feature_std(h.mean(1)),
            "context": loss.new_tensor(keep.shape[1] / h.shape[1]),
        }
        return Losses({"smooth_l1": loss}, monitor)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.teacher.follow(self.backbone, self.cfg.teacher_decay(at))

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images = batch.crops[0][0]
        keep, blocks = self._masks(len(images), at)
        prediction = self._predict(images, keep, blocks)[:, 0].mean(1, keepdim=True)  # b 1 d
        h = blended(self.teacher.module, images, self.cfg.target_layers)
        like = F.cosine_similarity(prediction, F.layer_norm(h, h.shape[-1:]), dim=-1).clamp(0, 1)  # b n
        seen, block = (torch.zeros_like(like).scatter(1, places, 1.0) for places in (keep, blocks[:, 0]))
        maps = F.interpolate(torch.stack([seen, block, like], 1).unflatten(2, self.grid), images.shape[-2:])
        image = displayed(images, self.cfg.views.view.mean, self.cfg.views.view.std)
        columns = (image, image * maps[:, :1], image * maps[:, 1:2], maps[:, 2:].expand_as(image))
        return {"predicted blocks": torch.stack(columns, dim=1)}

    def _predict(self, images: Tensor, keep: Tensor, blocks: Tensor) -> Tensor:
        seen = self.backbone(images, keep=keep).patches
        return widen(self.predictor(seen, self.position[keep], self.position[blocks]))

    def _masks(self, b: int, at: At) -> tuple[Int[Tensor, "b m"], Int[Tensor, "b k q"]]:
        """Indices of context patches and of target blocks. Sizes are those of the step, places each image's own."""
        target_size, context_size = self._sizes(*at.rand_shared(2).tolist())
        blocks = place_blocks(at.rand(b, self.cfg.n_targets, 2), target_size, self.grid)
        square = place_blocks(at.rand(b, 1, 2), context_size, self.grid)[:, 0]
        free = outside(square, blocks, len(self.position))
        return cut_to_fewest(at.rand(*free.shape), free).nonzero()[:, 1].unflatten(0, (b, -1)), blocks

    def _sizes(self, u_target: float, u_context: float) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of a target and of the context; as in the official code, large targets are the tall ones."""
        cfg = self.cfg
        target = block_size(u_target, u_target, self.grid, scale=cfg.target_scale, aspect=cfg.target_aspect)
        return target, block_size(u_context, u_context, self.grid, scale=cfg.context_scale, aspect=(1.0, 1.0))

    def _check_sizes(self) -> None:
        k, n = self.cfg.n_targets, len(self.position)
        sizes = [self._sizes(i / 1000, i / 1000) for i in range(1000)]
        areas = [h * w for (h, w), _ in sizes]
        least = max(0, min(h * w for _, (h, w) in sizes) - k * max(areas))
        if min(areas) == 0 or least < max(1, n // 25):
            raise ValueError(
                f"n_targets={k} blocks of {min(areas)} to {max(areas)} patches may leave {least} of {n} to see. "
                "Lower n_targets, change target_scale, or raise context_scale to (1.0, 1.0)."
            )


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=8, width=32, depth=2, heads=2, position="sincos", cls=False),
            views=OneView(replace(CROP, size=32)),
            target_scale=(0.13, 0.2),
            context_scale=(1.0, 1.0),
            predictor_width=16,
            predictor_depth=1,
            teacher_decay=Line(0.98, 1.0),
        ),
        optim=_adamw(lr=3e-3, warmup=0.2, weight_decay=Constant(0.05)),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ViT; minutes on two cores for 10,000 images.

    Blocks of 3 x 3 leave 28 or more of 64 patches, the paper's shares 1. See docs/methods/predictive.md for the rest.
    """
    return Run(
        method=Config(
            encoder=ViT(image=32, patch=4, width=128, depth=4, heads=4, position="sincos", cls=False),
            views=OneView(replace(CROP, size=32, flip=0.5)),
            target_scale=(0.14, 0.15),
            target_aspect=(0.8, 1.25),
            context_scale=(1.0, 1.0),
            predictor_width=128,
            predictor_depth=2,
            target_layers=4,
            loud=True,
            teacher_decay=Line(0.99, 1.0),
        ),
        optim=replace(_adamw(lr=1.5e-3, warmup=1.0, weight_decay=Constant(0.05)), betas=(0.9, 0.95)),
        limit=10_000,
        epochs=10,
        batch=64,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ViT-S/16, a grid of 8 x 8 patches. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(image=128, position="sincos", cls=False),
            views=OneView(replace(CROP, size=128)),
            target_scale=(0.14, 0.15),
            target_aspect=(0.8, 1.25),
            context_scale=(1.0, 1.0),
            predictor_width=192,
            predictor_depth=4,
            teacher_decay=Line(0.99, 1.0),
        ),
        optim=_adamw(lr=1e-3, final=1e-6, warmup=10.0, weight_decay=Cosine(0.04, 0.4)),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ViT-H/14, 300 epochs, batch 2048. Unverified: not run here."""
    return Run(
        method=Config(
            encoder=ViT(patch=14, width=1280, depth=32, heads=16, position="sincos", cls=False),
            predictor_depth=12,
            teacher_decay=Line(0.996, 1.0),
        ),
        optim=_adamw(lr=1e-3, final=1e-6, warmup=40.0, weight_decay=Cosine(0.04, 0.4), start=2e-4),
        epochs=300,
        batch=2048,
    )


def _adamw(
    *, lr: float, warmup: float, weight_decay: Schedule, start: float = 0.0, final: float = 0.0
) -> Optim:
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, final), start=start),
        lr_scaling="none",
        weight_decay=weight_decay,
        no_decay=("*.bias",),  # and what has one axis; the official code decays the mask token
    )
