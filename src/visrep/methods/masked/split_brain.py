"""Split-Brain Autoencoder: one half of the network tells colours from lightness, the other lightness from colours.

    minimise  H(bin(a, b), h_1(f_1(L)))  +  H(bin(L), h_2(f_2(a, b)))        features: f_1(L) beside f_2(a, b)

L, a, b: the image in CIE Lab; bin: the nearest of 313 colours, or one of 50 steps of lightness; H: cross-entropy, mean
over the cells of a coarse grid; f_1, f_2: encoders of half the width; h_1, h_2: MLPs. Zhang et al. 2017,
arXiv:1611.09842.

Verified against: the 313 colours of the official Caffe code; scikit-image's Lab, which that code uses, 1e-9; bins and
loss written as loops, 1e-9. No training code is public.
Deviations: ResNets instead of AlexNet's halves; targets are means over cells, in place of an image made smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from visrep.config import Optim, Run
from visrep.encoders import ConvNet, ResNet
from visrep.encoders.split import LabSplit
from visrep.functional import entropy, widen
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.heads import projection
from visrep.nn.lab import colour_bins, lab_to_rgb, lightness_bin, nearest_colour
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""crop and flip: colours stay as they are"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ResNet | ConvNet = ResNet(depth=18, width=32)
    """each of the two streams: half as wide as the network that they replace"""
    views: OneView = OneView(PLAIN)
    lightness_bins: int = 50
    """steps of lightness"""
    detail: int = 2
    """cells that each token predicts, along each side: the paper's images are predicted as 12 x 12 cells"""
    hidden: int = 2048
    """width of the two hidden layers of each MLP"""


def bin_loss(
    logits: Float[Tensor, "b rows columns k"], bins: Int[Tensor, "b rows columns"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the predicted bins with the true ones, mean over cells and images."""
    return F.cross_entropy(logits.movedim(-1, 1), bins)


@final
class SplitBrain(Method):
    captions: ClassVar[dict[str, str]] = {
        "predicted_channels": "Columns: the image; its lightness; this, with the colours told from it; its colours; "
        "these, with the lightness told from them."
    }

    colours: Tensor

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        if cfg.detail < 1 or cfg.lightness_bins < 2:
            raise ValueError(
                f"detail={cfg.detail} and lightness_bins={cfg.lightness_bins} leave nothing to predict. "
                "Use a detail of 1 or more, and 2 bins or more."
            )
        self.backbone = LabSplit(cfg.encoder).build()
        self.backbone.preprocessing = cfg.views.preprocessing
        self.register_buffer("colours", colour_bins(), persistent=False)
        half = self.backbone.width // 2
        self.to_colours, self.to_lightness = (
            projection(half, cfg.hidden, cfg.detail**2 * k, layers=3, last_norm=False)
            for k in (len(self.colours), cfg.lightness_bins)
        )

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        images = batch.crops[0][0]
        colours, lightness = self._predict(images)
        lab = self._cells(images, (colours.shape[1], colours.shape[2]))
        true_colours = nearest_colour(lab[:, 1:], self.colours)
        true_lightness = lightness_bin(lab[:, :1], self.cfg.lightness_bins)
        terms = {
            "colours": bin_loss(colours, true_colours),
            "lightness": bin_loss(lightness, true_lightness),
        }
        accuracy = (colours.argmax(-1) == true_colours).float().mean()
        # What remains when nothing is known but how often each colour occurs in the batch: 1 is no better than that.
        guessed = entropy(F.one_hot(true_colours, len(self.colours)).to(lab).mean((0, 1, 2)))
        unexplained = terms["colours"].detach() / (guessed + 1e-3)
        monitor = {"pretext_accuracy": accuracy, "unexplained_entropy": unexplained}
        return Losses(terms, monitor)

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images = batch.crops[0][0]
        lab = self.backbone.lab(images)
        colours, lightness = self._predict(images)
        steps = (torch.arange(self.cfg.lightness_bins).to(lab) + 0.5) * (100 / self.cfg.lightness_bins)
        told_ab, told_l = (
            F.interpolate((logits.softmax(-1) @ values).movedim(-1, 1), size=lab.shape[2:], mode="bilinear")
            for logits, values in ((colours, self.colours), (lightness, steps[:, None]))
        )
        true_l, true_ab = lab.split((1, 2), dim=1)
        grey, middle = torch.zeros_like(true_ab), torch.full_like(true_l, 60.0)
        pairs = [(true_l, true_ab), (true_l, grey), (true_l, told_ab), (middle, true_ab), (told_l, true_ab)]
        return {"predicted_channels": torch.stack([lab_to_rgb(torch.cat(p, dim=1)) for p in pairs], dim=1)}

    def _predict(
        self, images: Tensor
    ) -> tuple[Float[Tensor, "b rows columns k"], Float[Tensor, "b rows columns q"]]:
        """Logits of the colours and of the lightness of each cell."""
        found, s = self.backbone(images), self.cfg.detail
        b, (rows, columns) = len(images), found.grid
        halves = found.patches.flatten(0, 1).chunk(2, dim=-1)
        heads = (self.to_colours, self.to_lightness)
        logits = [widen(head(half)) for head, half in zip(heads, halves, strict=True)]  # (b n) (s s k)
        cells = [x.view(b, rows, columns, s, s, -1).transpose(2, 3) for x in logits]
        colours, lightness = (x.flatten(1, 2).flatten(2, 3) for x in cells)
        return colours, lightness

    def _cells(self, images: Tensor, grid: tuple[int, int]) -> Float[Tensor, "b 3 rows columns"]:
        """Lab, mean over each cell."""
        return F.adaptive_avg_pool2d(self.backbone.lab(images), grid)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    encoder = ResNet(depth=18, width=4, stem="small")
    return Run(
        method=Config(encoder=encoder, views=OneView(replace(PLAIN, size=32)), hidden=32),
        optim=_adamw(lr=3e-3, warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, two ResNet-18 of half the width of the narrow one.

    What short runs need: a high learning rate, and cells of 4 pixels, so that there is much to tell of each image.
    """
    return Run(
        method=Config(
            encoder=ResNet(18, width=8, stem="small"), views=OneView(replace(PLAIN, size=32)), hidden=512
        ),
        optim=_adamw(lr=3e-3, warmup=1),
        limit=10_000,
        epochs=9,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, two ResNet-18 of half the usual width. Unverified: not run here."""
    method = Config(views=OneView(replace(PLAIN, size=128)), hidden=1024)
    return Run(method=method, optim=_adamw(lr=1e-3, warmup=5), epochs=100, batch=256)


def paper() -> Run[Config]:
    """ImageNet, two ResNet-50 of half the usual width for AlexNet's halves. Unverified: not run here."""
    method = Config(encoder=ResNet(depth=50, width=32))
    return Run(method=method, optim=_adamw(lr=1e-3, warmup=5), epochs=100, batch=256)


def _adamw(*, lr: float, warmup: float) -> Optim:
    schedule = Warmup(epochs=warmup, then=Cosine(lr, 0.0))
    return Optim(lr=schedule, lr_scaling="none", weight_decay=Constant(1e-4))
