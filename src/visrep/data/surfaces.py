"""What covers things in the playground: patterns on objects, backgrounds, and the names of colours."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32

Map = Float32[np.ndarray, "h w"]
Colour = tuple[float, float, float]

WAVES = 32
"""spatial frequencies of a background along each side: up to 16 cycles an image"""


# --- colours

_HUES = (
    (0.04, "red"),
    (0.11, "orange"),
    (0.19, "yellow"),
    (0.45, "green"),
    (0.53, "teal"),
    (0.70, "blue"),
    (0.82, "purple"),
    (0.95, "pink"),
    (1.00, "red"),
)


def rgb(hue: float, saturation: float, value: float) -> Colour:
    return colorsys.hsv_to_rgb(hue, saturation, value)


def hue_name(hue: float) -> str:
    """The everyday name of a hue in [0, 1)."""
    return next(name for upper, name in _HUES if hue < upper)


# --- patterns: coordinates in cycles, already turned, to the share of the accent colour in [0, 1]


def _sharp(wave: Map, softness: float) -> Map:
    """A wave in [-1, 1] to stripes with antialiased edges; ``softness`` is the width of the edge."""
    return np.clip(0.5 + wave / softness, 0.0, 1.0)


def plain(u: Map, v: Map, softness: float) -> Map:
    return np.zeros_like(u)


def striped(u: Map, v: Map, softness: float) -> Map:
    return _sharp(np.sin(math.tau * u), softness)


def checked(u: Map, v: Map, softness: float) -> Map:
    return _sharp(np.sin(math.tau * 0.7 * u) * np.sin(math.tau * 0.7 * v), softness)


def dotted(u: Map, v: Map, softness: float) -> Map:
    return _sharp(np.cos(math.tau * u) + np.cos(math.tau * v) - 0.6, softness)


def wavy(u: Map, v: Map, softness: float) -> Map:
    return _sharp(np.sin(math.tau * u + 1.4 * np.sin(math.tau * 0.8 * v)), softness)


def marbled(u: Map, v: Map, softness: float) -> Map:
    swirl = np.sin(2.1 * u + 4.3 * v) + np.sin(5.2 * u - 2.7 * v)
    return 0.5 + 0.5 * np.sin(3.0 * u + 2.2 * swirl)


PATTERNS: dict[str, Callable[[Map, Map, float], Map]] = {
    f.__name__: f for f in (plain, striped, checked, dotted, wavy, marbled)
}


# --- backgrounds

BACKDROPS: dict[str, str] = {
    "clouds": "a cloudy background",
    "gradient": "a smooth gradient",
    "patches": "a patchy background",
    "lights": "blurred lights",
    "blocks": "scattered blocks",
}
"""kind to how a caption says it"""


@dataclass(frozen=True, eq=False)
class Backdrop:
    """A background, at no particular resolution."""

    kind: str
    palette: tuple[Colour, Colour, Colour]
    angle: float
    """direction of the gradient, in radians"""
    waves: Float32[np.ndarray, "3 k k"]
    """amplitudes of cosine waves, about 1/f: two fields that mix the palette and one for brightness"""
    spots: Float32[np.ndarray, "m 5"]
    """centre x, y, half width, half height (shares of the side) and strength of the lights or blocks"""

    def draw(self, size: int) -> Float32[np.ndarray, "3 h w"]:
        first, second, grain = synthesise(self.waves, size)
        match self.kind:
            case "clouds":
                first, second = 0.5 + 0.4 * first, 0.4 * second
            case "gradient":
                at = _pixel_centres(size) - 0.5
                ramp = math.cos(self.angle) * at[None, :] + math.sin(self.angle) * at[:, None]
                first, second = 0.5 + 0.8 * ramp + 0.05 * first, 0.12 * second
            case "patches":
                first, second = 0.5 + 5.0 * first, 4.0 * second
            case _:
                cut = len(self.spots) // 2
                first = 0.15 * first + self._spotted(self.spots[:cut], size)
                second = 0.15 * second + self._spotted(self.spots[cut:], size)
        weights = np.stack([np.clip(first, 0.0, 1.0), np.clip(second, 0.0, 1.0)]).reshape(2, -1)
        base, *others = np.asarray(self.palette, dtype=np.float32)
        steps = np.stack([other - base for other in others], axis=1)
        picture = (steps @ weights).reshape(3, size, size)
        picture += base[:, None, None]
        picture *= 1 + 0.1 * grain
        return picture

    def _spotted(self, spots: Float32[np.ndarray, "m 5"], size: int) -> Map:
        """The sum of separable spots: one matrix product, however many."""
        x, y, wide, high, strength = spots.T[:, :, None]
        at = _pixel_centres(size)[None, :]
        if self.kind == "lights":
            across, down = np.exp(-(((at - x) / wide) ** 2)), np.exp(-(((at - y) / high) ** 2))
        else:
            across = np.clip(0.5 + (wide - np.abs(at - x)) * size, 0.0, 1.0)
            down = np.clip(0.5 + (high - np.abs(at - y)) * size, 0.0, 1.0)
        return (down * strength).T @ across


def synthesise(waves: Float32[np.ndarray, "n k k"], size: int) -> Float32[np.ndarray, "n h w"]:
    """Sum cosine waves; each field then has zero mean and unit standard deviation."""
    kept = min(waves.shape[-1], size)  # finer waves than the pixels can carry would alias
    basis = _cosines(size, kept)
    fields = basis @ waves[:, :kept, :kept] @ basis.T
    return fields / (np.sqrt(np.square(waves[:, :kept, :kept]).sum((1, 2), keepdims=True)) / 2)


def falling(power: float) -> Float32[np.ndarray, "k k"]:
    """Amplitudes 1/f**power of the waves, without the constant."""
    return _frequencies() ** np.float32(-power)


@cache
def _frequencies() -> Float32[np.ndarray, "k k"]:
    f = np.arange(WAVES, dtype=np.float32)
    radius = np.sqrt(f[:, None] ** 2 + f[None, :] ** 2)
    radius[0, 0] = np.inf
    return radius


@cache
def _pixel_centres(size: int) -> Float32[np.ndarray, " s"]:
    return ((np.arange(size) + 0.5) / size).astype(np.float32)


@cache
def _cosines(size: int, kept: int) -> Float32[np.ndarray, "s k"]:
    return np.cos(np.pi * _pixel_centres(size)[:, None] * np.arange(kept)[None, :]).astype(np.float32)
