"""A folder of images, nested in any way; class folders are labels when every image lies in one."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from visrep.data.source import Source, stamp_of

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .tif .tiff .gif .ppm .pgm .pbm .pnm .avif .jp2 .tga".split()
)
ANSWERS = {
    "images": ("masks", "annotations"),
    "JPEGImages": ("Annotations", "SegmentationClass", "SegmentationObject"),
}
"""a folder of images, and those beside it that hold its masks: files of images, and none to learn from"""
_SPLIT = re.compile(r"(train|test|validation|valid|val)(?![a-z])", re.IGNORECASE)


class Folder(Source):
    """Every image below ``root``, in natural order (2.jpg before 10.jpg).

    Labels are the top-level folders when every image lies in one and there are at least two. Folders named
    after splits (train, test, val) are not classes: below them the next level counts.
    """

    def __init__(self, root: Path, files: list[str]) -> None:
        """``files`` are paths of images relative to ``root``, as `image_files` lists them."""
        self.root = root
        self.files = files
        self.name = str(root)
        self.labels, self.classes = class_folders(files)

    def __len__(self) -> int:
        return len(self.files)

    def only_folder(self) -> str:
        return only_folder(self.files)

    def read(self, index: int) -> bytes:
        return (self.root / self.files[index]).read_bytes()

    def key(self, index: int) -> str:
        return self.files[index]

    def stamp(self, index: int) -> str:
        """Changes when the image is replaced: size and time of change of its file."""
        try:
            return stamp_of(self.root / self.files[index])
        except OSError:
            return "unreadable"


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key: runs of digits by value, everything else as text without regard to case."""
    return tuple(
        (int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in re.split(r"(\d+)", name)
    )


def split_of(name: str) -> str:
    """The split that a name begins with (train for train2017 and train-00000-of-00002), or ""."""
    match = _SPLIT.match(name)
    return match[1].lower() if match else ""


def walk(root: Path) -> list[str]:
    """All files below ``root``, relative to it, in natural order, links followed, hidden ones left out.

    Raises ValueError when a folder cannot be read.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()

    def visit(folder: str, prefix: str) -> None:
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link back to a folder already listed
            return
        seen.add((status.st_dev, status.st_ino))
        try:
            with os.scandir(folder) as entries:
                visible = [e for e in entries if not e.name.startswith((".", "__MACOSX"))]
        except OSError as error:
            raise ValueError(
                f"cannot read the folder {folder}: {error.strerror}. Check its permissions."
            ) from error
        for entry in sorted(visible, key=lambda e: natural(e.name)):
            if entry.is_dir():
                visit(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file() or entry.is_symlink():  # a broken link is reported as unreadable
                found.append(prefix + entry.name)

    visit(str(root), "")
    return found


def without_answers(files: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """``files`` without those below the `ANSWERS` of a folder of images beside them, and a note when images were."""
    tops = {file.partition("/")[0] for file in files if "/" in file}
    left = {name: images for images in ANSWERS.keys() & tops for name in ANSWERS[images] if name in tops}
    kept = [file for file in files if "/" not in file or file.partition("/")[0] not in left]
    counts = Counter(file.partition("/")[0] for file in files if "/" in file and is_image(file))
    notes = [
        f"the images in {name}/ ({counts[name]}) were left out: beside {images}/ they are taken for its masks"
        for name, images in sorted(left.items())
        if counts[name]
    ]
    return kept, tuple(notes)


def is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in SUFFIXES  # noqa: PTH122 - a Path for each of a million files is slow


def census(files: list[str]) -> str:
    """What kinds of files these are, in words: '12 files: 10 .txt, 2 .json'."""
    if not files:
        return "no files at all"
    kinds = Counter(Path(file).suffix.lower() or "without suffix" for file in files)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))
    return f"{len(files)} files: {listed}" + (", ..." if len(kinds) > 6 else "")


def class_folders(files: list[str]) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Labels and class names from relative paths, or (None, None)."""
    names = _folders(files)
    classes = sorted(set(names), key=lambda name: (natural(name), name))
    if len(classes) < 2:
        return None, None
    number = {name: k for k, name in enumerate(classes)}
    return np.array([number[name] for name in names], dtype=np.int64), tuple(classes)


def only_folder(files: list[str]) -> str:
    """The folder that all files lie in, which may be meant as a class but makes no labels; "" otherwise."""
    names = set(_folders(files))
    return names.pop() if len(names) == 1 else ""


def _folders(files: list[str]) -> list[str]:
    """The folder of each file that would be its class; none at all where a file lies in none."""
    folders = [file.split("/")[:-1] for file in files]
    level = 1 if all(parts and split_of(parts[0]) for parts in folders) else 0
    return [] if any(len(parts) <= level for parts in folders) else [parts[level] for parts in folders]
