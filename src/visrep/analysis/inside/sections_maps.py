"""The parts of an explanation that are maps over images: attention, colours of tokens, likeness to a patch."""

from __future__ import annotations

import base64
import math
from html import escape
from importlib.resources import files
from typing import Any

import matplotlib as mpl
import numpy as np
from torch import Tensor

from visrep.analysis.inside.attention import last_attention_map, patch_likeness, rollout_map
from visrep.analysis.inside.embedded import Embedded, embedded
from visrep.analysis.inside.subject import Inapplicable, Subject
from visrep.analysis.page import Section, figure, grid, image, note, strip
from visrep.analysis.pictures import data_uri, fit, heat, token_colours

TILE = 128
"""side of a picture in pixels"""
SMALLEST_GRID = 4
"""patches a side below which maps show nothing"""
POINTS = ((0.5, 0.5), (0.25, 0.25), (0.75, 0.5), (0.4, 0.8))
"""across and down"""
CLICKED = 224
"""side of a picture to click on, in pixels"""
MARK = (255, 60, 60)


def attention_section(subject: Subject) -> tuple[Section, dict[str, Any]]:
    """Rollout and the last block's attention, image by image."""
    try:
        tokens = subject.tokens(attention=True)
    except ValueError as problem:
        raise Inapplicable(f"no maps of attention ({str(problem).rstrip('.')})") from problem
    if tokens.attention is None:
        raise Inapplicable("this encoder gives no maps of attention")
    checked_grid(tokens.grid)
    through, last = rollout_map(tokens), last_attention_map(tokens)
    rows = [
        [
            tile(subject.pictures[place], "image"),
            tile(over(subject, place, last[place]), "last block"),
            tile(over(subject, place, through[place]), "rollout"),
        ]
        for place, _ in subject.each()
    ]
    who = "cls token" if tokens.cls is not None else "mean patch"
    reading = (
        f"What the {who} reads in the last block, mean over heads, and rollout: which patches it stands for when "
        "attention is followed through all blocks. Each map is scaled to its own range."
    )
    shares = [float(x) for x in through.flatten(1).sum(1)]
    return Section("Attention", reading, pairs(rows)), {"share of patches in rollout": shares}


def token_section(subject: Subject) -> tuple[Section, dict[str, Any]]:
    """Three principal components of the patch tokens of all images together, as colours."""
    tokens = subject.tokens()
    size = checked_grid(tokens.grid)
    colours = token_colours(tokens.patches.float().cpu().numpy(), size)
    rows = [
        [tile(subject.pictures[place], "image"), tile(colour, "tokens")]
        for place, colour in enumerate(colours)
    ]
    reading = (
        "The first three principal components of the patch tokens of all images together, as red, green and blue: one "
        "colour in two images is one feature in both."
    )
    return Section("Colours of tokens", reading, pairs(rows)), {"grid": list(size)}


def likeness_section(subject: Subject, point: tuple[float, float] | None) -> tuple[Section, dict[str, Any]]:
    """Cosine of every patch, in all images, with a patch of the first one."""
    tokens = subject.tokens()
    rows, columns = checked_grid(tokens.grid)
    strips, numbers = [], {}
    for across, down in POINTS if point is None else (point,):
        row, column = int(down * rows), int(across * columns)
        maps = patch_likeness(tokens.patches, (rows, columns), row, column).cpu()
        marked = with_mark(subject.pictures[0], (across, down))
        tiles = [tile(marked, f"{across:g}, {down:g}")]
        tiles += [tile(over(subject, place, maps[place]), "") for place, _ in subject.each()]
        strips.append(strip(tiles))
        numbers[f"{across:g}, {down:g}"] = [float(x) for x in maps.flatten(1).mean(1)]
    reading = (
        "Bright patches have vectors in the direction of the marked patch's, in the same image and in the others. "
        "Another patch: --point ACROSS DOWN, as shares."
    )
    few = embedded(tokens.patches)
    start = POINTS[0] if point is None else point
    body = "".join(strips) + _clickable(subject, few, (rows, columns), start)
    clickable = {"images": len(few.vectors), "bytes a patch": few.vectors.shape[-1], "error": few.error}
    return Section("Likeness to a patch", reading, body), {"mean cosine": numbers, "clickable": clickable}


def _clickable(subject: Subject, few: Embedded, size: tuple[int, int], start: tuple[float, float]) -> str:
    """Pictures that show the map of the patch clicked, of ``start`` first; nothing in a browser without JavaScript."""
    rows, columns = size
    colours = (np.asarray(mpl.colormaps["inferno"](np.arange(256)))[:, :3] * 255).astype(np.uint8)
    given = {
        "rows": rows,
        "columns": columns,
        "row": int(start[1] * rows),
        "column": int(start[0] * columns),
        "width": few.vectors.shape[-1],
        "scale": few.scale,
        "colours": base64.b64encode(colours.tobytes()).decode(),
        "vectors": few.text,
    }
    data = " ".join(f'data-{name}="{value}"' for name, value in given.items())
    pictures = [
        f"<figure>{image(data_uri(fit(picture, CLICKED)), 'click on a patch')}"
        f'<canvas width="{CLICKED}" height="{CLICKED}"></canvas></figure>'
        for picture in subject.pictures[: len(few.vectors)]
    ]
    what = "this image" if len(few.vectors) == 1 else f"{len(few.vectors)} images"
    said = note(
        f"Click on a patch to compare all others, in {what}, with it. Cosines here come from vectors of "
        f"{few.vectors.shape[-1]} bytes and are within {math.ceil(1000 * few.error) / 1000:g} of the true "
        "ones."
    )
    script = files("visrep.analysis.inside").joinpath("likeness.js").read_text(encoding="utf-8")
    return (
        f'<div class="likeness" hidden {data}>{said}{grid(pictures, kind="clicked")}<output>&nbsp;</output>'
        f"<script>{script}</script></div>"
    )


def checked_grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of patches. Raises Inapplicable where they are too few to show anything."""
    rows, columns = shape[-2:]
    if min(rows, columns) < SMALLEST_GRID:
        raise Inapplicable(f"a map of {rows} x {columns} patches shows nothing")
    return rows, columns


def over(subject: Subject, place: int, values: Tensor) -> np.ndarray:
    """A map as colours over one of the images shown."""
    return heat(fit(subject.pictures[place], TILE), values.float().cpu().numpy())


def tile(picture: np.ndarray, title: str) -> str:
    """One picture with its title below."""
    return figure(image(data_uri(fit(picture, TILE)), title), escape(title))


def pairs(rows: list[list[str]]) -> str:
    """One strip an image, as many beside each other as there is room for."""
    return grid([strip(tiles, kind="pair") for tiles in rows], kind="pairs")


def with_mark(picture: np.ndarray, point: tuple[float, float]) -> np.ndarray:
    """The picture, large, with a small red square around the point."""
    large = fit(picture, TILE).copy()
    x, y = (int(share * TILE) for share in point)
    for reach, colour in ((5, MARK), (3, (255, 255, 255))):
        top, left = max(0, y - reach), max(0, x - reach)
        large[top : y + reach + 1, left : x + reach + 1] = colour
    inner = fit(picture, TILE)
    top, left = max(0, y - 2), max(0, x - 2)
    large[top : y + 3, left : x + 3] = inner[top : y + 3, left : x + 3]
    return large
