"""White-box encoders: the time of ToST's attention over the number of tokens, and what the layers of a run do.

    python benchmarks/whitebox.py time --threads 1
    python benchmarks/whitebox.py curves runs/my_crate runs/my_tost --images 256

``time`` writes ``docs/whitebox_time.json`` and the plot beside it: forward and backward of one layer of ToST (TSSA),
of CRATE (MSSA) and of ViT, as wide as a ViT-S, for one image of ever more tokens. The layers take turns, several
rounds, and the fastest of each counts. It is the processor's time, which other programs lengthen little. ``curves``
measures the coding rate, the sparsity and ToST's bound of each layer, trained and untrained, on images of the runs'
data (as their reports show them), and writes ``docs/whitebox_curves.json`` and a plot; `python docs/generate.py` puts
the numbers into docs/whitebox.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import torch
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import nn

from bookkeeping import command
from visrep.analysis.figures import COLOURS, MARKERS
from visrep.analysis.gallery import build_gallery
from visrep.analysis.record import read_run
from visrep.analysis.whitebox import layer_curves
from visrep.config import save_json
from visrep.encoders.crate import SubspaceAttention
from visrep.encoders.tost import TokenStatistics
from visrep.evaluation.untrained import untrained_twin
from visrep.machine import keep_freed_memory
from visrep.nn.transformer import Attention

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True, kw_only=True)
class Time:
    """Time of one layer over the number of tokens."""

    tokens: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    width: int = 384
    heads: int = 8
    rounds: int = 5
    threads: int = 1
    out: Path = DOCS / "whitebox_time.json"


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Coding rate and sparsity of each layer of the encoders of runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    images: int = 256
    out: Path = DOCS / "whitebox_curves.json"


def layers(width: int, heads: int) -> dict[str, nn.Module]:
    """The three kinds of attention, with fresh weights."""
    torch.manual_seed(0)
    return {
        "ToST: TSSA": TokenStatistics(width, heads),
        "CRATE: MSSA": SubspaceAttention(width, heads),
        "ViT: attention": Attention(width, heads),
    }


def seconds(layer: nn.Module, x: torch.Tensor) -> float:
    """Of the processor, for one forward and backward pass."""
    layer.zero_grad()
    started = time.process_time()
    layer(x).square().mean().backward()
    return time.process_time() - started


def measure(settings: Time) -> dict[str, list[float]]:
    """Seconds of each layer for each number of tokens: the fastest round."""
    keep_freed_memory()
    torch.set_num_threads(settings.threads)
    kinds = layers(settings.width, settings.heads)
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for n in settings.tokens:
        x = torch.randn(1, n, settings.width)
        best = dict.fromkeys(kinds, math.inf)
        for _ in range(1 + settings.rounds):  # the first is seldom the fastest, and may be
            best = {name: min(best[name], seconds(layer, x)) for name, layer in kinds.items()}
        for name, value in best.items():
            found[name].append(value)
        print(
            f"{n:6} tokens  " + "  ".join(f"{name} {1e3 * v:9.2f} ms" for name, v in best.items()), flush=True
        )
    return found


def slope(tokens: Sequence[int], times: Sequence[float]) -> float:
    """Exponent p of time = c n^p, between the two largest numbers of tokens."""
    return math.log(times[-1] / times[-2]) / math.log(tokens[-1] / tokens[-2])


def plot(path: Path, tokens: Sequence[int], found: dict[str, list[float]], subtitle: str) -> None:
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(5.4, 3.5), layout="constrained", dpi=160)
        axes = figure.add_subplot()
        for (name, times), colour, marker in zip(found.items(), COLOURS, MARKERS, strict=False):
            label = f"{name} (~ n^{slope(tokens, times):.1f} at the end)"
            axes.plot(
                tokens, [1e3 * t for t in times], color=colour, marker=marker, markersize=4, label=label
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens of an image")
        axes.set_ylabel("forward and backward of one layer, CPU ms")
        axes.set_title(subtitle, fontsize=8.5, loc="left")
        axes.grid(alpha=0.2)
        axes.legend(frameon=False)
        figure.savefig(path)


def draw_time(settings: Time) -> None:
    found = measure(settings)
    about = f"width {settings.width}, {settings.heads} heads, CPU, threads: {settings.threads}"
    save_json(settings.out, {"settings": about, "tokens": list(settings.tokens), "seconds": found})
    plot(settings.out.with_suffix(".png"), settings.tokens, found, about)
    for name, times in found.items():
        print(f"{name}: time ~ n^{slope(settings.tokens, times):.2f} between the last two")


def curves(run: Path, n: int) -> dict[str, Any]:
    """Means over images of both curves, of the run's encoder and of the same untrained."""
    gallery = build_gallery(read_run(run), n)
    images = gallery.inputs(gallery.examples(n))
    usable = gallery.canvases.usable
    twin = untrained_twin(gallery.encoder, gallery.canvases, usable, seed=0, device="cpu")
    about: dict[str, Any] = {
        "run": run.name,
        "encoder": type(gallery.encoder.config).__name__,
        "images": len(images),
    }
    for who, encoder in (("trained", gallery.encoder), ("untrained", twin)):
        found = layer_curves(encoder, images)
        about[who] = {
            "rate": means(found.rate),
            "nonzero": means(found.nonzero),
            "bound": means(found.bound),
        }
        print(run.name, who, about[who], flush=True)
    return about


def means(values: Float[np.ndarray, "l n"]) -> list[float]:
    """Of each layer, over images."""
    return [round(float(value), 4) for value in values.mean(1)]


def draw_curves(settings: Curves) -> None:
    found = [curves(run, settings.images) for run in settings.runs]
    save_json(settings.out, {"command": command(__file__), "runs": found})
    plot_curves(settings.out.with_suffix(".png"), found)


def plot_curves(path: Path, found: list[dict[str, Any]]) -> None:
    """A column an encoder, trained drawn through, untrained dashed: the rate above, what else is made small below."""
    kinds = list(dict.fromkeys(run["encoder"] for run in found))
    with mpl.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 8}):
        figure = Figure(figsize=(2.1 * len(kinds), 3.6), layout="constrained", dpi=160)
        cells = figure.subplots(2, len(kinds), squeeze=False)
        for run in found:
            column = kinds.index(run["encoder"])
            for who, style in (("trained", "-o"), ("untrained", "--")):
                below = run[who]["nonzero"] or run[who]["bound"]
                for numbers, axes in zip((run[who]["rate"], below), cells[:, column], strict=True):
                    colour = COLOURS[0] if who == "trained" else "0.6"
                    axes.plot(range(1, len(numbers) + 1), numbers, style, color=colour, markersize=3)
        for kind, (above, below) in zip(kinds, cells.T, strict=True):
            above.set_title(kind)
            below.set_xlabel("layer")
            if kind == "ToST":
                below.set_ylabel("bound on the rate, nats")
            if not below.lines or not len(below.lines[0].get_xdata()):
                below.set_axis_off()  # nothing in it is made sparse
        cells[0, 0].set_ylabel("coding rate, nats")
        cells[1, 0].set_ylabel("share not zero")
        figure.savefig(path)


def main() -> None:
    chosen = tyro.cli(
        Annotated[Time, tyro.conf.subcommand("time")] | Annotated[Curves, tyro.conf.subcommand("curves")],
        description=__doc__,
    )
    if isinstance(chosen, Time):
        draw_time(chosen)
    else:
        draw_curves(chosen)


if __name__ == "__main__":
    main()
