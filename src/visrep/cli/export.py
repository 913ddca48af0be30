"""``visrep export``: an encoder for another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table


def export(
    run: tyro.conf.Positional[str],
    to: Literal["safetensors", "timm", "hf", "onnx", "torch-export", "torchscript"],
    out: Path,
    heads: bool = False,
    licence: Annotated[str, tyro.conf.arg(metavar="ID")] = "",
    quantize: Literal["", "int8", "int8-dynamic"] = "",
    data: str = "",
    limit: int = 0,
) -> None:
    """Write a folder that another tool loads, with the same features there, and a model card.

    Args:
        run: run folder, or a public encoder: checkpoint file, timm:NAME, hf:NAME, open_clip:NAME@TAG
        to: the tool; see docs/export.md
        out: a new folder
        heads: also write the method's other weights, from the run's checkpoint
        licence: SPDX identifier for the model card, such as MIT; default: that of public weights, where known
        quantize: also write an ONNX file in 8 bits: int8 is calibrated on data, int8-dynamic needs none
        data: images to calibrate on and, with labels, to measure the loss in kNN accuracy on
        limit: judge on only so many images of each side of data, 0 for all
    """
    from visrep import api
    from visrep.exports.card import cost_in_words

    result = api.export(
        run,
        to,
        out,
        heads=heads,
        licence=licence,
        quantize=quantize,
        data=data or None,
        limit=limit,
        progress=True,
    )
    table = Table(
        title=f"Features in {result.tool}, beside the encoder's", title_justify="left", box=box.SIMPLE_HEAD
    )
    for heading in ("images", "lowest cosine", "greatest difference"):
        table.add_column(heading, justify="right")
    for one in result.agreement:
        row = f"{one.height} x {one.width}", f"{one.cosine:.7f}", f"{one.error / one.scale:.1g} std"
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    console.print(table)
    for note in result.notes:
        console.print(f"! {note}", style="yellow", soft_wrap=True)
    if result.quantised:
        console.print(cost_in_words(result.quantised, result.cost), soft_wrap=True)
    console.print(f"{result.folder} (how to load it: {result.folder / 'README.md'})", soft_wrap=True)
