"""Layers of encoders against each other, each value beside its chance level and an untrained baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import mean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.layers import chosen_layers, layer_vectors, opened
from visrep.analysis.similarity.base import Similarity
from visrep.analysis.similarity.registry import USUAL, similarities
from visrep.data.source import Source
from visrep.encoders import applied_to
from visrep.evaluation.untrained import untrained_twin
from visrep.method import Encoder

Grid = list[list[float | None]]
Layers = Mapping[int, Float[Tensor, "n _"]]
MOST_LAYERS = 6
"""compared of a deeper encoder when none are named, evenly spaced up to the last"""


@dataclass(frozen=True)
class Map:
    """One similarity of all layers of one encoder (rows) with all of another (columns)."""

    similarity: str
    rows: str
    columns: str
    row_layers: list[int]
    column_layers: list[int]
    values: Grid
    """None where there are too few images for a number that means anything"""
    permuted: Grid
    """mean over random pairings of images: chance"""
    permuted_most: Grid
    """the highest of those"""
    untrained: Grid
    """of the untrained twins, with different seeds unless rows and columns are one encoder; empty when not asked for"""
    caution: str

    def best(self) -> float | None:
        """The highest value over pairs of layers, as the Platonic hypothesis compares models; no layer with itself."""
        known = [
            value
            for i, row in zip(self.row_layers, self.values, strict=True)
            for j, value in zip(self.column_layers, row, strict=True)
            if value is not None and not (self.rows == self.columns and i == j)
        ]
        return max(known, default=None)


@dataclass(frozen=True)
class Comparison:
    """All maps of some encoders on some images."""

    encoders: list[str]
    maps: list[Map]
    """by similarity, and within one by pair of encoders"""
    images: str
    """in words: how many of which"""
    n: int
    pooling: str
    permutations: int
    seed: int

    def between(self, similarity: str) -> Grid:
        """Encoders with encoders: the last layer of each with that of the others; 1 with itself."""
        size = len(self.encoders)
        grid: Grid = [[1.0 if i == j else None for j in range(size)] for i in range(size)]
        for found in self.maps:
            i, j = self.encoders.index(found.rows), self.encoders.index(found.columns)
            if found.similarity == similarity and i != j:
                grid[i][j] = grid[j][i] = found.values[-1][-1]
        return grid

    def to_json(self) -> dict[str, Any]:
        """JSON values, as similarity.json holds them."""
        names = tuple(dict.fromkeys(found.similarity for found in self.maps))
        said = {s.name: {"variant": s.variant, "compares": s.compares} for s in similarities(names)}
        between = {name: self.between(name) for name in names} if len(self.encoders) > 1 else {}
        best = [{**asdict(found), "best": found.best()} for found in self.maps]
        return {**asdict(self), "maps": best, "last_layers": between, "similarities": said}


def compare_layers(
    encoders: Mapping[str, Encoder],
    source: Source,
    *,
    names: tuple[str, ...] = USUAL,
    layers: tuple[int, ...] = (),
    pooling: str = "auto",
    images: int = 1000,
    permutations: int = 10,
    untrained: bool = True,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Every pair of encoders, or one encoder with itself, layer by layer, on evenly spaced images of ``source``.

    Without ``layers``, up to six evenly spaced ones of each encoder, the last among them. Layers count from 1, and
    the last is always compared.
    Raises ValueError for an unknown similarity, layer or pooling, too few images, or features that are not finite.
    """
    wanted = similarities(names)
    if not encoders:
        raise ValueError("there is no encoder to compare.")
    if images < 20 or permutations < 1:
        raise ValueError(
            f"images={images}, permutations={permutations}: use 20 or more images, 1 permutation or more."
        )
    found: dict[str, Layers] = {}
    twins: dict[str, Layers] = {}
    for number, (name, encoder) in enumerate(encoders.items()):
        encoder = applied_to(encoder, source.frames)
        shown = _layers_of(encoder, layers)
        canvases = opened(source, encoder, images, progress=progress)
        try:
            found[name] = layer_vectors(
                encoder, canvases, shown, pooling=pooling, device=device, progress=progress
            )
            if untrained:  # other seeds, or two of one architecture would be one network
                twin = untrained_twin(encoder, canvases, canvases.usable, seed=seed + number, device=device)
                twins[name] = layer_vectors(twin, canvases, shown, pooling=pooling, device=device)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    n = len(next(iter(next(iter(found.values())).values())))
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(n, generator=generator) for _ in range(permutations)]
    pairs = list(combinations(found, 2)) or [(name, name) for name in found]
    maps = [
        found_map for similarity in wanted for found_map in _maps(similarity, found, twins, pairs, orders)
    ]
    return Comparison(list(found), maps, f"{n} images of {source.name}", n, pooling, permutations, seed)


def _layers_of(encoder: Encoder, layers: tuple[int, ...]) -> tuple[int, ...]:
    if layers:
        return chosen_layers(encoder, layers)
    count = min(MOST_LAYERS, encoder.depth)
    return tuple(sorted({math.ceil(encoder.depth * (i + 1) / count) for i in range(count)}))


@dataclass(frozen=True)
class _Side:
    """The layers of one encoder as one similarity compares them."""

    layers: list[int]
    widths: list[int]
    prepared: list[Tensor | None]
    """None where a layer cannot be compared: all images have one vector"""


def _prepare(similarity: Similarity, layers: Layers) -> _Side:
    prepared: list[Tensor | None] = []
    for vectors in layers.values():
        try:
            prepared.append(similarity.prepare(vectors))
        except ValueError:
            prepared.append(None)
    return _Side(list(layers), [vectors.shape[1] for vectors in layers.values()], prepared)


def _maps(
    similarity: Similarity,
    found: Mapping[str, Layers],
    twins: Mapping[str, Layers],
    pairs: Sequence[tuple[str, str]],
    orders: Sequence[Tensor],
) -> list[Map]:
    """All maps of one similarity; every layer is prepared once."""
    trained = {name: _prepare(similarity, layers) for name, layers in found.items()}
    fresh = {name: _prepare(similarity, layers) for name, layers in twins.items()}
    n = len(orders[0])
    maps = []
    for rows, columns in pairs:
        x, y = trained[rows], trained[columns]
        chances = [_grid(similarity, n, x, y, order) for order in orders]
        caution = similarity.caution(n, max(x.widths), max(y.widths))
        # of too few images no layer is prepared, which the caution says
        if n >= similarity.least and any(prepared is None for prepared in (*x.prepared, *y.prepared)):
            caution = f"{caution} Not shown where a layer gives all images one vector.".strip()
        maps.append(
            Map(
                similarity=similarity.name,
                rows=rows,
                columns=columns,
                row_layers=x.layers,
                column_layers=y.layers,
                values=_grid(similarity, n, x, y),
                permuted=_over(chances, mean),
                permuted_most=_over(chances, max),
                untrained=_grid(similarity, n, fresh[rows], fresh[columns]) if fresh else [],
                caution=caution,
            )
        )
    return maps


def _grid(similarity: Similarity, n: int, x: _Side, y: _Side, order: Tensor | None = None) -> Grid:
    """Layers of one with layers of the other, whose images are put into another order when one is given."""
    columns = [
        prepared if order is None or prepared is None else similarity.reordered(prepared, order)
        for prepared in y.prepared
    ]
    return [
        [
            None if a is None or b is None or similarity.silent(n, d1, d2) else similarity.compare(a, b)
            for b, d2 in zip(columns, y.widths, strict=True)
        ]
        for a, d1 in zip(x.prepared, x.widths, strict=True)
    ]


def _over(grids: Sequence[Grid], reduce: Callable[[list[float]], float]) -> Grid:
    """Grids of the same shape reduced cell by cell."""
    cells = [[[grid[i][j] for grid in grids] for j in range(len(grids[0][i]))] for i in range(len(grids[0]))]
    return [
        [
            reduce([value for value in values if value is not None]) if values[0] is not None else None
            for values in row
        ]
        for row in cells
    ]
