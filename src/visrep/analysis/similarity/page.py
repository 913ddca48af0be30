"""A comparison of representations as one self-contained HTML page of heat maps."""

from __future__ import annotations

from html import escape
from pathlib import Path

from visrep.analysis.heatmap import heat_map
from visrep.analysis.page import Section, document, figure, grid, note
from visrep.analysis.similarity.compare import Comparison, Grid, Map
from visrep.analysis.similarity.registry import similarities

READING = (
    "Bright is alike. Rest the pointer on a cell for its baselines: the same with images paired at random (chance) and "
    "the same of untrained networks. Only what lies well above both was learned."
)


def write_similarity(comparison: Comparison, out: Path) -> Path:
    """Write the page; returns its path."""
    names = tuple(dict.fromkeys(found.similarity for found in comparison.maps))
    sections = [
        Section(s.title, f"{s.variant}. {s.compares}", _section(comparison, s.name))
        for s in similarities(names)
    ]
    who = " · ".join(comparison.encoders)
    header = (
        f"<h1>{escape(who)}</h1><p class=soft>{escape(comparison.images)} · pooling {escape(comparison.pooling)} · "
        f"{comparison.permutations} permutations · seed {comparison.seed}</p><p class=reading>{escape(READING)}</p>"
    )
    temporary = out.with_name(out.name + ".part")
    temporary.write_text(document(f"Similarity · {who}", header, sections), encoding="utf-8")
    temporary.replace(out)
    return out


def _section(comparison: Comparison, name: str) -> str:
    maps = [found for found in comparison.maps if found.similarity == name]
    parts = []
    if len(comparison.encoders) > 2:
        whole = heat_map(comparison.between(name), comparison.encoders, comparison.encoders)
        parts.append(figure(whole, "Encoder with encoder:", "last layer with last layer"))
    parts.append(grid([_drawn(found) for found in maps], kind="halves"))
    cautions = dict.fromkeys(found.caution for found in maps if found.caution)
    return "".join(parts) + "".join(note(caution) for caution in cautions)


def _drawn(found: Map) -> str:
    rows, columns = ([f"{layer}" for layer in layers] for layers in (found.row_layers, found.column_layers))
    titles = [[_title(found, i, j) for j in range(len(columns))] for i in range(len(rows))]
    corner = "layer" if found.rows == found.columns else f"{found.rows} ↓ {found.columns} →"
    chance = _range(found.permuted)
    remark = f"by chance {chance}"
    if found.untrained:
        remark += f", untrained {_range(found.untrained)}"
    title = found.rows if found.rows == found.columns else f"{found.rows} with {found.columns}"
    return figure(heat_map(found.values, rows, columns, corner, titles), f"{title}:", remark)


def _title(found: Map, i: int, j: int) -> str:
    value = found.values[i][j]
    if value is None:
        return found.caution
    said = f"{value:.4f}; by chance {found.permuted[i][j]:.4f}, at most {found.permuted_most[i][j]:.4f}"
    fresh = found.untrained[i][j] if found.untrained else None
    return f"{said}; untrained {fresh:.4f}" if fresh is not None else said


def _range(values: Grid) -> str:
    known = [value for row in values for value in row if value is not None]
    if not known:
        return "not known"
    low, high = f"{min(known):.2f}".replace("-0.00", "0.00"), f"{max(known):.2f}".replace("-0.00", "0.00")
    return low if low == high else f"{low} to {high}"
