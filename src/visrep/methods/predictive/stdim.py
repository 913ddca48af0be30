"""ST-DIM: of all clips of the batch, find the one a frame is of by what its places looked like a frame before.

    minimise  mean over places n, clips i of  N(W g_i, n, i) + N(V l_i,n, n, i)
    N(q, n, i) = -log  exp(q . k_i,n) / sum over clips j of exp(q . k_j,n)

g_i: vector of a frame of clip i; l_i,n: its vector at place n; k_i,n: that of the frame before it; W, V: linear maps.
What stays from frame to frame is kept, at each place and of the whole. Anand et al. 2019, arXiv:1906.08226.

Verified against: the official loss, both terms and all gradients, 1e-9.
Deviations: places are the cells of the encoder's last map, and the frame's vector is their mean, where the official
network for Atari takes an earlier map and a linear map of the last one; the clips of a batch are different ones; Adam
has torch's epsilon; no early stopping.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.distributed import gather, rank
from visrep.encoders import NAMED, ConvNet, EncoderConfig, ResNet
from visrep.functional import displayed, feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.schedules import Constant, Cosine, Schedule, Warmup
from visrep.views import OneView, View

WHOLE = View(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, gray=0.0, blur=0.0)
"""the paper's view: the frames as they are; of frames that are not square the middle"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ConvNet(width=32)
    """of images: it sees one frame at a time, also later"""
    views: OneView = OneView(WHOLE, frames=2)
    """a frame and the one after it; what lies between them is the stride of the data"""


def info_nce(
    q: Float[Tensor, "b n d"], k: Float[Tensor, "m n d"], first: int
) -> tuple[Float[Tensor, "b n"], Bool[Tensor, "b n"]]:
    """At each place, the cost of finding the own clip of this rank's rows ``q`` among all ``k``, of which it is rows
    ``first`` and on; and whether it is found. Scores are plain dot products, without temperature.
    """
    b, n = q.shape[:2]
    scores = torch.einsum("ind,jnd->ijn", q, k)
    own = torch.arange(first, first + b, device=q.device).unsqueeze(1).expand(b, n)
    return F.cross_entropy(scores, own, reduction="none"), scores.argmax(1) == own


@final
class STDIM(Method):
    captions: ClassVar[dict[str, str]] = {
        "found places": "Columns: a frame; the one before; how surely each place of that one is told from those of "
        "other clips, bright = surely, by the whole later frame; the same by the later frame's place."
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        if cfg.views.frames != 2:
            raise ValueError(
                f"views.frames={cfg.views.frames}: ST-DIM compares a frame with the next. Use 2."
            )
        self.backbone = cfg.encoder.build()
        self.from_frame = nn.Linear(self.backbone.width, self.backbone.width)
        self.from_place = nn.Linear(self.backbone.width, self.backbone.width)

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        costs, found, features = self._find(batch.crops[0][0])
        accuracy = torch.stack([right.float().mean() for right in found.values()]).mean()
        monitor = {"pretext_accuracy": accuracy, "feature_std": feature_std(features)}
        return Losses({name: cost.mean() for name, cost in costs.items()}, monitor)

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        clips, view = batch.crops[0][0], self.cfg.views.view
        costs, _, _ = self._find(clips)
        before, now = displayed(clips, view.mean, view.std).unbind(1)
        rows = now.shape[-1] // self.backbone.stride
        sure = [torch.exp(-cost).unflatten(1, (rows, -1)).unsqueeze(1) for cost in costs.values()]
        maps = [F.interpolate(each, now.shape[-2:]).expand_as(now) for each in sure]
        return {"found places": torch.stack([now, before, *maps], dim=1)}

    def _find(self, clips: Float[Tensor, "b 2 c h w"]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Costs and successes by term, "b n", and the vectors of the later frames."""
        tokens = self.backbone(clips.flatten(0, 1))
        before, now = tokens.patches.unflatten(0, (-1, 2)).unbind(1)  # b n d
        features = tokens.pool().unflatten(0, (-1, 2))[:, 1]
        queries = {
            "global_local": self.from_frame(features).unsqueeze(1).expand_as(now),
            "local_local": self.from_place(now),
        }
        k = gather(widen(before))
        with torch.autocast(clips.device.type, enabled=False):
            results = {name: info_nce(widen(q), k, rank() * len(clips)) for name, q in queries.items()}
        costs, found = ({name: result[i] for name, result in results.items()} for i in range(2))
        return costs, found, features


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ResNet(depth=18, width=4, stem="small"),
            views=OneView(replace(WHOLE, size=32), frames=2),
        ),
        optim=_adam(lr=Warmup(epochs=0.2, then=Cosine(2e-3, 0.0))),
        data="playground-video:n=64,size=32,frames=4",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """Frames of 32 px, a narrow ResNet-18; minutes on two cores for 4,000 clips of the playground.

    What short runs need: many negatives, some cropping, and one place for all clips. Where each has a background of its
    own, which stands still, that alone tells a clip from the others, and nothing of its objects is learned.
    """
    view = replace(WHOLE, size=32, scale=(0.4, 1.0), ratio=(3 / 4, 4 / 3))
    return Run(
        method=Config(encoder=NAMED["resnet_narrow"], views=OneView(view, frames=2)),
        optim=_adam(lr=Warmup(epochs=1, then=Cosine(2e-3, 0.0))),
        data="playground-video:n=4000,size=48,frames=8,backdrops=1",
        epochs=16,
        batch=128,
        monitor_epochs=4,
        monitor_images=1000,
    )


def davis64() -> Run[Config]:
    """64 px, for a few long videos, as the folders of frames of DAVIS. Judge it by ``propagation``.

    Give the data as ``--data JPEGImages:frames=6,stride=2,clips=20``: 20 clips a video, of whose 6 frames 2 are seen.
    """
    run = small32()
    view = replace(run.method.views.view, size=64)
    return replace(
        run, method=replace(run.method, views=OneView(view, frames=2)), epochs=40, batch=32, monitor_epochs=20
    )


def paper() -> Run[Config]:
    """Atari, 100,000 frames of random play, 100 epochs, batch 64. Unverified: not run here.

    Give the episodes as folders of frames, with as many clips of each as are wanted an epoch:
    ``--data episodes:frames=2,stride=1,clips=100``.
    """
    # A screen of 210 x 160 whole, in a square.
    view = replace(WHOLE, size=160, ratio=(160 / 210, 160 / 210))
    return Run(
        method=Config(views=OneView(view, frames=2)), optim=_adam(lr=Constant(3e-4)), epochs=100, batch=64
    )


def _adam(*, lr: Schedule) -> Optim:
    return Optim(lr=lr, lr_scaling="none", weight_decay=Constant(0.0))
