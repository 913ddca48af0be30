"""``visrep list``: methods, presets, what is proven."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table


def list_methods(as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """Families, methods, presets and what each is verified for.

    Args:
        as_json: for machines
    """
    from visrep.catalogue import catalogue

    entries = catalogue()
    if as_json:
        print(json.dumps([{**asdict(entry), "status": entry.status} for entry in entries], indent=2))
        return
    table = Table(title="Methods", title_justify="left")
    for column in ("family", "method", "presets", "status", "paper"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        proven = ", ".join(
            f"{record['data']}: {record['protocol']} {record['trained']['mean']:.1f} %"
            for record in entry.records
            if record["verified"]
        )
        status = f"verified ({proven})" if entry.status == "verified" else entry.status
        paper = f"arXiv:{entry.arxiv}" if entry.arxiv else ""
        table.add_row(entry.family, entry.name, ", ".join(entry.presets), status, paper)
    Console().print(table)
