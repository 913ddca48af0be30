"""``visrep report``: one HTML file about a run, or about results."""

from __future__ import annotations

from typing import Annotated

import tyro


def report(
    what: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN|SHEET")] = (),
) -> None:
    """Write report.html into a run folder, or SHEET.html beside SHEET.json: one self-contained file.

    Args:
        what: run folder, or the .json file that visrep evaluate wrote, of any encoder (--out)
    """
    from visrep import api

    print(api.report(the_only(what)))


def the_only(what: tuple[str, ...]) -> str:
    """Raises ValueError unless there is one."""
    if len(what) == 1:
        return what[0]
    raise ValueError(
        f"a report is of one run or sheet, and {len(what)} were given. "
        + (f"To compare them: visrep compare {' '.join(what)} --protocols all." if what else "Name one.")
    )
