"""Vision transformer (arXiv:2010.11929), for images of any size that is a multiple of the patch."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from visrep.encoders.checks import check_choice, check_images, check_keep, check_layers
from visrep.encoders.patches import PatchEmbed, covered, learned_tokens, patch_grid
from visrep.method import Encoder, Preprocessing, Tokens
from visrep.nn.positions import Rotary, resample, rotary_2d, sincos_2d
from visrep.nn.transformer import Block, MlpKind

Position = Literal["learned", "sincos", "rope"]
LayerKind = Literal["normed", "raw", "mlp"]
"""what a layer is: its block's output after the final norm, before it (layer 0 is then what enters the first block), or
only what the block's last part makes: in a ViT what the MLP adds"""


@dataclass(frozen=True)
class ViTLike(ABC):
    """What encoders that are stacks of blocks over patches have in common; `block` is what they differ in.

    Raises ValueError for sizes that do not divide.
    """

    has_attention: ClassVar[bool] = True
    """whether blocks compare token with token, so that there are maps of attention"""

    image: int = 224
    """side in pixels that positions are stated for; other sizes resample them"""
    patch: int = 16
    """side of a patch in pixels"""
    width: int = 384
    depth: int = 12
    heads: int = 6
    cls: bool = True
    registers: int = 0
    """extra tokens without a position (arXiv:2309.16588)"""
    mask_token: bool = False
    """a learned token that ``mask`` puts in place of patches"""
    position: Position = "learned"
    position_offset: float = 0.0
    """0.1 resamples learned positions as the published DINO code does, without antialiasing"""
    position_antialias: bool = True
    """when learned positions are resampled to fewer patches; some published models do not"""
    drop_path: float = 0.0
    """rate of the last block; grows linearly from 0 at the first"""
    norm_eps: float = 1e-6
    """added to the variance in every LayerNorm"""
    channels: int = 3

    def __post_init__(self) -> None:
        check_choice("position", self.position, get_args(Position))
        patch_grid(self.image, self.image, self.patch)
        parts = {"learned": 1, "sincos": 4, "rope": 4 * self.heads}[self.position]
        if self.width % math.lcm(self.heads, parts):
            raise ValueError(
                f"heads={self.heads} and position={self.position!r} need a width that is a multiple of "
                f"{math.lcm(self.heads, parts)}, got width={self.width}. Change width or heads."
            )
        if self.position_offset and self.position != "learned":
            raise ValueError(
                f"position_offset={self.position_offset} has no effect with position={self.position!r}. "
                "Set it to 0, or position to 'learned'."
            )

    @abstractmethod
    def block(self, drop_path: float) -> nn.Module:
        """A block with fresh weights. It is called like `visrep.nn.transformer.Block`."""

    def embedding(self) -> PatchEmbed:
        """What makes tokens of patches, with fresh weights."""
        return PatchEmbed(self.channels, self.patch, self.width)

    def last_norm(self) -> nn.LayerNorm:
        """The norm of what the last block gives."""
        return nn.LayerNorm(self.width, eps=self.norm_eps)

    @property
    def token_std(self) -> float:
        """Deviation of learned tokens and positions at the start."""
        return 0.02

    def build(self) -> VisionTransformer:
        """A network with fresh weights, drawn from torch's global generator."""
        return VisionTransformer(self)


@dataclass(frozen=True)
class ViT(ViTLike):
    """A vision transformer, by default DINO's ViT-S/16. Raises ValueError for sizes that do not divide."""

    mlp_ratio: float = 4.0
    mlp: MlpKind = "gelu"
    layer_scale: float = 0.0
    """first value of LayerScale, 0 for none"""
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        check_choice("mlp", self.mlp, get_args(MlpKind))
        super().__post_init__()

    def block(self, drop_path: float) -> Block:
        return Block(
            self.width,
            self.heads,
            mlp_ratio=self.mlp_ratio,
            mlp=self.mlp,
            qkv_bias=self.qkv_bias,
            layer_scale=self.layer_scale,
            drop_path=drop_path,
            norm_eps=self.norm_eps,
        )


@final
class VisionTransformer(Encoder):
    """See `ViTLike`. With ``keep``, patches are chosen before anything is computed, so only they cost."""

    position: Tensor | None
    """table "1 n d" added to the patches: a parameter, a buffer (sin-cos) or none (rope)"""

    def __init__(self, config: ViTLike) -> None:
        super().__init__()
        self.config: ViTLike = config
        self.width, self.depth, self.stride = config.width, config.depth, config.patch
        self.preprocessing = Preprocessing(config.image, ratio=1.0 if config.image < 96 else 0.875)
        self.grid = patch_grid(config.image, config.image, config.patch)

        self.patch_embed = config.embedding()
        std = config.token_std
        self.cls_token = learned_tokens(1, config.width, std) if config.cls else None
        self.register_tokens = (
            learned_tokens(config.registers, config.width, std) if config.registers else None
        )
        self.mask_token = learned_tokens(1, config.width, std) if config.mask_token else None
        if config.position == "sincos":
            self.register_buffer("position", sincos_2d(self.grid, config.width)[None], persistent=False)
        else:
            learned = config.position == "learned"
            self.position = learned_tokens(math.prod(self.grid), config.width, std) if learned else None
        rates = (config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth))
        self.blocks = nn.ModuleList(config.block(rate) for rate in rates)
        self.norm: nn.Module = config.last_norm()

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        *,
        keep: Int[Tensor, "b m"] | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
        warp: Float[Tensor, "b 2 2"] | None = None,
        layer_kind: LayerKind = "normed",
    ) -> Tokens:
        """Encode images; see `Encoder.forward`, `rotary_2d` for ``warp``, and `LayerKind`.

        Raises ValueError for sizes that are not a multiple of the patch, layers that do not exist, masks or
        indices that do not fit, a warp of positions that are not rotary, and maps of attention that there are none of.
        """
        check_images(images, self.config.channels)
        check_layers(layers, self.depth, first=0 if layer_kind == "raw" else 1)
        if keep is not None:
            check_keep(keep, len(images))
        if attention and not self.config.has_attention:
            raise ValueError(
                f"attention= asks for maps between tokens; {type(self.config).__name__} compares no tokens. "
                "Use a ViT or CRATE."
            )
        grid = patch_grid(images.shape[2], images.shape[3], self.config.patch)
        x = self._embed(images, grid, keep, mask)
        if warp is not None and self.config.position != "rope":
            raise ValueError(
                f"warp= changes rotary positions, and this encoder has position={self.config.position!r}. "
                "Build it with position='rope'."
            )
        rotary = self._rotary(grid, keep, warp, x.device) if self.config.position == "rope" else None

        states = {0: x}
        maps: list[Tensor] | None = [] if attention else None
        added: list[Tensor] | None = [] if layer_kind == "mlp" else None
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, rotary, maps, added)
            if number in layers:
                states[number] = x if added is None else added[-1]
        finish = self.norm if layer_kind == "normed" else nn.Identity()
        return replace(
            self._split(self.norm(x), grid),
            layers=tuple(self._split(finish(states[layer]), grid) for layer in layers),
            attention=None if maps is None else torch.stack(maps),
        )

    def _embed(
        self, images: Tensor, grid: tuple[int, int], keep: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """All tokens before the first block, "b n d": cls, registers, patches."""
        x = self.patch_embed(images, keep)
        if mask is not None:
            x = covered(x, mask, keep, grid, self.mask_token)
        if self.position is not None:
            position = self.positions(self.position, grid)
            x = x + (position if keep is None else position[0, keep])
        front = [t for t in (self.cls_token, self.register_tokens) if t is not None]
        return torch.cat([*(t.expand(len(x), -1, -1) for t in front), x], dim=1)

    def positions(self, position: Tensor, grid: tuple[int, int]) -> Tensor:
        """The table "1 n d" for a grid of other rows and columns of patches, "1 m d"."""
        if grid == self.grid:
            return position
        if self.config.position == "sincos":
            return sincos_2d(grid, self.width, trained=self.grid)[None].to(position)
        offset, antialias = self.config.position_offset, self.config.position_antialias
        return resample(position, self.grid, grid, offset=offset, antialias=antialias)

    def _rotary(
        self, grid: tuple[int, int], keep: Tensor | None, warp: Tensor | None, device: torch.device
    ) -> Rotary:
        """Angles of all tokens; cls and registers are not turned."""
        rotary = rotary_2d(grid, self.width // self.config.heads, warp=warp, device=device)
        return (rotary if keep is None else rotary.keep(keep)).after(self.config.cls + self.config.registers)

    def _split(self, x: Tensor, grid: tuple[int, int]) -> Tokens:
        """All tokens "b n d", by kind."""
        front = [int(self.config.cls), self.config.registers]
        cls, registers, patches = x.split_with_sizes([*front, x.shape[1] - sum(front)], dim=1)
        return Tokens(
            patches=patches,
            grid=grid,
            cls=cls.squeeze(1) if self.config.cls else None,
            registers=registers if self.config.registers else None,
        )
