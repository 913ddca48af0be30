"""Open what the user named as images with an answer for every pixel, apart where the data brings a held-out part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from visrep.data.dense import DenseSource
from visrep.data.dense_playground import DensePlayground, PlaygroundFrames
from visrep.data.masked_folder import LAYOUTS, MaskedFolder, layout_of
from visrep.data.playgrounds import playground_settings
from visrep.data.source import Source
from visrep.data.split import by_split

Spec = str | Path | Source | Sequence[Any] | np.ndarray


def is_dense(spec: Spec) -> bool:
    """Whether this looks like images with masks: the playground, or a folder that holds a folder of masks.

    The playground-video, whose frames have masks, is one of clips unless somebody asks for its frames.
    """
    if isinstance(spec, DenseSource):
        return True
    if not isinstance(spec, str | Path):
        return False
    if playground_settings(spec) is not None:
        return not str(spec).startswith("playground-video")
    root = Path(spec).expanduser()
    places = [root, *(place for place in root.iterdir() if place.is_dir())] if root.is_dir() else []
    return any(
        (place / one.images).is_dir() and (place / one.masks).is_dir() for place in places for one in LAYOUTS
    )


def open_dense(spec: Spec) -> DenseSource:
    """All images with masks of a folder or a playground. Raises ValueError when there are none."""
    if isinstance(spec, DenseSource):
        return spec
    settings = playground_settings(spec)
    if settings is not None:
        return _playground(settings, str(spec))
    if not isinstance(spec, str | Path):
        raise ValueError(
            f"dense protocols need masks beside the images, which {type(spec).__name__} cannot hold. Give a folder "
            "with images/ and masks/, 'playground', or a DenseSource."
        )
    return MaskedFolder(Path(spec).expanduser())


def dense_splits(spec: Spec) -> tuple[DenseSource, DenseSource | None]:
    """Training images and, where the data brings some, test images, both with answers and one numbering of classes.

    Splits are sub-folders of the folder of images (``images/train2017`` and ``images/val2017``), folders above it
    (``train/images`` and ``test/images``), or the two streams of a playground (a fifth as many test images).
    Raises what `open_dense` raises.
    """
    settings = playground_settings(spec)
    if settings is not None:
        train = _playground(settings, str(spec))
        if "split" in settings:
            return train, None
        n = (len(train) if train.groups is None else len(np.unique(train.groups))) // 5
        return train, _playground({**settings, "n": max(1, n), "split": "test"}, f"{spec} (test split)")
    if isinstance(spec, str | Path):
        root = Path(spec).expanduser()
        above = _two_parts(root)
        if above:
            return of_one_numbering(*(MaskedFolder(root / part) for part in above))
        inside = _two_parts(root / layout_of(root).images)
        if inside:
            return of_one_numbering(*(MaskedFolder(root, part) for part in inside))
    return open_dense(spec), None


def of_one_numbering(train: DenseSource, test: DenseSource) -> tuple[DenseSource, DenseSource]:
    """Both with the same classes; folders without classes.json may each hold masks of some classes only.

    Raises ValueError when one number stands for two names.
    """
    if train.names == test.names:
        return train, test
    if not isinstance(train, MaskedFolder) or not isinstance(test, MaskedFolder):
        raise ValueError(
            f"{train.name} and {test.name} have masks of different classes. Judge on data of the same kind."
        )
    named = {**train.named, **test.named}
    for number, name in train.named.items():
        if named[number] != name:
            raise ValueError(
                f"class {number} is {name!r} in {train.name} and {named[number]!r} in {test.name}. Give both the "
                "same classes.json."
            )
    return MaskedFolder(train.root, train.part, named), MaskedFolder(test.root, test.part, named)


def _playground(settings: dict[str, int | str], name: str) -> DenseSource:
    kind = PlaygroundFrames if name.startswith("playground-video") else DensePlayground
    source = kind(**settings)  # pyright: ignore[reportArgumentType] - parsed by playground_settings
    source.name = name
    return source


def _two_parts(folder: Path) -> tuple[str, str] | None:
    """Names of the sub-folders of the training and of a held-out split, where there is one of each."""
    if not folder.is_dir():
        return None
    found = by_split((path.name, path) for path in folder.iterdir() if path.is_dir())
    return (found[0][0].name, found[1][0].name) if found and len(found[0]) == len(found[1]) == 1 else None
