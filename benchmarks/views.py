"""Views a second: batched, as visrep makes them, against torchvision's v2 transforms image by image.

Both sides start from uint8 images in memory and end with normalised float32 views, with the same number of CPU
cores: visrep uses them as threads on a batch; torchvision as processes of one thread each, as a data loader's
workers do, without the cost of handing views over. torchvision gets PIL images or tensors, whichever is faster for
it. Both sides are measured in turn, several times; the ratio is the median of the rounds.

    python benchmarks/views.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from visrep.machine import keep_freed_memory
from visrep.method import At, Canvases
from visrep.views import MultiCrop, Recipe, TwoViews, View, draw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from _torchvision import v2  # pyright: ignore[reportMissingImports]

IMAGES = 256
"""in the data set that both sides read"""


@dataclass(frozen=True)
class Case:
    """One recipe on images of one size."""

    canvas: int
    """side of the images in pixels"""
    batch: int
    recipe: Recipe


SIMCLR = View(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
SMALL = View(size=32, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0)
LOCAL = replace(SMALL, size=16, scale=(0.05, 0.4))


def two(view: View) -> TwoViews:
    return TwoViews(view, view)


CASES = {
    "simclr-32": Case(32, 256, two(SMALL)),
    "simclr-96": Case(96, 256, two(replace(SIMCLR, size=96))),
    "simclr-224": Case(256, 64, two(SIMCLR)),
    "simclr-224-from-448": Case(448, 64, two(SIMCLR)),
    "multicrop-2x32-6x16": Case(32, 256, MultiCrop(SMALL, SMALL, LOCAL, n_local=6)),
}


def images(side: int) -> Tensor:
    """Random photographs-to-be: smooth, with some noise."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, 3, side // 8, side // 8, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return (smooth * 230 + 25 * torch.rand(IMAGES, 3, 1, 1, generator=rng)).to(torch.uint8)


def rate(make: Callable[[int], int], seconds: float) -> float:
    """Views a second; ``make(i)`` makes some and says how many."""
    make(0)
    made, start, i = 0, time.perf_counter(), 1
    while time.perf_counter() - start < seconds:
        made, i = made + make(i), i + 1
    return made / (time.perf_counter() - start)


def batched(name: str, seconds: float) -> float:
    case = CASES[name]
    pixels, sizes = images(case.canvas), torch.full((IMAGES, 2), float(case.canvas))
    views = sum(len(group) for group in case.recipe.groups)

    def make(step: int) -> int:
        at = At(step, 1000, 100, torch.Generator().manual_seed(step))
        index = torch.randperm(IMAGES, generator=at.rng)[: case.batch]
        draw(case.recipe, Canvases(pixels.index_select(0, index), sizes[index], index), at)
        return views * case.batch

    return rate(make, seconds)


def transform(view: View, *, pil: bool) -> v2.Compose:
    """The view as torchvision's users write it."""
    kernel = max(3, view.size // 10 // 2 * 2 + 1)  # SimCLR: a tenth of the image
    jitter = v2.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    steps = [
        v2.RandomResizedCrop(view.size, view.scale, view.ratio, v2.InterpolationMode(view.interpolation)),
        v2.RandomHorizontalFlip(view.flip),
        v2.RandomApply([jitter], view.jitter),
        v2.RandomGrayscale(view.gray),
        *([v2.RandomApply([v2.GaussianBlur(kernel, view.blur_sigma)], view.blur)] if view.blur else []),
        *([v2.PILToTensor()] if pil else []),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(view.mean), list(view.std)),
    ]
    return v2.Compose(steps)


def one_by_one(name: str, seconds: float, *, pil: bool) -> float:
    case = CASES[name]
    source = images(case.canvas)
    data = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in source] if pil else list(source)
    transforms = [transform(view, pil=pil) for group in case.recipe.groups for view in group]

    def make(i: int) -> int:
        for view in transforms:
            view(data[i % IMAGES])
        return len(transforms)

    return rate(make, seconds)


def prepare(threads: int) -> None:
    """Both sides keep freed memory, as visrep's engine does."""
    keep_freed_memory()
    torch.set_num_threads(threads)


def measure(
    name: str, *, threads: int, rounds: int, seconds: float, pool: ProcessPoolExecutor
) -> dict[str, object]:
    """Both rates and their ratio."""
    ours: list[float] = []
    theirs: dict[str, list[float]] = {"PIL": [], "tensors": []}
    for _ in range(rounds):
        ours.append(batched(name, seconds))
        for kind, rates in theirs.items():
            job = partial(one_by_one, pil=kind == "PIL")
            rates.append(sum(pool.map(job, [name] * threads, [seconds] * threads)))
    best = max(theirs, key=lambda kind: statistics.median(theirs[kind]))
    return {
        "name": name,
        "ratio": round(statistics.median(a / b for a, b in zip(ours, theirs[best], strict=True)), 2),
        "visrep_views_per_second": round(statistics.median(ours), 1),
        "torchvision_views_per_second": round(statistics.median(theirs[best]), 1),
        "torchvision_input": best,
        "canvas": CASES[name].canvas,
        "threads": threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores for each side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each measurement")
    parser.add_argument("--only", choices=sorted(CASES), help="a single case")
    parser.add_argument("--json", action="store_true", help="one object a line")
    args = parser.parse_args()
    prepare(args.threads)
    if not args.json:
        print(f"{'':22} {'visrep':>10} {'torchvision':>12}  views/s on {args.threads} threads")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.threads, context, initializer=prepare, initargs=(1,)) as pool:
        for name in [args.only] if args.only else CASES:
            row = measure(name, threads=args.threads, rounds=args.rounds, seconds=args.seconds, pool=pool)
            if args.json:
                print(json.dumps(row), flush=True)
            else:
                ours, theirs = row["visrep_views_per_second"], row["torchvision_views_per_second"]
                print(
                    f"{name:22} {ours:10} {theirs:12}  {row['ratio']}x ({row['torchvision_input']})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
