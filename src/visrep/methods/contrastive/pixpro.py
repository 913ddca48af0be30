"""PixPro: each place of a view, smoothed with the places that look like it, should match the same place of another.

    minimise  mean over near (i, j) of  -2 cos(y_i, t_j)          + the same with the views exchanged
    y_i = sum over k of  relu(cos(x_i, x_k))^gamma g(x_k)         t's weights <- decay * themselves + (1 - decay) * x's

x, t: projections of the cells of a view's map, by the online network and by its slow copy, for the other view; g: a
linear map, then length 1; near: centres in the image closer than pos_ratio diagonals of the larger cell; k: all cells.
Xie et al. 2021, arXiv:2011.10043.

Verified against: the official loss, propagation module and whole forward pass with and without the instance branch,
values and gradients, 1e-9.
Deviations: crops reach from the first pixel's edge to the last one's, not from centre to centre; the teacher moves
after a step instead of before the next, so decay is one step behind; no bias before BatchNorm, where it does nothing;
blur is a true Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.encoders import NAMED, EncoderConfig, ResNet
from visrep.functional import feature_std, widen
from visrep.method import At, Batch, Encoder, Losses, Method, Tokens
from visrep.nn.heads import projection
from visrep.nn.teacher import Teacher
from visrep.schedules import Constant, Cosine, Schedule, Warmup
from visrep.views import TwoViews, View

BYOL = TwoViews(
    View(blur=1.0, interpolation="bilinear"), View(blur=0.1, solarize=0.2, interpolation="bilinear")
)
"""the paper's views, which are BYOL's"""
SMALL = View(size=32, saturation=0.4, blur=0.0)
"""for images of about 32 pixels"""


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: EncoderConfig = ResNet(depth=50)
    views: TwoViews = BYOL
    hidden: int = 4096
    """width of the hidden layer of projection and predictor"""
    out: int = 256
    """width of the projection, in which cells are compared"""
    gamma: float = 2.0
    """sharpness of the propagation: more draws only on cells that look very much alike; at least 1"""
    pos_ratio: float = 0.7
    """greatest distance of a pair in diagonals of the larger cell: less leaves few pairs, more blurs places"""
    decay: Schedule = Cosine(0.99, 1.0)
    """of the teacher; less for runs of few steps"""
    w_instance: float = 0.0
    """weight of the instance branch, which compares whole images as BYOL does: 1 for features of images, 0 for off"""


def cell_centres(
    boxes: Float[Tensor, "v b 4"], flipped: Bool[Tensor, "v b"], grid: tuple[int, ...]
) -> Float[Tensor, "v b n 2"]:
    """Where in the image (down, across) the centres of each map's cells lie, as fractions of its height and width."""
    rows, columns = (torch.arange(side, device=boxes.device) + 0.5 for side in grid)
    inside = torch.cartesian_prod(rows / grid[0], columns / grid[1]).to(boxes.dtype)  # n 2: of the view
    mirrored = torch.stack([inside[:, 0], 1 - inside[:, 1]], dim=1)
    inside = torch.where(flipped[..., None, None], mirrored, inside)
    return boxes[..., None, :2] + inside * boxes[..., None, 2:]


def near_pairs(
    boxes: Float[Tensor, "2 b 4"], flipped: Bool[Tensor, "2 b"], grid: tuple[int, ...], pos_ratio: float
) -> Bool[Tensor, "b n n"]:
    """Which cells of the first map (rows) and of the second (columns) show the same place of the image.

    Distances are taken in fractions of its height and width, as in the official code: as if all images were square.
    """
    first, second = cell_centres(boxes, flipped, grid)
    distance = (first[:, :, None] - second[:, None]).norm(dim=-1)  # b n n
    diagonal = (boxes[..., 2:] / boxes.new_tensor(grid)).norm(dim=-1).amax(0)  # b
    return distance < pos_ratio * diagonal[:, None, None]


def propagate(
    x: Float[Tensor, "*b n d"], values: Float[Tensor, "*b n d"], gamma: float
) -> Float[Tensor, "*b n d"]:
    """Each cell becomes the sum of the values of all cells of its map, each as much as it looks like the cell."""
    x, values = F.normalize(x, dim=-1), F.normalize(values, dim=-1)
    return (x @ x.mT).relu() ** gamma @ values


def pixel_loss(
    y: Float[Tensor, "2 b n d"], t: Float[Tensor, "2 b n d"], near: Bool[Tensor, "b n n"]
) -> Float[Tensor, ""]:
    """Minus twice the cosine of y with the other view's target, mean over near pairs, then images; sum over both views.

    An image without near pairs counts as 0, without gradient.
    """
    cosine = F.normalize(y, dim=-1) @ F.normalize(t.flip(0), dim=-1).mT  # 2 b n n
    pairs = torch.stack([near, near.mT])
    per_image = (cosine * pairs).sum((2, 3)) / (pairs.sum((2, 3)) + 1e-6)  # 2 b
    return -2 * per_image.mean(1).sum()


def each_cell(head: nn.Module, x: Float[Tensor, "v b n _"]) -> Float[Tensor, "v b n d"]:
    """An MLP on every cell, as 1x1 convolutions: BatchNorm sees the cells of all images, one view at a time."""
    return torch.stack([head(view.flatten(0, 1)).unflatten(0, view.shape[:2]) for view in x])


class Network(nn.Module):
    """Encoder, and projections of its map: one to compare cells ("pixel"), one to compare images ("instance")."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.encoder: Encoder = cfg.encoder.build()
        branches = ("pixel", "instance") if cfg.w_instance else ("pixel",)
        self.heads = nn.ModuleDict({name: _mlp(self.encoder.width, cfg) for name in branches})

    def forward(
        self, crops: Float[Tensor, "v b c h w"]
    ) -> tuple[list[Tokens], dict[str, Float[Tensor, "v b n d"]]]:
        tokens = [self.encoder(view) for view in crops]
        maps = torch.stack([view.patches for view in tokens])
        return tokens, {name: each_cell(head, maps) for name, head in self.heads.items()}


@final
class PixPro(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.cfg: Config = cfg
        if cfg.gamma < 1:
            raise ValueError(
                f"gamma={cfg.gamma}: such a power is infinitely steep at 0. Use at least 1, as 2."
            )
        if cfg.pos_ratio <= 0:
            raise ValueError(f"pos_ratio={cfg.pos_ratio} makes no pairs. Use a positive number, as 0.7.")
        self.student = Network(cfg)
        size, stride = cfg.views.size, self.student.encoder.stride
        if size <= stride:
            raise ValueError(
                f"Views of {size} pixels are one cell to an encoder of stride {stride}: no places to match. "
                f"Use views of at least {2 * stride} pixels, or an encoder of a smaller stride."
            )
        self.value = nn.Linear(cfg.out, cfg.out)
        self.predictor = _mlp(cfg.out, cfg) if cfg.w_instance else None
        self.teacher = Teacher(self.student)

    @property
    def encoder(self) -> Encoder:
        return self.student.encoder

    def loss(self, batch: Batch, at: At) -> Losses:
        (crops,), (boxes,), (flipped,) = batch.crops, batch.boxes, batch.flipped
        tokens, x = self.student(crops)
        _, t = self.teacher(crops)
        near = near_pairs(boxes, flipped, tokens[0].grid, self.cfg.pos_ratio)
        with torch.autocast(crops.device.type, enabled=False):
            cells = widen(x["pixel"])  # 2 b n d
            pixel = pixel_loss(propagate(cells, self.value(cells), self.cfg.gamma), widen(t["pixel"]), near)
        terms = {"pixel": pixel}
        if self.predictor is not None:
            prediction = widen(each_cell(self.predictor, x["instance"])).mean(2)  # 2 b d
            cosine = F.cosine_similarity(prediction, widen(t["instance"]).mean(2).flip(0), dim=-1)
            terms["instance"] = -2 * self.cfg.w_instance * cosine.mean(1).sum()
        overlap = near.any(-1).any(-1).to(pixel.dtype).mean()
        monitor = {
            "overlap": overlap,  # share of images whose views have near pairs
            "near_cosine": pixel.detach() / (-4 * overlap.clamp(min=1e-6)),  # mean over these images
            "feature_std": feature_std(tokens[0].pool()),
            "projection_std": feature_std(x["pixel"][0].mean(1)),  # falls first where all images become alike
        }
        return Losses(terms, monitor)

    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.teacher.follow(self.student, self.cfg.decay(at))


def _mlp(width: int, cfg: Config) -> nn.Module:
    return projection(width, cfg.hidden, cfg.out, last_norm=False)


def tiny() -> Run[Config]:
    """Seconds on a CPU; for tests. With the instance branch."""
    return Run(
        method=Config(
            encoder=ResNet(depth=18, width=4, stem="small"),
            views=TwoViews(SMALL, SMALL),
            hidden=32,
            out=16,
            decay=Cosine(0.98, 1.0),
            w_instance=1.0,
        ),
        optim=Optim(lr=Warmup(epochs=0.2, then=Cosine(2e-3, 0.0)), lr_scaling="none"),
        data="playground:n=64,size=32",
        epochs=1,
        batch=16,
    )


def small32() -> Run[Config]:
    """32-px images, a narrow ResNet-18, whose map has 4 x 4 cells.

    What short runs need: a teacher that moves fast (decay), small batches for more steps, and the branch for whole
    images: alone, the cells' targets drift together in the first hundred steps and separate slowly (41.0 instead of
    43.4 % in the linear probe of one seed).
    """
    return Run(
        method=Config(
            encoder=NAMED["resnet_narrow"],
            views=TwoViews(SMALL, SMALL),
            hidden=512,
            out=128,
            decay=Cosine(0.98, 1.0),
            w_instance=1.0,
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
    """128-px images, ResNet-18, both branches. Unverified: not run here."""
    views = TwoViews(replace(BYOL.first, size=128), replace(BYOL.second, size=128))
    return Run(
        method=Config(encoder=NAMED["resnet18"], views=views, w_instance=1.0),
        optim=_lars(warmup=10, weight_decay=1e-4),
        epochs=100,
        batch=256,
    )


def paper() -> Run[Config]:
    """ImageNet, ResNet-50, 100 epochs. Unverified: not run here."""
    return Run(method=Config(), optim=_lars(warmup=5, weight_decay=1e-5), epochs=100, batch=1024)


def _lars(*, warmup: float, weight_decay: float) -> Optim:
    schedule = Warmup(epochs=warmup, then=Cosine(1.0, 1e-6), start=0.01)
    return Optim(name="lars", lr=schedule, weight_decay=Constant(weight_decay))
