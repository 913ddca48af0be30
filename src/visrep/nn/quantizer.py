"""Codebooks: vectors are replaced by the nearest of k codes, which follow them by a moving average.

State of the run, the same on every rank. A loss takes what the batch says of the codes with `Codebook.counted` and
carries it to `after_step`, where `Codebook.follow` moves them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from visrep.distributed import gather, sum_over_ranks
from visrep.functional import entropy, widen
from visrep.method import At
from visrep.nn.kmeans import spherical_kmeans

FIRST = 8
"""vectors a code that the first codes are made of"""


@dataclass(frozen=True)
class Quantized:
    """Vectors and the codes that stand for them."""

    before: Tensor
    """ "b n d": the vectors, detached; of length 1 where the codes are"""
    vectors: Tensor
    """ "b n d": their codes, whose gradient goes to the vectors (straight through)"""
    index: Tensor
    """int64 "b n" """
    commitment: Tensor
    """mean squared difference between vectors and codes; its gradient draws the vectors to their codes"""


class Codebook(nn.Module, ABC):
    """k codes of width d. Random until `begin` has seen data."""

    codes: Tensor
    size: Tensor
    begun: Tensor

    def __init__(self, k: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codes", F.normalize(torch.randn(k, width), dim=1))
        self.register_buffer(
            "size", torch.ones(k)
        )  # moving average of the vectors a step that choose each code
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.codes)

    @abstractmethod
    def place(self, z: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """Vectors in the space of the codes."""

    @abstractmethod
    def first(self, z: Float[Tensor, "n d"], start: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        """Codes for placed vectors, of which ``start`` are k, chosen at random."""

    @abstractmethod
    def move(self, sums: Float[Tensor, "k d"], counts: Float[Tensor, " k"], decay: float) -> None:
        """Codes after a step in which the vectors of each had this sum and number."""

    def put(self, which: Bool[Tensor, " k"], codes: Float[Tensor, "m d"]) -> None:
        """Set some of the codes, and count them as used as much as the average."""
        self.codes[which] = codes.to(self.codes.dtype)
        self.size[which] = self.size.mean()

    def nearest(self, z: Float[Tensor, "*any d"]) -> Int[Tensor, "*any"]:
        """The code of each vector, chosen in at least 32 bits."""
        with torch.autocast(z.device.type, enabled=False):
            z = self.place(widen(z))
            return (z @ self.codes.T - self.codes.square().sum(1) / 2).argmax(-1)

    def forward(self, z: Float[Tensor, "b n d"]) -> Quantized:
        index = self.nearest(z)
        with torch.autocast(z.device.type, enabled=False):
            z, codes = self.place(widen(z)), self.codes[index]
            return Quantized(z.detach(), z + (codes - z).detach(), index, F.mse_loss(z, codes))

    @torch.no_grad()
    def counted(self, q: Quantized, noise: Float[Tensor, " b"]) -> dict[str, Tensor]:
        """What `follow` needs: number and sum of each code's vectors, and one vector an image, taken by ``noise``."""
        # A product of matrices, not scattered additions: equal inputs give equal sums on a GPU too.
        member = F.one_hot(q.index.flatten(), len(self)).to(q.before)  # bn k
        sums = member.T @ q.before.flatten(0, 1)
        row = (noise * q.index.shape[1]).long()
        samples = q.before[torch.arange(len(row), device=row.device), row]
        return {"code_counts": member.sum(0)[None], "code_sums": sums[None], "code_samples": samples}

    @torch.no_grad()
    def follow(self, carry: Mapping[str, Tensor], *, decay: float, revive: float) -> None:
        """Move the codes; those used less than ``revive`` times the average go where vectors of the batch are."""
        counts = sum_over_ranks(carry["code_counts"].sum(0))
        self.size.lerp_(counts, 1 - decay)
        self.move(sum_over_ranks(carry["code_sums"].sum(0)), counts, decay)
        samples = gather(carry["code_samples"])
        dead = self.size < revive * self.size.mean()
        dead &= dead.cumsum(0) <= len(samples)  # more than there are samples wait for a later step
        self.put(dead, samples[: int(dead.sum())])

    @torch.no_grad()
    def begin(self, latents: Iterable[Float[Tensor, "b n d"]], at: At) -> None:
        """Codes from the first vectors of all ranks; once a run: what is loaded from a checkpoint has begun."""
        if self.begun:
            return
        rows: list[Tensor] = []
        for z in latents:
            rows.append(gather(self.place(widen(z).flatten(0, 1))))
            if sum(map(len, rows)) >= FIRST * len(self):
                break
        z = torch.cat(rows)
        # The start must be the same on every rank, so it is drawn as if there were one.
        order = replace(at, rank=0, world=1).rand(len(z)).argsort(stable=True)
        start = order.repeat(math.ceil(len(self) / len(z)))[: len(self)]  # few vectors: some codes are equal
        self.put(torch.ones_like(self.size, dtype=torch.bool), self.first(z, z[start]))
        self.begun.fill_(True)


@final
class CosineCodebook(Codebook):
    """Codes and vectors of length 1. Codes move to the mean direction of their vectors; unused ones stay.

    As in the official code of BEiT v2 (arXiv:2208.06366), which also starts from k-means.
    """

    def place(self, z: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        return F.normalize(z, dim=-1)

    def first(self, z: Float[Tensor, "n d"], start: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        return spherical_kmeans(z, start)[0]

    def move(self, sums: Float[Tensor, "k d"], counts: Float[Tensor, " k"], decay: float) -> None:
        mean = torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), self.codes)
        self.codes.copy_(F.normalize(self.codes.lerp(mean, 1 - decay), dim=1))


@final
class EuclideanCodebook(Codebook):
    """Codes are moving averages of the sums of their vectors over moving averages of their number.

    As in VQ-VAE (arXiv:1711.00937, appendix A.1); numbers are smoothed, so that none is zero.
    """

    sums: Tensor

    def __init__(self, k: int, width: int) -> None:
        super().__init__(k, width)
        self.register_buffer("sums", self.codes.clone())

    def place(self, z: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        return z

    def first(self, z: Float[Tensor, "n d"], start: Float[Tensor, "k d"]) -> Float[Tensor, "k d"]:
        return start

    def move(self, sums: Float[Tensor, "k d"], counts: Float[Tensor, " k"], decay: float) -> None:
        self.sums.lerp_(sums, 1 - decay)
        total, eps = self.size.sum(), 1e-5
        size = (self.size + eps) / (total + len(self) * eps) * total
        self.codes.copy_(self.sums / size[:, None])

    def put(self, which: Bool[Tensor, " k"], codes: Float[Tensor, "m d"]) -> None:
        super().put(which, codes)
        self.sums[which] = self.codes[which] * self.size[which][:, None]


@torch.no_grad()
def perplexity(counts: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """How many codes are in use: as many, used equally, would have the same entropy."""
    return entropy(counts / counts.sum()).exp()
