"""An encoder as a module from images to a dictionary of tensors, which other tools can record.

``features`` "b d" is the vector that `visrep evaluate` judges: the cls token, or the mean of all patches where there is
none. ``patches`` "b d rows columns" is the map of the last layer, ``registers`` "b r d" only where there are some.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from visrep.encoders import ConvNet, ResNet, VideoViT, ViTLike
from visrep.encoders.crate import NormedPatchEmbed
from visrep.encoders.vit import VisionTransformer
from visrep.exports import positions
from visrep.method import Encoder, Tokens

NAMES = ("features", "patches", "registers")
"""what a recorded encoder returns, in this order"""


def named_outputs(tokens: Tokens) -> dict[str, Tensor]:
    """The tokens of the last layer under the names of `NAMES`."""
    maps = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid)
    outputs = {"features": tokens.pool(), "patches": maps}
    return outputs if tokens.registers is None else {**outputs, "registers": tokens.registers}


@final
class Traced(nn.Module):
    """Any encoder. Whether its record serves other sizes than the one that it saw is tried out."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return named_outputs(self.encoder(images))


@final
class TracedVit(nn.Module):
    """A stack of blocks over patches without choices that depend on the size of the image."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit, self.config, self.grid = vit, vit.config, vit.grid
        self.front = [x for x in (vit.cls_token, vit.register_tokens) if x is not None]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        c, table = self.config, self.vit.position
        rows, columns = images.shape[2] // c.patch, images.shape[3] // c.patch
        x, angles = self._embedded(images), None
        if c.position == "learned" and table is not None:
            table = table[0].unflatten(0, self.grid)
            offset, antialias = c.position_offset, c.position_antialias
            x = x + positions.learned(table, rows, columns, offset=offset, antialias=antialias)
        elif c.position == "sincos":
            x = x + positions.sincos(self.grid, rows, columns, c.width)
        else:
            angles = positions.rotary(rows, columns, c.width // c.heads, c.cls + c.registers)
        x = torch.cat([*(token.expand(x.shape[0], -1, -1) for token in self.front), x], dim=1)
        for block in self.vit.blocks:
            x = block(x, angles)
        x, first = self.vit.norm(x), c.cls + c.registers
        tokens = Tokens(
            patches=x[:, first:],
            grid=(rows, columns),
            cls=x[:, 0] if c.cls else None,
            registers=x[:, c.cls : first] if c.registers else None,
        )
        return named_outputs(tokens)

    def _embedded(self, images: Tensor) -> Tensor:
        """Patches without positions, "b n d": by a strided convolution where it is one."""
        embed, c = self.vit.patch_embed, self.config
        if isinstance(embed, NormedPatchEmbed):
            return embed(images)
        kernel = embed.proj.weight.unflatten(1, (c.channels, c.patch, c.patch))
        return F.conv2d(images, kernel, embed.proj.bias, stride=c.patch).flatten(2).transpose(1, 2)


def traceable(encoder: Encoder) -> nn.Module:
    """The encoder as a module that can be recorded, in evaluation mode and without gradients."""
    module = TracedVit(encoder) if isinstance(encoder, VisionTransformer) else Traced(encoder)
    return module.eval()


def example(encoder: Encoder, b: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Random images, or clips, as the encoder takes them."""
    config, frames = encoder.config, encoder.preprocessing.frames
    channels = config.channels if isinstance(config, ViTLike | ResNet | ConvNet | VideoViT) else 3
    shape = (b, *([frames] if frames else []), channels, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def other_size(encoder: Encoder) -> tuple[int, int]:
    """Height and width of an image that is neither square nor of the encoder's own size."""
    size, stride = encoder.preprocessing.size, encoder.stride
    n = max(2, size // stride)
    return (n + 1) * stride, (n + 3) * stride


def exported_program(encoder: Encoder) -> ExportedProgram:
    """The encoder recorded by `torch.export`: any batch, any size where the encoder allows it, else its own size."""
    module, size = traceable(encoder), encoder.preprocessing.size
    # a single patch is a case of its own to recorders, and windows padded to any size keep them busy for many minutes
    if encoder.preprocessing.frames or size < 2 * encoder.stride or has_windows(encoder):
        return _recorded(module, example(encoder, 2, size, size), {0: Dim("batch")})
    least = encoder.stride + 1
    sides: dict[int, object] = {2: Dim("height", min=least), 3: Dim("width", min=least)}
    if isinstance(module, TracedVit):
        sides = {side: encoder.stride * Dim(name) for side, name in ((2, "rows"), (3, "columns"))}
    try:
        return _recorded(module, example(encoder, 2, *other_size(encoder)), {0: Dim("batch"), **sides})
    except (RuntimeError, ValueError, TypeError):  # a choice within the encoder depends on the size
        return _recorded(module, example(encoder, 2, size, size), {0: Dim("batch")})


def has_windows(encoder: Encoder) -> bool:
    """Whether it is a Swin, ours, timm's or of transformers."""
    return any(type(part).__name__.startswith("Swin") for part in encoder.modules())


def _recorded(module: nn.Module, images: Tensor, dynamic: dict[int, object]) -> ExportedProgram:
    with quietly(), torch.no_grad():
        return torch.export.export(
            module,
            (images,),
            dynamic_shapes=(dynamic,),
            strict=False,
            # of convolutions, conditions on the size that cannot be proved are checked when the size is known
            prefer_deferred_runtime_asserts_over_guards=not isinstance(module, TracedVit),
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings that recorders give to authors of models, and other packages to each other."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
