"""Is continuing from public weights worth it? Linear probe and kNN before and after, with the guard on and off.

    python benchmarks/continued.py --starts pip:mobilenet_v2 pip:efficientnet_lite0 --data flowers --name flowers

continues every start on the unlabelled images with every recipe, seed and act of the guard, judges start and end on the
held-out images of the same size, and adds rows to ``records/continued_NAME.json``, in place of those of other settings;
`python docs/generate.py` puts the table into docs/continue.md. Runs are kept in ``--runs`` and reused when they are
there; of a run that is gone, what the record says is kept. Labels of training images are seen by the guard (its kNN)
and by the probes, never by the training.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro

import visrep
from bookkeeping import RECORDS, beside_others, command, machine, on_file, unless_gone
from visrep.config import Adapt, save_json
from visrep.data import open_splits
from visrep.evaluation.evaluate import evaluate
from visrep.evaluation.results import Result
from visrep.method import Encoder
from visrep.rundir import RunFolder

RECIPES = {
    "careful": Adapt(train_blocks=2, freeze_epochs=0.5),
    "standard": Adapt(),
    "careless": Adapt(freeze_epochs=0.0, lr_scale=1.0, layer_decay=1.0),
}
"""that of docs/continue.md for a CPU; the defaults; and everything at once at the full rate, heads still at random"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to continue, how, on what."""

    starts: tuple[str, ...]
    """encoders as `--init` takes them; a run folder is continued at its own size"""
    method: str = "simclr:small32"
    data: str
    """images with a test part, both with labels"""
    name: str
    """of the data set"""
    size: int = 96
    epochs: float = 3
    batch: int = 64
    recipes: tuple[str, ...] = tuple(RECIPES)
    guards: tuple[str, ...] = ("rollback", "warn")
    """``warn`` never acts: what a run without a guard does that trains on the same images. It is not repeated where
    ``rollback`` only looked on, as it ends with the same weights to the bit"""
    seeds: tuple[int, ...] = (0, 1, 2)
    precision: str = "bf16-mixed"
    runs: Path = Path("runs/continued")


def short(start: str) -> str:
    """A name for files: that of the run folder, or what stands behind the colon."""
    return Path(start).name if Path(start).exists() else start.rpartition(":")[2].replace("/", "_")


def seen_at(encoder: Encoder, size: int) -> Encoder:
    """The encoder, given whole images of ``size`` pixels a side, 0 for its own."""
    if size:
        encoder.preprocessing = replace(encoder.preprocessing, size=size, ratio=1.0)
    return encoder


def judged(encoder: Encoder, settings: Settings, keep: Path) -> dict[str, Result]:
    """kNN with 20 neighbours and the linear probe, by name."""
    train, test = open_splits(settings.data)
    if test is None:
        raise SystemExit(f"{settings.data} has no test part: without it there is no before and after.")
    found = evaluate(encoder, train, test, protocols=("knn", "linear"), baselines=False, keep=keep)
    return {
        "knn": next(r for r in found.results if r.protocol == "knn" and r.settings["k"] == 20),
        "linear": next(r for r in found.results if r.protocol == "linear"),
    }


def remembered(file: Path, encoder: Encoder, settings: Settings) -> dict[str, dict[str, Any]]:
    """`judged`, from the file when it was written before."""
    if not file.exists():
        found = judged(encoder, settings, file.parent / "features")
        save_json(file, {name: asdict(result) for name, result in found.items()})
    return json.loads(file.read_text())


def folder_of(start: str, recipe: str, guard: str, seed: int, settings: Settings) -> Path:
    """Where a run is or will be."""
    name = f"{short(start)}-{settings.name}-{recipe}"
    guarded = settings.runs / f"{name}-rollback-{seed}"
    alike = guard == "warn" and only_watched(guarded)
    return guarded if alike else settings.runs / f"{name}-{guard}-{seed}"


def continued(
    folder: Path, start: str, recipe: str, guard: str, seed: int, settings: Settings, size: int
) -> dict[str, Any]:
    """One run: trained or found, and judged."""
    if not (folder / "encoder.json").exists() or not RunFolder(folder).metrics("epoch"):
        visrep.pretrain(
            settings.method,
            settings.data,
            str(folder),
            init=start,
            epochs=settings.epochs,
            batch=settings.batch,
            seed=seed,
            overrides={
                "adapt": replace(RECIPES[recipe], size=size),
                "guard.act": guard,
                "monitor_epochs": 1,
                "limit": 0,
                "precision": settings.precision,
            },
        )
    results = remembered(folder / "after.json", seen_at(visrep.load_encoder(folder), size), settings)
    steps, kept = RunFolder(folder).metrics("step"), RunFolder(folder).metrics("retention")
    return {
        "seed": seed,
        "run": folder.name,
        "results": results,
        "steps": steps[-1]["step"],
        "cpu_seconds": round(steps[-1]["cpu_seconds"], 1),
        "kept_step": max((line["step"] for line in kept if line["kept"]), default=0) if kept else None,
        "said": [line["lost"] for line in kept if line["lost"]],
        "cka": [round(line["cka"]["data"], 3) for line in kept],
    }


def only_watched(folder: Path) -> bool:
    """Whether a guarded run went to its end: nothing was lost, so that the guard changed nothing."""
    if not (folder / "after.json").exists():
        return False
    looks = RunFolder(folder).metrics("retention")
    return bool(looks) and not any(look["lost"] for look in looks)


def over_seeds(runs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each protocol."""
    found = {}
    for protocol in ("knn", "linear"):
        values = [run["results"][protocol]["value"] for run in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[protocol] = {"mean": round(statistics.mean(values), 2), "sd": round(spread, 2)}
    return found


def main(settings: Settings) -> None:
    record = {
        "machine": machine(),
        "method": settings.method,
        "epochs": settings.epochs,
        "batch": settings.batch,
        "recipes": {name: asdict(recipe) for name, recipe in RECIPES.items()},
    }
    kept = RECORDS / f"continued_{settings.name}.json"
    earlier = made_alike(kept, record)
    rows: list[dict[str, Any]] = []
    for start in settings.starts:
        own = visrep.load_encoder(start).preprocessing.size
        size = min(own, settings.size)
        before = {}
        for side in dict.fromkeys((size, own)):
            file = settings.runs / f"{short(start)}-{settings.name}-before-{side}" / "before.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            before[side] = remembered(file, seen_at(visrep.load_encoder(start), side), settings)
        for recipe in settings.recipes:
            for guard in settings.guards:
                row = {
                    "start": short(start),
                    "size": size,
                    "recipe": recipe,
                    "guard": guard,
                    "command": command(__file__),
                }
                known = {
                    run["seed"]: run for old in earlier if row_key(old) == row_key(row) for run in old["runs"]
                }
                runs = []
                for seed in settings.seeds:
                    folder = folder_of(start, recipe, guard, seed, settings)
                    work = partial(continued, folder, start, recipe, guard, seed, settings, size)
                    runs.append(unless_gone(known, seed, folder, work))
                rows.append(row | {"before": before, "after": over_seeds(runs), "runs": runs})
                print(
                    row,
                    {p: before[size][p]["value"] for p in ("knn", "linear")},
                    rows[-1]["after"],
                    flush=True,
                )
    save_json(kept, record | {"rows": beside_others(earlier, rows, row_key)})


def made_alike(file: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of earlier calls with the settings of this one."""
    found = on_file(file)
    alike = all(found.get(name) == value for name, value in json.loads(json.dumps(record)).items())
    return found["rows"] if alike else []


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("start", "size", "recipe", "guard"))


if __name__ == "__main__":
    main(tyro.cli(Settings))
