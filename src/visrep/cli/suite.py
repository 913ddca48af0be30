"""``visrep suite``: one encoder on several data sets, and the mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from visrep.evaluation.suite import Suite


def suite(
    encoder: tyro.conf.Positional[str],
    data: tuple[str, ...],
    protocols: tuple[str, ...] = ("linear",),
    train: int = 1000,
    test_limit: int = 0,
    baselines: bool = True,
    keep: bool = True,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Judge an encoder on several labelled data sets with few images each, in the style of VTAB-1k, and take the mean.

    Args:
        encoder: run folder, or a public encoder: checkpoint or ONNX file, timm:NAME, hf:NAME, open_clip:NAME@TAG
        data: data sets, two or more: folders, .parquet, .tar, .npz, playground
        protocols: of `visrep evaluate`
        train: training images of each data set: a fifth of them chooses settings; 0 for all
        test_limit: use only the first test images of each data set
        baselines: also judge raw pixels and the untrained encoder
        keep: keep features in the run folder, so that another call needs no pass over the images
        out: file for all numbers; default: suite.json in the run folder
        seed: of splits, bootstrap and the untrained encoder
    """
    from visrep import api
    from visrep.cli.typed import typed

    found = api.suite(
        encoder,
        data,
        protocols=protocols,
        train=train,
        test_limit=test_limit,
        baselines=baselines,
        keep=keep,
        out=out,
        seed=seed,
        progress=True,
        command=typed("suite"),
    )
    console = Console()
    for protocol in dict.fromkeys(mean.protocol for mean in found.means):
        console.print(_table(found, protocol))
    for warning in found.warnings:
        console.print(f"! {warning}", style="yellow", highlight=False, markup=False)
    if unjudged := {name: one.unjudged for name, one in found.evaluations.items() if one.unjudged}:
        said = [
            f"{', '.join(reasons)} on {name}. {' '.join(reasons.values())}"
            for name, reasons in unjudged.items()
        ]
        raise ValueError(f"could not be judged, the rest was: {' '.join(said)}")


def _table(found: Suite, protocol: str) -> Table:
    """A row a data set, the mean last; a column an encoder."""
    from visrep.evaluation.suite import headline

    mine = [mean for mean in found.means if mean.protocol == protocol]
    title = f"{protocol}, {mine[0].metric} in %, with 95 % intervals"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for mean in mine:
        table.add_column(mean.encoder, justify="right", no_wrap=True)
    for name, evaluation in found.evaluations.items():
        results = [headline(evaluation, protocol, mean.encoder) for mean in mine]
        table.add_row(
            name, *(f"{r.value:.1f} ({r.ci_low:.1f}-{r.ci_high:.1f})" if r else "-" for r in results)
        )
    cells = [f"{mean.value:.1f} ({mean.ci_low:.1f}-{mean.ci_high:.1f})" for mean in mine]
    table.add_row(f"mean of {mine[0].tasks}", *cells, style="bold")
    return table
