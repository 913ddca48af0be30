"""Swin Transformer (arXiv:2103.14030): attention within windows that shift, and patches that merge from stage to stage.

The network is timm's. What is added is a mask token, put in place of embedded patches before the first stage as SimMIM
does (arXiv:2111.09886), so that masked image modelling can train it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

from jaxtyping import Bool, Float
from torch import Tensor, nn

from visrep.encoders.checks import check_images, check_layers, check_whole
from visrep.encoders.patches import covered, learned_tokens, patch_grid
from visrep.encoders.pretrained.extras import extra
from visrep.method import Encoder, Preprocessing, Tokens

LEAST_WINDOW = 4
WINDOWS = 8
"""along an image in the first stage, as published: 56 patches and windows of 7, of 192 pixels 48 and 6"""


@dataclass(frozen=True)
class Swin:
    """A Swin Transformer, by default the published Swin-T. Raises ValueError for sizes that do not divide."""

    image: int = 224
    """side in pixels that windows are chosen for; other sizes are possible"""
    patch: int = 4
    """side in pixels of what is embedded at first; a token at the end covers twice as much a stage after the first"""
    width: int = 96
    """of the first stage; doubles in each other one"""
    depths: tuple[int, ...] = (2, 2, 6, 2)
    """blocks of each stage"""
    heads: tuple[int, ...] = (3, 6, 12, 24)
    """of each stage"""
    window: int = 0
    """patches along a window; 0 for an eighth of those along the image, as published, at least 4"""
    mask_token: bool = False
    """a learned token that ``mask`` puts in place of patches"""
    drop_path: float = 0.0
    """rate of the last block; grows linearly from 0 at the first"""
    channels: int = 3

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.heads) or not self.depths:
            raise ValueError(
                f"depths={self.depths} and heads={self.heads} need a number for each stage: as many of both."
            )
        patch_grid(self.image, self.image, self.stride)
        for stage, heads in enumerate(self.heads):
            if self.width * 2**stage % heads:
                raise ValueError(
                    f"heads={heads} of stage {stage + 1} must divide its width {self.width * 2**stage}. Change width "
                    "or heads."
                )

    @property
    def stride(self) -> int:
        """Side in pixels of what a token of the last stage stands for."""
        return self.patch * 2 ** (len(self.depths) - 1)

    @property
    def window_size(self) -> int:
        """Patches along a window."""
        return self.window or max(LEAST_WINDOW, self.image // self.patch // WINDOWS)

    def build(self) -> SwinEncoder:
        """A network with fresh weights, drawn from torch's global generator. Raises ImportError without timm."""
        return SwinEncoder(self)


@final
class SwinEncoder(Encoder):
    """See `Swin`. Layers are stages, each on its own grid; the last is passed through the final norm."""

    def __init__(self, config: Swin) -> None:
        super().__init__()
        self.config: Swin = config
        self.depth = len(config.depths)
        self.width = config.width * 2 ** (self.depth - 1)
        self.stride = config.stride
        self.preprocessing = Preprocessing(config.image, ratio=1.0 if config.image < 96 else 0.875)
        self.model: nn.Module = extra("timm").models.swin_transformer.SwinTransformer(
            img_size=config.image,
            patch_size=config.patch,
            in_chans=config.channels,
            num_classes=0,
            embed_dim=config.width,
            depths=config.depths,
            num_heads=config.heads,
            window_size=config.window_size,
            drop_path_rate=config.drop_path,
            strict_img_size=False,
        )
        self.mask_token = learned_tokens(1, config.width) if config.mask_token else None

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        *,
        keep: Tensor | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode images; see `Encoder.forward`. ``mask`` is of the patches that are embedded, finer than the tokens.

        Raises ValueError for keep and attention, for masks without a mask token, and for sizes that do not divide.
        """
        check_whole("Swin", keep, None, attention)
        check_images(images, self.config.channels)
        check_layers(layers, self.depth)
        patch_grid(images.shape[2], images.shape[3], self.stride)
        own: Any = self.model
        x = own.patch_embed(images)  # b rows columns d
        if mask is not None:
            grid = (x.shape[1], x.shape[2])
            x = covered(x.flatten(1, 2), mask, None, grid, self.mask_token).unflatten(1, grid)
        stages: list[Tokens] = []
        for number, stage in enumerate(own.layers, start=1):
            x = stage(x)
            state = own.norm(x) if number == self.depth else x
            stages.append(Tokens(state.flatten(1, 2), (x.shape[1], x.shape[2])))
        return replace(stages[-1], layers=tuple(stages[layer - 1] for layer in layers))
