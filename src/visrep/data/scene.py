"""A playground scene: what is in it (`Plan`), drawing it (`render`) and saying it (`caption`).

A plan knows nothing of pixels: the same plan can be drawn at any size, and a film is the plan with its
things moved by ``dataclasses.replace``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from visrep.data.shapes import SHAPES
from visrep.data.surfaces import BACKDROPS, PATTERNS, Backdrop, Colour, hue_name

_REACH = 1.08
"""no shape reaches further from its centre, in radii"""


@dataclass(frozen=True)
class Thing:
    """One object. Positions and sizes are shares of the image's side."""

    shape: str
    texture: str
    hue: float
    """of the main colour, in [0, 1)"""
    colour: Colour
    accent: Colour
    """second colour of the texture"""
    x: float
    y: float
    size: float
    """diameter of the circle around it"""
    mirrored: bool
    """left for right, before rotation"""
    rotation: float
    """in radians, clockwise"""
    stretch: float
    """width over height, before rotation"""
    grain: float
    """cycles of the texture over the object"""
    weave: float
    """direction of the texture relative to the object, in radians"""
    depth: float
    """0 is nearest, 1 is the background"""

    @property
    def colour_name(self) -> str:
        return hue_name(self.hue)

    @property
    def size_name(self) -> str:
        sizes = ((0.18, "tiny"), (0.35, "small"), (0.6, "medium-sized"))
        return next((name for upper, name in sizes if self.size < upper), "large")

    @property
    def words(self) -> str:
        return f"a {self.size_name} {self.texture} {self.colour_name} {self.shape}"


@dataclass(frozen=True, eq=False)
class Plan:
    """What a scene is made of, at no particular resolution."""

    main: Thing
    others: tuple[Thing, ...]
    backdrop: Backdrop
    light: float
    """where the light comes from, in radians"""

    @property
    def things(self) -> tuple[Thing, ...]:
        """All objects, the nearest first."""
        return tuple(sorted((self.main, *self.others), key=lambda thing: thing.depth))


@dataclass(frozen=True, eq=False)
class Scene:
    """A drawn scene with everything that is known of it."""

    image: UInt8[np.ndarray, "h w 3"]
    mask: UInt8[np.ndarray, "h w"]
    """0 is background; i is the i-th of ``things``, so 1 is the nearest object"""
    depth: Float32[np.ndarray, "h w"]
    """0 is nearest; the background is 1"""
    things: tuple[Thing, ...]
    """all objects, the nearest first"""
    classes: tuple[int, ...]
    """labels of ``things``"""
    main: int
    """position in ``things`` of the object that the image's label names"""
    factors: dict[str, str | float | int]
    """of the main object and of the scene"""
    caption: str


def draw(plan: Plan, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image alone: what training reads."""
    return film([plan], size)[0]


def film(plans: Sequence[Plan], size: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """The images of several plans before the backdrop of the first."""
    backdrop = plans[0].backdrop.draw(size)
    frames: list[np.ndarray] = []
    for plan in plans:
        picture = backdrop.copy()
        for thing in reversed(plan.things):
            _paint(picture, thing, plan.light)
        frames.append(_to_bytes(picture))
    return frames


def render(plan: Plan, size: int) -> Scene:
    """The image with its mask, depth, factors and caption."""
    picture = plan.backdrop.draw(size)
    mask = np.zeros((size, size), dtype=np.uint8)
    depth = np.ones((size, size), dtype=np.float32)
    for i, thing in reversed(list(enumerate(plan.things, start=1))):
        box, cover = _paint(picture, thing, plan.light)
        mask[box][cover > 0.5] = i
        depth[box][cover > 0.5] = thing.depth
    labels = {shape: label for label, shape in enumerate(SHAPES)}
    return Scene(
        image=_to_bytes(picture),
        mask=mask,
        depth=depth,
        things=plan.things,
        classes=tuple(labels[thing.shape] for thing in plan.things),
        main=plan.things.index(plan.main),
        factors=factors(plan),
        caption=caption(plan),
    )


def factors(plan: Plan) -> dict[str, str | float | int]:
    """The main object's and the scene's factors of variation, by name."""
    thing = plan.main
    return {
        "shape": thing.shape,
        "texture": thing.texture,
        "colour": thing.colour_name,
        "hue": thing.hue,
        "size": thing.size,
        "x": thing.x,
        "y": thing.y,
        "mirrored": int(thing.mirrored),
        "rotation": thing.rotation,
        "stretch": thing.stretch,
        "grain": thing.grain,
        "depth": thing.depth,
        "light": plan.light,
        "background": plan.backdrop.kind,
        "others": len(plan.others),
    }


def caption(plan: Plan) -> str:
    """One English sentence: each object with its size, texture and colour, where it is, the background."""
    others = " and ".join(f"{other.words} {_where(other, plan.main)}" for other in plan.others)
    joined = f" with {others}" if others else ""
    sentence = f"{plan.main.words}{joined}, against {BACKDROPS[plan.backdrop.kind]}."
    return sentence[0].upper() + sentence[1:]


def _where(thing: Thing, main: Thing) -> str:
    right, down = thing.x - main.x, thing.y - main.y
    if abs(right) > abs(down):
        return "to its right" if right > 0 else "to its left"
    return "below it" if down > 0 else "above it"


def _paint(
    picture: Float32[np.ndarray, "3 h w"], thing: Thing, light: float
) -> tuple[tuple[slice, slice], Float32[np.ndarray, "bh bw"]]:
    """Draw one object and its shadow in place; return its box and how much of each pixel in it is covered."""
    side = picture.shape[1]
    radius = thing.size / 2 * side
    reach = radius * _REACH * max(thing.stretch, 1 / thing.stretch) ** 0.5 + 0.08 * radius + 2
    left, right = max(0, math.floor(thing.x * side - reach)), min(side, math.ceil(thing.x * side + reach))
    top, bottom = max(0, math.floor(thing.y * side - reach)), min(side, math.ceil(thing.y * side + reach))
    box = (slice(top, bottom), slice(left, right))

    dx = (np.arange(left, right, dtype=np.float32) + (0.5 - thing.x * side)) / radius
    dy = (np.arange(top, bottom, dtype=np.float32) + (0.5 - thing.y * side)) / radius
    cos, sin = math.cos(thing.rotation), math.sin(thing.rotation)
    wide = thing.stretch**0.5
    x = (cos / wide) * dx[None, :] + (sin / wide) * dy[:, None]
    y = (-sin * wide) * dx[None, :] + (cos * wide) * dy[:, None]
    distance = SHAPES[thing.shape](-x if thing.mirrored else x, y)
    cover = np.clip(0.5 - distance * radius, 0.0, 1.0)

    below = picture[:, top:bottom, left:right]
    _shade_ground(below, distance, light, radius)

    cos, sin = math.cos(thing.weave) * thing.grain / 2, math.sin(thing.weave) * thing.grain / 2
    softness = min(2.0, 6.0 * thing.grain / (2 * radius) + 0.2)
    share = PATTERNS[thing.texture](cos * x + sin * y, cos * y - sin * x, softness)
    lit = math.cos(light) * dx[None, :] + math.sin(light) * dy[:, None]
    shading = 0.95 + 0.22 * lit
    shading += 0.6 * np.clip(distance, -0.2, 0.0) + 0.06  # darker inside, lighter rim: a slight bevel
    for channel, colour, accent in zip(below, thing.colour, thing.accent, strict=True):
        surface = share * (accent - colour)
        surface += colour
        surface *= shading
        surface -= channel
        surface *= cover
        channel += surface
    return box, cover


def _shade_ground(
    below: Float32[np.ndarray, "3 bh bw"], distance: Float32[np.ndarray, "bh bw"], light: float, radius: float
) -> None:
    """A soft shadow, in place: the outline itself, blurred by its distance and moved away from the light."""
    down, right = round(-0.14 * radius * math.sin(light)), round(-0.14 * radius * math.cos(light))
    h, w = distance.shape
    to = (slice(max(0, down), h + min(0, down)), slice(max(0, right), w + min(0, right)))
    source = (slice(max(0, -down), h + min(0, -down)), slice(max(0, -right), w + min(0, -right)))
    below[:, *to] *= 1 - 0.45 * np.clip(0.5 - 3.5 * distance[source], 0.0, 1.0)


def _to_bytes(picture: Float32[np.ndarray, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    levels = np.clip(picture, 0.0, 1.0) * 255 + 0.5
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))
