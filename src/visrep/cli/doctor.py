"""``visrep doctor``: is a run healthy?"""

from __future__ import annotations

from pathlib import Path

import tyro
from rich.console import Console
from rich.text import Text

COLOURS = {"healthy": "bold green", "too early": "bold yellow"}


def doctor(run: tyro.conf.Positional[Path]) -> None:
    """Say in plain words whether a run is healthy, and if not what it is, by which numbers, and what to change.

    Args:
        run: run folder, finished or not
    """
    from visrep import api

    checkup = api.doctor(run)
    console = Console(highlight=False)
    for verdict in checkup.findings:
        console.print(Text(verdict.state.capitalize(), style=COLOURS.get(verdict.state, "bold red")))
        for heading, text in (
            ("Evidence", verdict.evidence),
            ("Likely cause", verdict.cause),
            ("What to change", verdict.change),
        ):
            if text:
                console.print(Text.assemble((f"  {heading}: ", "dim"), text))
    for remark in checkup.remarks:
        console.print(Text(f"! {remark}", style="yellow"))
