"""Playground scenes with one thing changed: the main object before another background, or of another texture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from visrep.data import CanvasSet, Source, Subset, open_source
from visrep.data.playground import Playground
from visrep.data.scene import Plan, draw
from visrep.data.surfaces import PATTERNS
from visrep.evaluation.fitting import Images
from visrep.evaluation.results import Inapplicable

TEXTURES = tuple(PATTERNS)
DONORS = 4
"""backgrounds to choose from: that from which the object's colour stands out most, as colours are chosen"""


def scenes(images: Images, protocol: str) -> tuple[list[Plan], int]:
    """What is in each image, and the side in pixels that it was drawn at.

    Raises Inapplicable for anything but the playground: of other images nobody knows what is background.
    """
    source: Source = images.canvases.source
    index = images.index.numpy()
    while isinstance(source, Subset):
        source, index = source.source, source.indices[index]
    if not isinstance(source, Playground):
        raise Inapplicable(
            f"{protocol} draws scenes anew with another background, which only the playground can. Use --data "
            "playground, or leave it out."
        )
    return [source.plan(int(i)) for i in index], source.size


def other_backgrounds(plans: Sequence[Plan], seed: int) -> list[Plan]:
    """Every scene before the background of another one: of four drawn, that from which its object stands out most."""
    rng = np.random.default_rng([seed, 1])
    swapped = []
    for place, plan in enumerate(plans):
        away = rng.choice(len(plans) - 1, size=min(DONORS, len(plans) - 1), replace=False)
        donors = [plans[(place + 1 + int(far)) % len(plans)].backdrop for far in away]
        contrast = [min(math.dist(plan.main.colour, other) for other in donor.palette) for donor in donors]
        swapped.append(replace(plan, backdrop=donors[int(np.argmax(contrast))]))
    return swapped


def other_textures(plans: Sequence[Plan], seed: int) -> list[Plan]:
    """Every scene with another texture, drawn evenly, on its main object."""
    rng = np.random.default_rng([seed, 2])
    textures = []
    for plan in plans:
        different = [texture for texture in TEXTURES if texture != plan.main.texture]
        textures.append(different[int(rng.integers(len(different)))])
    return textured(plans, textures)


def textured(plans: Sequence[Plan], textures: Sequence[str]) -> list[Plan]:
    """Scenes with these textures on their main objects."""
    return [
        replace(plan, main=replace(plan.main, texture=texture))
        for plan, texture in zip(plans, textures, strict=True)
    ]


def drawn_anew(plans: Sequence[Plan], side: int, labels: Int64[Tensor, " n"], canvas: int) -> Images:
    """Images of scenes, drawn at ``side`` pixels, on canvases of ``canvas`` pixels."""
    source = open_source([draw(plan, side) for plan in plans])
    return Images(CanvasSet(source, canvas, cache="memory", workers=0), torch.arange(len(plans)), labels)
