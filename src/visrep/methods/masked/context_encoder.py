"""Context Encoder: paint what is missing in an image from what surrounds it.

    minimise  (1 - w) mean a (f(x) - y)^2  -  w log D(f(x))             a = 1 in the hole, 10 around it
    D, in its own turn, minimises  - log D(y) - log(1 - D(f(x)))

x: the image y with the mean colour in a hole, or in several; f: an encoder, then a decoder that paints the hole and a
border of it that can be seen, where an error weighs more; D: judges whether a picture is real.
Pathak et al. 2016, arXiv:1604.07379.

Verified against: train.lua of the official Torch code, which cannot be run here: its networks and its gradients,
computed layer by layer and step by step as it does, and the paper's channel-wise layer, written as loops, 1e-9.
Deviations: a ResNet and the channel-wise layer instead of six convolutions and a bottleneck of 4000 numbers; f is told
what D says after D's step, not before it; the hole has the mean colour, in the code with red and green swapped. With
``blocks``, the paper's squares, not the code's irregular shapes, and only they and their surroundings are painted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.encoders import ConvNet, ResNet
from visrep.functional import displayed, widen
from visrep.masking import squares
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.nn.dcgan import Discriminator, Painter
from visrep.schedules import Constant, Cosine, Warmup
from visrep.views import OneView, View

PLAIN = View(scale=(0.2, 1.0), jitter=0.0, gray=0.0, blur=0.0)
"""crop and flip"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ResNet | ConvNet = ResNet(depth=18)
    views: OneView = OneView(replace(PLAIN, size=128))
    blocks: int = 0
    """0: the middle of the image is painted, half as wide; else that many squares at random places, together as large.
    Squares make better features: what is learned about a hole in the middle is of no use to an image without one"""
    overlap: int = 4
    """pixels at the border of what is painted that can be seen: taken from the hole in the middle, added to squares"""
    w_adversarial: float = 0.001
    """w; 0 for squared error alone, as for the paper's features: no discriminator, then also no multiplier for it"""
    width: int = 64
    """channels of decoder and discriminator at half of the picture's resolution, doubled at each lower one"""


def border(hole: Bool[Tensor, "b 1 h w"], overlap: int) -> Bool[Tensor, "b 1 h w"]:
    """The pixels outside of the hole, but near it: at most ``overlap`` away in either direction."""
    near = F.max_pool2d(hole.float(), 2 * overlap + 1, stride=1, padding=overlap)
    return (near > 0) & ~hole


def painting_loss(
    painted: Float[Tensor, "b c h w"],
    image: Float[Tensor, "b c h w"],
    hole: Bool[Tensor, "b 1 h w"],
    edge: Bool[Tensor, "b 1 h w"],
) -> Float[Tensor, ""]:
    """Squared error, at the edge ten times as heavy; mean over the values of hole and edge, then over images."""
    weight = hole.to(painted) + 10 * edge.to(painted)
    error = (weight * (painted - image).square()).mean(1, keepdim=True).sum((1, 2, 3))
    return (error / (hole | edge).sum((1, 2, 3))).mean()


def verdict_loss(logits: Float[Tensor, " b"], *, real: bool) -> Float[Tensor, ""]:
    """- log D for what should be taken as real, - log (1 - D) for what should not; mean over pictures."""
    return F.softplus(-logits if real else logits).mean()


@final
class ContextEncoder(Method):
    captions: ClassVar[dict[str, str]] = {
        "reconstructions": "Columns: the image; what the encoder sees; the image with the hole painted."
    }

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        self.backbone = cfg.encoder.build()
        size, stride = cfg.views.size, self.backbone.stride
        if size % stride:
            raise ValueError(
                f"Views of {size} pixels do not divide by the encoder's stride, {stride}. Use a multiple."
            )
        if not (0 <= cfg.blocks <= size**2 // 4 and 0 <= cfg.overlap < size // 4):
            raise ValueError(
                f"blocks={cfg.blocks} and overlap={cfg.overlap} leave no hole in views of {size} pixels. "
                f"Use 0 to {size**2 // 4} blocks and an overlap of 0 to {size // 4 - 1} pixels."
            )
        self.side = size if cfg.blocks else size // 2  # of the square in the middle that is painted
        self.hole = int(size / 2 / math.sqrt(cfg.blocks)) if cfg.blocks else self.side - 2 * cfg.overlap
        if not 0 <= cfg.w_adversarial < 1:
            raise ValueError(f"w_adversarial={cfg.w_adversarial} is a share: use 0 or more, and less than 1.")
        self.painter = Painter(self.backbone.width, grid=size // stride, side=self.side, width=cfg.width)
        self.discriminator = Discriminator(side=self.side, width=cfg.width) if cfg.w_adversarial else None

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def turns(self) -> dict[str, list[nn.Parameter]]:
        if self.discriminator is None:
            return super().turns()
        paints = [*self.backbone.parameters(), *self.painter.parameters()]
        return {"discriminator": list(self.discriminator.parameters()), "main": paints}

    def loss(self, batch: Batch, at: At) -> Losses:
        images = batch.crops[0][0]
        image, hole = self._middle(self._pixels(images)), self._hole(images, at)
        edge = border(hole, self.cfg.overlap)
        painted = self._paint(images, hole)
        picture = torch.where(hole | edge, painted, image)
        if self.discriminator is not None and at.turn == "discriminator":
            return self._judge(self.discriminator, image, picture.detach())
        w = self.cfg.w_adversarial
        terms = {"l2": (1 - w) * painting_loss(painted, image, hole, edge)}
        if self.discriminator is not None:
            terms["adversarial"] = w * verdict_loss(widen(self.discriminator(picture)), real=True)
        error = painting_loss(painted.detach(), image, hole, torch.zeros_like(hole))
        # What one colour for all holes would leave: 1 means that nothing is predicted.
        return Losses(terms, {"unexplained_variance": error / image.var(correction=0)})

    def _judge(self, discriminator: Discriminator, real: Tensor, painted: Tensor) -> Losses:
        """The discriminator's turn: each kind is a batch of its own, as BatchNorm sees it."""
        on_real, on_painted = widen(discriminator(real)), widen(discriminator(painted))
        loss = verdict_loss(on_real, real=True) + verdict_loss(on_painted, real=False)
        rates = {"real_found": (on_real > 0).float().mean(), "painted_found": (on_painted < 0).float().mean()}
        return Losses({"discriminator": loss}, rates)

    @torch.no_grad()
    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        images = batch.crops[0][0]
        hole, pixels = self._hole(images, at), self._pixels(images)
        seen = self._pixels(images.masked_fill(self._whole(hole), 0.0))
        filled = torch.where(self._whole(hole), self._whole(self._paint(images, hole)), pixels)
        return {"reconstructions": (torch.stack([pixels, seen, filled], dim=1) + 1) / 2}

    def _paint(self, images: Tensor, hole: Tensor) -> Float[Tensor, "b c side side"]:
        """The square in the middle, in [-1, 1], from what the hole leaves: 0 is the mean colour."""
        return widen(self.painter(self.backbone(images.masked_fill(self._whole(hole), 0.0)).patches))

    def _hole(self, images: Tensor, at: At) -> Bool[Tensor, "b 1 side side"]:
        b, side, margin = len(images), self.side, (self.side - self.hole) // 2
        if self.cfg.blocks:
            return squares(at.rand(b, self.cfg.blocks), (side, side), self.hole).view(b, 1, side, side)
        inside = images.new_ones(b, 1, self.hole, self.hole, dtype=torch.bool)
        return F.pad(inside, (margin,) * 4)

    def _pixels(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """In [-1, 1]."""
        return 2 * displayed(images, self.cfg.views.view.mean, self.cfg.views.view.std) - 1

    def _middle(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c side side"]:
        """What is painted of images."""
        margin = (images.shape[-1] - self.side) // 2
        return images[..., margin : margin + self.side, margin : margin + self.side]

    def _whole(self, middle: Tensor) -> Tensor:
        """Undo `_middle`, with zeros around."""
        return F.pad(middle, ((self.cfg.views.size - self.side) // 2,) * 4)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests."""
    encoder = ResNet(depth=18, width=4, stem="small")
    views = OneView(replace(PLAIN, size=32))
    return Run(
        method=Config(encoder=encoder, views=views, overlap=2, w_adversarial=0.01, width=8),
        optim=_adam(lr=3e-3, warmup=0.2),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18.

    What short runs need: squares instead of a hole in the middle, since features are wanted, not pictures, and a high
    learning rate.
    """
    return Run(
        method=Config(
            encoder=ResNet(18, width=16, stem="small"),
            views=OneView(replace(PLAIN, size=32)),
            blocks=4,
            overlap=1,
            width=32,
        ),
        optim=_adam(lr=3e-3, warmup=1),
        limit=10_000,
        epochs=9,
        batch=128,
        monitor_epochs=2,
        monitor_images=1000,
    )


def imagenette128() -> Run[Config]:
    """128-px images, ResNet-18, squares. Unverified: not run here."""
    return Run(method=Config(blocks=4), optim=_adam(lr=2e-3, warmup=5), epochs=100, batch=128)


def paper() -> Run[Config]:
    """ImageNet at 128 px, the hole in the middle, 500 epochs as the code advises. Unverified: not run here."""
    optim = replace(_adam(lr=2e-3, warmup=0), lr=Constant(2e-3), weight_decay=Constant(0.0))
    view = replace(PLAIN, scale=(0.13, 0.13), ratio=(1.0, 1.0), size=128)  # 128 of 350 pixels
    return Run(method=Config(views=OneView(view)), optim=optim, epochs=500, batch=64)


def _adam(*, lr: float, warmup: float) -> Optim:
    """The official momentum; the discriminator learns at a tenth of the rate."""
    return Optim(
        lr=Warmup(epochs=warmup, then=Cosine(lr, 0.0)),
        lr_scaling="none",
        weight_decay=Constant(1e-4),
        betas=(0.5, 0.999),
        multipliers=(("discriminator.*", Constant(0.1)),),
    )
