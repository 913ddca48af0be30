"""Images in one array: an .npz file with ``images`` and perhaps ``labels``, or an array in memory."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from visrep.data.sequence import as_labels
from visrep.data.source import Source


class Arrays(Source):
    """Images of one size: uint8 "n h w", or "n h w c" with 1, 3 or 4 channels; labels integers or strings."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None, name: str) -> None:
        """Raises ValueError for another dtype, shape or number of labels."""
        if images.dtype != np.uint8:
            hint = "multiply by 255 and " if images.dtype.kind == "f" else ""
            raise ValueError(
                f"images of {name} are {images.dtype}; wanted uint8, 0 to 255: {hint}convert them."
            )
        channels_first = (
            images.ndim == 4 and images.shape[1] in (1, 3, 4) and images.shape[3] not in (1, 3, 4)
        )
        if channels_first:
            raise ValueError(
                f"images of {name} have shape {images.shape}, channels first; wanted channels last: "
                "images.transpose(0, 2, 3, 1)."
            )
        if (
            images.ndim not in (3, 4)
            or (images.ndim == 4 and images.shape[3] not in (1, 3, 4))
            or not images.size
        ):
            raise ValueError(
                f"images of {name} have shape {images.shape}; wanted (n, height, width), or (n, height, "
                "width, channels) with 1, 3 or 4 channels, and at least one image."
            )
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels of {name} have shape {labels.shape} for {len(images)} images; wanted one an image, "
                f"shape ({len(images)},)."
            )
        self.images = images
        self.name = name
        self.labels, self.classes = (None, None) if labels is None else as_labels(labels.tolist())

    @classmethod
    def load(cls, path: Path) -> Arrays:
        """Read an .npz file. Raises ValueError when it is no such file or has no ``images``."""
        if not zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} is not an .npz file, which is a zip archive. Write it with numpy.savez."
            )
        try:
            with np.load(path, allow_pickle=False) as file:
                if "images" not in file:
                    raise ValueError(
                        f"{path} holds {', '.join(file.files) or 'nothing'}; wanted an array named images "
                        "(uint8: n, height, width, channels) and perhaps one named labels."
                    )
                return cls(file["images"], file["labels"] if "labels" in file else None, name=str(path))
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ValueError(f"cannot read {path} as .npz: {error}. Write it with numpy.savez.") from error

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> UInt8[np.ndarray, "h w c"]:
        image = self.images[index]
        return image if image.ndim == 3 else image[:, :, None]

    def key(self, index: int) -> str:
        return str(index)
