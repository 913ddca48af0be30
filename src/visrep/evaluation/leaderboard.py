"""A comparison as a table on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from visrep.analysis.measures.registry import measure
from visrep.evaluation.effort import Effort, duration
from visrep.evaluation.label_free import SCORES
from visrep.evaluation.results import heading
from visrep.evaluation.standings import Comparison, Entry

LEVEL = "≈"
"""beside an accuracy whose interval overlaps that of the best encoder in its column"""
MOST_COLUMNS = 4
"""of protocols; where there are more, the table has a row a protocol"""


def print_leaderboard(comparison: Comparison) -> None:
    """The table on standard output."""
    Console().print(render_leaderboard(comparison))


def render_leaderboard(comparison: Comparison) -> Group:
    """A row an entry, best first; a column a protocol or score; below, what was judged, and how far to trust it.

    An encoder clearly better than its baselines in the deciding protocol is green, baselines are dim.
    """
    title = "Scores without labels"
    if comparison.protocols:
        title = heading(result for entry in comparison.entries for result in entry.results)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    if len(comparison.protocols) > MOST_COLUMNS:
        _by_protocol(comparison, table)
    else:
        _by_entry(comparison, table)
    legend = []
    if comparison.protocols:
        legend = [f"{LEVEL} not clearly behind the best encoder of the protocol: the intervals overlap"]
        if any(comparison.beaten(entry) for entry in comparison.ranked):
            legend.append("green: clearly better than its untrained twin and raw pixels")
    if comparison.budget:
        legend.append(f"budget: {comparison.budget}")
    warnings = [*comparison.notes, *troubles(comparison)]
    notes = (Text(f"! {note}", style="yellow") for note in warnings)
    summary = Text(comparison.summary(), style="bold")
    return Group(table, summary, *map(Text, legend), Text(comparison.split), *notes)


def _by_entry(comparison: Comparison, table: Table) -> None:
    table.add_column("", justify="right")
    table.add_column("", overflow="fold", min_width=16)
    for column in (*columns(comparison), "images", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    place = 0
    for entry in comparison.entries:
        trained = entry.kind == "trained"
        place += trained
        effort = [images_seen(entry.effort), time_taken(entry.effort)]
        row = [str(place) if trained else "", entry.name, *cells(comparison, entry), *effort]
        table.add_row(*(Text(cell) for cell in row), style=_style(comparison, entry))


def _by_protocol(comparison: Comparison, table: Table) -> None:
    table.add_column("", overflow="fold")
    for entry in comparison.entries:
        table.add_column(
            entry.name, justify="right", overflow="fold", min_width=12, style=_style(comparison, entry)
        )
    rows = zip(*(cells(comparison, entry) for entry in comparison.entries), strict=True)
    for protocol, row in zip(comparison.protocols, rows, strict=True):
        table.add_row(protocol, *map(Text, row))


def _style(comparison: Comparison, entry: Entry) -> str:
    if entry.kind != "trained":
        return "dim"
    return "green" if comparison.protocols and comparison.beaten(entry) else ""


def columns(comparison: Comparison) -> list[str]:
    """Headings of the numbers: protocols, or scores that need no labels."""
    return list(comparison.protocols or scores_shown(comparison).values())


def scores_shown(comparison: Comparison) -> dict[str, str]:
    """Keys and headings of scores without labels, that which decides first."""
    decides = measure(comparison.selected)
    return {decides.key: decides.title, **SCORES}


def cells(comparison: Comparison, entry: Entry) -> list[str]:
    """An entry's number in each of `columns`."""
    if not comparison.protocols:
        return [f"{entry.scores[score]:.4g}" for score in scores_shown(comparison)]
    found = []
    for protocol in comparison.protocols:
        result = entry.headline(protocol)
        sign = f" {LEVEL}" if entry.name in comparison.level(protocol) else "  "
        found.append(
            f"{result.value:.1f} ({result.ci_low:.1f}-{result.ci_high:.1f}){sign}" if result else "-  "
        )
    return found


def troubles(comparison: Comparison) -> list[str]:
    """Runs that failed, and those that finished in another state than healthy."""
    failed = [f"{name} failed and is left out: {why}" for name, why in comparison.failed.items()]
    sick = [
        f"{entry.name}: {entry.effort.state}. {entry.effort.evidence}"
        for entry in comparison.ranked
        if entry.effort and entry.effort.state not in ("healthy", "too early")
    ]
    return [*failed, *sick]


def images_seen(effort: Effort | None) -> str:
    """How many images, or a dash."""
    return f"{effort.images:,}" if effort and effort.images else "-"


def time_taken(effort: Effort | None) -> str:
    """How long, or a dash."""
    return duration(effort.seconds) if effort and effort.seconds else "-"
