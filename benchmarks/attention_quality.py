"""Do the attention maps and keys of white-box encoders find objects better than those of a ViT? A table of given runs.

    python benchmarks/attention_quality.py runs/vit runs/crate runs/tost --data playground:n=1000 photos/

Trains nothing: runs should have been trained alike (the script says where they differ). Each run is judged by
``attention-masks``, ``discovery-lost`` and ``discovery-tokencut`` (docs/protocols.md), beside its untrained twin; what
an architecture cannot give, such as attention maps of ToST, is left out with the reason. ``--out`` keeps all numbers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from visrep.analysis.record import read_run
from visrep.config import save_json
from visrep.encoders import load_encoder
from visrep.evaluation.dense.opening import open_for
from visrep.evaluation.evaluate import evaluate
from visrep.evaluation.results import Inapplicable, Result
from visrep.machine import default_device

PROTOCOLS = ("attention-masks", "discovery-lost", "discovery-tokencut")
ALIKE = ("data", "epochs", "batch", "seed", "limit")
"""what runs that are compared should have in common, besides the method and its preset"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which runs, on what."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    data: tuple[str, ...] = ("playground:n=1000,size=64",)
    """images with masks"""
    size: int = 0
    """side in pixels of what the encoders see; default: twice their own where they take that"""
    baselines: bool = True
    """judge the untrained twins too"""
    seed: int = 0
    out: Path | None = None
    """a JSON file for the numbers"""


@dataclass(frozen=True)
class Row:
    """What one run got on one set of images."""

    run: str
    data: str
    results: tuple[Result, ...]
    left_out: dict[str, str]
    """protocol to reason"""


def trained_as(run: Path) -> dict[str, Any]:
    """What should not differ between runs."""
    about = read_run(run).about
    return {name: about[name] for name in ("method", "preset")} | {name: about["run"][name] for name in ALIKE}


def differences(runs: tuple[Path, ...]) -> list[str]:
    """In words, what the runs do not have in common."""
    known = {run.name: trained_as(run) for run in runs}
    said: list[str] = []
    for name in ("method", "preset", *ALIKE):
        values = {run: about[name] for run, about in known.items()}
        if len(set(map(str, values.values()))) > 1:
            said.append(f"{name}: " + ", ".join(f"{run} {value}" for run, value in values.items()))
    return said


def judge(run: Path, data: str, settings: Settings) -> Row:
    """All protocols that apply."""
    encoder = load_encoder(run)
    results: list[Result] = []
    left_out: dict[str, str] = {}
    for protocol in PROTOCOLS:
        train, test = open_for((protocol,), data)
        try:
            found = evaluate(
                encoder,
                train,
                test,
                protocols=(protocol,),
                baselines=settings.baselines,
                size=settings.size,
                device=default_device(),
                seed=settings.seed,
                progress=True,
            )
        except Inapplicable as reason:
            left_out[protocol] = str(reason)
            continue
        results += found.results
    return Row(run.name, data, tuple(results), left_out)


def cell(row: Row, protocol: str, metric: str) -> str:
    """The trained encoder's number with its interval, and the untrained twin's."""
    of_one = {r.encoder: r for r in row.results if r.protocol == protocol and r.metric == metric}
    if "trained" not in of_one:
        return "-"
    own = of_one["trained"]
    text = f"{own.value:.1f} ({own.ci_low:.1f} to {own.ci_high:.1f})"
    return text if "untrained" not in of_one else f"{text}, untrained {of_one['untrained'].value:.1f}"


def columns(rows: list[Row]) -> list[tuple[str, str]]:
    """Protocols with their metrics, in order, of whatever was measured."""
    found = dict.fromkeys((r.protocol, r.metric) for row in rows for r in row.results)
    return sorted(found, key=lambda pair: PROTOCOLS.index(pair[0]))


def table(rows: list[Row], data: str) -> Table:
    shown = columns(rows)
    made = Table(title=data)
    made.add_column("run")
    for protocol, metric in shown:
        made.add_column(f"{protocol}\n{metric}", justify="right")
    for row in rows:
        made.add_row(row.run, *(cell(row, *column) for column in shown))
    return made


def main(settings: Settings) -> None:
    console = Console()
    for difference in differences(settings.runs):
        console.print(f"not trained alike: {difference}")
    every: list[Row] = []
    for data in settings.data:
        rows = [judge(run, data, settings) for run in settings.runs]
        console.print(table(rows, data))
        for row in rows:
            for protocol, reason in row.left_out.items():
                console.print(f"{row.run}, {protocol}: {reason}")
        every += rows
    if settings.out is not None:
        save_json(settings.out, {"rows": [asdict(row) for row in every], "size": settings.size})


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
