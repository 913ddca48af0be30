"""What an evaluation says, against its baselines: headline numbers, judgement, the table of probes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from visrep.analysis.figures import Mark, intervals
from visrep.analysis.gallery import Missing
from visrep.analysis.page import card, figure, folded, note, table
from visrep.analysis.record import RunRecord
from visrep.analysis.report_layers import layer_curves
from visrep.analysis.report_names import protocol
from visrep.evaluation.results import clearly_ahead, from_headline, goodness, variant

WHO = {"trained": "trained", "untrained": "same network, untrained", "pixels": "raw pixels"}

Result = Mapping[str, Any]


def probes(record: RunRecord) -> str:
    """Every number of the evaluation beside its baselines."""
    evaluation = record.evaluation
    if not evaluation or not evaluation["results"]:
        raise Missing(f"Not judged yet. Run: visrep evaluate {record.path} --data LABELLED_IMAGES")
    return judged(evaluation)


def judged(evaluation: Mapping[str, Any]) -> str:
    """The same of an evaluation that is there, as evaluation.json holds it."""
    results = evaluation["results"]
    marks = [
        Mark(protocol(row), WHO[who], row["value"], row["ci_low"], row["ci_high"])
        for rows in headlines(results)
        for who, row in rows.items()
    ]
    rows, marked = [], []
    for result in (r for r in results if r["encoder"] == "trained"):
        untrained = [
            r for r in results if r["encoder"] == "untrained" and _same(r, result, ("layer", "pooling"))
        ]
        pixels = [r for r in results if r["encoder"] == "pixels" and _same(r, result, ())]
        baselines = [*untrained[:1], *pixels[:1]]
        mine, *theirs = (goodness(result["metric"], r["value"]) for r in (result, *baselines))
        gain = mine - max(theirs, default=math.nan)
        rows.append([
            protocol(result), str(result["layer"]), result["pooling"], _with_interval([result]),
            _with_interval(untrained), _with_interval(pixels), f"{gain:+.1f}" if baselines else "-",
        ])  # fmt: skip
        marked.append(clearly_better(result, baselines))
    head = ("protocol", "layer", "pooling", "trained", "untrained", "raw pixels", "gain")
    warnings = "".join(note(f"Warning: {text}") for text in evaluation["warnings"])
    return (
        figure(intervals(marks), kind="chart")
        + layer_curves(results)
        + table(head, rows, marked=marked)
        + "".join(map(_details, (rows for rows in headlines(results) if rows["trained"].get("details"))))
        + note(f"Images: {evaluation['split']}.")
        + warnings
    )


def _details(rows: Mapping[str, Result]) -> str:
    """What a protocol's number is made of, such as the IoU of each class, the greatest first; folded away."""
    parts: list[Mapping[str, float]] = [row.get("details", {}) for row in rows.values()]
    mine = rows["trained"]["details"]
    shown = [
        [name, *(f"{part[name]:.1f}" if name in part else "-" for part in parts)]
        for name in sorted(mine, key=lambda name: -mine[name])
    ]
    return folded(f"{protocol(rows['trained'])}, in parts", table(("", *(WHO[who] for who in rows)), shown))


def headlines(results: Sequence[Result]) -> list[dict[str, Result]]:
    """For each protocol, one result an encoder: last layer, first pooling, usual number of neighbours or labels."""
    chosen: dict[str, dict[str, Result]] = {}
    order = sorted(results, key=lambda r: (-r["layer"], from_headline(r["settings"])))
    for result in order:
        chosen.setdefault(result["protocol"], {}).setdefault(result["encoder"], result)
    names = dict.fromkeys(result["protocol"] for result in results)
    return [chosen[name] for name in names if "trained" in chosen[name]]


def judgement(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Protocols in which training was clearly worth it, and the others. Both empty without baselines."""
    better, others = [], []
    for rows in headlines(results):
        baselines = [row for who, row in rows.items() if who != "trained"]
        if baselines:
            wins = clearly_better(rows["trained"], baselines)
            (better if wins else others).append(protocol(rows["trained"]))
    return better, others


def cards(results: Sequence[Result]) -> list[str]:
    """The headline number of each protocol."""
    made = []
    for rows in headlines(results):
        trained, baselines = rows["trained"], [rows[who] for who in ("untrained", "pixels") if who in rows]
        remark = ", ".join(f"{WHO[row['encoder']]} {row['value']:.1f}" for row in baselines)
        interval = f"95 % interval {trained['ci_low']:.1f} to {trained['ci_high']:.1f}"
        kind = "" if not baselines else "good" if clearly_better(trained, baselines) else "bad"
        label, said = f"{protocol(trained)}, held-out images", "; ".join(filter(None, (interval, remark)))
        made.append(card(label, f"{trained['value']:.1f} %", said, kind=kind))
    return made


def in_words(better: Sequence[str], others: Sequence[str]) -> str:
    """A `judgement` as a sentence; "" without baselines."""
    said = [f"clearly better than untrained and raw pixels in {' and '.join(better)}"] if better else []
    said += [f"not clearly better than untrained or raw pixels in {' and '.join(others)}"] if others else []
    whole = "; ".join(said)
    return f"{whole[:1].upper()}{whole[1:]}." if whole else ""


def clearly_better(trained: Result, baselines: Sequence[Result]) -> bool:
    """Whether the 95 % interval lies on the better side of that of every baseline; False without baselines."""
    metric, mine = trained["metric"], (trained["ci_low"], trained["ci_high"])
    ends = [(baseline["ci_low"], baseline["ci_high"]) for baseline in baselines]
    return bool(ends) and all(clearly_ahead(metric, mine, other) for other in ends)


def _same(one: Result, other: Result, keys: Sequence[str]) -> bool:
    alike = variant(one["settings"]) == variant(other["settings"])
    return alike and all(one[key] == other[key] for key in ("protocol", "metric", *keys))


def _with_interval(results: Sequence[Result]) -> str:
    if not results:
        return "-"
    value = results[0]
    return f"{value['value']:.1f}  [{value['ci_low']:.1f}, {value['ci_high']:.1f}]"
