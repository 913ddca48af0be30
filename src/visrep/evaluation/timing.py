"""How long an evaluation took, protocol by protocol, and its passes over the images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PASS = "passes over the images"
"""of encoders, whose features the protocols then read"""


class Clock:
    """Adds up seconds by what was done while a measurement lasts; outside of one it does nothing.

    What is timed within something else counts for itself and not for the other.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] | None = None
        self._within = 0.0
        """seconds of what was timed within the work in progress"""

    @contextmanager
    def measuring(self) -> Iterator[dict[str, float]]:
        """Yields seconds by name, which grow until the end."""
        outer, self.seconds = self.seconds, {}
        try:
            yield self.seconds
        finally:
            self.seconds = outer

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Counts its body, also when it fails."""
        begun, before = time.perf_counter(), self._within
        self._within = 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - begun
            if self.seconds is not None:
                self.seconds[what] = self.seconds.get(what, 0.0) + spent - self._within
            self._within = before + spent


CLOCK = Clock()
