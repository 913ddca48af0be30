"""An explanation as one self-contained HTML page."""

from __future__ import annotations

from html import escape
from pathlib import Path

from visrep.analysis.inside.explain import Explanation
from visrep.analysis.page import document


def write_explanation(explanation: Explanation, name: str, data: str, out: Path) -> Path:
    """Write the page; returns its path."""
    n = len(explanation.numbers["images"])
    header = (
        f"<h1>{escape(name)}</h1><p class=soft>{escape(data)} · {n} images shown · seed "
        f"{explanation.numbers['seed']}</p>"
    )
    temporary = out.with_name(out.name + ".part")
    temporary.write_text(document(f"Inside {name}", header, explanation.sections), encoding="utf-8")
    temporary.replace(out)
    return out
