"""Everything there is to see inside an encoder, on given images: sections of a page, and the numbers in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from visrep.analysis.inside.concept_maps import concept_maps
from visrep.analysis.inside.section_inversion import inversion_section
from visrep.analysis.inside.section_net2vec import net2vec_section
from visrep.analysis.inside.sections_classes import class_section, gradient_section
from visrep.analysis.inside.sections_counted import dissection_section, gestalt_section
from visrep.analysis.inside.sections_maps import attention_section, likeness_section, token_section
from visrep.analysis.inside.subject import Inapplicable, Subject
from visrep.analysis.layers import chosen_layers
from visrep.analysis.page import Section, note
from visrep.data import CanvasSet, Source, Subset, canvas_size
from visrep.method import Encoder

IMAGES = 6
"""shown"""


@dataclass(frozen=True)
class Settings:
    """What to look at."""

    image: int = 0
    """the image that is looked at most closely, by its number in the data"""
    images: int = IMAGES
    """shown beside each other, with that one, evenly spaced over the data"""
    point: tuple[float, float] | None = None
    """across and down, as shares: the patch that others are compared with; None for four of them"""
    layers: tuple[int, ...] = ()
    """to invert besides the last one; by default the first and the middle one"""
    steps: int = 200
    """of each inversion by optimisation; 0 for none"""
    decoder_steps: int = 400
    """of training each decoder, one for every layer that is inverted; 0 for none"""

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images={self.images}: show at least 1.")
        if self.steps < 0:
            raise ValueError(f"steps={self.steps}: use 0 for no inversion, or a number of steps such as 200.")
        if self.decoder_steps < 0:
            raise ValueError(
                f"decoder_steps={self.decoder_steps}: use 0 for no decoder, or a number of steps such as 400."
            )
        if self.point is not None and not all(0 <= share < 1 for share in self.point):
            raise ValueError(
                f"point={self.point}: across and down are shares of the image from 0 to below 1."
            )


@dataclass(frozen=True)
class Explanation:
    """Sections for people, numbers for programs."""

    sections: list[Section]
    numbers: dict[str, Any]
    """by section; "left out" holds the reasons of those that mean nothing here"""


def explain_encoder(
    encoder: Encoder,
    source: Source,
    settings: Settings | None = None,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> Explanation:
    """Look into an encoder. A section that means nothing for it is left out, with the reason.

    Raises ValueError for clips, for an image or layer that there is not, for settings that cannot be, and for features
    that are not finite.
    """
    settings = settings or Settings()
    if source.frames:
        raise ValueError(f"{source.name} holds clips; explain looks at images. Give a folder of images.")
    if not 0 <= settings.image < len(source):
        raise ValueError(f"image {settings.image} was asked for; {source.name} has 0 to {len(source) - 1}.")
    layers = settings.layers or (1, (encoder.depth + 1) // 2)
    layers = chosen_layers(encoder, layers)
    subject = _subject(encoder.to(device), source, settings, torch.device(device), seed, progress)
    subject.check_finite()
    maps = cache(lambda: concept_maps(subject))
    parts: dict[str, Callable[[], tuple[Section, dict[str, Any]]]] = {
        "attention": lambda: attention_section(subject),
        "tokens": lambda: token_section(subject),
        "likeness": lambda: likeness_section(subject, settings.point),
        "gradients": lambda: gradient_section(subject),
        "inversion": lambda: inversion_section(subject, layers, settings.steps, settings.decoder_steps),
        "classes": lambda: class_section(subject),
        "dissection": lambda: dissection_section(maps()),
        "net2vec": lambda: net2vec_section(maps()),
        "gestalt": lambda: gestalt_section(subject),
    }
    sections: list[Section] = []
    numbers: dict[str, Any] = {"images": list(subject.keys), "seed": seed}
    left_out: dict[str, str] = {}
    for name, part in parts.items():
        try:
            section, numbers[name] = part()
            sections.append(section)
        except Inapplicable as reason:
            left_out[name] = str(reason)
    if left_out:
        body = "".join(note(f"{name}: {reason}.") for name, reason in left_out.items())
        sections.append(Section("Left out", "What means nothing for this encoder or these images.", body))
    return Explanation(sections, {**numbers, "left out": left_out})


def _subject(
    encoder: Encoder, source: Source, settings: Settings, device: torch.device, seed: int, progress: bool
) -> Subject:
    others = np.unique(np.linspace(0, len(source) - 1, min(settings.images, len(source))).astype(np.int64))
    chosen = [settings.image, *(int(i) for i in others if i != settings.image)][: settings.images]
    some = Subset(source, chosen)
    shown = CanvasSet(some, canvas_size(some, encoder.preprocessing.size), cache="memory", workers=0)
    if 0 in shown.unreadable:
        raise ValueError(f"image {settings.image} cannot be read: {shown.unreadable[0]}")
    keys = tuple(some.key(int(i)) for i in shown.usable)
    return Subject(encoder, source, shown, keys, device, seed, progress)
