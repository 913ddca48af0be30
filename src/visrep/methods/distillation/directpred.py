"""DirectPred: BYOL whose predictor is a matrix read off the spectrum of its inputs, not learned.

    minimise  - 2 cos(W z_1, t_2) - 2 cos(W z_2, t_1)        mean over images
    F <- decay F + (1 - decay) mean z z^T                    W = (F / |F|)^power + eps I

z: online projection, encoder and MLP; t: its slow copy, as in BYOL; F: correlation of the projections, both views, not
centred; |F|: its largest eigenvalue; the power acts on eigenvalues. power 1/2 is DirectPred, Tian et al. 2021,
arXiv:2102.06810; 1 is DirectCopy and any other DirectSet(power), Wang et al. 2021, arXiv:2110.04947.

What stops collapse: the predictor and the target that gets no gradient, as in BYOL. A learned linear predictor ends up
with the eigenvectors of F and larger eigenvalues where the variance is larger; then a direction on which the views
agree grows until decay balances it, and only those on which they disagree fade. Setting W so gets there at once.
A large eps makes W the identity, which is no predictor: that collapses.

Verified against: official running correlation, W (powers 1/2 and 1/4, two eps; power 1 up to its length, which the
cosine ignores) and loss, 1e-9.
Deviations: W starts as the identity and the target as a copy (there: random, W for one step); for every > 1, W rests in
between (there: gradient steps); no floor of 1e-4 under its eigenvalues, eps is one; the projector's BatchNorm has scale
and offset; biases and BatchNorm are not decayed; blur is a true Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.config import Optim, Run
from visrep.distributed import mean_over_ranks
from visrep.encoders import NAMED, EncoderConfig, ResNet
from visrep.functional import feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import projection
from visrep.nn.projected import Projected
from visrep.nn.teacher import Teacher
from visrep.schedules import Constant, Cosine, Schedule, Warmup
from visrep.views import TwoViews, View

VIEW = View(size=96, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
"""the paper's view for STL-10"""
SMALL = View(size=32, saturation=0.4, blur=0.0)
"""the paper's view for CIFAR"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ResNet(depth=18)
    views: TwoViews = TwoViews(VIEW, VIEW)
    hidden: int = 512
    """width of the projector's hidden layer"""
    out: int = 128
    """width of projection and prediction: the eigenvalues of W take time of its cube"""
    power: float = 0.5
    """the rule: 0.5 is DirectPred; 1 is DirectCopy, without eigenvectors; others are DirectSet"""
    eps: float = 0.01
    """what every eigenvalue of W has at least, the largest being 1 more: lets directions of little variance grow"""
    every: int = 1
    """steps between two settings of W; more saves time when ``out`` is large"""
    correlation_decay: float = 0.3
    """share of the old F that a step keeps: more for batches that are small beside ``out``"""
    teacher_decay: Schedule = Constant(0.996)
    """per step; less for runs of few steps"""


def linear_predictor(correlation: Float[Tensor, "d d"], power: float, eps: float) -> Float[Tensor, "d d"]:
    """W, symmetric, with the eigenvectors of the correlation."""
    w = correlation / torch.linalg.matrix_norm(correlation, 2)
    if power != 1:
        values, vectors = torch.linalg.eigh(w)
        w = vectors * values.clamp(min=0) ** power @ vectors.T  # rounding can leave values below 0
    return w + eps * torch.eye(len(w), dtype=w.dtype, device=w.device)


def directpred_loss(p: Float[Tensor, "2 b d"], t: Float[Tensor, "2 b d"]) -> Float[Tensor, ""]:
    """-2 cosine of each view's prediction with the other's target, sum of both directions."""
    return -2 * F.cosine_similarity(p, t.flip(0), dim=-1).mean(1).sum()


@final
class DirectPred(Method):
    correlation: Tensor
    predictor: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        if cfg.power <= 0 or cfg.eps < 0 or cfg.every < 1:
            raise ValueError(
                f"power={cfg.power}, eps={cfg.eps}, every={cfg.every}: the predictor needs power > 0 (0 is the "
                "identity, which collapses), eps >= 0 and every >= 1."
            )
        self.cfg: Config = cfg
        encoder = cfg.encoder.build()
        projector = projection(encoder.width, cfg.hidden, cfg.out, last_norm=False)
        self.online = Projected(encoder, projector)
        self.target = Teacher(self.online)
        self.register_buffer("correlation", torch.zeros(cfg.out, cfg.out))
        self.register_buffer("predictor", torch.eye(cfg.out))

    @property
    def encoder(self) -> Encoder:
        return self.online.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        (crops,) = batch.crops  # 2 b c h w
        t = widen(self.target(crops))  # 2 b d
        z = widen(self.online(crops))
        with torch.autocast(z.device.type, enabled=False):
            loss = directpred_loss(z @ self.predictor, t)  # W is symmetric
            correlation = torch.einsum("vbi,vbj->ij", z, z).detach() / z[..., 0].numel()
        # How many directions of equal variance would have this spectrum: 1 is collapsed, d even.
        rank = correlation.trace() ** 2 / correlation.square().sum()
        monitor = {"projection_std": feature_std(z[0]), "projection_rank": rank}
        return Losses({"directpred": loss}, monitor, carry={"correlation": correlation[None]})

    @torch.no_grad()
    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        decay = self.cfg.correlation_decay if at.step else 0.0  # the first batch's is taken whole
        self.correlation.lerp_(mean_over_ranks(carry["correlation"].mean(0)), 1 - decay)
        if at.step % self.cfg.every == 0:
            self.predictor.copy_(linear_predictor(self.correlation, self.cfg.power, self.cfg.eps))
        self.target.follow(self.online, self.cfg.teacher_decay(at))


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    return Run(
        method=Config(
            encoder=ResNet(depth=18, width=4, stem="small"),
            views=TwoViews(SMALL, SMALL),
            hidden=32,
            out=16,
            teacher_decay=Cosine(0.9, 1.0),
        ),
        optim=Optim(lr=Warmup(epochs=0.2, then=Cosine(2e-3, 0.0)), lr_scaling="none"),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18, 10,000 images.

    What short runs need: a fast target (teacher_decay), more steps rather than large batches, and an eps that lets
    small directions grow in so few of them.
    """
    return Run(
        method=Config(
            encoder=NAMED["resnet_narrow"],
            views=TwoViews(SMALL, SMALL),
            eps=0.1,
            correlation_decay=0.5,
            teacher_decay=Cosine(0.98, 1.0),
        ),
        optim=Optim(
            lr=Warmup(epochs=1, then=Cosine(3e-3, 0.0)), weight_decay=Constant(1e-4), lr_scaling="none"
        ),
        limit=10_000,
        epochs=8,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ResNet-18. Unverified: not run here."""
    view = replace(VIEW, size=128)
    method = Config(views=TwoViews(view, view), teacher_decay=Cosine(0.99, 1.0))
    return Run(method=method, optim=_sgd(), epochs=200, batch=128)


def paper() -> Run[Config]:
    """STL-10, ResNet-18, 100 epochs. Unverified: not run here."""
    return Run(method=Config(), optim=_sgd(), epochs=100, batch=128)


def _sgd() -> Optim:
    return Optim(name="sgd", lr=Constant(0.03), lr_scaling="none", weight_decay=Constant(4e-4))
