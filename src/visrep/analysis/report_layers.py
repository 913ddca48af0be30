"""Where in an encoder the best representation sits: values over layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visrep.analysis.figures import Line, curves
from visrep.analysis.page import figure, grid
from visrep.analysis.report_names import protocol
from visrep.evaluation.results import from_headline, goodness

FEWEST = 3
"""layers that make a curve"""

Result = Mapping[str, Any]


def layer_curves(results: Sequence[Result]) -> str:
    """A panel for each protocol and pooling judged on three layers or more, beside the untrained twin; else nothing."""
    panels = []
    for (name, pooling), mine in _by_panel(results).items():
        lines = [
            Line(*_over_layers(mine, who), label)
            for who, label in (("trained", "trained"), ("untrained", "untrained"))
        ]
        if len(lines[0].x) < FEWEST:
            continue
        metric = mine[0]["metric"]
        value, layer = max(zip(lines[0].y, lines[0].x, strict=True), key=lambda at: goodness(metric, at[0]))
        remark = f"{pooling}; best at layer {layer:.0f} with {value:.1f} %"
        drawn = curves([line for line in lines if line.x], x_label="layer, 1 is the first")
        panels.append(figure(drawn, name, remark))
    return grid(panels, kind="panels") if panels else ""


def _by_panel(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Results by protocol with metric, and pooling; of several numbers of neighbours or labels the usual one."""
    closest: dict[tuple[str, str], int] = {}
    for result in results:
        key = result["protocol"], result["metric"]
        away = from_headline(result["settings"])
        closest[key] = min(away, closest.get(key, away))
    panels: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        away = from_headline(result["settings"])
        if result["layer"] and away == closest[result["protocol"], result["metric"]]:
            panels.setdefault((protocol(result), result["pooling"]), []).append(result)
    return panels


def _over_layers(results: Sequence[Result], who: str) -> tuple[list[float], list[float]]:
    values = {result["layer"]: result["value"] for result in results if result["encoder"] == who}
    return [float(layer) for layer in sorted(values)], [values[layer] for layer in sorted(values)]
