"""Some labelled images of every class, drawn several times: how much does it help to have few labels?"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor


@dataclass(frozen=True)
class Amount:
    """How many images of each class have labels: all, so many, or a percentage."""

    each: int = 0
    """images of a class"""
    percent: float = 0.0

    @property
    def everything(self) -> bool:
        return not self.each and not self.percent

    def of(self, count: int) -> int:
        """Of a class of ``count`` images; at least one, at most all."""
        if self.everything:
            return count
        wanted = self.each or round(count * self.percent / 100)
        return min(max(wanted, 1), count)


def amount(text: str) -> Amount:
    """ "" for all, "10%" for a tenth of each class, "5" for five images of each. Raises ValueError for others."""
    if not text:
        return Amount()
    number = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    if number and number[2] and 0 < float(number[1]) < 100:
        return Amount(percent=float(number[1]))
    if number and not number[2] and number[1].isdecimal() and int(number[1]) > 0:
        return Amount(each=int(number[1]))
    raise ValueError(
        f"{text!r} is no amount of labels. Write a percentage of each class between 0 and 100 (10%), or a number of "
        "images of each class (5); leave it out for all."
    )


def draw_labelled(
    labels: Int64[Tensor, " n"], wanted: Amount, *, seed: int, draw: int
) -> Int64[Tensor, " l"]:
    """Sorted positions of as many images of each class as wanted.

    Drawn by (seed, draw): a smaller amount of the same draw is a part of a larger one.
    """
    rng = np.random.default_rng([seed, draw])
    known = labels.cpu().numpy()
    orders = [rng.permutation(np.flatnonzero(known == label)) for label in np.unique(known)]
    chosen = np.concatenate([order[: wanted.of(len(order))] for order in orders])
    return torch.as_tensor(np.sort(chosen), device=labels.device)
