"""What is choosing a setting, or a checkpoint, without labels worth? One method in several settings, measured.

    python benchmarks/selection.py mae:small32 --name cifar10-jpeg --data train.parquet --test test.parquet

trains the preset once in each of `SETTINGS`, keeps the encoder of every measurement, judges all by linear probe,
measures them without labels, and writes ``records/selection/mae-small32-cifar10-jpeg.json``: for every measure that has
a better end, how its order of settings and of checkpoints agrees with that of the probe, and how many points the
encoder that it chooses is behind the best one. Runs are kept in ``--runs`` and reused when they are there.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import visrep
from bookkeeping import RECORDS, command, commit, machine
from label_free import readings, spearman
from visrep.analysis.kept import kept_encoders
from visrep.analysis.layers import Amount
from visrep.analysis.measures.registry import MEASURES
from visrep.config import save_json
from visrep.data import Source, open_source

VIEWS = 6
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "mae:small32": {
        "as it is": {},
        "a quarter hidden": {"method.mask_ratio": 0.25},
        "half hidden": {"method.mask_ratio": 0.5},
        "nine tenths hidden": {"method.mask_ratio": 0.9},
        "plain pixels": {"method.norm_pixels": False},
        "a tenth of the rate": {"optim.lr.then.start": 2e-4},
        "four times the rate": {"optim.lr.then.start": 8e-3},
    },
    "simclr:small32": {
        "as it is": {},
        "temperature 0.05": {"method.tau": 0.05},
        "temperature 1": {"method.tau": 1.0},
        "colours left alone": {
            f"method.views.{view}.{name}": 0.0 for view in ("first", "second") for name in ("jitter", "gray")
        },
        "crops of half or more": {f"method.views.{view}.scale": (0.5, 1.0) for view in ("first", "second")},
        "a tenth of the rate": {"optim.lr.then.start": 3e-4},
        "four times the rate": {"optim.lr.then.start": 1.2e-2},
    },
}
"""overrides of a preset by what they do: some too weak, some too strong, as in a search"""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to train, judge and measure."""

    method: tyro.conf.Positional[str]
    """method:preset, one of `SETTINGS`"""
    name: str
    """of the data set, for the file's name and the tables"""
    data: str
    """training images"""
    test: str
    """held-out labelled images"""
    limit: int = 10_000
    """first training images only"""
    test_limit: int = 10_000
    """first test images only"""
    seed: int = 0
    images: int = 2000
    """first training images that the measures look at"""
    view_images: int = 300
    """so many of them are seen in random views"""
    runs: Path = Path("runs/selection")


def trained(asked: Selection, number: int, overrides: Mapping[str, Any]) -> Path:
    """The run of a setting, reused when finished."""
    folder = asked.runs / f"{asked.method.replace(':', '-')}-{asked.name}-{number}"
    if not (folder / "encoder.json").exists():
        overrides = {"limit": asked.limit, "keep_encoders": True, **overrides}
        visrep.pretrain(asked.method, asked.data, str(folder), seed=asked.seed, overrides=overrides)
    return folder


def judged(asked: Selection, folder: Path, train: Source, test: Source) -> dict[str, float]:
    """An encoder's linear probe as ``linear``, in percent, and its measures; kept beside it."""
    file = folder / "selection.json"
    if not file.exists():
        found = visrep.evaluate(
            folder, train, test=test, protocols=("linear",), baselines=False, seed=asked.seed
        )
        (probe,) = (result for result in found.results if result.metric == "top-1")
        looked_at = open_source(asked.data, limit=asked.images)
        amount = Amount(asked.images, asked.view_images, VIEWS)
        save_json(file, {"linear": round(probe.value, 2)} | readings(folder, looked_at, amount))
    return json.loads(file.read_text())


def agreement(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of each measure with a better end: Spearman's correlation with the probe, and how far its choice is behind."""
    found = {}
    for measure in MEASURES:
        if not measure.better or any(measure.key not in row for row in rows):
            continue
        linear = [row["linear"] for row in rows]
        order = [measure.best_first(row[measure.key]) for row in rows]
        found[measure.key] = {
            "spearman": round(-spearman(order, linear), 3),
            "behind": round(max(linear) - linear[order.index(min(order))], 2),
        }
    return found


def mean_over_runs(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over runs of what `agreement` gives for the checkpoints of each."""
    keys = [key for key in runs[0] if all(key in run for run in runs)]
    return {
        key: {name: round(statistics.mean(run[key][name] for run in runs), 3) for name in runs[0][key]}
        for key in keys
    }


def main(asked: Selection) -> None:
    if asked.method not in SETTINGS:
        raise SystemExit(f"{asked.method}: settings are written down for {', '.join(SETTINGS)}.")
    train, test = open_source(asked.data, limit=asked.limit), open_source(asked.test, limit=asked.test_limit)
    settings = []
    for number, (said, overrides) in enumerate(SETTINGS[asked.method].items()):
        folder = trained(asked, number, overrides)
        checkpoints = [
            {"step": step, **judged(asked, encoder, train, test)}
            for step, encoder in kept_encoders(folder).items()
        ]
        final = judged(asked, folder, train, test)
        settings.append({"setting": said, "overrides": overrides, "end": final, "checkpoints": checkpoints})
        print(said, final["linear"], [one["linear"] for one in checkpoints])
    found = {
        "settings": agreement([one["end"] for one in settings]),
        "checkpoints": mean_over_runs([agreement(one["checkpoints"]) for one in settings]),
    }
    file = RECORDS / "selection" / f"{asked.method.replace(':', '-')}-{asked.name}.json"
    file.parent.mkdir(exist_ok=True)
    about = {
        "method": asked.method,
        "data": asked.name,
        "command": command(__file__),
        "commit": commit(),
        "machine": machine(),
        "images": asked.images,
        "view_images": asked.view_images,
        "views": VIEWS,
    }
    save_json(file, about | {"agreement": found, "settings": settings})
    for what, rows in found.items():
        for key, row in rows.items():
            print(
                f"{what:12} {key:22} Spearman {row['spearman']:+.2f}, {row['behind']:.1f} points behind the best"
            )


if __name__ == "__main__":
    main(tyro.cli(Selection))
