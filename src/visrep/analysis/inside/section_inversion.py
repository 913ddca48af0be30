"""The part of an explanation that turns features back into pictures."""

from __future__ import annotations

from typing import Any

from visrep.analysis.inside.inversion import invert
from visrep.analysis.inside.sections_maps import tile
from visrep.analysis.inside.subject import Inapplicable, Subject
from visrep.analysis.page import Section, strip, table


def inversion_section(
    subject: Subject, layers: tuple[int, ...], steps: int
) -> tuple[Section, dict[str, Any]]:
    """The first image from the patch tokens of each layer."""
    if not steps:
        raise Inapplicable("inversion was not asked for: give a number of steps")
    found = [
        invert(subject.encoder, subject.inputs[0], layer, steps=steps, seed=subject.seed) for layer in layers
    ]
    tiles = [tile(subject.pictures[0], "image")]
    tiles += [tile(made.picture.numpy(), f"layer {made.layer}") for made in found]
    rows = [
        [
            str(made.layer),
            *(f"{value:.4g}" for value in (made.start, made.features, made.reencoded, made.pixels)),
        ]
        for made in found
    ]
    head = ("layer", "features, at the start", "features, at the end", "features, re-encoded", "pixels")
    reading = (
        f"Pictures made from noise so that their patch tokens become those of the image, in {steps} steps: what is "
        "missing, the layer no longer knows, or the search did not find. Errors are squared and divided by the energy "
        "of the features, or by the variance of the image; 0 is the same."
    )
    numbers = {
        str(made.layer): {
            "features": made.features, "re-encoded": made.reencoded, "pixels": made.pixels, "start": made.start
        }
        for made in found
    }  # fmt: skip
    return Section("Pictures from features", reading, strip(tiles) + table(head, rows)), numbers
