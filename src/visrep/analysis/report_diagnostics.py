"""The part of a report that shows what was measured without labels, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from visrep.analysis.figures import Line, curves
from visrep.analysis.gallery import Missing
from visrep.analysis.layer_spectra import layer_spectra
from visrep.analysis.page import figure, grid, note, table
from visrep.analysis.record import RunRecord


def diagnostics(record: RunRecord) -> str:
    """A table of measures and layers, a spectrum a layer, and curves over layers where there are several."""
    found = record.diagnostics
    if not found:
        raise Missing(f"Not measured yet. Run: visrep diagnose {record.path} --data IMAGES --layers 1 2 3")
    layers, measures = found["layers"], found["measures"]
    head = (
        "measure",
        *(f"layer {layer['layer']}" for layer in layers),
        "better",
        "variant",
        "what it compares",
    )
    rows = [
        [said["title"], *(_shown(layer["readings"][key]) for layer in layers), said["better"] or "-", said["variant"],
         said["compares"]]
        for key, said in measures.items()
    ]  # fmt: skip
    spectra = {layer["layer"]: layer["spectrum"] for layer in layers}
    parts = [
        f'<div class="measures">{table(head, rows)}</div>',
        figure(layer_spectra(spectra), "Spectrum of each layer:", found["images"], kind="chart"),
    ]
    if len(layers) > 2:
        parts.append(grid([panel for key in measures if (panel := _over_layers(key, found))], kind="panels"))
    if found["logged"]:
        values = ", ".join(f"{name} {value:.3f}" for name, value in found["logged"].items())
        parts.append(note(f"Prototypes, as the head logged them at the end of training: {values}."))
    return "".join(parts) + "".join(note(caution) for caution in found["cautions"])


def _over_layers(key: str, found: Mapping[str, Any]) -> str:
    values = [layer["readings"][key]["value"] for layer in found["layers"]]
    if all(value is None for value in values):
        return ""
    line = Line(
        [layer["layer"] for layer in found["layers"]],
        [math.nan if value is None else value for value in values],
        found["measures"][key]["title"],
    )
    return figure(curves([line], x_label="layer"), found["measures"][key]["title"])


def _shown(reading: Mapping[str, Any]) -> str:
    if reading["value"] is None:
        return "-"
    return f"{reading['value']:.4g}{' !' if reading['caution'] else ''}"
