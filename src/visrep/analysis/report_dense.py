"""What dense protocols said of some of the judged images, beside the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from visrep.analysis.gallery import Inapplicable, Missing
from visrep.analysis.page import figure, image, note, sheet, strip
from visrep.analysis.pictures import data_uri
from visrep.analysis.record import RunRecord
from visrep.analysis.report_names import title_of
from visrep.analysis.report_probes import WHO
from visrep.evaluation.dense.protocols import DENSE
from visrep.evaluation.examples import Strip
from visrep.evaluation.sheet_pictures import read_pictures

READING = (
    "Some of the judged images: what is true, and beside it what the encoder said, the same network untrained and, "
    "where they can take part, raw pixels; all from the last layer."
)
CLASSES = "Colours are classes; grey is what nobody is asked about."
DEPTH = "Dark is near, bright is far, on the scale of the image's true depth."
OBJECTS = "One colour an object: as given in the first frame, and in the last frame that is scored."
BOXES = "Green: the true boxes. Orange: the box that was found."
GUIDE = {
    "segmentation": CLASSES,
    "hummingbird": CLASSES,
    "depth": DEPTH,
    "discovery-lost": BOXES,
    "discovery-tokencut": BOXES,
    "attention-masks": "Coloured: the true objects, and what the head looks at that fits them best.",
    "propagation": OBJECTS,
    "correspondence": "A point has the same colour in all pictures of its row; a ring is an answer too far away.",
    "segmentation-dinov3": CLASSES,
    "depth-dinov3": DEPTH,
    "discovery-lost@native": BOXES,
    "discovery-tokencut@native": BOXES,
    "propagation-dino": OBJECTS,
}
"""how to read the pictures of a protocol"""


def dense_predictions(record: RunRecord) -> str:
    """Of a run. Raises Inapplicable when no dense protocol judged it, Missing when it has no pictures of any."""
    return predictions(record.evaluation, read_pictures(record.path / "evaluation.json"))


def predictions(evaluation: Mapping[str, Any], pictures: Mapping[str, Sequence[Strip]]) -> str:
    """Of the dense protocols in an evaluation; raises as `dense_predictions`."""
    judged = [name for name in DENSE if any(r["protocol"] == name for r in evaluation.get("results", ()))]
    if not judged:
        raise Inapplicable("no dense protocol was asked for")
    shown = [name for name in judged if name in pictures]
    if not shown:
        raise Missing(
            f"There are no pictures of {', '.join(map(title_of, judged))} beside these results, which an earlier "
            "version wrote, or which were moved without them. Judge again to see them."
        )
    return "".join(_of_protocol(name, pictures[name]) for name in shown)


def _of_protocol(name: str, rows: Sequence[Strip]) -> str:
    title = title_of(name)
    strips = [strip([_tile(*each) for each in _columns(row)], kind="large") for row in rows]
    legend = {label: colour for row in rows for label, colour in row.legend.items()}
    columns = 2 * len(rows[0].titles)  # twice the width of other sheets: there is much to see in each picture
    return (
        f"<h3>{escape(title[:1].upper() + title[1:])}</h3>{note(GUIDE[name])}{_legend(legend)}"
        f"{sheet(strips, columns=columns)}"
    )


def _columns(row: Strip) -> list[tuple[str, str]]:
    words = [WHO.get(title, title) for title in row.titles]
    return [(data_uri(picture), title) for picture, title in zip(row.pictures, words, strict=True)]


def _tile(uri: str, title: str) -> str:
    return figure(image(uri, title), title)


def _legend(colours: Mapping[str, str]) -> str:
    keys = "".join(
        f'<span class="key filled" style="background:{escape(colour)}"></span>{escape(name)}'
        for name, colour in colours.items()
    )
    return f'<p class="soft">{keys}</p>' if keys else ""
