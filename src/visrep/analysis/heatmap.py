"""Heat maps as HTML tables: every cell shows its number, the baselines when the pointer rests on it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""viridis, dark to bright: even to the eye, and in order also without colours"""

Grid = Sequence[Sequence[float | None]]


def heat_map(
    values: Grid,
    rows: Sequence[str],
    columns: Sequence[str],
    corner: str = "",
    titles: Sequence[Sequence[str]] = (),
) -> str:
    """A table coloured from 0 (dark) to 1 (bright); values outside have the colour of the nearer end.

    ``titles`` are what a cell says when the pointer rests on it.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = []
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        cells = (_cell(value, titles[i][j] if titles else "") for j, value in enumerate(row))
        lines.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table class="heat"><thead><tr><th>{escape(corner)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(value: float | None, title: str) -> str:
    said = f' title="{escape(title)}"' if title else ""
    if value is None:
        return f"<td{said}>&ndash;</td>"
    red, green, blue = colour(value)
    ink = "#fff" if 0.3 * red + 0.59 * green + 0.11 * blue < 128 else "#111"
    # a rounded zero has no sign
    text = f"{value:.2f}".replace("-0.00", "0.00")
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}"{said}>{text}</td>'


def colour(value: float) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a value on the scale from 0 to 1."""
    place = min(1.0, max(0.0, value)) * (len(SCALE) - 1)
    below = min(int(place), len(SCALE) - 2)
    part = place - below
    low, high = SCALE[below], SCALE[below + 1]
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(low, high, strict=True))
    return red, green, blue
