"""Open what the user named as a source of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visrep.data.arrays import Arrays
from visrep.data.folder import Folder, census, is_image, walk
from visrep.data.parquet import Parquet
from visrep.data.sequence import Items
from visrep.data.source import Source, Subset

Spec = str | Path | Source | Sequence[Any] | np.ndarray
_KINDS = "a folder of images, a .parquet file or a folder of them, an .npz file, or 'playground'"
_PLAYGROUND = {"n": int, "size": int, "seed": int, "split": {"train": "train", "test": "test"}.__getitem__}
"""settings by name, each with what parses it"""


def open_source(spec: Spec, *, limit: int = 0) -> Source:
    """Open a source of images; ``limit`` keeps only the first so many, 0 keeps all.

    ``spec`` is a folder of images (nested in any way), a .parquet file or a folder of such shards in the
    layout of Hugging Face image data sets, an .npz file with ``images``, a sequence of images or (image,
    label) pairs, an array "n h w c", a Source, or ``playground`` with settings as in
    ``playground:n=5000,size=48,seed=3,split=test``. A folder with splits is opened whole: `open_splits`
    keeps its test images apart.

    Raises ValueError when there is nothing there, or nothing that can be read as images.
    """
    if limit < 0:
        raise ValueError(f"limit={limit}: use 0 for all images, or how many of the first to keep.")
    source = _open(spec)
    return Subset(source, np.arange(limit)) if 0 < limit < len(source) else source


def playground_settings(spec: Spec) -> dict[str, int | str] | None:
    """The settings in a ``playground:...`` spec, or None for any other spec.

    Raises ValueError for a setting that does not exist or does not parse.
    """
    if not isinstance(spec, str) or spec.partition(":")[0] != "playground":
        return None
    settings: dict[str, int | str] = {}
    for item in filter(None, spec.partition(":")[2].split(",")):
        name, _, value = item.partition("=")
        try:
            settings[name] = _PLAYGROUND[name](value)
        except (KeyError, ValueError):
            raise ValueError(
                f"{spec!r}: cannot use {item!r}. Settings are n, size, seed (integers) and split (train "
                "or test), as in 'playground:n=5000,size=48,seed=3,split=test'."
            ) from None
    return settings


def open_playground(settings: dict[str, int | str], name: str) -> Source:
    from visrep.data.playground import Playground

    source = Playground(**settings)  # pyright: ignore[reportArgumentType] - parsed by playground_settings
    source.name = name
    return source


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
    path = Path(spec).expanduser()
    if not path.exists():
        raise ValueError(_missing(path))
    if path.is_dir():
        return _open_folder(path)
    match path.suffix.lower():
        case ".parquet":
            return Parquet([path], name=str(path))
        case ".npz":
            return Arrays.load(path)
        case _ if is_image(path.name):
            raise ValueError(f"{path} is one image; give the folder that holds it: {path.parent}")
        case suffix:
            raise ValueError(f"cannot open {path}: a {suffix or 'suffix-less'} file. Data can be {_KINDS}.")


def _open_folder(path: Path) -> Source:
    files = walk(path)
    if images := [file for file in files if is_image(file)]:
        return Folder(path, images)
    if shards := [path / file for file in files if file.lower().endswith(".parquet")]:
        return Parquet(shards, name=str(path))
    raise ValueError(f"no images in {path}: found {census(files)}. Data can be {_KINDS}.")


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
