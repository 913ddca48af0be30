"""DeepCluster v2: cluster all images once an epoch, and predict the cluster of an image from each of its crops.

    minimise  mean over h, v of  -log softmax(z_v . c_h / tau)[a_h]
    c_h, a_h = spherical k-means of the last z of every image, anew at the start of every epoch

h: heads, clusterings that differ in their start and in the crop that they look at; v: all crops; z: projections of
length 1; c: centroids, without gradient; a: the image's cluster. Described in the appendix of Caron et al. 2020,
arXiv:2006.09882; the first version is Caron et al. 2018, arXiv:1807.05520.

Verified against: the official k-means and its assignments, 1e-6 in 32 bits; the loss only against its formula.
Deviations: an image that the last epoch left out keeps its older projection instead of being ignored; the memory is
first filled by both global crops in one forward pass; LARS leaves biases and norms unscaled; blur is a true Gaussian.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from visrep.config import Optim, Run
from visrep.distributed import mean_over_ranks
from visrep.encoders import NAMED, EncoderConfig, ResNet
from visrep.functional import feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import projection
from visrep.nn.kmeans import spherical_kmeans
from visrep.nn.memory import Memory
from visrep.schedules import Constant, Cosine, Schedule, Warmup
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
    """width of the projection, in which crops are compared with centroids"""
    heads: int = 3
    """h: clusterings a time; even ones look at the first global crop, odd ones at the second"""
    clusters: int = 3000
    """k of each head: about ten times the classes that one expects, and at most one for ten images"""
    iterations: int = 10
    """of k-means, once an epoch"""
    tau: float = 0.1
    """temperature of the predictions"""


def deepcluster_loss(
    scores: Float[Tensor, "h v b k"], clusters: Int[Tensor, "b h"], weights: Float[Tensor, " b"], tau: float
) -> Float[Tensor, ""]:
    """Cross-entropy of every crop's prediction with its image's cluster: weighted over images, mean over the rest."""
    target = clusters.T[:, None].expand(scores.shape[:-1])  # h v b
    ce = F.cross_entropy((scores / tau).flatten(0, 2), target.flatten(), reduction="none")
    return ce.view(target.shape).mean((0, 1)) @ weights


@final
class DeepClusterV2(Method):
    centroids: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        self.head = projection(self.backbone.width, cfg.hidden, cfg.out, last_norm=False)
        self.memory = Memory(2, cfg.out)  # projections of the two global crops of every image
        self.clusters = Memory(cfg.heads, dtype=torch.long)  # the clusters that it belongs to in this epoch
        self.register_buffer("centroids", torch.zeros(cfg.heads, cfg.clusters, cfg.out))

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    @torch.no_grad()
    def before_epoch(self, images: Iterable[Batch], at: At) -> None:
        """Cluster what is known of the images; before the first step, look at all of them."""
        if not len(self.memory):
            for batch in images:
                _, z = self._project(batch.crops[:1])
                self.memory.write(batch.index, z.transpose(0, 1))
        known = self.memory.known.nonzero().squeeze(1)
        if self.cfg.clusters > len(known):
            raise ValueError(
                f"{len(known)} images cannot form {self.cfg.clusters} clusters. Set method.clusters to at most "
                f"{len(known)}, better to {max(2, len(known) // 10)} or less."
            )
        # The start must be the same on every rank, so it is drawn as if there were one.
        start = replace(at, rank=0, world=1).rand(self.cfg.heads, len(known)).argsort(dim=1, stable=True)
        found = []
        for head, rows in enumerate(start[:, : self.cfg.clusters]):
            z = self.memory.rows[known, head % 2]
            centroids, nearest = spherical_kmeans(z, z[rows], self.cfg.iterations)
            self.centroids[head].copy_(centroids)
            found.append(nearest)
        self.clusters.put(known, torch.stack(found, dim=1))

    def loss(self, batch: Batch, at: At) -> Losses:
        features, z = self._project(batch.crops)
        clusters, known = self.clusters.read(batch.index)
        # An image that had no part in the clustering counts nothing; each other one as much as on any other rank.
        weights = known.to(z.dtype)
        weights = weights / mean_over_ranks(weights.sum()).clamp(min=1 / at.world)
        with torch.autocast(z.device.type, enabled=False):
            scores = torch.einsum("vbd,hkd->hvbk", z, self.centroids)
            loss = deepcluster_loss(scores, clusters, weights, self.cfg.tau)
        right = scores.detach().argmax(-1) == clusters.T[:, None]  # h v b
        monitor = {
            "pretext_accuracy": right.to(z.dtype).mean((0, 1)) @ weights,
            "known_images": known.float().mean(),
            "feature_std": feature_std(features[: 2 * len(batch)]),
        }
        carry = {"index": batch.index, "z": z[:2].detach().transpose(0, 1)}
        return Losses({"deepcluster": loss}, monitor, carry)

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.memory.write(carry["index"], carry["z"])

    def _project(self, groups: tuple[Tensor, ...]) -> tuple[Float[Tensor, "n f"], Float[Tensor, "v b d"]]:
        """Features and, of length 1, their projections."""
        features = torch.cat([self.backbone(group.flatten(0, 1)).pool() for group in groups])
        z = F.normalize(widen(self.head(features)), dim=-1)
        return features, z.unflatten(0, (-1, groups[0].shape[1]))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    local = replace(SMALL, size=16, scale=(0.05, 0.3))
    return Run(
        method=Config(
            encoder=ResNet(depth=18, width=4, stem="small"),
            views=MultiCrop(SMALL, SMALL, local, n_local=2),
            hidden=32,
            out=16,
            heads=2,
            clusters=6,
        ),
        optim=_adamw(lr=Warmup(epochs=0.2, then=Cosine(2e-3, 0.0))),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18; two large crops.

    What short runs need: clusters of about a hundred images, as the first ones are found by an untrained network,
    and small batches, for more steps between two clusterings.
    """
    return Run(
        method=Config(
            encoder=NAMED["resnet_narrow"],
            views=MultiCrop(SMALL, SMALL, n_local=0),
            hidden=512,
            heads=2,
            clusters=128,
        ),
        optim=_adamw(lr=Warmup(epochs=1, then=Cosine(3e-3, 0.0))),
        limit=10_000,
        epochs=8,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ResNet-18. Unverified: not run here."""
    view = replace(COLOUR, size=128)
    local = replace(view, size=64, scale=(0.05, 0.14))
    return Run(
        method=Config(encoder=NAMED["resnet18"], views=MultiCrop(view, view, local, n_local=6), clusters=300),
        optim=_lars(lr=Cosine(0.6, 0.0006)),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ResNet-50, 800 epochs, batch 4096. Unverified: not run here."""
    schedule = Warmup(epochs=10, then=Cosine(0.3, 0.0003), start=0.3 / 16)
    return Run(method=Config(), optim=_lars(lr=schedule), epochs=800, batch=4096)


def _adamw(*, lr: Schedule) -> Optim:
    return Optim(lr=lr, lr_scaling="none", weight_decay=Constant(1e-4))


def _lars(*, lr: Schedule) -> Optim:
    return Optim(name="lars", lr=lr, weight_decay=Constant(1e-6))
