"""What there is and what is proven: read from the method files and the records, never kept by hand."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from visrep.methods import load_method, method_files, presets

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Entry:
    """One method of the list."""

    name: str
    family: str
    idea: str
    equation: str
    arxiv: str
    verified_against: str
    deviations: str
    presets: tuple[str, ...]
    records: tuple[dict, ...]
    """one a data set: `summarise`d seeds"""

    @property
    def status(self) -> str:
        """``verified`` or what is missing from it: see docs/results.md for the meaning of the word."""
        missing = []
        if self.verified_against.lower().startswith("nothing"):
            missing.append("no official values for the loss")
        if not any(record["verified"] for record in self.records):
            missing.append("no training record with 3 seeds beyond its baselines")
        return f"unverified: {'; '.join(missing)}" if missing else "verified"


def records_folder() -> Path:
    """The training records: inside an installed package, or beside the sources."""
    inside = PACKAGE / "records"
    return inside if inside.is_dir() else PACKAGE.parents[1] / "records"


def load_records() -> list[dict]:
    """All training records (METHOD-PRESET-DATA.json), by method and data set."""
    found = [json.loads(file.read_text()) for file in sorted(records_folder().glob("*-*-*.json"))]
    records = [record for record in found if "method" in record]  # others judge runs in other ways
    return sorted(records, key=lambda record: (record["method"], record["data"]))


def section(docstring: str, title: str) -> str:
    """The paragraph of a docstring that begins with ``title:``, on one line."""
    found = re.search(
        rf"^\*?{title}\*?:\s*(.+?)(?:\n\s*\n|\n\*?[A-Z][a-z ]+\*?:|\Z)", docstring, re.MULTILINE | re.DOTALL
    )
    return " ".join(found[1].split()) if found else ""


def equation(docstring: str) -> str:
    """The first indented paragraph of a docstring, without its indentation."""
    found = re.search(r"^(?: {4,}.*\n|\n(?= {4}))+", docstring, re.MULTILINE)
    return textwrap.dedent(found[0]).strip("\n") if found else ""


def catalogue() -> list[Entry]:
    """Every built-in method."""
    records = load_records()
    entries = []
    for name, file in method_files().items():
        module = load_method(name)
        docstring = module.__doc__ or ""
        arxiv = re.search(r"arXiv:\s?(\d{4}\.\d{4,5})", docstring)
        entries.append(
            Entry(
                name=name,
                family=file.parent.name,
                idea=" ".join(docstring.split("\n\n")[0].split()),
                equation=equation(docstring),
                arxiv=arxiv[1] if arxiv else "",
                verified_against=section(docstring, "Verified against") or "nothing yet",
                deviations=section(docstring, "Deviations"),
                presets=tuple(presets(module)),
                records=tuple(record for record in records if record["method"] == name),
            )
        )
    return entries
