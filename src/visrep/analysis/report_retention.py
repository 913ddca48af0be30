"""The part of a report on a run that began with weights: what is left of the encoder it started from."""

from __future__ import annotations

from visrep.analysis.figures import Line, curves
from visrep.analysis.gallery import Inapplicable
from visrep.analysis.page import figure, grid, note
from visrep.analysis.record import RunRecord


def retention(record: RunRecord) -> str:
    """CKA with the start and kNN, over epochs. Raises Inapplicable for runs that were not watched."""
    lines = record.retention
    if not lines:
        raise Inapplicable("only a run that begins with weights is compared with its start")
    guard, epochs = record.about["run"]["guard"], [line["epoch"] for line in lines]
    likeness = [Line(epochs, [line["cka"][name] for line in lines], name) for name in lines[0]["cka"]]
    panels = [
        figure(
            curves(likeness, x_label="epoch", limit=guard["min_cka"], limit_label="guard.min_cka"),
            "CKA with the start",
            "1: the same features but for rotation and scale.",
        )
    ]
    for name, (start, _) in lines[0]["knn"].items():
        votes = Line([0.0, *epochs], [start, *(line["knn"][name][1] for line in lines)], name)
        limit, label = start - lines[0]["allowed"][name], "what it may fall"
        drawn = curves([votes], x_label="epoch", limit=limit, limit_label=label)
        panels.append(figure(drawn, f"kNN on {name}", "% from the start on."))
    worst = next((line for line in lines if line["lost"]), None)
    said = (
        f"Epoch {worst['epoch']:.3g}: {worst['lost']}. guard.act={guard['act']}."
        if worst
        else "Nothing was lost."
    )
    return grid(panels, kind="panels") + note(said)
