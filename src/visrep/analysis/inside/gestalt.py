"""Gestalt tests: does an encoder see the whole that fragments suggest?

Closure: pieces of a closed outline, a third of it missing, belong to the outline; the same pieces, each turned by a
quarter about its middle, do not. Continuity: dashes that follow a smooth curve belong to the curve; the same dashes
turned likewise do not. The whole figure is shown elsewhere in the picture, so that no pixels need to coincide, and both
sets of pieces have the same ink at the same places. An encoder is right about a figure when the pieces that belong are
nearer, in the cosine of its vectors, to the whole than those that do not; chance is a half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

PIECES = 10
THICK = 0.05
"""width of a line, as a share of the side"""
FINER = 4
COVERED = 2 / 3
"""of the outline by its pieces"""
POINTS = 240
"""along a curve"""

Points = Float[np.ndarray, "m 2"]
Picture = UInt8[np.ndarray, "s s 3"]


@dataclass(frozen=True, eq=False)
class Figure:
    """The same curve three times, at one scale."""

    whole: Picture
    grouped: Picture
    """pieces that belong"""
    scattered: Picture
    """the same pieces, each turned by 90 degrees"""


def closure(size: int, seed: int) -> Figure:
    """A closed outline with up to five lobes."""
    rng = np.random.default_rng([seed, 0])
    angle = np.linspace(0, 2 * np.pi, POINTS, endpoint=False)
    radius = 1 + rng.uniform(0.1, 0.35) * np.cos(rng.integers(2, 6) * angle + rng.uniform(0, 2 * np.pi))
    curve = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return _figure(curve / np.abs(curve).max(), size, rng, closed=True)


def continuity(size: int, seed: int) -> Figure:
    """A smooth open curve."""
    rng = np.random.default_rng([seed, 1])
    t = np.linspace(-1, 1, POINTS)
    bend = rng.uniform(0.3, 0.6) * np.sin(rng.uniform(1.5, 3.5) * t + rng.uniform(0, 2 * np.pi))
    turn = rng.uniform(0, 2 * np.pi)
    curve = np.stack([t, bend - bend.mean()], 1) @ np.array(
        [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
    )
    return _figure(curve / np.abs(curve).max(), size, rng, closed=False)


TESTS: dict[str, Callable[[int, int], Figure]] = {"closure": closure, "continuity": continuity}


def right_about(
    whole: Float[Tensor, "n d"], grouped: Float[Tensor, "n d"], scattered: Float[Tensor, "n d"]
) -> Bool[Tensor, " n"]:
    """Whether the pieces that belong are nearer to the whole."""
    return F.cosine_similarity(whole, grouped, dim=-1) > F.cosine_similarity(whole, scattered, dim=-1)


def _figure(curve: Points, size: int, rng: np.random.Generator, *, closed: bool) -> Figure:
    """Curves within [-1, 1] to pictures: dark on a light ground, or the other way round."""
    scale = rng.uniform(0.26, 0.34)
    # in opposite corners, as far as they fit: the whole and its pieces hardly overlap
    room = 0.5 - scale - THICK
    corner = np.sign(rng.uniform(-1, 1, 2))
    at, away = 0.5 + room * corner * rng.uniform(0.5, 1, 2), 0.5 - room * corner * rng.uniform(0.5, 1, 2)
    ground, ink = rng.permutation([rng.uniform(0.0, 0.25), rng.uniform(0.75, 1.0)])
    pieces = np.array_split(curve, PIECES)
    kept = [piece[: max(2, round(COVERED * len(piece)))] for piece in pieces]
    turned = [_quarter(piece) for piece in kept]
    whole = np.concatenate([curve, curve[:1]]) if closed else curve

    def drawn(curves: list[Points], place: np.ndarray) -> Picture:
        cover = _ink([scale * points + place for points in curves], size)
        grey = ground + (ink - ground) * cover
        return np.repeat((grey * 255).round().astype(np.uint8)[..., None], 3, axis=-1)

    return Figure(drawn([whole], at), drawn(kept, away), drawn(turned, away))


def _quarter(piece: Points) -> Points:
    """Turned by 90 degrees about its middle."""
    middle = piece.mean(0)
    return (piece - middle) @ np.array([[0.0, 1.0], [-1.0, 0.0]]) + middle


def _ink(curves: list[Points], size: int) -> Float[np.ndarray, "s s"]:
    """How much of each pixel the lines cover, in [0, 1]: drawn at four times the size, then averaged."""
    side = FINER * size
    picture = Image.new("L", (side, side))
    pen = ImageDraw.Draw(picture)
    for points in curves:
        pen.line(
            [(float(x), float(y)) for x, y in points * side],
            fill=255,
            width=round(THICK * side),
            joint="curve",
        )
    fine = np.asarray(picture, dtype=np.float64) / 255
    return fine.reshape(size, FINER, size, FINER).mean((1, 3))
