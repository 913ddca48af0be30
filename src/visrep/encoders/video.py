"""Vision transformer for clips (arXiv:2203.12602, arXiv:2506.09985): patches reach over some frames."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from visrep.encoders.checks import check_choice, check_keep, check_layers
from visrep.encoders.patches import covered, learned_tokens, patch_grid, take
from visrep.method import Encoder, Preprocessing, Tokens
from visrep.nn.positions import Rotary
from visrep.nn.positions_video import Grid, rotary_3d, sincos_3d, sincos_sequence
from visrep.nn.transformer import Block

Position = Literal["sequence", "sincos", "rope"]
TABLES = {"sequence": sincos_sequence, "sincos": sincos_3d}


@dataclass(frozen=True)
class VideoViT:
    """A vision transformer for clips, by default VideoMAE's ViT-B. Raises ValueError for sizes that do not divide."""

    frames: int = 16
    """of a clip, that positions are stated for; others resample them, and so do other sizes"""
    image: int = 224
    """side of a frame in pixels"""
    tubelet: int = 2
    """frames of a patch"""
    patch: int = 16
    """side of a patch in pixels"""
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    position: Position = "sequence"
    """``sequence``: a table along all patches (VideoMAE); ``sincos``: one an axis (V-JEPA); ``rope``: V-JEPA 2"""
    drop_path: float = 0.0
    """rate of the last block; grows linearly from 0 at the first"""
    norm_eps: float = 1e-6
    """added to the variance in every LayerNorm"""
    channels: int = 3
    mask_token: bool = False
    """learn a token that stands for hidden patches, for methods whose encoder sees it"""

    def __post_init__(self) -> None:
        check_choice("position", self.position, get_args(Position))
        clip_grid(self.frames, self.image, self.image, self.tubelet, self.patch)
        if self.width % math.lcm(2, self.heads):
            raise ValueError(
                f"heads={self.heads} need an even width that is a multiple of it, got width={self.width}. "
                "Change width or heads."
            )

    def build(self) -> VideoTransformer:
        """A network with fresh weights, drawn from torch's global generator."""
        return VideoTransformer(self)


def clip_grid(frames: int, height: int, width: int, tubelet: int, patch: int) -> Grid:
    """Times, rows and columns of patches in a clip. Raises ValueError when it does not divide."""
    if frames < tubelet or frames % tubelet:
        raise ValueError(
            f"A clip of {frames} frames does not divide into patches of {tubelet}. The nearest number that does is "
            f"{max(1, round(frames / tubelet)) * tubelet}."
        )
    return frames // tubelet, *patch_grid(height, width, patch)


def cut(clips: Float[Tensor, "b t c h w"], tubelet: int, patch: int) -> Float[Tensor, "b n c k p p"]:
    """The patches of clips, moment by moment and row by row, each with its k frames of p x p pixels by channel.

    Raises ValueError for clips that do not divide.
    """
    b, t, c, h, w = clips.shape
    times, rows, columns = clip_grid(t, h, w, tubelet, patch)
    cells = clips.reshape(b, times, tubelet, c, rows, patch, columns, patch)
    return cells.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(1, 3)


def paste(patches: Float[Tensor, "b n c k p p"], grid: Grid) -> Float[Tensor, "b t c h w"]:
    """Undo `cut` for a grid of patches."""
    cells = patches.unflatten(1, grid).permute(0, 1, 5, 4, 2, 6, 3, 7)  # b times k c rows p columns p
    return cells.flatten(6, 7).flatten(4, 5).flatten(1, 2)


@final
class TubeletEmbed(nn.Module):
    """One linear map of the pixels of each patch: the usual strided convolution, its kernel flattened."""

    def __init__(self, channels: int, tubelet: int, patch: int, width: int) -> None:
        super().__init__()
        self.tubelet, self.patch = tubelet, patch
        self.proj = nn.Linear(channels * tubelet * patch**2, width)

    def forward(
        self, clips: Float[Tensor, "b t c h w"], keep: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        pixels = cut(clips, self.tubelet, self.patch).flatten(2)  # b n (c k p p)
        return self.proj(pixels if keep is None else take(pixels, keep))


@final
class VideoTransformer(Encoder):
    """See `VideoViT`. With ``keep``, patches are chosen before anything is computed, so only they cost."""

    position: Tensor | None
    """table "n d" added to the patches, or none (rope)"""

    def __init__(self, config: VideoViT) -> None:
        super().__init__()
        self.config: VideoViT = config
        self.width, self.depth, self.stride = config.width, config.depth, config.patch
        ratio = 1.0 if config.image < 96 else 0.875
        self.preprocessing = Preprocessing(config.image, ratio, frames=config.frames)
        self.grid = clip_grid(config.frames, config.image, config.image, config.tubelet, config.patch)

        self.patch_embed = TubeletEmbed(config.channels, config.tubelet, config.patch, config.width)
        table = None if config.position == "rope" else TABLES[config.position](self.grid, config.width)
        self.register_buffer("position", table, persistent=False)
        self.mask_token = learned_tokens(1, config.width) if config.mask_token else None
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                drop_path=config.drop_path * i / max(1, config.depth - 1),
                norm_eps=config.norm_eps,
            )
            for i in range(config.depth)
        )
        self.norm: nn.Module = nn.LayerNorm(config.width, eps=config.norm_eps)

    def forward(
        self,
        images: Float[Tensor, "b t c h w"],
        *,
        keep: Int[Tensor, "b m"] | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode clips; see `Encoder.forward`.

        Raises ValueError for images, sizes that do not divide, layers that do not exist, masks or indices that do not
        fit.
        """
        if images.ndim != 5 or images.shape[2] != self.config.channels:
            raise ValueError(
                f"Expected clips 'b t c h w' with {self.config.channels} channels, got shape {tuple(images.shape)}."
            )
        check_layers(layers, self.depth)
        if keep is not None:
            check_keep(keep, len(images))
        _, t, _, height, width = images.shape
        grid = clip_grid(t, height, width, self.config.tubelet, self.config.patch)
        x = self.patch_embed(images, keep)
        if mask is not None:
            x = covered(x, mask, keep, grid, self.mask_token)
        if self.position is not None:
            position = self._table(grid)
            x = x + (position if keep is None else position[keep])
        rotary = self._rotary(grid, keep, x) if self.config.position == "rope" else None

        states: dict[int, Tensor] = {}
        maps: list[Tensor] | None = [] if attention else None
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, rotary, maps)
            if number in layers or number == self.depth:
                states[number] = self.norm(x)
        return replace(
            Tokens(states[self.depth], grid),
            layers=tuple(Tokens(states[layer], grid) for layer in layers),
            attention=None if maps is None else torch.stack(maps),
        )

    def _table(self, grid: Grid) -> Tensor:
        assert self.position is not None
        if grid == self.grid:
            return self.position
        table = TABLES[self.config.position](grid, self.width, trained=self.grid)
        return table.to(self.position)

    def _rotary(self, grid: Grid, keep: Tensor | None, x: Tensor) -> Rotary:
        dtype = torch.promote_types(x.dtype, torch.float32)
        rotary = rotary_3d(grid, self.width // self.config.heads, device=x.device, dtype=dtype)
        return rotary if keep is None else rotary.keep(keep)
