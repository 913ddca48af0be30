"""Open what the user named as a source of images or clips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visrep.data.arrays import Arrays
from visrep.data.folder import Folder, census, is_image, walk, without_answers
from visrep.data.parquet import Parquet
from visrep.data.playgrounds import open_playground, playground_settings
from visrep.data.sequence import Items
from visrep.data.source import Source, Subset
from visrep.data.tar import Tar
from visrep.data.video import Clips, is_video, videos_left_out

Spec = str | Path | Source | Sequence[Any] | np.ndarray
_KINDS = "a folder of images, of videos, of .parquet or WebDataset .tar files, one such file, an .npz, or 'playground'"
SHARDS = (".parquet", ".tar")
_CLIPS = ("frames", "stride", "clips")
"""settings of `Clips`, behind the folder: ``films:frames=16,stride=2``"""


def open_source(spec: Spec, *, limit: int = 0) -> Source:
    """Open a source of images; ``limit`` keeps only the first so many, 0 keeps all.

    ``spec`` is a folder of images (nested in any way; masks/ beside images/ is left out), a .parquet file or a folder
    of such shards in the layout of Hugging Face image data sets, .tar files likewise in that of WebDataset, an .npz
    file with ``images``, a sequence of images or (image, label) pairs, an array "n h w c", a Source, or ``playground``
    with settings as in
    ``playground:n=5000,size=48,seed=3,split=test``. A folder with splits is opened whole: `open_splits`
    keeps its test images apart.

    Clips are a folder of videos, or of folders of frames with settings behind it, as in
    ``films:frames=16,stride=4,clips=2`` (see `Clips`); or ``playground-video``, with ``frames`` and ``backdrops``
    besides the settings of the playground.

    Raises ValueError when there is nothing there, or nothing that can be read as images.
    """
    if limit < 0:
        raise ValueError(f"limit={limit}: use 0 for all images, or how many of the first to keep.")
    source = _open(spec)
    return Subset(source, np.arange(limit)) if 0 < limit < len(source) else source


def clip_settings(spec: Spec) -> tuple[Path, dict[str, int]] | None:
    """Folder and settings in a ``folder:frames=16,...`` spec, or None for any other spec.

    Raises ValueError for a setting that does not exist.
    """
    found = re.fullmatch(r"(.+?):((\w+=\d+,?)+)", spec) if isinstance(spec, str) else None
    if found is None:
        return None
    settings = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", found[2])}
    if wrong := settings.keys() - set(_CLIPS):
        raise ValueError(
            f"{spec!r}: cannot use {min(wrong)!r}. Settings of clips are {', '.join(_CLIPS)} (integers), as in "
            "'films:frames=16,stride=4,clips=2'."
        )
    return Path(found[1]).expanduser(), settings


def _open(spec: Spec) -> Source:
    if isinstance(spec, Source):
        return spec
    if isinstance(spec, np.ndarray):
        return Arrays(spec, None, name="array")
    if not isinstance(spec, str | Path):
        return Items(spec)
    settings = playground_settings(spec)
    if settings is not None:
        return open_playground(settings, str(spec))
    path, clips = clip_settings(spec) or (Path(spec).expanduser(), None)
    if not path.exists():
        raise ValueError(_missing(path))
    if path.is_dir():
        return open_folder(path, clips)
    if clips is not None:
        raise ValueError(f"{spec!r}: clips come from a folder of videos; {path} is a file.")
    match path.suffix.lower():
        case ".parquet" | ".tar":
            return of_shards([path], name=str(path))
        case ".npz":
            return Arrays.load(path)
        case _ if is_image(path.name):
            raise ValueError(f"{path} is one image; give the folder that holds it: {path.parent}")
        case suffix:
            raise ValueError(f"cannot open {path}: a {suffix or 'suffix-less'} file. Data can be {_KINDS}.")


def open_folder(path: Path, clips: dict[str, int] | None) -> Source:
    """The videos of a folder where there are settings of ``clips`` or no images, else its images.

    Masks beside a folder of images are left out, videos beside images, and with settings folders of frames beside video
    files: notes of the source say so.
    """
    files, notes = without_answers(walk(path))
    source = _of_files(path, files, clips)
    source.notes = (*notes, *source.notes)
    return source


def _of_files(path: Path, files: list[str], clips: dict[str, int] | None) -> Source:
    if clips is not None:
        return Clips(path, files, **clips)
    if images := [file for file in files if is_image(file)]:
        source = Folder(path, images)
        source.notes = videos_left_out(path, files)
        return source
    if shards := [path / file for file in files if file.lower().endswith(SHARDS)]:
        return of_shards(shards, name=str(path))
    if any(map(is_video, files)):
        return Clips(path, files)
    raise ValueError(f"no images or videos in {path}: found {census(files)}. Data can be {_KINDS}.")


def of_shards(shards: Sequence[Path], name: str) -> Source:
    """Shards of one kind. Raises ValueError for a mixture."""
    if len(kinds := {shard.suffix.lower() for shard in shards}) > 1:
        raise ValueError(
            f"{name} holds shards of several kinds: {', '.join(sorted(kinds))}. Name one of the files, or put the "
            "shards of each kind into a folder of their own."
        )
    return (Tar if ".tar" in kinds else Parquet)(shards, name)


def _missing(path: Path) -> str:
    path = path.absolute()
    parent = next(p for p in path.parents if p.is_dir())
    try:
        names = sorted(p.name for p in parent.iterdir())
    except OSError:
        names = []
    held = (
        f" holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        if names
        else " is empty or unreadable"
    )
    return f"no such file or folder: {path}. The nearest folder that exists, {parent},{held}."
