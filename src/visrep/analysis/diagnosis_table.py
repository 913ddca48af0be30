"""A diagnosis as a table on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from visrep.analysis.diagnose import Diagnosis
from visrep.analysis.measures.base import Reading


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """The table on standard output."""
    Console().print(render_diagnosis(diagnosis))


def render_diagnosis(diagnosis: Diagnosis) -> Group:
    """A row a measure, a column a layer; below, what each can and cannot compare, and cautions."""
    table = Table(title=f"Without labels, {diagnosis.images}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for layer in diagnosis.layers:
        table.add_column(f"layer {layer.layer}", justify="right", no_wrap=True)
    table.add_column("better")
    table.add_column("variant", style="dim", overflow="fold")
    for m in diagnosis.measures():
        cells = [shown(layer.readings[m.key]) for layer in diagnosis.layers]
        table.add_row(m.title, *cells, m.better or "-", m.variant)
    widths = ", ".join(f"layer {layer.layer}: {layer.width}" for layer in diagnosis.layers)
    notes = [Text(f"Dimensions: {widths}; pooling {diagnosis.pooling}.")]
    if diagnosis.logged:
        values = ", ".join(f"{name} {value:.3f}" for name, value in diagnosis.logged.items())
        notes.append(Text(f"Prototypes, as the head logged them at the end of training: {values}."))
    notes += [Text(f"! {caution}", style="yellow") for caution in diagnosis.cautions()]
    notes += [Text.assemble((f"{m.title}: ", "bold"), m.compares) for m in diagnosis.measures()]
    return Group(table, *notes)


def shown(reading: Reading) -> str:
    """The number, marked where there is a caution; a dash where there is none."""
    if reading.value is None:
        return "-"
    return f"{reading.value:.4g}{' !' if reading.caution else ''}"
