"""Tokenizers: encoders that also name each patch by one of k codes. What a tokenizer's run folder holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, final, get_args

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from visrep.encoders.checks import check_choice
from visrep.encoders.dalle import DalleNet
from visrep.encoders.vit import ViTLike
from visrep.method import Encoder, Preprocessing, Tokens
from visrep.nn.quantizer import Codebook, CosineCodebook, EuclideanCodebook
from visrep.nn.transformer import linear

Metric = Literal["cosine", "euclidean"]


@dataclass(frozen=True)
class LogitTokenizer:
    """A patch's code is the greatest of k logits, as in a discrete VAE."""

    encoder: DalleNet
    codes: int
    """k"""

    def build(self) -> LogitTokens:
        """A network with fresh weights, drawn from torch's global generator."""
        return LogitTokens(self)


@dataclass(frozen=True)
class CodebookTokenizer:
    """A patch's code is the nearest of k vectors."""

    encoder: ViTLike | DalleNet
    codes: int
    """k"""
    width: int
    """of a code"""
    metric: Metric
    """cosine: after an MLP with tanh, as in VQ-KD; euclidean: after a linear map, as in VQ-VAE"""

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, get_args(Metric))

    def build(self) -> CodebookTokens:
        """A network with fresh weights, drawn from torch's global generator."""
        return CodebookTokens(self)


class Tokenizer(Encoder, ABC):
    """An encoder that names patches. As an encoder it gives the features from which codes are chosen."""

    def __init__(self, config: LogitTokenizer | CodebookTokenizer) -> None:
        super().__init__()
        self.backbone: Encoder = config.encoder.build()
        self.config, self.codes = config, config.codes
        self.width, self.depth, self.stride = self.backbone.width, self.backbone.depth, self.backbone.stride
        self.preprocessing: Preprocessing = self.backbone.preprocessing

    @abstractmethod
    def latents(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b n q"]:
        """What a patch's code is chosen by."""

    @abstractmethod
    def choose(self, latents: Float[Tensor, "b n q"]) -> Int[Tensor, "b n"]:
        """The code of each patch."""

    @abstractmethod
    def vectors(self) -> Float[Tensor, "k q"]:
        """One vector a code; similar codes have similar ones."""

    def tokens(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b n"]:
        """The code of each patch of the images."""
        return self.choose(self.latents(self(images).patches))

    def forward(
        self,
        images: Float[Tensor, "b c h w"],
        *,
        keep: Int[Tensor, "b m"] | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Features; see `Encoder.forward`."""
        return self.backbone(images, keep=keep, mask=mask, layers=layers, attention=attention)


@final
class LogitTokens(Tokenizer):
    """See `LogitTokenizer`."""

    def __init__(self, config: LogitTokenizer) -> None:
        super().__init__(config)
        self.project = nn.Linear(self.width, config.codes)
        nn.init.normal_(self.project.weight, std=self.width**-0.5)  # as in DALL-E
        nn.init.zeros_(self.project.bias)

    def latents(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b n q"]:
        return self.project(patches.relu())

    def choose(self, latents: Float[Tensor, "b n q"]) -> Int[Tensor, "b n"]:
        return latents.argmax(-1)

    def vectors(self) -> Float[Tensor, "k q"]:
        return self.project.weight.detach()


@final
class CodebookTokens(Tokenizer):
    """See `CodebookTokenizer`."""

    def __init__(self, config: CodebookTokenizer) -> None:
        super().__init__(config)
        self.codebook: Codebook
        if config.metric == "cosine":
            mlp = linear(self.width, self.width), nn.Tanh(), linear(self.width, config.width)
            self.project = nn.Sequential(*mlp)
            self.codebook = CosineCodebook(config.codes, config.width)
        else:
            self.project = nn.Linear(self.width, config.width)
            self.codebook = EuclideanCodebook(config.codes, config.width)

    def latents(self, patches: Float[Tensor, "b n d"]) -> Float[Tensor, "b n q"]:
        return self.project(patches)

    def choose(self, latents: Float[Tensor, "b n q"]) -> Int[Tensor, "b n"]:
        return self.codebook.nearest(latents)

    def vectors(self) -> Float[Tensor, "k q"]:
        return self.codebook.codes
