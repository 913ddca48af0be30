"""The encoder of DALL-E's discrete VAE (arXiv:2102.12092), without the ReLU and the layer that name codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from visrep.encoders.checks import check_images, check_layers, check_whole
from visrep.method import Encoder, Preprocessing, Tokens
from visrep.nn.dalle import convolution, group


@dataclass(frozen=True)
class DalleNet:
    """Groups of residual convolutions without normalisation, with max pooling between them. DALL-E's by default."""

    width: int = 256
    """channels at full resolution, doubled at each lower one; divisible by 4"""
    groups: int = 4
    """resolutions: a token covers 2 ** (groups - 1) pixels each way"""
    blocks: int = 2
    """residual blocks a group"""

    def build(self) -> DalleEncoder:
        """A network with fresh weights, drawn from torch's global generator."""
        return DalleEncoder(self)


@final
class DalleEncoder(Encoder):
    """See `DalleNet`. Layers are the groups; patches are the cells of the last one's map."""

    def __init__(self, config: DalleNet) -> None:
        super().__init__()
        self.config: DalleNet = config
        self.width, self.depth = config.width * 2 ** (config.groups - 1), config.groups
        self.stride = 2 ** (config.groups - 1)
        self.preprocessing = Preprocessing(32, ratio=1.0)
        gain = (config.groups * config.blocks) ** -2
        self.embed = convolution(3, config.width, 7)
        self.groups = nn.ModuleList(
            group(max(w // 2, config.width), w, config.blocks, (3, 3, 3, 1), gain)
            for w in (config.width * 2**i for i in range(config.groups))
        )

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        *,
        keep: Int[Tensor, "b m"] | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode images; see `Encoder.forward`. Raises ValueError for keep, mask and attention."""
        check_whole("DalleNet", keep, mask, attention)
        check_images(images, 3)
        check_layers(layers, self.depth)
        x = self.embed(images.contiguous(memory_format=torch.channels_last))
        stages: list[Tokens] = []
        for i, blocks in enumerate(self.groups):
            x = blocks(x if i == 0 else F.max_pool2d(x, 2))
            grid = (x.shape[2], x.shape[3])
            stages.append(Tokens(patches=x.flatten(2).transpose(1, 2), grid=grid))
        last = stages[-1]
        return Tokens(last.patches, last.grid, layers=tuple(stages[layer - 1] for layer in layers))
