"""The contract: what the engine hands to a method, what a method hands back, what every encoder returns.

Axes, everywhere in this project: b batch, v views, g global views, n patches, d width, h heads,
k prototypes or classes, t time, c channels, p patch side, r registers, l layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

Pooling = Literal["auto", "cls", "mean", "cls+mean"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class At:
    """Where training is. Every schedule is a function of this; all randomness of a step comes from it.

    ``rng`` is seeded by (seed, step) and is the same on every rank: `rand` and `randn` draw for the whole
    batch of all ranks and return the rows of this one, so a run does not depend on how many ranks share it.
    """

    step: int
    """steps taken so far"""
    total: int
    """steps in the whole run"""
    steps_per_epoch: int
    rng: torch.Generator
    rank: int = 0
    world: int = 1
    turn: str = "main"
    """which of the method's `turns` is being taken"""

    @property
    def epoch(self) -> float:
        """Epochs completed, with a fraction."""
        return self.step / self.steps_per_epoch

    @property
    def progress(self) -> float:
        """Share of the run completed, in [0, 1)."""
        return self.step / self.total

    def rand(self, b: int, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), "b ...", one row an image of this rank's part of the batch."""
        drawn = torch.rand(self.world * b, *shape, generator=self.rng, device=self.rng.device)
        return drawn[self.rank * b : (self.rank + 1) * b]

    def rand_shared(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) that all images share, the same on every rank."""
        return torch.rand(*shape, generator=self.rng, device=self.rng.device)

    def randn(self, b: int, *shape: int) -> Tensor:
        """Standard normal numbers, "b ...", one row an image of this rank's part of the batch."""
        drawn = torch.randn(self.world * b, *shape, generator=self.rng, device=self.rng.device)
        return drawn[self.rank * b : (self.rank + 1) * b]


@dataclass(frozen=True)
class Canvases:
    """Decoded images or clips as a reader hands them to the views: each squashed to a square, true size kept."""

    pixels: Tensor
    """uint8 "b c s s", of clips "b t c s s" """
    sizes: Tensor
    """float32 "b 2": true height and width in pixels, before squashing"""
    index: Tensor
    """int64 "b": position in the data set"""
    labels: Tensor | None = None
    """int64 "b" """

    def to(self, device: torch.device) -> Canvases:
        moved = (x.to(device, non_blocking=True) for x in (self.pixels, self.sizes, self.index))
        return Canvases(*moved, labels=None if self.labels is None else self.labels.to(device))

    def __len__(self) -> int:
        return self.pixels.shape[0]


@dataclass(frozen=True)
class Batch:
    """Views of a batch of images, grouped by size, global (large) crops first."""

    crops: tuple[Tensor, ...]
    """one tensor a size: "v b c h w", normalised; of clips "v b t c h w" """
    boxes: tuple[Tensor, ...]
    """one tensor a size: "v b 4" = top, left, height, width of each crop as fractions of the image"""
    flipped: tuple[Tensor, ...]
    """one tensor a size: bool "v b", whether the crop was mirrored left-right"""
    index: Tensor
    """int64 "b": position in the data set"""
    labels: Tensor | None = None
    """int64 "b"; removed by the engine unless the method declares ``needs_labels``"""

    def __len__(self) -> int:
        return self.index.shape[0]

    def without_labels(self) -> Batch:
        return replace(self, labels=None)

    def rows(self, rows: slice | Tensor) -> Batch:
        """The same views of some of the images: for accumulation, for ranks, for permutation tests."""
        return Batch(
            crops=tuple(x[:, rows] for x in self.crops),
            boxes=tuple(x[:, rows] for x in self.boxes),
            flipped=tuple(x[:, rows] for x in self.flipped),
            index=self.index[rows],
            labels=None if self.labels is None else self.labels[rows],
        )


@dataclass(frozen=True)
class Tokens:
    """What every encoder returns. A convolutional encoder's patches are the cells of its last map."""

    patches: Tensor
    """ "b n d": one token a patch that was encoded, in the order asked for"""
    grid: tuple[int, ...]
    """rows and columns of the full patch grid (time first for video)"""
    cls: Tensor | None = None
    """ "b d" """
    registers: Tensor | None = None
    """ "b r d" """
    layers: tuple[Tokens, ...] = ()
    """the intermediate layers asked for, in the order asked for, each passed through the final norm by default"""
    attention: Tensor | None = None
    """ "l b h n n": attention of each block over all tokens (cls, registers, patches), when asked for"""

    def pool(self, how: Pooling = "auto") -> Tensor:
        """One vector an image: "b d" ("b 2d" for cls+mean). ``auto`` is cls where there is one, else mean.

        Raises ValueError when the encoder has no cls token and one is asked for.
        """
        if how == "auto":
            how = "mean" if self.cls is None else "cls"
        if how == "mean":
            return self.patches.mean(1)
        if self.cls is None:
            raise ValueError(
                f"pooling={how!r} needs a cls token and this encoder has none. Use pooling='mean'."
            )
        return self.cls if how == "cls" else torch.cat([self.cls, self.patches.mean(1)], dim=-1)


@dataclass(frozen=True)
class Preprocessing:
    """What an encoder expects: the central square of an image or of a clip's middle frames, resized, normalised."""

    size: int = 224
    """side of the input in pixels"""
    ratio: float = 0.875
    """side of the central square as a share of the image's shorter side"""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    frames: int = 0
    """of a clip; 0 for an encoder of images"""
    interpolation: Interpolation = "bicubic"
    """filter of the resize, always with antialiasing"""
    squash: bool = False
    """the image is squashed to a square first, and ``ratio`` is a share of both of its sides"""


class Encoder(nn.Module, ABC):
    """Images in, `Tokens` out. An encoder states its width and depth; nobody probes it to find out."""

    width: int
    """d, of every token"""
    depth: int
    """layers that can be asked for, numbered 1 to depth"""
    stride: int
    """pixels between neighbouring patches"""
    config: Any
    """the frozen dataclass that built it: ``config.build()`` makes another with fresh weights"""
    preprocessing: Preprocessing
    """set when built (from the config) and when loaded or trained (from the views)"""

    @abstractmethod
    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode "b c h w", or clips "b t c h w" where the encoder's `Preprocessing` has frames.

        ``keep`` (int64 "b m") encodes only those patches; ``mask`` (bool "b n") replaces patches by the mask
        token; ``layers`` (1-based) also returns those layers; ``attention`` also returns attention maps.
        Raises ValueError for what the architecture cannot do.
        """


@dataclass
class Losses:
    """What one call of a method's loss returns."""

    terms: dict[str, Tensor]
    """already weighted scalars; the engine minimises their sum"""
    monitor: dict[str, Tensor] = field(default_factory=dict)
    """scalars that are only logged"""
    carry: dict[str, Tensor] = field(default_factory=dict)
    """detached, for `Method.after_step`; with a leading axis along which accumulated micro-batches are joined"""


class Method(nn.Module, ABC):
    """Some modules, a loss on one batch, and what happens between two steps. Built as ``Class(config)``."""

    needs_labels: ClassVar[bool] = False
    """True only for supervised methods: all others never see a label"""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.cfg = cfg

    @abstractmethod
    def loss(self, batch: Batch, at: At) -> Losses:
        """The objective on one batch. Pure: changes no state (BatchNorm statistics excepted)."""

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """What probes, analysis and export see."""

    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        """Called once after each optimiser step: teachers, centres, queues, codebooks move here."""

    def before_epoch(self, images: Iterable[Batch], at: At) -> None:
        """Called at the start of every epoch; iterating over ``images`` gives views of the whole data set, once.

        For methods whose targets belong to an epoch, such as clusters. Each rank sees its part of each batch.
        """

    def turns(self) -> dict[str, list[nn.Parameter]]:
        """Parameters optimised in each turn of a step: one turn, except for adversarial methods."""
        return {"main": [p for p in self.parameters() if p.requires_grad]}

    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:
        """Images for the report, name to "rows columns c h w" in [0, 1]: reconstructions and the like."""
        return {}
