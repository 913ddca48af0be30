"""The parts of a report that come from records: headline, losses, monitors, configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from visrep.analysis.doctor import examine
from visrep.analysis.figures import Line, curves
from visrep.analysis.gallery import Missing
from visrep.analysis.page import card, figure, folded, grid, note, table
from visrep.analysis.record import RunRecord
from visrep.analysis.report_probes import cards, in_words, judgement

GUIDE = {
    "knn": "kNN accuracy: % of images whose nearest neighbours vote for the right label.",
    "spread": "Spread of the features: 1 covers the sphere evenly, 0 is one vector for every image.",
    "rankme": "RankMe: how many directions the features use.",
    "uniformity": "Uniformity: 0 when all images share one vector, towards -4 when they spread out.",
    "alignment": "Alignment: distance between two views of one image. Low is good while the spread holds.",
    "teacher_entropy": "Teacher entropy: 1 is undecided, 0 is one prototype each. Staying at an end is bad.",
    "prototype_entropy": "Prototypes in use: 1 when all are used equally, 0 when all images share one.",
    "prototype_use": "Share of the prototypes that are the likeliest one of some crop of a batch.",
    "teacher_student_kl": "Student against teacher, nats: near 0 there is nothing left to learn.",
    "grad_norm": "Gradient norm: before clipping.",
}
"""What each monitor says"""


def header(record: RunRecord) -> str:
    """Title, verdict and headline numbers."""
    about, run = record.about, record.about["run"]
    preset = f" · {about['preset']}" if about["preset"] else ""
    place = " · ".join(filter(None, (str(run["data"]), f"started {about['started']}", f"seed {run['seed']}")))
    return (
        f"<h1>{escape(about['method'])}{escape(preset)}</h1><p class=soft>{escape(place)}</p>"
        f"{_status(record)}{_verdict(record)}{grid(_cards(record), kind='cards')}"
    )


def _status(record: RunRecord) -> str:
    status, message = record.about["status"], record.about["message"]
    if status == "finished":
        return ""
    said = {
        "running": "This run is not finished; the report shows what there is so far.",
        "stopped": "This run was stopped before its end.",
        "failed": "This run failed.",
    }[status]
    return note(f"{said[:-1]}: {message}." if message else said)


def _verdict(record: RunRecord) -> str:
    checkup = examine(record)
    verdict = checkup.verdict
    better, others = judgement(record.evaluation.get("results", []))
    unproven = verdict.state == "healthy" and bool(others) and not better
    title = "Healthy, but not better than its baselines yet" if unproven else verdict.state.capitalize()
    kind = "early" if unproven else {"healthy": "healthy", "too early": "early"}.get(verdict.state, "sick")
    facts = {
        "Evidence": verdict.evidence,
        "Likely cause": verdict.cause,
        "What to change": verdict.change,
        "Also": "; ".join(f"{other.state}: {other.evidence}" for other in checkup.findings[1:]),
        "Judged": in_words(better, others),
        "Said at the start": " ".join(record.about.get("advice", [])),
    }
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
    return f'<div class="verdict {kind}"><b>{escape(title)}</b><dl>{rows}</dl></div>'


def _cards(record: RunRecord) -> list[str]:
    made = cards(record.evaluation.get("results", []))
    if record.epochs and not made:
        last = record.epochs[-1]["monitors"]
        if "knn" in last:
            made.append(card("kNN while training", f"{last['knn']:.1f} %", "no evaluation yet"))
    if record.epochs:
        last = record.epochs[-1]["monitors"]
        made.append(
            card("RankMe", f"{last['rankme']:.0f}", f"of {min(last['width'], last['images'])} directions")
        )
    if record.steps:
        last, run = record.steps[-1], record.about["run"]
        made.append(
            card(
                "Trained for", f"{last['epoch']:.4g} epochs", f"{last['step']} steps of {run['batch']} images"
            )
        )
        made.append(
            card(
                "Speed", f"{last['images_per_second']:,.0f}", f"images/s, {_duration(last['seconds'])} in all"
            )
        )
    return made


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def losses(record: RunRecord) -> str:
    """Loss terms, then the schedules that move; and how many files were skipped."""
    if not record.steps:
        raise Missing("No step is on record yet.")
    epochs = [step["epoch"] for step in record.steps]
    terms = list(record.steps[-1]["terms"])
    panels = [_panel("Loss", [Line(epochs, [step["loss"] for step in record.steps], "loss")])]
    if len(terms) > 1:
        lines = [
            Line(epochs, [step["terms"].get(name, math.nan) for step in record.steps], name) for name in terms
        ]
        panels.append(_panel("Terms of the loss: weighted.", lines))
    constant = []
    for name in record.steps[-1]["schedules"]:
        values = [step["schedules"].get(name, math.nan) for step in record.steps]
        if min(values) == max(values):
            constant.append(f"{name} = {values[0]:.4g}")
        else:
            panels.append(_panel(f"{name}: schedule.", [Line(epochs, values, name)]))
    speed = [step["images_per_second"] for step in record.steps]
    panels.append(_panel("Images a second", [Line(epochs, speed, "images/s")]))
    said = [f"Constant: {', '.join(constant)}."] if constant else []
    if record.unreadable:
        said.append(
            f"Files that could not be read and were skipped: {len(record.unreadable)}, see unreadable.txt."
        )
    return grid(panels, kind="panels") + "".join(map(note, said))


def monitors(record: RunRecord) -> str:
    """Label-free signals of each monitored epoch, then what the method itself logs each step."""
    panels = []
    if record.epochs:
        last = record.epochs[-1]["monitors"]
        most = min(last["width"], last["images"])
        for name in ("knn", "rankme", "feature_std", "alignment", "uniformity"):
            known = [
                (epoch["epoch"], epoch["monitors"]) for epoch in record.epochs if name in epoch["monitors"]
            ]
            if not known:
                continue
            scale = math.sqrt(last["width"]) if name == "feature_std" else 1.0
            key = "spread" if name == "feature_std" else name
            line = Line([x for x, _ in known], [scale * m[name] for _, m in known], key)
            limit, label = (most, f"{most} at most") if name == "rankme" else (math.nan, "")
            panels.append(_panel(GUIDE[key], [line], limit, label))
    logged: set[str] = {name for step in record.steps for name in step["monitor"]}
    for name in sorted(logged):
        known = [(step["epoch"], step["monitor"][name]) for step in record.steps if name in step["monitor"]]
        panels.append(
            _panel(
                GUIDE.get(name, f"{name}: as the method logs it."),
                [Line([x for x, _ in known], [y for _, y in known], name)],
            )
        )
    if not panels:
        raise Missing("Nothing has been measured yet; the first monitored epoch is not over.")
    return grid(panels, kind="panels")


def _panel(caption: str, lines: Sequence[Line], limit: float = math.nan, label: str = "") -> str:
    title, _, remark = caption.partition(": ")
    return figure(curves(lines, x_label="epoch", limit=limit, limit_label=label), title, remark)


def configuration(record: RunRecord) -> str:
    """How to repeat the run, everything that was set, and where it ran."""
    about = record.about
    parts = [f"<h3>Command</h3><pre>{escape(about['command'] or 'called from Python')}</pre>"]
    if about["overrides"]:
        parts.append(note(f"Changed from the preset: {', '.join(map(str, about['overrides']))}"))
    rows = list(flat(about["run"]))
    parts.append(folded(f"All {len(rows)} settings", table((), rows)))
    where = [*flat(about["versions"]), *flat(about["hardware"])]
    parts.append(f"<h3>Versions and hardware</h3>{table((), where)}")
    if record.unreadable:
        shown = table(("image", "reason"), record.unreadable[:200])
        parts.append(folded(f"{len(record.unreadable)} images could not be read and were left out", shown))
    else:
        parts.append(note("Every image could be read."))
    return f'<div class="facts">{"".join(parts)}</div>'


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names; a value's type stands beside its name."""
    rows = []
    for name, value in values.items():
        if name == "type":
            continue
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            kind = str(value.get("type", "")).rpartition(":")[2]
            rows.extend([*([(path, kind)] if kind else []), *flat(value, f"{path}.")])
        else:
            rows.append((path, str(value) if value not in ("", [], None) else "-"))
    return rows
