"""What is an order without labels worth? Every label-free measure of our runs against their linear probe.

    python benchmarks/label_free.py --runs runs/records

measures each finished run that was judged (evaluation.json) on images of its own training data and writes
``records/label_free.json``, from which it takes what was measured alike before; `python docs/generate.py` puts the
table into docs/diagnostics.md.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.progress import track
from scipy.stats import kendalltau, spearmanr

from bookkeeping import RECORDS, command
from visrep import load_encoder
from visrep.analysis.diagnose import diagnose_encoder
from visrep.analysis.layers import Amount
from visrep.analysis.measures.registry import MEASURES
from visrep.comparison.worth import WITHIN
from visrep.config import save_json
from visrep.data import Source, open_source, open_splits
from visrep.rundir import RunFolder

FEWEST = 5
"""runs of a group below which a correlation says nothing"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    runs: Path = Path("runs/records")
    """folder of run folders, METHOD-PRESET-DATA-SEED"""
    seeds: tuple[int, ...] = ()
    """only runs of these seeds; default: all"""
    images: int = 1000
    view_images: int = 300
    views: int = 6
    resamples: int = 1000
    """of the methods, for the intervals"""
    out: Path = RECORDS / "label_free.json"


@dataclass(frozen=True)
class Measured:
    """One run: its linear probe, and every measure that gave a number."""

    run: str
    method: str
    data: str
    network: str
    """the encoder's architecture, in words"""
    linear: float
    values: dict[str, float]
    good: dict[str, float]
    """the same turned so that larger is better, where a measure has a better end"""


def linear_probe(folder: Path) -> float | None:
    """Of the trained encoder's last layer, pooled as it is by default; None where it was not judged by one."""
    file = folder / "evaluation.json"
    results = json.loads(file.read_text())["results"] if file.is_file() else []
    found = [
        r for r in results if (r["protocol"], r["encoder"], r["metric"]) == ("linear", "trained", "top-1")
    ]
    last = max((r["layer"] for r in found), default=0)
    return next((r["value"] for r in found if r["layer"] == last), None)


def network(folder: Path) -> str:
    """The architecture of a run's encoder, in words."""
    config = json.loads((folder / "encoder.json").read_text())["config"]
    size = f"{config['width']} wide" if "width" in config else ""
    patch = f"patch {config['patch']}" if config.get("patch") else ""
    return " ".join(filter(None, [config["type"].rpartition(":")[2], size, patch]))


def measured(folder: Path, settings: Settings, known: dict[str, dict[str, float]]) -> Measured | None:
    """None for a run that is not finished or not judged; ``known`` are values by run that need not be measured."""
    name = re.fullmatch(r"(\w+)-(\w+)-(.+)-(\d+)", folder.name)
    linear = linear_probe(folder)
    if name is None or linear is None or not (folder / "encoder.json").exists():
        return None
    if settings.seeds and int(name[4]) not in settings.seeds:
        return None
    values = known[folder.name] if folder.name in known else measure(folder, settings)
    directed = {measure.key: measure for measure in MEASURES if measure.better}
    good = {k: -directed[k].best_first(value) if k in directed else value for k, value in values.items()}
    return Measured(folder.name, name[1], name[3], network(folder), linear, values, good)


def measure(folder: Path, settings: Settings) -> dict[str, float]:
    """Every measure that gives a number."""
    run = RunFolder(folder).about()["run"]
    source = open_source(open_splits(run["data"])[0], limit=run["limit"])
    amount = Amount(settings.images, settings.view_images, settings.views)
    return readings(folder, source, amount)


def readings(encoder: Path, source: Source, amount: Amount) -> dict[str, float]:
    """Every measure of an encoder's last layer that gives a number, by key."""
    (layer,) = diagnose_encoder(load_encoder(encoder), source, amount=amount).layers
    return {key: reading.value for key, reading in layer.readings.items() if reading.value is not None}


def measured_before(settings: Settings) -> dict[str, dict[str, float]]:
    """Values by run, of a record that was made with the same amounts."""
    record = json.loads(settings.out.read_text()) if settings.out.exists() else {}
    if any(record.get(name) != getattr(settings, name) for name in ("images", "view_images", "views")):
        return {}
    keys = {measure.key for measure in MEASURES}
    return {run["run"]: {key: run[key] for key in keys & run.keys()} for run in record["runs"]}


def correlations(runs: Sequence[Measured], resamples: int) -> dict[str, dict[str, float]]:
    """Of every measure with the linear probe: positive where its better end is the better probe.

    Intervals are over methods drawn anew, because the seeds of one method are alike.
    """
    found = {}
    for key in (measure.key for measure in MEASURES):
        known = [run for run in runs if key in run.good]
        if len(known) < FEWEST:
            continue
        x, y = [run.good[key] for run in known], [run.linear for run in known]
        low, high = _interval(known, key, resamples)
        found[key] = {
            "n": len(known),
            "spearman": round(spearman(x, y), 3),
            "low": round(low, 3),
            "high": round(high, 3),
            "kendall": round(kendall(x, y), 3),
        }
    return found


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's correlation."""
    found: Any = spearmanr(x, y)
    return float(found.statistic)


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's correlation."""
    found: Any = kendalltau(x, y)
    return float(found.statistic)


def _interval(runs: Sequence[Measured], key: str, resamples: int) -> tuple[float, float]:
    methods = {run.method: [other for other in runs if other.method == run.method] for run in runs}
    rng, values = np.random.default_rng(0), []
    for _ in range(resamples):
        drawn = [run for name in rng.choice(list(methods), len(methods)) for run in methods[name]]
        x, y = [run.good[key] for run in drawn], [run.linear for run in drawn]
        if len(set(x)) > 1 and len(set(y)) > 1:
            values.append(spearman(x, y))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def within_methods(runs: Sequence[Measured]) -> list[Measured]:
    """Runs as differences from the mean of their method and network: what is left to choose between seeds and presets.

    Another network alone changes most measures, so runs of it are not set against each other.
    """
    differences = []
    for same in dict.fromkeys((run.method, run.network) for run in runs):
        mine = [run for run in runs if (run.method, run.network) == same]
        if len(mine) < 2:
            continue
        keys = set.intersection(*(set(run.good) for run in mine))
        means = {key: statistics.mean(run.good[key] for run in mine) for key in keys}
        linear = statistics.mean(run.linear for run in mine)
        differences += [
            replace(run, linear=run.linear - linear, good={key: run.good[key] - means[key] for key in keys})
            for run in mine
        ]
    return differences


def groups(runs: Sequence[Measured], resamples: int) -> list[dict[str, Any]]:
    """By data set: all runs, those of one architecture, and runs as differences from their method's mean."""
    found = []
    for data in sorted({run.data for run in runs}):
        here = [run for run in runs if run.data == data]
        named = {f"{data}, {len({run.method for run in here})} methods": here}
        for kind in sorted({run.network for run in here}):
            alike = [run for run in here if run.network == kind]
            named[f"{data}, {len({run.method for run in alike})} methods with one encoder, {kind}"] = alike
        named[f"{data}, runs {WITHIN}"] = within_methods(here)
        for name, some in named.items():
            if values := correlations(some, resamples):
                found.append({"name": name, "correlations": values})
    return found


def main(settings: Settings) -> None:
    folders = sorted(folder for folder in settings.runs.iterdir() if folder.is_dir())
    known = measured_before(settings)
    runs = [run for folder in track(folders, "measuring") if (run := measured(folder, settings, known))]
    if not runs:
        raise SystemExit(f"{settings.runs} holds no finished run with a linear probe in its evaluation.json.")
    found = groups(runs, settings.resamples)
    save_json(
        settings.out,
        {
            "command": command(__file__),
            "images": settings.images,
            "view_images": settings.view_images,
            "views": settings.views,
            "groups": found,
            "runs": [
                {"run": run.run, "linear": round(run.linear, 2)}
                | {key: round(value, 5) for key, value in run.values.items() if math.isfinite(value)}
                for run in runs
            ],
        },
    )
    for group in found:
        print(group["name"])
        for key, row in group["correlations"].items():
            print(f"  {key:22} n={row['n']:3} Spearman {row['spearman']:+.2f} ({row['low']:+.2f} to "
                  f"{row['high']:+.2f}) Kendall {row['kendall']:+.2f}")  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings))
