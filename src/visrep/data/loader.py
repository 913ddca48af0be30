"""Batches in an order that is a function of (seed, step): nothing to save, resuming is starting at a step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from visrep.data.canvas import CanvasSet
from visrep.data.source import Source
from visrep.data.workers import default_workers
from visrep.method import Canvases


class Loader:
    """Batches of a `CanvasSet`: each epoch a fresh permutation of its usable images, the last part dropped.

    ``batch`` counts the images of all ranks together; each rank reads its own contiguous part, so the
    images of a step do not depend on how many ranks share it, nor on workers, nor on the cache. (One
    exception: with a cache unreadable images are known and left out; without one each is replaced by the
    next readable image when it is met.) ``workers`` decode where there is no cache, -1 to choose, 0 for
    none.
    """

    def __init__(
        self,
        canvases: CanvasSet,
        *,
        batch: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        workers: int = -1,
        images: Int64[np.ndarray, " n"] | None = None,
    ) -> None:
        """``images``: those to draw from; default all usable ones.

        Raises ValueError when the batch is larger than the set or does not divide among the ranks.
        """
        self.images = canvases.usable if images is None else images
        n = len(self.images)
        if batch < 1 or batch % world:
            divisible = max(world, batch // world * world)
            raise ValueError(
                f"batch={batch} does not divide among {world} ranks. Set --batch to {divisible}."
            )
        if batch > n:
            raise ValueError(_too_few(n, batch, world, canvases.source))
        self.canvases = canvases
        self.batch = batch
        self.seed = seed
        self.rank = rank
        self.world = world
        self.workers = default_workers(world) if workers < 0 else workers
        self.steps_per_epoch = n // batch
        self._order = (0, self._permutation(0))

    def indices(self, step: int) -> Int64[np.ndarray, " batch"]:
        """Which images all ranks together see at a step: a pure function of (seed, step)."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if self._order[0] != epoch:  # kept only to save drawing it again at every step
            self._order = (epoch, self._permutation(epoch))
        return self._order[1][at * self.batch : (at + 1) * self.batch]

    def stream(self, start: int, stop: int) -> Iterator[Canvases]:
        """This rank's part of steps ``start`` to ``stop - 1``, in order.

        Raises RuntimeError when a decoding process dies.
        """
        rows = self.batch // self.world
        mine = slice(self.rank * rows, (self.rank + 1) * rows)
        batches = (self.indices(step)[mine] for step in range(start, stop))
        yield from self.canvases.stream(batches, rows=rows, workers=self.workers)

    def _permutation(self, epoch: int) -> Int64[np.ndarray, " n"]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.images)


def _too_few(n: int, batch: int, world: int, source: Source) -> str:
    """What is wrong with a batch larger than the set of ``n``, and what to change."""
    advice = f"lower --batch to {_largest_batch(n, world)}" if n >= world else f"use fewer ranks than {world}"
    if source.per_video:
        several = math.ceil(batch * source.per_video / max(1, n))
        advice += f", or take more clips of each video: clips={several} behind the folder of --data"
    kind = "clips" if source.frames else "images"
    return f"batch={batch} but only {n} readable {kind} in {source.name}; {advice}."


def _largest_batch(n: int, world: int) -> int:
    """The largest power of two, failing that the largest number, that fits and divides among the ranks."""
    power = 1 << (n.bit_length() - 1)
    return power if power % world == 0 else n // world * world
