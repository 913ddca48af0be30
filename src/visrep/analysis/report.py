"""A run as one self-contained HTML page: how it went, what it learned, what it looks at, how to repeat it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from visrep.analysis import report_images as images_of
from visrep.analysis import report_training as training
from visrep.analysis.gallery import Gallery, Inapplicable, Missing, build_gallery
from visrep.analysis.page import Section, document, note
from visrep.analysis.record import RunRecord, read_run
from visrep.analysis.report_dense import READING, dense_predictions
from visrep.analysis.report_diagnostics import diagnostics
from visrep.analysis.report_fingerprint import COMPARABLE, how_it_was_judged
from visrep.analysis.report_probes import probes
from visrep.analysis.report_retention import retention
from visrep.analysis.report_whitebox import whitebox_section

Material = TypeVar("Material")

FROM_RECORD: tuple[tuple[str, str, Callable[[RunRecord], str]], ...] = (
    (
        "Probes",
        "The encoder is frozen and a simple classifier reads its features: training was worth it where the "
        "trained encoder's interval lies above both the same network untrained and raw pixels (green row).",
        probes,
    ),
    ("Dense predictions", READING, dense_predictions),
    ("How it was judged", COMPARABLE, how_it_was_judged),
    (
        "Loss and schedules",
        "The loss should fall, steeply at first; a level line from the start means nothing is learned, a "
        "rise that training diverges.",
        training.losses,
    ),
    (
        "Health while training",
        "Measured without labels, kNN apart: spread and RankMe must not go to zero while the loss falls.",
        training.monitors,
    ),
    (
        "Beside its start",
        "This run began with the weights of an encoder: what it told apart at the start it should still tell "
        "apart; the grey line is where the guard acts.",
        retention,
    ),
    (
        "Without labels",
        "Measured without labels, layer by layer. None of these numbers is quality: what each can and cannot "
        "compare stands beside it.",
        diagnostics,
    ),
    (
        "Sample views",
        "What the model was shown, one image or clip a row: the whole of it, then its crops as they went into the "
        "network; you should still recognise the object in most of them.",
        images_of.view_section,
    ),
    (
        "Pictures by the method",
        "What the method draws, a row for each image or clip; what the columns are stands above them.",
        images_of.picture_section,
    ),
    (
        "Configuration",
        "Everything needed to repeat this run; run.json in its folder holds the same.",
        training.configuration,
    ),
)
FROM_IMAGES: tuple[tuple[str, str, Callable[[Gallery], str]], ...] = (
    (
        "Map",
        "Images with similar features lie together: groups of one colour mean that the encoder tells them "
        "apart by itself.",
        images_of.map_section,
    ),
    (
        "Nearest neighbours",
        "Left the query, right the images that are most similar to the encoder: look for shared content "
        "rather than shared colour.",
        images_of.neighbour_section,
    ),
    (
        "Spectrum",
        "How evenly the features use their directions: a line that drops off a cliff means that most of them "
        "are unused.",
        images_of.spectrum_section,
    ),
    (
        "Attention",
        "Bright is where the network looks: useful heads follow objects or parts; an even map learned little.",
        images_of.attention_section,
    ),
    (
        "White-box layers",
        "What each layer is built to do, measured: the coding rate should fall from layer to layer, and codes "
        "become sparser; compare with the same network untrained.",
        whitebox_section,
    ),
    (
        "Patch tokens",
        "Patches in the same colour have similar features, across all the images shown: objects should stand "
        "out from the background.",
        images_of.token_section,
    ),
)
ORDER = (
    "Probes", "Dense predictions", "Loss and schedules", "Health while training", "Beside its start",
    "Without labels", "Map", "Nearest neighbours", "Attention", "White-box layers", "Patch tokens",
    "Pictures by the method", "Sample views", "Spectrum", "How it was judged", "Configuration",
)  # fmt: skip


def report(run: Path, *, images: int = 600) -> Path:
    """Write ``report.html`` into a run folder, finished or not; returns its path.

    ``images`` is how many of the run's held-out (else training) images are encoded for the map, the
    neighbours and the spectrum. A section whose material is missing says so. Raises ValueError when
    ``run`` is not a run folder or ``images`` is below 2.
    """
    if images < 2:
        raise ValueError(f"images={images}: a map and neighbours need at least 2 images; the default is 600.")
    record = read_run(run)
    sections = _sections(FROM_RECORD, record)
    try:
        gallery = build_gallery(record, images)
    except Missing as missing:
        reason = note(f"Not available: {missing}")
        sections |= {title: Section(title, reading, reason) for title, reading, _ in FROM_IMAGES}
    else:
        sections |= _sections(FROM_IMAGES, gallery)
    ordered = [sections[title] for title in ORDER if title in sections]
    name = f"{record.about['method']} · {run.resolve().name}"
    out = run / "report.html"
    temporary = out.with_name(out.name + ".part")
    temporary.write_text(document(name, training.header(record), ordered), encoding="utf-8")
    temporary.replace(out)
    return out


def _sections(
    parts: Sequence[tuple[str, str, Callable[[Material], str]]], material: Material
) -> dict[str, Section]:
    """Sections by title: with the reason where something is missing, left out where they do not apply."""
    sections = {}
    for title, reading, build in parts:
        try:
            sections[title] = Section(title, reading, build(material))
        except Missing as missing:
            sections[title] = Section(title, reading, note(str(missing)))
        except Inapplicable:
            continue
    return sections
