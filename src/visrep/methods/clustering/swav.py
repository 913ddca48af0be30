"""SwAV: code two crops of an image by balanced clusters, and predict each code from the image's other crops.

    minimise  mean over g != v of  H(q_g, p_v)                  p_v = softmax(z_v . c / tau)
    q  maximises  <q, z_g . c> + epsilon H(q)  among codes that use every prototype equally often

g: the two global crops; v: all crops; z: projections of length 1; c: prototypes of length 1, learned; q without
gradient, by Sinkhorn over the batch and a queue of earlier ones. Caron et al. 2020, arXiv:2006.09882.

Verified against: the official codes, loss and queue, values and gradients, 1e-9.
Deviations: prototypes are divided by their length inside the loss, instead of being set to length 1 before every
step: the same directions, without the part of the gradient that only changes lengths. LARS leaves biases and norms
unscaled. The queue fills from the first step, so that it is full at ``queue_from``, where the official one begins to
fill. Blur is a true Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.distributed import rank, world
from visrep.encoders import NAMED, EncoderConfig, ResNet
from visrep.functional import dino_loss, entropy, feature_std, share_in_use, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import projection
from visrep.nn.queue import Queue
from visrep.nn.sinkhorn import sinkhorn
from visrep.schedules import Constant, Cosine, Schedule, Step, Warmup
from visrep.views import MultiCrop, View

COLOUR = View(scale=(0.14, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
"""the paper's global view: colour strength 1"""
SMALL = replace(
    COLOUR, size=32, scale=(0.08, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0
)
"""for 32-px images: half the colour strength, no blur"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ResNet(depth=50, zero_init_residual=False)
    views: MultiCrop = MultiCrop(COLOUR, COLOUR, replace(COLOUR, size=96, scale=(0.05, 0.14)), n_local=6)
    hidden: int = 2048
    """width of the projection's hidden layer"""
    out: int = 128
    """width of the projection, in which crops are compared with prototypes"""
    prototypes: int = 3000
    """k: about ten times the classes that one expects; at most the images"""
    tau: float = 0.1
    """temperature of the predictions"""
    epsilon: float = 0.05
    """softness of the codes: raise it when prototype_entropy falls, lower it when code_entropy stays near 1"""
    iterations: int = 3
    """of Sinkhorn-Knopp"""
    queue: int = 0
    """images of earlier batches that share the prototypes with the batch; a multiple of the batch, 0 for none.
    A batch much smaller than ``prototypes`` wants one: about 3840 at batch 256"""
    queue_from: float = 15
    """epoch from which the queue is used, once full: projections of an untrained network change too fast to keep"""


@torch.no_grad()
def codes(
    scores: Float[Tensor, "g b k"], earlier: Float[Tensor, "g m k"], epsilon: float, iterations: int
) -> Float[Tensor, "g b k"]:
    """q: balanced codes of this batch, which shares the prototypes with what the queue holds."""
    together = torch.cat([earlier, scores], dim=1)
    return torch.stack([sinkhorn(x, epsilon, iterations) for x in together])[:, earlier.shape[1] :]


@final
class SwAV(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        self.head = projection(self.backbone.width, cfg.hidden, cfg.out, last_norm=False)
        directions = nn.init.normal_(torch.empty(cfg.prototypes, cfg.out))
        self.prototypes = nn.Parameter(F.normalize(directions, dim=1))
        # The projections of an image's two global crops, side by side.
        self.queue = Queue(cfg.queue, 2 * cfg.out) if cfg.queue else None

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        features = torch.cat([self.backbone(group.flatten(0, 1)).pool() for group in batch.crops])
        z = F.normalize(widen(self.head(features)), dim=-1).unflatten(0, (-1, len(batch)))  # v b d
        with torch.autocast(z.device.type, enabled=False):
            c = F.normalize(self.prototypes, dim=1)
            scores = z @ c.T  # v b k
            earlier = self._earlier(at) @ c.T  # 2 m k
            q = codes(scores[:2], earlier, self.cfg.epsilon, self.cfg.iterations)
            loss = dino_loss(q, scores, self.cfg.tau)
        p = (scores[:2].detach() / self.cfg.tau).softmax(-1)
        log_k = math.log(self.cfg.prototypes)
        monitor = {
            "pretext_accuracy": (p.argmax(-1) == q.flip(0).argmax(-1)).float().mean(),
            "code_entropy": entropy(q).mean() / log_k,  # 1: every code uniform
            "prototype_use": share_in_use(p),  # 1: each is the likeliest one of some crop of the batch
            "prototype_entropy": entropy(p.mean((0, 1))) / log_k,  # 0: one prototype for all images
            "feature_std": feature_std(features[: 2 * len(batch)]),
        }
        return Losses({"swav": loss}, monitor, carry={"z": z[:2].detach().transpose(0, 1)})

    def _earlier(self, at: At) -> Float[Tensor, "2 m d"]:
        """This rank's share of the queue, as Sinkhorn sums over ranks; nothing before it is used."""
        early = at.epoch < self.cfg.queue_from
        if self.queue is None or early or int(self.queue.filled) < len(self.queue.rows):
            return self.prototypes.new_zeros(2, 0, self.cfg.out)
        return self.queue.rows[rank() :: world()].unflatten(1, (2, -1)).transpose(0, 1)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        images = at.steps_per_epoch * at.world * len(carry["z"])
        if self.cfg.prototypes > images:
            raise ValueError(
                f"{self.cfg.prototypes} prototypes cannot share the {images} images of an epoch: most would stay "
                f"empty. Set method.prototypes to at most {images}, better to {max(2, images // 10)} or less."
            )
        if self.queue is not None:
            self.queue.push(carry["z"].flatten(1))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    local = replace(SMALL, size=16, scale=(0.05, 0.3))
    return Run(
        method=Config(
            encoder=ResNet(depth=18, width=4, stem="small"),
            views=MultiCrop(SMALL, SMALL, local, n_local=2),
            hidden=32,
            out=16,
            prototypes=16,
            queue=16,
            queue_from=0.0,
        ),
        optim=_adamw(lr=Warmup(epochs=0.2, then=Cosine(2e-3, 0.0)), frozen=0.1),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18; two large crops.

    What short runs need: no more prototypes than images in a batch, so that no queue is needed, and prototypes that
    are frozen for half an epoch only.
    """
    return Run(
        method=Config(
            encoder=NAMED["resnet_narrow"],
            views=MultiCrop(SMALL, SMALL, n_local=0),
            hidden=512,
            prototypes=256,
        ),
        optim=_adamw(lr=Warmup(epochs=1, then=Cosine(3e-3, 0.0)), frozen=0.5),
        limit=10_000,
        epochs=8,
        batch=256,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ResNet-18. Unverified: not run here."""
    view = replace(COLOUR, size=128)
    local = replace(view, size=64, scale=(0.05, 0.14))
    return Run(
        method=Config(
            encoder=NAMED["resnet18"],
            views=MultiCrop(view, view, local, n_local=6),
            prototypes=500,
            queue=2560,
        ),
        optim=_lars(lr=Cosine(0.6, 0.0006), frozen=1.0),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ResNet-50, 100 epochs, batch 4096. Unverified: not run here.

    At batch 256 the official code takes ``queue=3840`` and ``Cosine(0.6, 0.0006)`` without warm-up.
    """
    schedule = Warmup(epochs=10, then=Cosine(0.3, 0.0003), start=0.3 / 16)
    return Run(method=Config(), optim=_lars(lr=schedule, frozen=1.0), epochs=100, batch=4096)


def _adamw(*, lr: Schedule, frozen: float) -> Optim:
    return Optim(lr=lr, lr_scaling="none", weight_decay=Constant(1e-4), multipliers=_prototypes_wait(frozen))


def _lars(*, lr: Schedule, frozen: float) -> Optim:
    return Optim(name="lars", lr=lr, weight_decay=Constant(1e-6), multipliers=_prototypes_wait(frozen))


def _prototypes_wait(epochs: float) -> tuple[tuple[str, Schedule], ...]:
    """The prototypes do not move in the first epochs: early ones would follow random projections."""
    return (("prototypes", Step((0.0, 1.0), (epochs,))),)
