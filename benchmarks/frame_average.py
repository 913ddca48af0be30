"""Can an encoder of images that averages frames learn which way things move? All its weights trained on motion.

    python benchmarks/frame_average.py runs/records/mae-small32-cifar10-jpeg-0 --seeds 0 1 2

fine-tunes the encoder of an image run by `finetune-motion` on clips of the moving playground, once for each seed (it
draws the head, the batches and the resamples), and puts rows into ``records/frame_average.json``, in place of those of
the same seeds. docs/methods/masked.md has the number beside VideoMAE's. What a seed gave is kept beside the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import tyro

import visrep
from bookkeeping import RECORDS, Row, beside_others, command, commit, commit_in, on_file
from visrep.config import save_json


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Which encoder, on what."""

    run: tyro.conf.Positional[Path]
    """of a method that learns from images"""
    data: str = "playground-video:n=4000,size=48,frames=8"
    """clips labelled by their motion, with a test part"""
    seeds: tuple[int, ...] = (0, 1, 2)
    record: Path = RECORDS / "frame_average.json"


def judged(seed: int, settings: Settings) -> Row:
    """One seed's sheet, from the file beside the run when it was judged before, and how it was made."""
    file = settings.run / f"frame-average-{seed}.json"
    if not file.exists():
        made_with = commit()
        visrep.evaluate(
            settings.run,
            settings.data,
            protocols=("finetune-motion",),
            baselines=False,
            keep=False,
            seed=seed,
            out=file,
            command=command(__file__),
        )
        file.with_suffix(".commit").write_text(made_with)
    how = {"seed": seed, "run": settings.run.name, "commit": commit_in(file.with_suffix(".commit"))}
    return how | on_file(file)


def main(settings: Settings) -> None:
    for seed in settings.seeds:  # each is kept at once: it takes an hour of a CPU
        row = judged(seed, settings)
        earlier = on_file(settings.record).get("rows", [])
        save_json(settings.record, {"rows": beside_others(earlier, [row], itemgetter("seed"))})
        print(seed, *(f"{result['metric']} {result['value']:.1f}" for result in row["results"]), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
