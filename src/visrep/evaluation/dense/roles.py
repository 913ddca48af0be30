"""Which images are fitted on, which are judged, and which are judged by protocols that fit nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from visrep.data.dense import DenseSource, DenseSubset
from visrep.data.split import stratified_split
from visrep.evaluation.dense.exam import DenseSide, Key
from visrep.evaluation.dense.intervals import FEW
from visrep.evaluation.dense.patches import Patches
from visrep.evaluation.feature_cache import Side
from visrep.evaluation.labels import first_of_each_class

Rows = Int64[np.ndarray, " _"]


@dataclass(frozen=True)
class Base:
    """Images of one source that are decoded, encoded and answered once, whatever they are used for."""

    rows: Rows
    """of the source"""
    side: Side
    key: Key

    @staticmethod
    def of(source: DenseSource, rows: Rows, canvas: int, *, progress: bool) -> Base:
        some = source if len(rows) == len(source) else DenseSubset(source, rows)
        return Base(rows, Side(some, canvas, progress), Key(some, canvas))


@dataclass(frozen=True)
class Role:
    """Some rows of a source, of which a base holds those that are needed."""

    base: Base
    source: DenseSubset

    def __len__(self) -> int:
        return len(self.source)

    @property
    def rows(self) -> Rows:
        """Of the base."""
        return np.flatnonzero(np.isin(self.base.rows, self.source.indices))

    def side(self, patches: Patches) -> DenseSide:
        """With patches of the whole base; images that could not be read are left out."""
        chosen = torch.isin(patches.index, torch.from_numpy(self.rows)).nonzero().flatten()
        return DenseSide(self.base.key, self.base.side.canvases, patches).at(chosen)


@dataclass(frozen=True)
class Roles:
    """The same for all encoders."""

    fitted: Role
    judged: Role
    whole: Role
    """judged by protocols that fit nothing: the test images, or all where the data has none of its own"""
    crossed: bool = False
    """whether all videos are fitted on and judged, each by what was fitted on the others: they are few"""

    @property
    def bases(self) -> list[Base]:
        """Each once."""
        return list({id(role.base): role.base for role in (self.fitted, self.judged, self.whole)}.values())


def assign_roles(
    train: DenseSource,
    test: DenseSource | None,
    *,
    fitting: bool,
    free: bool,
    canvas: int,
    share: float,
    limits: tuple[int, int],
    seed: int,
    progress: bool,
) -> Roles:
    """Without ``test``, a ``share`` of the images is held out: of each class where images have one, of videos whole.

    ``fitting`` and ``free``: whether there are protocols that fit, and others. ``limits`` keep so many images to fit
    on and to judge: the first of every class or video. Data of one image or one video has nothing to fit on. Of fewer
    than 10 videos, a fifth of which would be one or two, each is judged by what is fitted on the others (`Exam.folds`).
    """
    if test is not None:
        first, other = _first(train, limits[0]), _first(test, limits[1])
        fitted = Role(Base.of(train, first, canvas, progress=progress), DenseSubset(train, first))
        judged = Role(Base.of(test, other, canvas, progress=progress), DenseSubset(test, other))
        return Roles(fitted, judged, judged)
    crossed = train.groups is not None and 2 <= len(np.unique(train.groups)) < FEW
    everyone = np.arange(len(train))
    parts = (everyone, everyone, everyone) if crossed else _parts(train, share, seed)
    rows = [_first(train, n, part) for part, n in zip(parts, (limits[0], limits[1], limits[1]), strict=True)]
    used = np.unique(np.concatenate([*(rows[:2] if fitting else []), *(rows[2:] if free else [])]))
    base = Base.of(train, used, canvas, progress=progress)
    fitted, judged, whole = (Role(base, DenseSubset(train, part)) for part in rows)
    return Roles(fitted, judged, whole, crossed)


def _parts(source: DenseSource, share: float, seed: int) -> tuple[Rows, Rows, Rows]:
    """Rows to fit on, rows held out, and all of them."""
    everyone = np.arange(len(source))
    groups = source.groups
    if len(source if groups is None else np.unique(groups)) < 2:
        return everyone[:0], everyone, everyone
    labels = np.zeros(len(source), dtype=np.int64) if source.labels is None else source.labels
    return (*stratified_split(labels, share, seed, groups), everyone)


def _first(source: DenseSource, limit: int, rows: Rows | None = None) -> Rows:
    """The first of every class or video among ``rows``, by default all, each in its proportion."""
    rows = np.arange(len(source)) if rows is None else rows
    kinds = source.labels if source.groups is None else source.groups
    kinds = np.zeros(len(source), dtype=np.int64) if kinds is None else kinds
    return rows[first_of_each_class(kinds[rows], limit)]
