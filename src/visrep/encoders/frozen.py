"""Encoders of earlier runs inside a method: teachers that stand still, and tokenizers."""

from __future__ import annotations

from itertools import chain, count
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


class NoSuchRun(ValueError):
    """A configuration's ``field`` names no finished run; the message has the command that makes one.

    It is one of the first of ``methods`` and of ``preset``, or of those that the folder is called after
    (METHOD-PRESET), and goes to that folder, or to a new one where that holds other things.
    """

    def __init__(self, field: str, folder: str, methods: tuple[str, ...], preset: str = "small32") -> None:
        self.field, self.folder, self.methods = field, folder, methods
        self.method, _, called = Path(folder).name.partition("-")
        if self.method not in methods or not called.isalnum():
            self.method, called = methods[0], preset
        out = folder if folder and _vacant(folder) else _new_name(f"runs/{self.method}-{called}")
        super().__init__(
            f"method.{field}={folder!r} names no finished run. Make one: `visrep pretrain {self.method}:{called} "
            f"--data FOLDER --out {out}`, then give its folder: --method.{field} {out}."
        )

    def asked_by(self, preset: str) -> NoSuchRun:
        """The same for a run of ``preset``, which wants one of the preset of that name."""
        return NoSuchRun(self.field, self.folder, self.methods, preset)


def _vacant(name: str) -> bool:
    folder = Path(name)
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def _new_name(name: str) -> str:
    """The name, with a number where there is something of that name."""
    return next(found for found in chain([name], (f"{name}-{i}" for i in count(2))) if _vacant(found))


def load_frozen(
    folder: str, views: Preprocessing, *, field: str, methods: tuple[str, ...]
) -> Frozen[Encoder]:
    """The encoder of the run in ``folder``, which the configuration's ``field`` names: of one of ``methods``, say.

    Raises NoSuchRun when there is none.
    """
    try:
        return Frozen(load_encoder(folder), views)
    except FileNotFoundError as error:
        raise NoSuchRun(field, folder, methods) from error


def load_tokenizer(folder: str, views: Preprocessing, *, method: str) -> Frozen[Tokenizer]:
    """The tokenizer of the run that the configuration's field ``tokenizer`` names.

    Raises NoSuchRun when there is none, ValueError when it is no tokenizer's; both name one that ``method`` makes.
    """
    frozen = load_frozen(folder, views, field="tokenizer", methods=(method,))
    if not isinstance(frozen.encoder, Tokenizer):
        raise ValueError(
            f"method.tokenizer={folder!r} is the run of an encoder that names no codes. Give the run of a "
            f"tokenizer, such as `visrep pretrain {method}:small32 --data FOLDER` makes."
        )
    return Frozen(frozen.encoder, views)
