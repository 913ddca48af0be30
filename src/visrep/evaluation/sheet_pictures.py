"""Pictures beside a sheet of results: ``evaluation-pictures/segmentation-1.png`` belongs to ``evaluation.json``.

A file is one judged image: what is known of it and what each encoder said, side by side. What the columns show and
colours stand for is written into it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from visrep.evaluation.examples import Strip

GAP = 4
"""white pixels between columns"""
COLUMNS, LEGEND = "columns", "legend"
"""keys of the text in a file"""


def pictures_folder(sheet: Path) -> Path:
    """Where the pictures of a sheet are."""
    return sheet.with_name(f"{sheet.stem}-pictures")


def save_pictures(sheet: Path, pictures: Mapping[str, Sequence[Strip]]) -> None:
    """Write the strips of these protocols in place of those that are there; others stay."""
    for file in _files(sheet, pictures):
        file.unlink()
    folder = pictures_folder(sheet)
    for protocol, strips in pictures.items():
        for number, strip in enumerate(strips, start=1):
            folder.mkdir(exist_ok=True)
            _write(folder / f"{protocol}-{number}.png", strip)


def read_pictures(sheet: Path) -> dict[str, list[Strip]]:
    """By protocol. Empty where there is no folder; files that are no such pictures are passed over."""
    found: dict[str, list[Strip]] = {}
    for file in _files(sheet):
        if strip := _read(file):
            found.setdefault(_protocol(file), []).append(strip)
    return found


def move_pictures(sheet: Path, other: Path, protocols: Iterable[str] | None = None) -> None:
    """Those of these protocols, by default of all, go to another sheet, in place of those that it has of them."""
    files = _files(sheet, protocols)
    for file in _files(other, {_protocol(file) for file in files}):
        file.unlink()
    for file in files:
        pictures_folder(other).mkdir(exist_ok=True)
        file.replace(pictures_folder(other) / file.name)
    folder = pictures_folder(sheet)
    if files and not any(folder.iterdir()):
        folder.rmdir()


def _files(sheet: Path, protocols: Iterable[str] | None = None) -> list[Path]:
    """In order of protocols and numbers."""
    wanted = None if protocols is None else {*protocols}
    files = [file for file in pictures_folder(sheet).glob("*-*.png") if _number(file).isdecimal()]
    chosen = [file for file in files if wanted is None or _protocol(file) in wanted]
    return sorted(chosen, key=lambda file: (_protocol(file), int(_number(file))))


def _protocol(file: Path) -> str:
    return file.stem.rpartition("-")[0]


def _number(file: Path) -> str:
    return file.stem.rpartition("-")[2]


def _write(file: Path, strip: Strip) -> None:
    text = PngInfo()
    text.add_text(COLUMNS, json.dumps(strip.titles))
    text.add_text(LEGEND, json.dumps(strip.legend))
    apart = [np.pad(each, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for each in strip.pictures]
    temporary = file.with_name(file.name + ".part")
    Image.fromarray(np.concatenate(apart, 1)[:, :-GAP]).save(temporary, "PNG", optimize=True, pnginfo=text)
    temporary.replace(file)


def _read(file: Path) -> Strip | None:
    """None for another picture than `_write` wrote."""
    try:
        with Image.open(file) as image:
            pixels, said = np.asarray(image.convert("RGB")), image.info
        titles, legend = tuple(json.loads(said[COLUMNS])), json.loads(said[LEGEND])
    except (OSError, ValueError, KeyError):
        return None
    width = (pixels.shape[1] + GAP) // len(titles)
    columns = [pixels[:, start * width : (start + 1) * width - GAP] for start in range(len(titles))]
    return Strip(titles, np.stack(columns), legend)
