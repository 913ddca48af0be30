"""An evaluation as a table on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from visrep.evaluation.evaluate import Evaluation
from visrep.evaluation.results import TOP_1, Judged, Result, clearly_ahead, goodness, heading, variant

COLUMNS: tuple[Judged, ...] = ("trained", "untrained", "pixels")


def print_table(evaluation: Evaluation) -> None:
    """The table on standard output."""
    Console().print(render(evaluation))


def render(evaluation: Evaluation) -> Group:
    """A row a protocol, layer with pooling; a column an encoder; below, what was judged, and cautions.

    Pixels have no layers: their numbers stand in the last layer's rows. A trained value is green when its
    interval lies on the better side of those of all baselines in its row, and red when a baseline's value is better.
    """
    shown = [name for name in COLUMNS if any(result.encoder == name for result in evaluation.results)]
    table = Table(title=heading(evaluation.results), title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("protocol", "layer"):
        table.add_column(column, overflow="fold")
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    trained = [result for result in evaluation.results if result.encoder == "trained"]
    last = max(result.layer for result in trained)
    for result in trained:
        row: dict[Judged, Result] = {
            other.encoder: other for other in evaluation.results if _same_row(result, other, last)
        }
        cells = [_cell(row[name], row) if name in row else Text("-") for name in shown]
        table.add_row(_name(result), f"{result.layer} {result.pooling}", *cells)
    notes = [
        Text(evaluation.split),
        *(Text(note, style="dim") for note in evaluation.notes),
        *(Text(f"! {caution}", style="yellow") for caution in evaluation.warnings),
    ]
    return Group(table, *notes)


def _same_row(trained: Result, other: Result, last: int) -> bool:
    if (trained.protocol, trained.metric) != (other.protocol, other.metric):
        return False
    if variant(trained.settings) != variant(other.settings):
        return False
    if other.encoder == "pixels":
        return trained.layer == last
    return (trained.layer, trained.pooling) == (other.layer, other.pooling)


def _name(result: Result) -> str:
    found = variant(result.settings)
    name = f"{result.protocol}, {found[0]}={found[1]}" if found else result.protocol
    return name if result.metric == TOP_1 else f"{name}, {result.metric}"


def _cell(result: Result, row: dict[Judged, Result]) -> Text:
    text = Text(f"{result.value:.1f} ({result.ci_low:.1f}-{result.ci_high:.1f})")
    baselines = [other for name, other in row.items() if name != "trained"]
    if result.encoder == "trained" and baselines:
        metric, ends = result.metric, (result.ci_low, result.ci_high)
        if all(clearly_ahead(metric, ends, (other.ci_low, other.ci_high)) for other in baselines):
            text.stylize("bold green")
        elif any(goodness(metric, result.value) < goodness(metric, other.value) for other in baselines):
            text.stylize("bold red")
    return text
