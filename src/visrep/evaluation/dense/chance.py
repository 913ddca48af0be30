"""Random numbers of single views."""

from __future__ import annotations

import torch


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    """Evenly from an interval."""
    return low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))


def below(rng: torch.Generator, n: int) -> int:
    """One of the numbers 0 to n - 1."""
    return int(torch.randint(n, (), generator=rng))


def happens(rng: torch.Generator, p: float) -> bool:
    """With this probability."""
    return uniform(rng, 0, 1) < p
