"""A comparison as one self-contained HTML page: who leads, by how much, what it took, how far to trust it."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from visrep.analysis.figures import MARKERS, Line, Mark, curves, intervals
from visrep.analysis.measures.registry import measure
from visrep.analysis.measures.spectral import RANKME
from visrep.analysis.page import Section, card, document, figure, folded, grid, note, table
from visrep.analysis.record import RunRecord, read_run
from visrep.analysis.report_names import title_of
from visrep.analysis.report_training import GUIDE, configuration
from visrep.evaluation.effort import duration
from visrep.evaluation.label_free import SCORES
from visrep.evaluation.leaderboard import LEVEL, cells, columns, images_seen, time_taken, troubles
from visrep.evaluation.standings import Comparison, Entry

WATCHED = ("knn", "rankme", "uniformity", "alignment")
"""monitors drawn over the images seen"""
LONGEST = 24
"""characters of a name in a drawing"""


def report_comparison(comparison: Comparison, out: Path) -> Path:
    """Write the page; returns its path. Run folders are read for curves and settings."""
    records = {entry.name: read_run(Path(entry.effort.path)) for entry in comparison.ranked if entry.effort}
    judged, trained = bool(comparison.protocols), {n: r for n, r in records.items() if r.steps}
    reading = (
        f"The best is on top. {LEVEL}: not clearly behind the best encoder of the column, the intervals overlap. "
        "Green rows are clearly better than the same network untrained and raw pixels."
        if judged
        else f"No label was used: the order is by {measure(comparison.selected).title}, which is not quality."
    )
    sections = [
        Section("Leaderboard", reading, _leaderboard(comparison)),
        Section("How far to trust this", "What the numbers do not say.", _notes(comparison)),
    ]
    if records:
        reading = "One line a run: the same budget should show here."
        sections.append(Section("What it took", reading, _effort(comparison)))
    if trained:
        sections.append(
            Section(
                "While training",
                "Measured on each run's own training images, over the images seen.",
                _curves(trained),
            )
        )
    if records:
        settings = "".join(folded(name, configuration(record)) for name, record in records.items())
        sections.append(Section("Settings", "Everything needed to repeat each run.", settings))
    title = f"Comparison · {', '.join(entry.name for entry in comparison.ranked)}"
    temporary = out.with_name(out.name + ".part")
    temporary.write_text(document(title, _header(comparison), sections), encoding="utf-8")
    temporary.replace(out)
    return out


def _header(comparison: Comparison) -> str:
    facts = [
        f"budget {comparison.budget}" if comparison.budget else "nothing trained here",
        f"seed {comparison.seed}",
    ]
    level = comparison.protocols and len(comparison.level(comparison.protocols[0])) == 0
    clear = level and comparison.beaten(comparison.ranked[0])
    images = f"<dt>Images</dt><dd>{escape(comparison.split)}</dd>"
    return (
        f"<h1>{escape(' · '.join(entry.name for entry in comparison.ranked))}</h1>"
        f"<p class=soft>{escape(' · '.join(facts))}</p>"
        f'<div class="verdict {"healthy" if clear else "early"}"><b>{escape(comparison.summary())}</b>'
        f"<dl>{images}</dl></div>{grid(_cards(comparison), kind='cards')}"
    )


def _cards(comparison: Comparison) -> list[str]:
    """The deciding number of each encoder."""
    cards = []
    for entry in comparison.ranked:
        result = entry.headline(comparison.protocols[0]) if comparison.protocols else None
        if result is None:
            cards.append(_label_free_card(comparison, entry))
            continue
        level = f" {LEVEL}" if entry.name in comparison.level(result.protocol) else ""
        remark = f"{title_of(result.protocol)}, 95 % interval {result.ci_low:.1f} to {result.ci_high:.1f}"
        kind = "good" if comparison.beaten(entry) else "bad"
        cards.append(card(entry.name, f"{result.value:.1f} %{level}", remark, kind=kind))
    return cards


def _label_free_card(comparison: Comparison, entry: Entry) -> str:
    decides = measure(comparison.selected)
    value, most = entry.scores[decides.key], min(entry.scores["width"], entry.scores["images"])
    if decides is RANKME:
        return card(entry.name, f"{value:.0f}", f"RankMe, of {most} directions")
    return card(entry.name, f"{value:.3g}", f"{decides.title}, {decides.better} is better")


def _leaderboard(comparison: Comparison) -> str:
    head = ("entry", *(title_of(name) for name in columns(comparison)), "images seen", "time")
    rows = [
        [
            entry.name, *(cell.strip() for cell in cells(comparison, entry)), images_seen(entry.effort),
            time_taken(entry.effort),
        ]
        for entry in comparison.entries
    ]  # fmt: skip
    marked = [entry.kind == "trained" and comparison.beaten(entry) for entry in comparison.entries]
    marks = [
        Mark(_short(entry.name), title_of(protocol), result.value, result.ci_low, result.ci_high)
        for entry in comparison.entries
        for protocol in comparison.protocols[: len(MARKERS)]
        if (result := entry.headline(protocol))
    ]
    chart = figure(intervals(marks), kind="chart") if marks else ""
    shared = [entry for entry in comparison.entries if 1 < len(entry.of) < len(comparison.ranked)]
    guide = "".join(note(f"{entry.name} belongs to {', '.join(entry.of)}.") for entry in shared)
    guide += "" if marks else "".join(note(GUIDE[name]) for name in SCORES)
    return f'{chart}<div class="leaderboard">{table(head, rows, marked=marked)}</div>{guide}'


def _notes(comparison: Comparison) -> str:
    return "".join(note(text) for text in (*comparison.notes, *troubles(comparison)))


def _effort(comparison: Comparison) -> str:
    rows = []
    for entry in comparison.ranked:
        took = entry.effort
        if took is None:
            continue
        timing = comparison.plans.get(entry.name, {}).get("timing")
        rows.append([
            entry.name, f"{took.method}:{took.preset}" if took.preset else took.method, took.data, str(took.batch),
            f"{took.steps:,}", f"{took.epochs:.4g}", images_seen(took), time_taken(took),
            duration(timing["step"]) if timing else "-", took.state,
        ])  # fmt: skip
    head = (
        "entry",
        "method",
        "trained on",
        "batch",
        "steps",
        "epochs",
        "images seen",
        "time",
        "a step, when timed",
        "training",
    )
    says = (
        "Time runs from the first step to the last, with the measuring in between. Decoding the images before and "
        "judging after are the same work for all and not in it."
    )  # fmt: skip
    return table(head, rows) + note(says)


def _curves(records: dict[str, RunRecord]) -> str:
    panels = []
    for key in WATCHED:
        lines = []
        for name, record in records.items():
            known = [epoch for epoch in record.epochs if key in epoch["monitors"]]
            images = [epoch["step"] * record.about["run"]["batch"] for epoch in known]
            lines.append(Line(images, [epoch["monitors"][key] for epoch in known], _short(name)))
        if any(line.x for line in lines):
            title, _, remark = GUIDE[key].partition(": ")
            panels.append(figure(curves(lines, x_label="images seen", limit=math.nan), title, remark))
    return grid(panels, kind="panels")


def _short(name: str) -> str:
    """For drawings, which have little room: the end of a path says more than its beginning."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
