"""The building blocks of a self-contained HTML page. Whatever is text is escaped here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files


@dataclass(frozen=True)
class Section:
    """A part of the page: what it is called, one sentence on how to read it, and its HTML."""

    title: str
    reading: str
    body: str

    @property
    def anchor(self) -> str:
        return "-".join(self.title.lower().split())


def note(text: str) -> str:
    """A remark in place of, or below, a figure."""
    return f'<p class="note">{escape(text)}</p>'


def card(label: str, value: str, remark: str = "", *, kind: str = "") -> str:
    """A headline number."""
    below = f"<small>{escape(remark)}</small>" if remark else ""
    return f'<div class="card {kind}"><span>{escape(label)}</span><b>{escape(value)}</b>{below}</div>'


def grid(items: Sequence[str], *, kind: str) -> str:
    """Items side by side, as many as the page is wide; ``kind`` is their class in the style sheet."""
    return f'<div class="grid {kind}">{"".join(items)}</div>'


def figure(content: str, title: str = "", remark: str = "", *, kind: str = "") -> str:
    """A picture or drawing with its title and a remark on how to read it."""
    head = f"<figcaption><b>{escape(title)}</b> {escape(remark)}</figcaption>" if title else ""
    return f'<figure class="{kind}">{head}{content}</figure>'


def image(uri: str, description: str, *, kind: str = "") -> str:
    """A picture; its description shows when the pointer rests on it."""
    text = escape(description)
    return f'<img src="{uri}" alt="{text}" title="{text}" class="{kind}" loading="lazy">'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, marked: Sequence[bool] = ()) -> str:
    """A table of text; ``marked`` rows are highlighted."""
    marks = marked or [False] * len(rows)
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = (
        f"<tr{' class=good' if mark else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row, mark in zip(rows, marks, strict=True)
    )
    head_row = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="wide"><table>{head_row}<tbody>{"".join(lines)}</tbody></table></div>'


def strip(tiles: Sequence[str], *, kind: str = "") -> str:
    """Small pictures in a row that scrolls when the page is narrow."""
    return f'<div class="strip {kind}">{"".join(tiles)}</div>'


def sheet(strips: Sequence[str], *, columns: int) -> str:
    """Strips of ``columns`` pictures each, as many side by side as there is room for."""
    return f'<div class="strips sheet" style="--columns:{columns}">{"".join(strips)}</div>'


def folded(summary: str, body: str) -> str:
    """Something few readers need, closed until clicked."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def document(title: str, header: str, sections: Sequence[Section]) -> str:
    """The whole page. Needs nothing but itself: no network, and no script but what a section brings along."""
    style = files("visrep.analysis").joinpath("report.css").read_text(encoding="utf-8")
    contents = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    body = "".join(
        f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>'
        f'<p class="reading">{escape(s.reading)}</p>{s.body}</section>'
        for s in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"<body><header>{header}</header><nav>{contents}</nav><main>{body}</main></body></html>\n"
    )
