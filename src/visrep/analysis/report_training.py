"""The parts of a report that come from records: headline, probes, losses, monitors, configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from visrep.analysis.figures import Line, Mark, curves, intervals
from visrep.analysis.gallery import Missing
from visrep.analysis.health import diagnose
from visrep.analysis.page import card, figure, folded, grid, note, table
from visrep.analysis.record import RunRecord

GUIDE = {
    "knn": "kNN accuracy, %: images whose nearest neighbours vote for the right label. Up is better.",
    "spread": "Spread of the features: 1 covers the sphere evenly, 0 is one vector for every image.",
    "rankme": "RankMe: how many directions the features use.",
    "uniformity": "Uniformity: 0 when all images share one vector, towards -4 when they spread out.",
    "alignment": "Alignment: distance between two views of one image. Low is good while the spread holds.",
    "teacher_entropy": "Teacher entropy: 1 is undecided, 0 is one prototype each. Staying at an end is bad.",
    "teacher_student_kl": "Student against teacher, nats: near 0 there is nothing left to learn.",
    "grad_norm": "Gradient norm, before clipping.",
}
"""What each monitor says"""
PROTOCOLS = {"knn": "kNN", "linear": "linear probe", "attentive": "attentive probe"}
WHO = {"trained": "trained", "untrained": "same network, untrained", "pixels": "raw pixels"}

Result = Mapping[str, Any]


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
    return note(f"{said} {message}")


def _verdict(record: RunRecord) -> str:
    verdict = diagnose(record.steps, record.epochs)
    kind = {"healthy": "healthy", "too early": "early"}.get(verdict.state, "sick")
    facts = {"Evidence": verdict.evidence, "Likely cause": verdict.cause, "What to change": verdict.change}
    rows = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text)
    return f'<div class="verdict {kind}"><b>{escape(verdict.state.capitalize())}</b><dl>{rows}</dl></div>'


def _cards(record: RunRecord) -> list[str]:
    cards = []
    for rows in _headlines(record.evaluation.get("results", [])):
        trained, baselines = rows["trained"], [rows[who] for who in ("untrained", "pixels") if who in rows]
        beaten = _clearly_better(trained, baselines)
        remark = ", ".join(f"{WHO[row['encoder']]} {row['value']:.1f}" for row in baselines)
        interval = f"95 % interval {trained['ci_low']:.1f} to {trained['ci_high']:.1f}"
        kind = "" if not baselines else "good" if beaten else "bad"
        label = f"{_protocol(trained)}, held-out images"
        cards.append(
            card(label, f"{trained['value']:.1f} %", "; ".join(filter(None, (interval, remark))), kind=kind)
        )
    if record.epochs and not cards:
        last = record.epochs[-1]["monitors"]
        if "knn" in last:
            cards.append(card("kNN while training", f"{last['knn']:.1f} %", "no evaluation yet"))
    if record.epochs:
        last = record.epochs[-1]["monitors"]
        cards.append(
            card("RankMe", f"{last['rankme']:.0f}", f"of {min(last['width'], last['images'])} directions")
        )
    if record.steps:
        last, run = record.steps[-1], record.about["run"]
        cards.append(
            card(
                "Trained for", f"{last['epoch']:.4g} epochs", f"{last['step']} steps of {run['batch']} images"
            )
        )
        cards.append(
            card(
                "Speed", f"{last['images_per_second']:,.0f}", f"images/s, {_duration(last['seconds'])} in all"
            )
        )
    return cards


def _headlines(results: Sequence[Result]) -> list[dict[str, Result]]:
    """For each protocol, one result an encoder: last layer, first pooling and, for kNN, k closest to 20."""
    chosen: dict[str, dict[str, Result]] = {}
    order = sorted(results, key=lambda r: (-r["layer"], abs(r["settings"].get("k", 20) - 20)))
    for result in order:
        chosen.setdefault(result["protocol"], {}).setdefault(result["encoder"], result)
    return [chosen[name] for name in sorted(chosen, key=list(PROTOCOLS).index) if "trained" in chosen[name]]


def _clearly_better(trained: Result, baselines: Sequence[Result]) -> bool:
    return bool(baselines) and all(trained["ci_low"] > baseline["ci_high"] for baseline in baselines)


def _protocol(result: Result) -> str:
    protocol = str(result["protocol"])
    name = PROTOCOLS.get(protocol, protocol)
    return f"{name} (k={result['settings']['k']})" if "k" in result["settings"] else name


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def probes(record: RunRecord) -> str:
    """Every number of the evaluation beside its baselines."""
    evaluation = record.evaluation
    if not evaluation or not evaluation["results"]:
        raise Missing(f"Not judged yet. Run: visrep evaluate {record.path} --data LABELLED_IMAGES")
    results = evaluation["results"]
    marks = [
        Mark(_protocol(row), WHO[who], row["value"], row["ci_low"], row["ci_high"])
        for rows in _headlines(results)
        for who, row in rows.items()
    ]
    rows, marked = [], []
    for result in (r for r in results if r["encoder"] == "trained"):
        untrained = [
            r for r in results if r["encoder"] == "untrained" and _same(r, result, ("layer", "pooling"))
        ]
        pixels = [r for r in results if r["encoder"] == "pixels" and _same(r, result, ())]
        baselines = [*untrained[:1], *pixels[:1]]
        gain = result["value"] - max((r["value"] for r in baselines), default=math.nan)
        rows.append([
            _protocol(result), str(result["layer"]), result["pooling"], _with_interval([result]),
            _with_interval(untrained), _with_interval(pixels), f"{gain:+.1f}" if baselines else "-",
        ])  # fmt: skip
        marked.append(_clearly_better(result, baselines))
    head = ("protocol", "layer", "pooling", "trained", "untrained", "raw pixels", "gain")
    first = results[0]
    sizes = f"{first['n_train']:,} images to fit, {first['n_test']:,} to judge. {evaluation['split']}"
    warnings = "".join(note(f"Warning: {text}") for text in evaluation["warnings"])
    return figure(intervals(marks), kind="chart") + table(head, rows, marked=marked) + note(sizes) + warnings


def _same(one: Result, other: Result, keys: Sequence[str]) -> bool:
    same_k = one["settings"].get("k") == other["settings"].get("k")
    return same_k and all(one[key] == other[key] for key in ("protocol", "metric", *keys))


def _with_interval(results: Sequence[Result]) -> str:
    if not results:
        return "-"
    value = results[0]
    return f"{value['value']:.1f}  [{value['ci_low']:.1f}, {value['ci_high']:.1f}]"


def losses(record: RunRecord) -> str:
    """Loss terms, then the schedules that move."""
    if not record.steps:
        raise Missing("No step is on record yet.")
    epochs = [step["epoch"] for step in record.steps]
    terms = list(record.steps[-1]["terms"])
    panels = [_panel("Loss", [Line(epochs, [step["loss"] for step in record.steps], "loss")])]
    if len(terms) > 1:
        lines = [
            Line(epochs, [step["terms"].get(name, math.nan) for step in record.steps], name) for name in terms
        ]
        panels.append(_panel("Terms of the loss, weighted", lines))
    constant = []
    for name in record.steps[-1]["schedules"]:
        values = [step["schedules"].get(name, math.nan) for step in record.steps]
        if min(values) == max(values):
            constant.append(f"{name} = {values[0]:.4g}")
        else:
            panels.append(_panel(f"Schedule: {name}", [Line(epochs, values, name)]))
    speed = [step["images_per_second"] for step in record.steps]
    panels.append(_panel("Images a second", [Line(epochs, speed, "images/s")]))
    return grid(panels, kind="panels") + (note(f"Constant: {', '.join(constant)}.") if constant else "")


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
            _panel(GUIDE.get(name, name), [Line([x for x, _ in known], [y for _, y in known], name)])
        )
    if not panels:
        raise Missing("Nothing has been measured yet; the first monitored epoch is not over.")
    return grid(panels, kind="panels")


def _panel(caption: str, lines: Sequence[Line], limit: float = math.nan, label: str = "") -> str:
    return figure(curves(lines, x_label="epoch", limit=limit, limit_label=label), caption)


def configuration(record: RunRecord) -> str:
    """How to repeat the run, everything that was set, and where it ran."""
    about = record.about
    parts = [f"<h3>Command</h3><pre>{escape(about['command'] or 'called from Python')}</pre>"]
    if about["overrides"]:
        parts.append(note(f"Changed from the preset: {', '.join(map(str, about['overrides']))}"))
    rows = list(_flat(about["run"]))
    parts.append(folded(f"All {len(rows)} settings", table((), rows)))
    where = [*_flat(about["versions"]), *_flat(about["hardware"])]
    parts.append(f"<h3>Versions and hardware</h3>{table((), where)}")
    if record.unreadable:
        shown = table(("image", "reason"), record.unreadable[:200])
        parts.append(folded(f"{len(record.unreadable)} images could not be read and were left out", shown))
    else:
        parts.append(note("Every image could be read."))
    return f'<div class="facts">{"".join(parts)}</div>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names; a value's type stands beside its name."""
    rows = []
    for name, value in values.items():
        if name == "type":
            continue
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            kind = str(value.get("type", "")).rpartition(":")[2]
            rows.extend([*([(path, kind)] if kind else []), *_flat(value, f"{path}.")])
        else:
            rows.append((path, str(value) if value not in ("", [], None) else "-"))
    return rows
