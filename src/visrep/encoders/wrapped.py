"""Encoders of other libraries behind the interface of ours: what their configurations have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from visrep.method import Encoder


@dataclass(frozen=True)
class Wrapped(ABC):
    """A network as another library builds it. It encodes whole images: it cannot hide or leave out patches."""

    @abstractmethod
    def build(self) -> Encoder:
        """A network with fresh weights."""
