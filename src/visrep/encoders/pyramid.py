"""Maps of several resolutions of any encoder, and one map made of them all: a read-out for dense probes.

A hierarchical encoder (Swin, ConvNeXt, ResNet) has such maps: the last layer of each resolution. A plain ViT has maps
of one resolution; as in DPT (arXiv:2103.13413) four of its layers are taken, at a quarter, half, three quarters and all
of the depth, and enlarged 4 and 2 times, left and halved: with patches of 16 pixels the strides of 4, 8, 16 and 32 of
ViTDet's simple feature pyramid (arXiv:2203.16527). Nothing is trained: maps are resampled bilinearly, where both have
convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.encoders.checks import check_layers, check_whole
from visrep.method import Encoder, Tokens

SCALES = (4.0, 2.0, 1.0, 0.5)
"""of the maps of a plain encoder, finest first"""
READ = 1
"""number of the map, counted from the finest one as 0, whose grid the joined map has"""


@dataclass(frozen=True)
class OnPyramid:
    """A pyramid of an encoder, by its configuration."""

    encoder: Any
    size: int
    """side in pixels of the images that tell which layers differ in resolution"""

    def build(self) -> Pyramid:
        """A network with fresh weights, drawn from torch's global generator."""
        return Pyramid(self.encoder.build(), self.size)


@final
class Pyramid(Encoder):
    """Patches are those of all maps side by side, on the grid of the second finest map; no cls token.

    A plain encoder keeps its layers: the pyramid of a layer is of it and those below. A hierarchical one has one layer,
    of all maps. ``size`` of 0 is the encoder's own.
    """

    def __init__(self, encoder: Encoder, size: int = 0) -> None:
        super().__init__()
        size = size or encoder.preprocessing.size
        self.config: OnPyramid = OnPyramid(encoder.config, size)
        self.preprocessing = encoder.preprocessing
        everything = _probed(encoder, size)
        grids = [tokens.grid for tokens in everything]
        self.stages = tuple(n for n, grid in enumerate(grids, 1) if n == len(grids) or grid != grids[n])
        """the last layer of each resolution; a single one in a plain encoder"""
        self.plain = len(self.stages) == 1
        used = self.sources(encoder.depth if self.plain else 1)
        self.width = sum(everything[layer - 1].patches.shape[-1] for layer in used)
        self.depth = encoder.depth if self.plain else 1
        finest = [round(grids[-1][0] * scale) for scale in SCALES] if self.plain else [g[0] for g in grids]
        self.stride = size // sorted(set(finest), reverse=True)[READ]
        self.encoder = encoder

    def sources(self, layer: int) -> tuple[int, ...]:
        """Layers of the encoder that the maps of a layer here are made of, finest first."""
        if not self.plain:
            return self.stages
        return tuple(max(1, round(layer * (n + 1) / len(SCALES))) for n in range(len(SCALES)))

    def maps(self, images: Float[Tensor, "b c h w"], layer: int = 0) -> tuple[Tokens, ...]:
        """The maps of a layer as tokens, each on its own grid, finest first; layer 0 is the last."""
        layer = layer or self.depth
        check_layers((layer,), self.depth)
        used = self.sources(layer)
        return self._levels(self.encoder(images, layers=used).layers)

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode images. Raises ValueError for what picks patches and for attention."""
        check_whole("pyramid", keep, mask, attention)
        check_layers(layers, self.depth)
        wanted = tuple(dict.fromkeys((*layers, self.depth)))
        needed = tuple(sorted({source for layer in wanted for source in self.sources(layer)}))
        seen = dict(zip(needed, self.encoder(images, layers=needed).layers, strict=True))
        found = {
            layer: joined(self._levels(tuple(seen[source] for source in self.sources(layer))))
            for layer in wanted
        }
        return replace(found[self.depth], layers=tuple(found[layer] for layer in layers))

    def _levels(self, sources: tuple[Tokens, ...]) -> tuple[Tokens, ...]:
        bare = tuple(Tokens(tokens.patches, tokens.grid) for tokens in sources)
        if not self.plain:
            return bare
        return tuple(
            resampled(tokens, tuple(max(1, round(side * scale)) for side in tokens.grid))
            for tokens, scale in zip(bare, SCALES, strict=True)
        )


def joined(levels: tuple[Tokens, ...]) -> Tokens:
    """All maps side by side on the grid of the second finest one."""
    grid = levels[min(READ, len(levels) - 1)].grid
    return Tokens(torch.cat([resampled(tokens, grid).patches for tokens in levels], dim=-1), grid)


def resampled(tokens: Tokens, grid: tuple[int, ...]) -> Tokens:
    """The tokens on another grid, bilinearly; where it is coarser, averages over what a cell covers."""
    if tokens.grid == grid:
        return tokens
    maps = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid)
    maps = F.interpolate(maps, grid, mode="bilinear", antialias=True, align_corners=False)
    return Tokens(maps.flatten(2).transpose(1, 2), grid)


@torch.no_grad()
def _probed(encoder: Encoder, size: int) -> tuple[Tokens, ...]:
    """All layers of one grey image. Raises ValueError for encoders of clips."""
    if encoder.preprocessing.frames:
        raise ValueError("a pyramid is made of maps of images, and this encoder takes clips.")
    training = encoder.training
    encoder.eval()
    device = next((x.device for x in encoder.parameters()), torch.device("cpu"))
    found = encoder(
        torch.zeros(1, 3, size, size, device=device), layers=tuple(range(1, encoder.depth + 1))
    ).layers
    encoder.train(training)
    return found
