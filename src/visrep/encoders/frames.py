"""An encoder of images applied to clips: each frame alone, vectors averaged. What can be told without order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Float
from torch import Tensor

from visrep.method import Encoder, Tokens


@dataclass(frozen=True)
class OnFrames:
    """An encoder of clips made of one of images, by its configuration."""

    encoder: Any

    def build(self) -> FrameAverage:
        """A network with fresh weights, drawn from torch's global generator."""
        return FrameAverage(self.encoder.build())


@final
class FrameAverage(Encoder):
    """Patches are those of all frames; the cls token, where there is one, is the mean of the frames'."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = OnFrames(encoder.config)
        self.width, self.depth, self.stride = encoder.width, encoder.depth, encoder.stride
        self.preprocessing = encoder.preprocessing

    def forward(
        self,
        images: Float[Tensor, "b t c h w"],
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode clips. Raises ValueError for what mixes frames or picks patches of them."""
        if keep is not None or mask is not None or attention:
            raise ValueError(
                "frames are encoded one by one: keep=, mask= and attention= are not possible here."
            )
        b, t = images.shape[:2]
        found = self.encoder(images.flatten(0, 1), layers=layers)
        return _joined(found, b, t, tuple(_joined(layer, b, t, ()) for layer in found.layers))


def applied_to(encoder: Encoder, frames: int) -> Encoder:
    """The encoder for clips of ``frames`` frames: a `FrameAverage` of it where it is one of images. 0: for images."""
    return FrameAverage(encoder) if frames and not encoder.preprocessing.frames else encoder


def _joined(tokens: Tokens, b: int, t: int, layers: tuple[Tokens, ...]) -> Tokens:
    """The tokens of all frames of a clip together."""

    def over_frames(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.unflatten(0, (b, t)).mean(1)

    patches = tokens.patches.unflatten(0, (b, t)).flatten(1, 2)
    return Tokens(patches, (t, *tokens.grid), over_frames(tokens.cls), over_frames(tokens.registers), layers)
