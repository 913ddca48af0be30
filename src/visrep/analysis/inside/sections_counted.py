"""The parts of an explanation that count over many images: detectors of concepts, and Gestalt tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from visrep.analysis.inside.concept_maps import ConceptMaps
from visrep.analysis.inside.dissection import DETECTS, Dissection, dissect
from visrep.analysis.inside.gestalt import TESTS, Figure, right_about
from visrep.analysis.inside.sections_maps import tile
from visrep.analysis.inside.subject import Subject
from visrep.analysis.page import Section, note, strip, table
from visrep.data import CanvasSet, open_source
from visrep.data.canvas import canvas_size
from visrep.evaluation.features import extract
from visrep.evaluation.results import bootstrap
from visrep.method import Encoder

LISTED = 12
"""detectors in the table"""
FIGURES = 100
"""of each Gestalt test"""
EXAMPLES = 2


def dissection_section(maps: ConceptMaps) -> tuple[Section, dict[str, Any]]:
    """Channels of the last layer that detect concepts, beside a random rotation and the untrained twin."""
    found = {who: dissect(activations, maps.masks, maps.names) for who, activations in maps.each()}
    best = [[str(unit), name, f"{value:.3f}"] for unit, name, value in found["trained"].best[:LISTED]]
    reading = (
        f"Channels of the last layer whose strongest half percent of activations coincides with a concept on "
        f"{len(maps.masks)} images. A detector has an intersection over union above {DETECTS:g}. Rotated: the same "
        "features in a random basis."
    )
    body = table(
        ("", "channels", "detectors", "concepts", "best IoU"), [_row(who, d) for who, d in found.items()]
    )
    body += table(("channel", "concept", "IoU"), best)
    numbers = {
        who: {"detectors": d.detectors, "concepts": d.detected, "best": d.best[:LISTED]}
        for who, d in found.items()
    }
    return Section("Concepts of channels", reading, body), numbers


def gestalt_section(subject: Subject) -> tuple[Section, dict[str, Any]]:
    """Closure and continuity, beside raw pixels and the untrained twin."""
    rows, shown, numbers = [], [], {}
    for name, draw in TESTS.items():
        figures = [
            draw(max(64, subject.encoder.preprocessing.size), subject.seed + i) for i in range(FIGURES)
        ]
        for made in figures[:EXAMPLES]:
            shown += [
                tile(made.whole, f"{name}: whole"),
                tile(made.grouped, "belong"),
                tile(made.scattered, "do not"),
            ]
        right = {"trained": _judged(subject, subject.encoder, figures)}
        if subject.twin is not None:
            right["untrained"] = _judged(subject, subject.twin, figures)
        right["raw pixels"] = _of_pixels(figures)
        scores = {}
        for who, correct in right.items():
            low, high = bootstrap(correct, seed=subject.seed)
            scores[who] = {"value": 100 * float(correct.mean()), "ci_low": 100 * low, "ci_high": 100 * high}
        numbers[name] = scores
        rows.append(
            [name, *(f"{s['value']:.0f}  [{s['ci_low']:.0f}, {s['ci_high']:.0f}]" for s in scores.values())]
        )
    reading = (
        f"Share of {FIGURES} figures, in %, in which the pieces that belong to a whole are nearer to it than the same "
        "pieces turned; chance is 50."
    )
    body = table(("test", *numbers["closure"]), rows) + strip(shown)
    body += note("Intervals are of 95 %, over figures.")
    return Section("Gestalt", reading, body), numbers


def _row(who: str, found: Dissection) -> list[str]:
    channels = len(found.iou)
    best = found.best[0][2]
    return [who, str(channels), str(found.detectors), str(len(found.detected)), f"{best:.3f}"]


def _judged(subject: Subject, encoder: Encoder, figures: list[Figure]) -> np.ndarray:
    """Whether the encoder is right about each figure."""
    pictures = [part for made in figures for part in (made.whole, made.grouped, made.scattered)]
    source = open_source(pictures)
    canvases = CanvasSet(source, canvas_size(source, encoder.preprocessing.size), cache="memory", workers=0)
    features = extract(encoder, canvases, canvases.usable, device=subject.device)
    vectors = next(iter(features.vectors.values()))
    return right_about(vectors[0::3], vectors[1::3], vectors[2::3]).numpy()


def _of_pixels(figures: list[Figure]) -> np.ndarray:
    whole, grouped, scattered = (
        torch.from_numpy(np.stack([part.reshape(-1) for part in parts])).float() - 127.5
        for parts in zip(*((made.whole, made.grouped, made.scattered) for made in figures), strict=True)
    )
    return right_about(whole, grouped, scattered).numpy()
