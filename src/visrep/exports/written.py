"""What every target says of what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from visrep.method import Encoder


@dataclass(frozen=True)
class Written:
    """The files of a target, as far as a user must know them."""

    tool: str
    """what loads them, in words"""
    snippet: str
    """Python that runs in the folder and makes ``features`` of ``images``"""
    notes: tuple[str, ...] = ()
    """where the result differs from the encoder, as sentences"""


@runtime_checkable
class Target(Protocol):
    """The two functions of a target's file."""

    def write(self, encoder: Encoder, folder: Path) -> Written:
        """Write the files. Raises ValueError, with what is possible instead, where the target cannot express it."""
        ...

    def load(self, folder: Path) -> Callable[[Tensor], Tensor]:
        """Load them as the other tool does: a function from images to features "b d"."""
        ...
