"""Views for an encoder that was trained elsewhere: its size of images, its normalisation."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from visrep.method import Encoder
from visrep.views import Recipe, View

SIDES = ("clean", "image")
"""fields of recipes that are sides in pixels, beside those of views"""


def fitted(views: Recipe, encoder: Encoder, size: int = 0) -> Recipe:
    """The views at ``size`` pixels, or at the encoder's own, normalised as it expects.

    Smaller and larger ones keep their share of it, rounded to whole patches. Clips get as many frames as it has.
    """
    seen = encoder.preprocessing
    old, new = views.preprocessing.size, size or seen.size

    def side(pixels: int) -> int:
        if pixels in (0, old):
            return new if pixels else 0
        return max(1, round(pixels * new / old / encoder.stride)) * encoder.stride

    changed: dict[str, Any] = {}
    for field in fields(views):  # pyright: ignore[reportArgumentType] - every recipe is a dataclass
        value = getattr(views, field.name)
        if isinstance(value, View):
            changed[field.name] = replace(value, size=side(value.size), mean=seen.mean, std=seen.std)
        elif field.name in SIDES:
            changed[field.name] = side(value)
    if seen.frames and views.frames:
        changed["frames"] = seen.frames
    return replace(views, **changed)  # pyright: ignore[reportArgumentType]
