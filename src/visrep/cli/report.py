"""``visrep report``: one HTML file about a run."""

from __future__ import annotations

from pathlib import Path

import tyro


def report(run: tyro.conf.Positional[Path]) -> None:
    """Write report.html into the run folder: one self-contained file.

    Args:
        run: run folder
    """
    from visrep import api

    print(api.report(run))
