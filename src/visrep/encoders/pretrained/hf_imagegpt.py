"""ImageGPT of `transformers` (Chen et al. 2020): an image is a sequence of colours of a palette."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from visrep.encoders.checks import check_images, check_layers, check_whole
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.wrapped import Wrapped
from visrep.method import Encoder, Preprocessing, Tokens

PALETTE = "clusters"
"""where ``preprocessor_config.json`` keeps the colours, in [-1, 1]"""


@dataclass(frozen=True)
class ImageGPT(Wrapped):
    """An ImageGPT with its palette."""

    description: str
    """its configuration as JSON: the contents of ``config.json``"""
    palette: tuple[tuple[float, float, float], ...]
    """red, green and blue in [-1, 1] of each colour"""

    def build(self) -> ImageGPTEncoder:
        """A network with fresh weights."""
        transformers = extra("transformers")
        config = transformers.ImageGPTConfig.from_dict(json.loads(self.description))
        return ImageGPTEncoder(self, transformers.ImageGPTModel(config))


def imagegpt(model: nn.Module, said: dict[str, Any]) -> ImageGPTEncoder:
    """The encoder around a model of transformers, in evaluation mode; ``said``: the ``preprocessor_config.json``.

    Raises ValueError without a palette, which says what the model's numbers mean, and for one of another length.
    """
    config: Any = model.config
    if PALETTE not in said:
        raise ValueError(
            "an ImageGPT needs the colours of its palette, which preprocessor_config.json has under "
            f"{PALETTE!r}. Fetch that file of the model too and put it beside config.json."
        )
    palette = tuple((float(r), float(g), float(b)) for r, g, b in said[PALETTE])
    if len(palette) > config.vocab_size:
        raise ValueError(
            f"this ImageGPT knows {config.vocab_size} colours and preprocessor_config.json has {len(palette)}: the "
            "files are of different models."
        )
    description = json.dumps(config.to_dict(), sort_keys=True)
    return ImageGPTEncoder(ImageGPT(description, palette), model).eval()


@final
class ImageGPTEncoder(Encoder):
    """See `ImageGPT`. A token is a pixel and knows those before it alone; layers are blocks through the last norm."""

    palette: Tensor

    def __init__(self, config: ImageGPT, model: nn.Module) -> None:
        super().__init__()
        self.config: ImageGPT = config
        self.model = model
        values = json.loads(config.description)
        self.side = math.isqrt(values["n_positions"])
        self.width, self.depth, self.stride = values["n_embd"], values["n_layer"], 1
        half = (0.5, 0.5, 0.5)
        self.preprocessing = Preprocessing(self.side, ratio=1.0, mean=half, std=half)
        self.register_buffer("palette", torch.tensor(config.palette), persistent=False)

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode images; see `Encoder.forward`. Raises ValueError for keep, mask and attention, and for other sizes."""
        check_whole("wrapped ImageGPTModel", keep, mask, attention)
        check_images(images, 3)
        check_layers(layers, self.depth)
        if tuple(images.shape[2:]) != (self.side, self.side):
            raise ValueError(
                f"this ImageGPT counts the pixels of images of {self.side} x {self.side}, got "
                f"{images.shape[2]} x {images.shape[3]}. Resize them."
            )
        out = self.model(self.colours(images), use_cache=False, output_hidden_states=True)
        own: Any = self.model
        grid = (self.side, self.side)

        def tokens(layer: int) -> Tokens:
            last = layer == self.depth
            return Tokens(out.last_hidden_state if last else own.ln_f(out.hidden_states[layer]), grid)

        return replace(tokens(self.depth), layers=tuple(map(tokens, layers)))

    def colours(self, images: Float[Tensor, "b 3 h w"]) -> Int64[Tensor, "b n"]:
        """The nearest colour of the palette of each pixel, row by row."""
        pixels = images.flatten(2).transpose(1, 2)  # b n 3
        own = self.palette.to(images)
        return (own.square().sum(1) - 2 * pixels @ own.T).argmin(-1)
