"""V-JEPA: from what is left of a clip when blocks are cut out of it, predict what a teacher makes of the blocks.

    minimise  mean over kinds of masks, hidden patches i of  | g(f(x_visible), i) - norm(t(x))_i |
    t <- decay t + (1 - decay) f

f, t: student and teacher, the teacher sees the whole clip; g: a narrow transformer told only where i lies; norm: layer
norm without parameters, over the width. Blocks reach through all times: of one kind there are many short ones, of the
other two long ones, and each hides their union. Bardes et al. 2024, arXiv:2404.08471; with ``rope`` it is V-JEPA 2,
whose predictor is rotary too: Assran et al. 2025, arXiv:2506.09985.

Verified against: transformers' VJEPA2Model, encoder, predictor and targets; the loss and all gradients of the official
train steps of V-JEPA and V-JEPA 2, 1e-9; official masks of each kind, in distribution: how many patches they show and
hide (1000 masks), how often each place is hidden and the shapes of blocks (2000).
Deviations: each kind of mask has its token, as in V-JEPA (one for all in V-JEPA 2's code); contexts and targets are cut
to one length at random, not at the end; what is seen is never less than ``least_seen``, instead of drawing again when
it is nothing; mask tokens start small, not at 0.
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
from visrep.encoders import VideoViT
from visrep.encoders.patches import take
from visrep.encoders.video import clip_grid
from visrep.functional import displayed, feature_std, widen
from visrep.masking import block_size, place_blocks, through_time
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.blend import blended
from visrep.nn.cut import cut_to_fewest
from visrep.nn.predictor import Predictor
from visrep.nn.teacher import Teacher
from visrep.nn.transformer import xavier
from visrep.schedules import Constant, Cosine, Line, Schedule, Warmup
from visrep.views import OneView, View

CROP = View(scale=(0.3, 1.0), ratio=(0.75, 1.35), jitter=0.0, gray=0.0, blur=0.0, interpolation="bilinear")
"""the paper's view: crop and flip; set flip to 0 where left and right matter"""
SHOWN = 3  # clips in pictures


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: VideoViT = VideoViT(width=1024, depth=24, heads=16, position="rope")
    views: OneView = OneView(CROP, frames=16)
    n_blocks: tuple[int, ...] = (8, 2)  # of each kind of mask; each kind costs a pass of the student
    block_scale: tuple[float, ...] = (0.15, 0.7)  # share of the places in one; below 14 x 14 less than 0.7
    block_aspect: tuple[float, float] = (0.75, 1.5)  # height / width
    least_seen: float = 0.02  # share of the places that is seen in any case
    predictor_width: int = 384  # narrower than the encoder, or it does the encoder's work
    predictor_depth: int = 12
    predictor_heads: int = 12
    target_layers: int = 1  # of the teacher, the last ones; more than one as in data2vec (see `blended`)
    loud: bool = False  # start linear layers as MAE does: .02 is too quiet for networks a hundred wide
    teacher_decay: Schedule = Constant(0.99925)  # from 0.98 or 0.99 up to 1 in runs of few steps


def targets(h: Float[Tensor, "b n d"], asked: Int[Tensor, "b q"]) -> Float[Tensor, "b q d"]:
    """The teacher's tokens of some patches, each normalised over its width."""
    return F.layer_norm(take(h, asked), h.shape[-1:])


@final
class VJEPA(Method):
    captions: ClassVar[dict[str, str]] = {
        "predicted blocks": "Columns: the clip; then, for each kind of mask, what the encoder sees of it, and how like "
        "the teacher's features the prediction of each hidden place is, bright = alike."
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        e = cfg.encoder
        self.grid = clip_grid(cfg.views.frames, cfg.views.size, cfg.views.size, e.tubelet, e.patch)
        self._check()
        self.backbone = e.build()
        width, depth, heads = cfg.predictor_width, cfg.predictor_depth, cfg.predictor_heads
        self.predictor = Predictor(e.width, width=width, depth=depth, heads=heads, kinds=len(cfg.n_blocks))
        if cfg.loud:
            self.apply(xavier)
        self.teacher = Teacher(self.backbone)

    def _check(self) -> None:
        n_blocks, scales = self.cfg.n_blocks, self.cfg.block_scale
        if len(n_blocks) != len(scales) or not n_blocks or min(n_blocks) < 1:
            raise ValueError(
                f"n_blocks={n_blocks}, block_scale={scales}: give one of each for a kind of mask, with 1 block or more."
            )
        _, rows, columns = self.grid
        if rows * columns * min(scales) < 1 or max(scales) >= 1 or not 0 < self.cfg.least_seen < 0.5:
            raise ValueError(
                f"block_scale={scales}, least_seen={self.cfg.least_seen}: of {rows} x {columns} places a block hides "
                f"at least one, {1 / (rows * columns):.3g}, and not all; least_seen lies between 0 and 0.5."
            )

    @property
    def encoder(self) -> Encoder:
        return self.teacher.module

    def loss(self, batch: Batch, at: At) -> Losses:
        clips = batch.crops[0][0]
        h = blended(self.teacher.module, clips, self.cfg.target_layers)  # b n d: one pass for all masks
        errors, unexplained, seen = [], [], []
        for kind in range(len(self.cfg.n_blocks)):
            keep, asked = self._mask(kind, len(clips), at)
            z = self._predict(clips, keep, asked, kind)
            with torch.autocast(z.device.type, enabled=False):
                y = targets(h, asked)
                errors.append((z - y).abs().mean())
                spread = (y - y.flatten(0, 1).median(0).values).abs().mean()  # 1: no better than the median
                unexplained.append(errors[-1].detach() / spread)
            seen.append(keep.shape[1] / h.shape[1])
        loss = torch.stack(errors).mean()
        monitor = {
            "unexplained": torch.stack(unexplained).mean(),
            "target_std": F.layer_norm(h, h.shape[-1:]).std(0, correction=0).mean(),  # 0: collapse
            "feature_std": feature_std(h.mean(1)),
            "context": loss.new_tensor(sum(seen) / len(seen)),  # share of the patches that is seen
        }
        return Losses({"l1": loss}, monitor)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.teacher.follow(self.backbone, self.cfg.teacher_decay(at))

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        clips, view = batch.crops[0][0], self.cfg.views.view
        shown = displayed(clips, view.mean, view.std)
        h = blended(self.teacher.module, clips, self.cfg.target_layers)
        columns, empty, size = [shown], torch.zeros_like(h[:, :, 0]), (clips.shape[1], *clips.shape[-2:])
        for kind in range(len(self.cfg.n_blocks)):
            keep, asked = self._mask(kind, len(clips), at)
            like = F.cosine_similarity(self._predict(clips, keep, asked, kind), targets(h, asked), dim=-1)
            maps = (empty.scatter(1, keep, 1.0), empty.scatter(1, asked, like.clamp(0, 1)))
            maps = F.interpolate(torch.stack(maps, dim=1).unflatten(2, self.grid), size).unsqueeze(3)
            columns += [shown * maps[:, 0], maps[:, 1].expand_as(shown)]
        return {"predicted blocks": torch.stack(columns, dim=1)[:SHOWN]}

    def _predict(self, clips: Tensor, keep: Tensor, asked: Tensor, kind: int) -> Float[Tensor, "b q d"]:
        return self._ask(self.backbone(clips, keep=keep).patches, keep, asked, kind)

    def _ask(self, context: Tensor, keep: Tensor, asked: Tensor, kind: int) -> Float[Tensor, "b q d"]:
        """What the predictor makes of the patches ``asked``, from tokens of the patches ``keep``."""
        rotary = self.cfg.encoder.position == "rope"
        return widen(self.predictor.of_clips(context, keep, asked, self.grid, rotary=rotary, kind=kind))

    def _mask(self, kind: int, b: int, at: At) -> tuple[Int[Tensor, "b m"], Int[Tensor, "b q"]]:
        """Patches that are seen and those that are asked for. Blocks' size is that of the step, places each clip's."""
        times, rows, columns = self.grid
        share, n = self.cfg.block_scale[kind], rows * columns
        u = at.rand_shared(1).item()
        size = block_size(0.0, u, (rows, columns), scale=(share, share), aspect=self.cfg.block_aspect)
        blocks = place_blocks(at.rand(b, self.cfg.n_blocks[kind], 2), size, (rows, columns))
        noise = at.rand(b, n)
        hidden = torch.zeros_like(noise, dtype=torch.bool).scatter(1, blocks.flatten(1), True)
        seen = cut_to_fewest(noise, ~hidden, least=max(1, round(self.cfg.least_seen * n)))
        chosen = (seen, cut_to_fewest(noise, hidden & ~seen, least=1))
        keep, asked = (through_time(x.nonzero()[:, 1].unflatten(0, (b, -1)), n, times) for x in chosen)
        return keep, asked


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=VideoViT(frames=4, image=32, patch=8, width=32, depth=2, heads=2, position="rope"),
            views=OneView(replace(CROP, size=32), frames=4),
            n_blocks=(4, 2),
            block_scale=(0.15, 0.4),
            predictor_width=24,
            predictor_depth=2,
            predictor_heads=2,
            teacher_decay=Line(0.98, 1.0),
        ),
        optim=_adamw(lr=Warmup(epochs=0.2, then=Cosine(3e-3, 0.0))),
        data="playground-video:n=64,size=32,frames=4",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """Clips of 8 frames of 32 px, a narrow ViT; minutes on two cores for 4,000 clips of the playground.

    What short runs need: a teacher that follows within a hundred steps, a predictor half as wide and deep as the
    encoder, and long blocks of half the places: of 8 x 8 about ten are seen then, where 0.7 would leave two.
    """
    return Run(
        method=Config(
            encoder=VideoViT(frames=8, image=32, patch=4, width=128, depth=4, heads=4, position="rope"),
            views=OneView(replace(CROP, size=32, flip=0.0), frames=8),
            block_scale=(0.15, 0.5),
            least_seen=0.05,
            predictor_width=64,
            predictor_depth=2,
            predictor_heads=4,
            teacher_decay=Line(0.98, 1.0),
        ),
        optim=replace(_adamw(lr=Warmup(epochs=1, then=Cosine(2e-3, 0.0))), betas=(0.9, 0.95)),
        data="playground-video:n=4000,size=48,frames=8",
        epochs=8,
        batch=64,
        monitor_epochs=2,
        monitor_images=1000,
    )


def davis64() -> Run[Config]:
    """64 px, for a few long videos, as DAVIS: ``--data JPEGImages:frames=12,stride=1,clips=20``; 8 of 12 are seen."""
    run = small32()
    encoder = replace(run.method.encoder, image=64, patch=8)
    method = replace(run.method, encoder=encoder, views=OneView(replace(CROP, size=64), frames=8))
    return replace(run, method=method, epochs=40, batch=32)


def paper() -> Run[Config]:
    """V-JEPA 2's ViT-L, clips of 16 frames at 4 a second, 256 px, 90,000 steps. Unverified: not run here."""
    encoder = VideoViT(image=256, width=1024, depth=24, heads=16, position="rope")
    views = OneView(replace(CROP, size=256), frames=16)
    rate = Warmup(epochs=12, then=Constant(5.25e-4), start=1e-4)
    return Run(method=Config(encoder=encoder, views=views), optim=_adamw(lr=rate), epochs=90, batch=3072)


def paper_v1() -> Run[Config]:
    """V-JEPA's ViT-L, with sines, 90,000 steps. Its schedules would last a quarter longer. Unverified: not run here."""
    encoder = VideoViT(width=1024, depth=24, heads=16, position="sincos")
    rate = Warmup(epochs=12, then=Cosine(6.25e-4, 1e-6), start=2e-4)
    optim = replace(_adamw(lr=rate), weight_decay=Cosine(0.04, 0.4), clip=10.0)
    return replace(paper(), method=Config(encoder=encoder, teacher_decay=Line(0.998, 1.0)), optim=optim)


def cooldown() -> Run[Config]:
    """V-JEPA 2's end, 12,000 steps of 64 frames; ``--start-from`` a run of ``paper``. Unverified: not run here."""
    run = paper()
    encoder, views = replace(run.method.encoder, frames=64), replace(run.method.views, frames=64)
    method = replace(run.method, encoder=encoder, views=views)
    return replace(run, method=method, optim=_adamw(lr=Line(5.25e-4, 1e-6)), epochs=12)


def _adamw(*, lr: Schedule) -> Optim:
    return Optim(lr=lr, lr_scaling="none", weight_decay=Constant(0.04), no_decay=("*.bias",))
