"""Encoders of earlier runs inside a method: teachers that stand still, and tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Generic, TypeVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.encoders.saved import load_encoder
from visrep.encoders.tokenizer import Tokenizer
from visrep.method import Encoder, Preprocessing

E = TypeVar("E", bound=Encoder)


@final
class Frozen(nn.Module, Generic[E]):
    """A finished encoder: saved with the method that uses it, never trained, always in evaluation mode.

    ``views``: how the images are normalised that it will be given.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: E, views: Preprocessing) -> None:
        super().__init__()
        self.encoder: E = encoder.requires_grad_(False)
        own = encoder.preprocessing
        mean, std, own_mean, own_std = (
            torch.tensor(values).view(3, 1, 1) for values in (views.mean, views.std, own.mean, own.std)
        )
        self.register_buffer("scale", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)
        self.train()

    def train(self, mode: bool = True) -> Frozen[E]:
        super().train(False)
        return self

    def fit(
        self, images: Float[Tensor, "b c h w"], grid: tuple[int, ...] | None = None
    ) -> Float[Tensor, "b c p q"]:
        """Images as the encoder knows them: its normalisation and, where a ``grid`` is given, so many patches."""
        images = images * self.scale + self.shift
        if grid is None:
            return images
        size = [n * self.encoder.stride for n in grid]
        return (
            F.interpolate(images, size=size, mode="bicubic", antialias=True)
            if size != [*images.shape[2:]]
            else images
        )


def load_frozen(
    folder: str, views: Preprocessing, *, field: str, methods: tuple[str, ...]
) -> Frozen[Encoder]:
    """The encoder of the run in ``folder``, which the configuration's ``field`` names.

    Raises ValueError when there is none, with the command that makes one: with the one of ``methods`` that the folder
    is called after (METHOD-PRESET), else with the first.
    """
    try:
        return Frozen(load_encoder(folder), views)
    except FileNotFoundError as error:
        out = folder or f"runs/{methods[0]}-small32"
        method, _, preset = Path(out).name.partition("-")
        if method not in methods or not preset.isalnum():
            method, preset = methods[0], "small32"
        raise ValueError(
            f"method.{field}={folder!r} names no finished run. Make one: `visrep pretrain {method}:{preset} "
            f"--data FOLDER --out {out}`, then give its folder: --method.{field} {out}."
        ) from error


def load_tokenizer(folder: str, views: Preprocessing, *, method: str) -> Frozen[Tokenizer]:
    """The tokenizer of the run that the configuration's field ``tokenizer`` names.

    Raises ValueError, with the command that makes one with ``method``, when there is none, or no tokenizer in it.
    """
    frozen = load_frozen(folder, views, field="tokenizer", methods=(method,))
    if not isinstance(frozen.encoder, Tokenizer):
        raise ValueError(
            f"method.tokenizer={folder!r} is the run of an encoder that names no codes. Give the run of a "
            f"tokenizer, such as `visrep pretrain {method}:small32 --data FOLDER` makes."
        )
    return Frozen(frozen.encoder, views)
