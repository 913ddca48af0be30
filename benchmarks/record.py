"""Prove that a method learns: train it with several seeds, judge it beside its baselines, write a record.

    python benchmarks/record.py simclr:small32 --name cifar10-jpeg --data train.parquet --test test.parquet \
        --limit 10000 --test-limit 2000 --seeds 0 1 2

writes ``records/simclr-small32-cifar10-jpeg.json``. Runs are kept in ``--runs`` and reused when they are there; of a
seed whose run is gone, what the record says is kept if it was made with the same settings.
"""

from __future__ import annotations

import json
import shlex
import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import tyro

import visrep
from baselines import known_baselines, mark_of
from bookkeeping import RECORDS, command, commit, commit_in, machine, on_file, unless_gone
from visrep.config import save_json
from visrep.data import Source, open_source, open_splits
from visrep.evaluation.fingerprint import digest_of
from visrep.evaluation.results import variant
from visrep.rundir import RunFolder


@dataclass(frozen=True, kw_only=True)
class Record:
    """What to record."""

    method: tyro.conf.Positional[str]
    """method:preset"""
    name: str
    """of the data set, for the file's name and the tables"""
    data: str
    """training images"""
    test: str = ""
    """held-out labelled images; default: the test part of data"""
    limit: int = 0
    """first training images only"""
    test_limit: int = 0
    """first test images only"""
    seeds: tuple[int, ...] = (0, 1, 2)
    protocols: tuple[str, ...] = ("knn", "linear")
    claim: str = "linear"
    """the protocol in which the trained encoder must beat both baselines to count as verified; pixels are none where
    all weights are trained"""
    pooling: str = "auto"
    """the pooling of the claim"""
    poolings: tuple[str, ...] = ("auto",)
    runs: Path = Path("runs/records")
    encoder: str = ""
    """name of one in place of the preset's; the record is then kept in records/encoders/"""
    set: tuple[str, ...] = ()
    """overrides, field=value with a JSON value: method.tau=0.2"""


def parse(override: str) -> tuple[str, object]:
    name, _, value = override.partition("=")
    return name, json.loads(value)


def named(record: Record) -> str:
    """What files and folders are called: METHOD-PRESET-DATA, and the encoder where it is not the preset's."""
    return "-".join(filter(None, (*record.method.split(":"), record.name, record.encoder)))


def folder_of(record: Record, seed: int) -> Path:
    """Where a seed's run is or will be."""
    return record.runs / f"{named(record)}-{seed}"


def train_and_judge(record: Record, seed: int) -> dict:
    """One seed: its run folder, reused when finished."""
    folder = folder_of(record, seed)
    if not (folder / "encoder.json").exists():
        made_with = commit()  # before the hours of training in which others may commit
        visrep.pretrain(
            record.method,
            record.data,
            str(folder),
            encoder=record.encoder,
            seed=seed,
            overrides={"limit": record.limit, **dict(map(parse, record.set))},
        )
        (folder / "commit").write_text(made_with)
    if not (folder / "evaluation.json").exists():
        judge(record, folder, seed)
    judged = json.loads((folder / "evaluation.json").read_text())
    steps = RunFolder(folder).metrics("step")
    about = RunFolder(folder).about()
    return {
        "seed": seed,
        "commit": commit_in(folder / "commit"),
        "seconds": round(steps[-1]["seconds"], 1),
        "cpu_seconds": round(steps[-1]["cpu_seconds"], 1),
        "images_per_second": round(statistics.median(line["images_per_second"] for line in steps), 1),
        "steps": steps[-1]["step"],
        "hardware": about["hardware"],
        "built_on": built_on(about),
        "split": judged["split"],
        "results": judged["results"],
    }


def built_on(about: dict) -> dict[str, dict]:
    """Finished runs that a run's networks came from, a tokenizer or a teacher, by the field that names them.

    ``about``: its run.json.
    """
    texts = {field: value for field, value in about["run"]["method"].items() if isinstance(value, str)}
    return {
        field: told(Path(text))
        for field, text in texts.items()
        if text and (Path(text) / "run.json").exists()
    }


def told(folder: Path) -> dict[str, object]:
    """Which run this is: by name, by how it was made and by its weights."""
    about = RunFolder(folder).about()
    return {
        "run": str(folder),
        "method": about["method"],
        "preset": about["preset"],
        "seed": about["run"]["seed"],
        "weights": digest_of(visrep.load_encoder(folder)),
    }


def place(record: Record) -> Path:
    """The record's file. Those of other encoders compare these, not methods."""
    return RECORDS / ("encoders" if record.encoder else "") / f"{named(record)}.json"


def recorded(record: Record) -> dict[int, dict]:
    """Seeds that the record's file holds, made by a command that differs only in its seeds and where runs lie."""
    found = on_file(place(record))
    if not found:
        return {}
    earlier = tyro.cli(Record, args=shlex.split(found["command"])[2:])
    same = replace(earlier, seeds=record.seeds, runs=record.runs) == record
    return {seed["seed"]: seed for seed in found["seeds"]} if same else {}


def yardstick(record: Record) -> tuple[Source, Source | None]:
    """Images to fit on and to judge: the first rows, not the first of every class, so that they are everybody's."""
    train, test = open_splits(record.data)
    held_out = record.test or test
    judged = open_source(held_out, limit=record.test_limit) if held_out else None
    return open_source(train, limit=record.limit), judged


def judge(record: Record, folder: Path, seed: int) -> None:
    """Write the run's evaluation.json: the trained encoder judged once, its baselines only where no run has them."""
    train, test = yardstick(record)
    known = known_baselines(folder, mark_of(folder, train, test, record.protocols, seed))
    visrep.evaluate(
        folder,
        train,
        test=test,
        protocols=record.protocols,
        poolings=record.poolings,
        baselines=known is None,
        seed=seed,
    )
    if known is not None:
        source, results = known
        file = folder / "evaluation.json"
        found = json.loads(file.read_text())
        found["results"] += results
        found["warnings"].append(f"untrained twin and pixels as measured for {source.name}")
        save_json(file, found)


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds."""
    return {
        "mean": round(statistics.mean(values), 2),
        "sd": round(statistics.stdev(values), 2) if len(values) > 1 else 0.0,
    }


def protocol_name(result: dict) -> str:
    """The protocol, with the number of neighbours or labels where there is one."""
    found = variant(result["settings"])
    return f"{result['protocol']} {found[0]}={found[1]}" if found else result["protocol"]


def summarise(seeds: list[dict]) -> list[dict]:
    """Trained against baselines in every protocol, layer, pooling and metric, over seeds."""
    by_key: dict[tuple, dict[str, list[dict]]] = {}
    for seed in seeds:
        for result in seed["results"]:
            # Pixels have no layer and no pooling: they are the baseline of every row of their protocol.
            place = () if result["encoder"] == "pixels" else (result["layer"], result["pooling"])
            key = (protocol_name(result), result["metric"], place)
            by_key.setdefault(key, {}).setdefault(result["encoder"], []).append(result)
    rows = []
    for (protocol, metric, place), found in by_key.items():
        if "trained" not in found:
            continue
        found = {**found, "pixels": by_key.get((protocol, metric, ()), {}).get("pixels", [])}
        row: dict = {"protocol": protocol, "layer": place[0], "pooling": place[1], "metric": metric}
        lowest = min(result["ci_low"] for result in found["trained"])
        for encoder, results in found.items():
            if results:
                row[encoder] = spread([result["value"] for result in results])
        for encoder in ("untrained", "pixels"):
            row[f"beats_{encoder}"] = encoder in row and lowest > max(r["value"] for r in found[encoder])
        rows.append(row)
    return rows


def main(record: Record) -> None:
    earlier = recorded(record)
    seeds = [
        unless_gone(earlier, seed, folder_of(record, seed), partial(train_and_judge, record, seed))
        for seed in record.seeds
    ]
    summary = summarise(seeds)
    claim = next(
        row
        for row in summary
        if row["protocol"] == record.claim and record.pooling in ("auto", row["pooling"])
    )
    method, _, preset = record.method.partition(":")
    about = {
        "method": method,
        "preset": preset,
        "data": record.name,
        "encoder": record.encoder,
        "protocol": record.claim,
        "pooling": claim["pooling"],
        "metric": claim["metric"],
        "trained": claim["trained"],
        "verified": len(seeds) >= 3
        and claim["beats_untrained"]
        and (claim["beats_pixels"] or "pixels" not in claim),
        "command": command(__file__),
        "commit": ", ".join(dict.fromkeys(seed["commit"] for seed in seeds)),
        "machine": machine(),
        "seconds": spread([seed["seconds"] for seed in seeds]),
        "cpu_seconds": spread([seed["cpu_seconds"] for seed in seeds]),
        "summary": summary,
        "seeds": seeds,
    }
    place(record).parent.mkdir(exist_ok=True)
    save_json(place(record), about)
    print(json.dumps({key: about[key] for key in ("method", "data", "verified", "trained", "seconds")}))
    for row in summary:
        print(json.dumps(row))


if __name__ == "__main__":
    main(tyro.cli(Record))
