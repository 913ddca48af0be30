"""``visrep similarity``: how alike are the representations of encoders, layer by layer?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from visrep.analysis.similarity.compare import Comparison


def similarity(
    encoders: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="ENCODER ...")],
    data: str,
    measures: tuple[str, ...] = ("cka", "mutual-knn", "procrustes", "rsa", "cca", "svcca", "pwcca"),
    layers: tuple[int, ...] = (),
    pooling: str = "auto",
    images: int = 1000,
    permutations: int = 10,
    untrained: bool = True,
    out: Path = Path("similarity"),
    seed: int = 0,
) -> None:
    """Compare representations layer by layer: heat maps in OUT/similarity.html, numbers in OUT/similarity.json.

    One encoder is compared with itself, layer with layer; several with each other.

    Args:
        encoders: run folders, or public encoders: checkpoint file, timm:NAME, hf:NAME, open_clip:NAME@TAG
        data: images, with or without labels
        measures: cka, mutual-knn, procrustes, rsa, cca, svcca, pwcca, cka-biased, cka-minibatch (batches of 256)
        layers: of each encoder, 1 = first, besides the last; default: up to six, evenly spaced
        pooling: auto, cls, mean, cls+mean
        images: look at this many at most, evenly spaced; the CCA family wants five times the width
        permutations: random pairings of images that show what chance gives
        untrained: also compare the same networks untrained
        out: folder
        seed: of permutations and untrained networks
    """
    from visrep import api

    compared = api.similarity(
        encoders,
        data,
        measures=measures,
        layers=layers,
        pooling=pooling,
        images=images,
        permutations=permutations,
        untrained=untrained,
        out=out,
        seed=seed,
        progress=True,
    )
    console = Console()
    for pair in dict.fromkeys((found.rows, found.columns) for found in compared.maps):
        console.print(_table(compared, *pair))
    cautions: dict[str, list[str]] = {}
    for found in compared.maps:
        if found.caution:
            cautions.setdefault(found.caution, []).append(found.similarity)
    for caution, names in cautions.items():
        said = f"! {', '.join(dict.fromkeys(names))}: {caution}"
        console.print(said, style="yellow", highlight=False, markup=False)
    Console(stderr=True).print(
        f"Look at it: {(out / 'similarity.html').resolve()}", highlight=False, markup=False
    )


def _table(compared: Comparison, rows: str, columns: str) -> Table:
    """The last layers of a pair of encoders, a row a similarity; of one encoder its layers, as it is 1 with itself."""
    alone = rows == columns
    pair = rows if alone else f"{rows} with {columns}"
    table = Table(title=f"{pair}, {compared.images}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    headings = ("by chance",) if alone else ("last layers", "by chance", "untrained")
    for heading in (*headings, "best pair of layers"):
        table.add_column(heading, justify="right", no_wrap=True)
    for found in compared.maps:
        if (found.rows, found.columns) == (rows, columns):
            fresh = found.untrained[-1][-1] if found.untrained else None
            chance = found.permuted[-1][-1]
            cells = *((chance,) if alone else (found.values[-1][-1], chance, fresh)), found.best()
            table.add_row(found.similarity, *("-" if cell is None else f"{cell:.3f}" for cell in cells))
    return table
