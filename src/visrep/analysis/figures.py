"""Figures as inline SVG: one look, transparent, in the text colour of the page they are put on.

Drawn with matplotlib's object-oriented interface; nothing touches pyplot's global state. Ink is drawn in a
marker colour that becomes ``currentColor``, so figures follow the page into dark mode.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7",
    "#56b4e9", "#8f8c2b", "#7a68c9", "#a6683c", "#4a9a9a",
)  # fmt: skip
"""Okabe and Ito's colour-blind-safe colours without black and yellow, and four that stay apart from them"""
MARKERS = "os^Dvp<h>d"
"""one a colour, so that groups differ by shape as well"""
NEUTRAL = "#8a8f98"

_INK = "#010203"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.linewidth": 0.6,
    "font.size": 8.5,
    "grid.alpha": 0.14,
    "grid.color": _INK,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "visrep",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


@dataclass(frozen=True)
class Line:
    """One curve of a panel."""

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    spread: Sequence[float] = ()
    """deviation of each value, drawn as a band; only of short curves"""


@dataclass(frozen=True)
class Mark:
    """A measured value in percent with its confidence interval, and the group that gives its colour."""

    row: str
    group: str
    value: float
    low: float
    high: float


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A styled figure with one axes; inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot()


def _svg(figure: Figure, description: str) -> str:
    """The figure as an ``<svg>`` element that fills its container."""
    out = io.StringIO()
    with mpl.rc_context(_STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    # Several figures share one page: only ids that are referred to (hashes of their content) may stay.
    text = re.sub(r' id="[a-zA-Z0-9]+_\d+"', "", text)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1).replace(
        _INK, "currentColor"
    )


def curves(lines: Sequence[Line], *, x_label: str, limit: float = math.nan, limit_label: str = "") -> str:
    """A panel with one or a few curves; long ones are drawn faint with a smoothed line on top.

    ``limit`` draws a horizontal reference. Values that are not finite leave a gap.
    """
    with _axes(3.4, 2.0) as (figure, axes):
        for line, colour in zip(lines, _cycle(len(lines)), strict=True):
            x, y = np.asarray(line.x, float), np.asarray(line.y, float)
            if len(x) > 60:
                axes.plot(*_thin(x, y, 400), color=colour, alpha=0.25, linewidth=0.8)
                axes.plot(*_thin(x, y, 40), color=colour, linewidth=1.8, label=line.label)
            else:
                marker = "o" if len(x) <= 25 else ""
                axes.plot(x, y, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=line.label)
                if line.spread:
                    band = np.asarray(line.spread, float)
                    axes.fill_between(x, y - band, y + band, color=colour, alpha=0.15, linewidth=0)
        if math.isfinite(limit):
            axes.axhline(limit, color=NEUTRAL, linewidth=1, linestyle=(0, (4, 3)))
            at = (0.02, limit)
            axes.annotate(
                limit_label, at, xycoords=("axes fraction", "data"), va="bottom", color=NEUTRAL, fontsize=8
            )
        axes.set_xlabel(x_label)
        axes.grid(axis="y")
        axes.margins(x=0.02)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=np.ptp(axes.get_xlim()) > 2))
        if len(lines) > 1:
            axes.legend()
        return _svg(figure, f"{', '.join(line.label for line in lines)} over {x_label}")


def intervals(marks: Sequence[Mark]) -> str:
    """Values with confidence intervals, one row a protocol, one colour and marker a group."""
    rows, groups = list(dict.fromkeys(m.row for m in marks)), list(dict.fromkeys(m.group for m in marks))
    with _axes(4.6, 0.75 + 0.42 * len(rows)) as (figure, axes):
        for i, group in enumerate(groups):
            mine = [mark for mark in marks if mark.group == group]
            y = [rows.index(mark.row) + 0.16 * (i - (len(groups) - 1) / 2) for mark in mine]
            x = np.array([mark.value for mark in mine])
            reach = np.abs(np.array([[m.value - m.low for m in mine], [m.high - m.value for m in mine]]))
            axes.errorbar(
                x, y, xerr=reach, fmt=MARKERS[i], color=(COLOURS[0], COLOURS[1], NEUTRAL)[i % 3],
                markersize=6, elinewidth=1.6, capsize=2.5, label=group,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, min(100, 1.25 * max(mark.high for mark in marks)))
        axes.set_xlabel("%, on held-out images")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
        return _svg(figure, "accuracy of the probes with confidence intervals")


def spectrum_plot(variances: Sequence[float]) -> tuple[str, int]:
    """Variance along each principal axis, largest first, as shares of their sum, on logarithmic axes.

    Returns the figure and how many axes hold 90 % of the variance, which it marks. Raises ValueError when
    there is no variance at all.
    """
    shares = np.asarray(variances, float)
    if not shares.sum() > 0:
        raise ValueError("the features have no variance: every image gets the same vector.")
    shares = shares / shares.sum()
    axes_for_90 = int(np.searchsorted(shares.cumsum(), 0.9)) + 1
    shown = shares > 1e-7
    index = np.arange(1, len(shares) + 1)
    room = axes_for_90**2 < len(shares)  # to the right of the mark, on a logarithmic axis
    with _axes(4.6, 2.4) as (figure, axes):
        even = 1 / len(shares)
        axes.axhline(even, color=NEUTRAL, linewidth=1, linestyle=(0, (4, 3)))
        right = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        axes.annotate("all axes equal", (0.99, even), color=NEUTRAL, fontsize=8, **right)
        axes.plot(index[shown], shares[shown], color=COLOURS[0], linewidth=1.8)
        axes.fill_between(index[shown], shares[shown], shares[shown].min() / 2, color=COLOURS[0], alpha=0.12)
        axes.axvline(axes_for_90, color=COLOURS[3], linewidth=1.4)
        axes.annotate(
            f"90 % of the variance in {axes_for_90}",
            (axes_for_90, 0.97 if room else 0.04),
            xycoords=("data", "axes fraction"),
            xytext=(6 if room else -6, 0),
            textcoords="offset points",
            ha="left" if room else "right",
            va="top" if room else "bottom",
            color=COLOURS[3],
        )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("principal axis, strongest first")
        axes.set_ylabel("share of variance")
        axes.grid(which="major")
        return _svg(figure, "share of variance along each principal axis of the features"), axes_for_90


def scatter(points: np.ndarray, groups: np.ndarray, names: Sequence[str]) -> str:
    """Points "n 2" coloured by group, grey for groups beyond the palette. No axes: there are no units."""
    with _axes(4.4, 4.4) as (figure, axes):
        rest = (groups < 0) | (groups >= len(COLOURS))
        axes.scatter(*points[rest].T, s=9, color=NEUTRAL, alpha=0.5, linewidths=0)
        for i, name in enumerate(names[: len(COLOURS)]):
            axes.scatter(
                *points[groups == i].T,
                s=20,
                color=COLOURS[i],
                marker=MARKERS[i],
                alpha=0.85,
                linewidths=0,
                label=name,
            )
        axes.set_axis_off()
        axes.margins(0.02)
        columns = min(5, max(1, len(names)))
        axes.legend(
            ncols=columns, loc="upper center", bbox_to_anchor=(0.5, 0.0), handletextpad=0.1, columnspacing=0.9
        )
        return _svg(figure, "two-dimensional map of the images")


def _cycle(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def _thin(x: np.ndarray, y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``most`` points, each the mean of a run of neighbours."""
    if len(x) <= most:
        return x, y
    parts = np.array_split(np.arange(len(x)), most)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])
