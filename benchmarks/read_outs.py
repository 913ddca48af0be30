"""What a linear probe of mean patches does not see: attentive probes and fine-tuning with few labels, of finished runs.

    python benchmarks/read_outs.py runs/records/mae-small32-cifar10-jpeg-0 runs/records/ijepa-small32-cifar10-jpeg-0 \
        --data train.parquet --test test.parquet --name cifar10-jpeg-masked

judges every run by ``--protocols`` beside the untrained twin of its architecture, which is judged once for all runs
that share it, and adds rows to ``records/read_outs_NAME-PART.json``, where those of other runs stay; `python
docs/generate.py` puts the table into docs/results.md. The linear probe is that of each run's evaluation.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import tyro

import visrep
from bookkeeping import RECORDS, beside_others, command, commit, commit_in, machine, on_file, unless_gone
from visrep.config import save_json
from visrep.data import open_source
from visrep.encoders import ViT
from visrep.rundir import RunFolder


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which runs, on what."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    data: str
    test: str
    name: str
    """of the data set and, behind a hyphen, of this part of the table"""
    limit: int = 10_000
    test_limit: int = 10_000
    protocols: tuple[str, ...] = ("attentive",)


def judged(run: Path, protocol: str, twin: bool, settings: Settings) -> dict[str, Any]:
    """The sheet of one protocol and its commit, from the file beside the run when it was judged before."""
    file = run / f"read-out-{protocol.replace(':', '-').replace('%', '')}.json"
    found = on_file(file).get("results", [])
    if not found or (twin and all(result["encoder"] == "trained" for result in found)):
        made_with = commit()
        visrep.evaluate(
            run,
            open_source(settings.data, limit=settings.limit),
            test=open_source(settings.test, limit=settings.test_limit),
            protocols=(protocol,),
            baselines=twin,
            keep=False,
            out=file,
            command=command(__file__),
        )
        file.with_suffix(".commit").write_text(made_with)
    return on_file(file) | {"commit": commit_in(file.with_suffix(".commit"))}


def about(run: Path, settings: Settings, twins: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A row: the run's method and its results; ``twins`` holds those of untrained networks by architecture."""
    config = visrep.load_encoder(run).config
    architecture = str(replace(config, mask_token=False) if isinstance(config, ViT) else config)
    row: dict[str, Any] = {
        "run": run.name,
        "method": RunFolder(run).about()["method"],
        "command": command(__file__),
    }
    linear = json.loads((run / "evaluation.json").read_text())["results"]
    row["linear"] = {
        encoder: next(r["value"] for r in linear if r["protocol"] == "linear" and r["encoder"] == encoder)
        for encoder in ("trained", "untrained")
    }
    for protocol in settings.protocols:
        key = f"{protocol} {architecture}"
        sheet = judged(run, protocol, key not in twins, settings)
        by_encoder = {result["encoder"]: result for result in sheet["results"]}
        if key not in twins:
            twins[key] = by_encoder["untrained"]
        trained = by_encoder["trained"]
        row[protocol] = {
            "trained": trained["value"],
            "low": trained["ci_low"],
            "untrained": twins[key]["value"],
            "settings": trained["settings"],
            "commit": sheet["commit"],
            "made": sheet.get("made", []),  # with seconds; earlier sheets did not say
        }
    print(row, flush=True)
    return row


def main(settings: Settings) -> None:
    twins: dict[str, dict[str, Any]] = {}
    file = RECORDS / f"read_outs_{settings.name}.json"
    found = on_file(file)
    earlier = found["rows"] if found.get("protocols") == list(settings.protocols) else []
    known = {row["run"]: row for row in earlier}
    rows = [unless_gone(known, run.name, run, partial(about, run, settings, twins)) for run in settings.runs]
    rows = beside_others(earlier, rows, itemgetter("run"))
    save_json(file, {"machine": machine(), "protocols": settings.protocols, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Settings))
