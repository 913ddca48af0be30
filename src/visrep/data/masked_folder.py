"""A folder of images beside a folder of masks: ``images`` and ``masks``, or DAVIS's two folders of sequences."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Int64
from PIL import Image

from visrep.data.decode import ORIENTATION, SIDEWAYS
from visrep.data.dense import IGNORE, Answers, DenseSource
from visrep.data.folder import Folder, census, is_image, walk

CLASSES = "classes.json"
"""names of classes, by number or in order; beside the two folders"""
UNLABELLED = ("unlabeled", "unlabelled", "void", "ignore", "ignored")
"""names of classes that are none"""
OBJECT = ("background", "object")
ONLY_MARKED = frozenset({0, 255})
"""values of a mask of one object, where 255 is not `IGNORE`"""


@dataclass(frozen=True)
class Layout:
    """The names of two parallel folders."""

    images: str
    masks: str
    video: bool
    """each folder of images is a video, and masks tell objects apart"""


LAYOUTS = (Layout("images", "masks", video=False), Layout("JPEGImages", "Annotations", video=True))


def layout_of(root: Path) -> Layout:
    """Raises ValueError when ``root`` is no folder or holds neither of the layouts."""
    if not root.is_dir():
        raise ValueError(f"no such folder: {root}. Give a folder that holds images/ and masks/.")
    for layout in LAYOUTS:
        if (root / layout.images).is_dir():
            if (root / layout.masks).is_dir():
                return layout
            raise ValueError(
                f"{root} holds {layout.images}/ and no {layout.masks}/: without masks there is nothing to judge dense "
                f"protocols by. Put the mask of {layout.images}/NAME.jpg at {layout.masks}/NAME.png."
            )
    wanted = " or ".join(f"{layout.images}/ and {layout.masks}/" for layout in LAYOUTS)
    raise ValueError(
        f"{root} has no masks: dense protocols want {wanted}, found {census(walk(root))}. "
        "'playground' has masks and depth built in."
    )


@final
class MaskedFolder(Folder, DenseSource):
    """Those images of a folder that have a mask: a .png of the same name, below the parallel folder.

    Masks hold numbers of classes in one channel, 255 where nobody is asked; where all are 0 or 255, 255 is the
    object. Names are those of classes.json, by number or in order; a class named "unlabeled", "void" or "ignore"
    there is none. Without that file each number found is a class. Masks of videos hold numbers of objects; the only
    class is then "object".
    """

    def __init__(self, root: Path, part: str = "", named: Mapping[int, str] | None = None) -> None:
        """``part``: only images below this folder of images. ``named``: class names by number, as `named_in` gives.

        Raises ValueError for another layout, or when no image has a mask.
        """
        layout = layout_of(root)
        images = [file for file in walk(root / layout.images) if is_image(file) and _below(file, part)]
        masks = {
            str(Path(file).with_suffix("")): file for file in walk(root / layout.masks) if _is_mask(file)
        }
        stems = [str(Path(file).with_suffix("")) for file in images]
        kept = [i for i, stem in enumerate(stems) if stem in masks]
        where = str(root / layout.images / part)
        if not kept:
            raise ValueError(
                f"none of the {len(images)} images of {where} has a mask: {root / layout.masks} holds {len(masks)} "
                ".png files, and that of A/B.jpg would be A/B.png."
            )
        super().__init__(root, [f"{layout.images}/{images[i]}" for i in kept])
        self.name = where if part else str(root)
        self.labels = self.classes = None  # folders here are splits or videos
        self.layout, self.part = layout, part
        self.masks = [f"{layout.masks}/{masks[stems[i]]}" for i in kept]
        missing = [file for file, stem in zip(images, stems, strict=True) if stem not in masks]
        if missing:
            said = f"{len(missing)} of {len(images)} images of {where} have no mask and were left out"
            self.notes = (f"{said}, the first: {missing[0]}",)
        if layout.video:
            folders = [str(Path(images[i]).parent) for i in kept]
            self.groups = np.unique(folders, return_inverse=True)[1].astype(np.int64)
        self.named = dict(named) if named is not None else self.named_in()
        self.knows = frozenset({"classes", "instances", "video"} if layout.video else {"classes"})
        self.names, self._numbers = _numbering(self.named)
        if len(self.names) >= IGNORE:
            raise ValueError(f"{root} names {len(self.names)} classes; at most {IGNORE - 1} are possible.")

    def mark(self, index: int) -> bytes:
        """The file of its mask."""
        return (self.root / self.masks[index]).read_bytes()

    def named_in(self) -> dict[int, str]:
        """Names of classes by number in masks: of classes.json, or the numbers that the masks hold."""
        if self.layout.video:
            return dict(enumerate(OBJECT))
        file = self.root / CLASSES
        if file.is_file():
            return _read_names(file)
        found: set[int] = set()
        for index in range(len(self)):
            found |= set(np.unique(self._mask(index)).tolist())
        if found <= ONLY_MARKED:
            return {0: OBJECT[0], 255: OBJECT[1]}
        return {number: f"class {number}" for number in sorted(found - {IGNORE})}

    def answers(self, index: int, shape: tuple[int, int] | None = None) -> Answers:
        mask = self._mask(index)
        wanted = _upright_size(self.read(index))
        if wanted is not None and mask.shape != wanted:
            raise ValueError(
                f"{self.masks[index]} is {mask.shape[1]} x {mask.shape[0]} pixels and its image {self.files[index]} "
                f"{wanted[1]} x {wanted[0]}. A mask has the size of its image: resize one of them (masks without "
                "interpolation)."
            )
        found = self._objects(mask) if self.layout.video else Answers(self._classes(mask, index))
        return found if shape is None else found.resized(shape)

    def _objects(self, mask: Int64[np.ndarray, "h w"]) -> Answers:
        objects = np.where(mask == 255, 1, mask) if set(np.unique(mask).tolist()) <= ONLY_MARKED else mask
        objects = np.where(objects == IGNORE, 0, objects)
        return Answers((objects > 0).astype(np.int64), objects)

    def _classes(self, mask: Int64[np.ndarray, "h w"], index: int) -> Int64[np.ndarray, "h w"]:
        classes = self._numbers[np.minimum(mask, len(self._numbers) - 1)]
        if (classes < 0).any():
            unknown = np.unique(mask[classes < 0]).tolist()
            raise ValueError(
                f"{self.masks[index]} holds {', '.join(map(str, unknown[:5]))}, which {self.root / CLASSES} does not "
                "name. Add the class there, or write 255 where nobody is asked."
            )
        return classes

    def _mask(self, index: int) -> Int64[np.ndarray, "h w"]:
        """The numbers in a mask. Raises ValueError when it cannot be read."""
        file = self.root / self.masks[index]
        try:
            with Image.open(file) as image:
                values = np.asarray(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(
                f"the mask {file} cannot be read: {error}. Write it anew or delete it."
            ) from error
        if values.ndim != 2:
            raise ValueError(
                f"the mask {file} has {values.shape[-1]} channels; masks hold the number of a class in a single one. "
                "Save it as grey levels or with a palette."
            )
        return values.astype(np.int64)


def _numbering(named: Mapping[int, str]) -> tuple[tuple[str, ...], Int64[np.ndarray, " v"]]:
    """Names of classes in order; and, by number in a mask, the class: -1 for the last and whatever is not named."""
    counted = {number: name for number, name in sorted(named.items()) if name.lower() not in UNLABELLED}
    numbers = np.full(max(*named, IGNORE) + 2, -1, dtype=np.int64)
    numbers[[IGNORE, *named]] = IGNORE
    numbers[list(counted)] = np.arange(len(counted))
    return tuple(counted.values()), numbers


def _read_names(file: Path) -> dict[int, str]:
    try:
        content = json.loads(file.read_text())
        items: Iterable[tuple[int | str, str]] = (
            content.items() if isinstance(content, dict) else enumerate(content)
        )
        named = {int(number): str(name) for number, name in items}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f'{file} cannot be read: {error}. It holds {{"1": "person", ...}} or a list of names.'
        ) from error
    if not named:
        raise ValueError(f"{file} names no class.")
    return named


def _below(file: str, part: str) -> bool:
    return not part or file.startswith(f"{part}/")


def _is_mask(file: str) -> bool:
    return file.lower().endswith(".png")


def _upright_size(raw: bytes) -> tuple[int, int] | None:
    """Height and width as a viewer shows the image; None for one that cannot be read, which nobody will be shown."""
    try:
        with Image.open(io.BytesIO(raw)) as image:
            turned = image.getexif().get(ORIENTATION, 1) in SIDEWAYS
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, ValueError, SyntaxError):
        return None
