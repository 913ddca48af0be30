"""Features on disk: an encoder sees a data set once, and every later protocol, in any later call, reads the file.

One .safetensors file for each encoder and set of images, named by a hash of both: all weights, the configuration, the
preprocessing; names, order and content of the images. It holds cls and mean of layers, patch tokens when some
protocol asked for them, which images could be read, and a checksum of each array. A file that is cut short or changed
is made anew, with a note. When a folder grows beyond a bound, files that were used least recently go (`evict`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from visrep.data.cache import default_folder, fingerprint
from visrep.data.canvas import CanvasSet
from visrep.data.source import Source
from visrep.encoders.pretrained.resolve import is_public
from visrep.evaluation.eviction import VARIABLE, bound, evict, mark_used
from visrep.evaluation.features import Features

FORMAT = 1
"""part of the key: raise it whenever extraction changes, so that old files are left alone"""
LARGEST = 2 * 2**30
"""bytes of features that are kept; patch tokens of more are left out"""


@dataclass
class Side:
    """Images to fit on or to judge, decoded only when somebody needs them."""

    source: Source
    size: int
    """of canvases, in pixels"""
    progress: bool = False
    reasons: dict[int, str] = field(default_factory=dict)
    """of images that could not be read, where kept features say so"""

    @cached_property
    def canvases(self) -> CanvasSet:
        return CanvasSet(self.source, self.size, progress=self.progress)

    @cached_property
    def mark(self) -> str:
        """A hash of the images."""
        return fingerprint(self.source, self.size)

    @property
    def unreadable(self) -> dict[int, str]:
        return self.canvases.unreadable if "canvases" in self.__dict__ else self.reasons


@dataclass
class FeatureStore:
    """Features from disk, or extracted and kept there. Without a folder nothing is kept.

    Files that this store read or wrote are never deleted by it, however many they are.
    """

    folder: Path | None
    notes: list[str] = field(default_factory=list)
    """what was reused and what was not kept"""
    most: float = field(default_factory=bound)
    """bytes in the folder beyond which earlier files go"""
    used: set[Path] = field(default_factory=set)
    """files of this sitting"""

    def get(
        self,
        who: str,
        identity: Mapping[str, Any],
        side: Side,
        layers: tuple[int, ...],
        tokens: bool,
        extract: Callable[[tuple[int, ...], bool], Features],
    ) -> Features:
        """Features with these layers, and tokens if asked for; ``extract`` makes them and is called when it must be.

        ``identity``: JSON values that tell this encoder from every other.
        """
        if self.folder is None:
            return extract(layers, tokens)
        named = json.dumps({**identity, "format": FORMAT, "images": side.mark}, sort_keys=True)
        key = hashlib.sha256(named.encode()).hexdigest()
        path = self.folder / f"features-{key[:24]}.safetensors"
        self.used.add(path)
        try:
            known = _about(path, key)
            if known and set(layers) <= set(known["layers"]) and (known["tokens"] or not tokens):
                found = _read(path, known, side, tokens)
                mark_used(path)
                self.notes.append(f"features reused ({who}): no second pass over the images")
                return found
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            self.notes.append(f"{path.name} is damaged and was made anew ({who}): {error}")
            known = {}
        layers = tuple(sorted({*layers, *known.get("layers", ())}))
        tokens = tokens or known.get("tokens", False)
        features = extract(layers, tokens)
        self._write(path, key, features, side, layers)
        return features

    def _write(self, path: Path, key: str, features: Features, side: Side, layers: tuple[int, ...]) -> None:
        arrays = {f"{layer}.{how}": part for (layer, how), part in features.parts.items()}
        arrays["index"] = features.index
        kept_tokens = features.tokens is not None and _bytes(arrays) + features.tokens.nbytes <= LARGEST
        if kept_tokens and features.tokens is not None:
            arrays["tokens"] = features.tokens
        path.parent.mkdir(parents=True, exist_ok=True)
        needed, free = _bytes(arrays), shutil.disk_usage(path.parent).free
        if needed > min(LARGEST, free / 2):
            self.notes.append(
                f"{needed / 2**30:.1f} GiB of features are not kept ({free / 2**30:.1f} GiB of disk are free)"
            )
            return
        about = {
            "layers": layers,
            "tokens": kept_tokens,
            "unreadable": {str(index): reason for index, reason in side.unreadable.items()},
            "sums": {name: _checksum(array) for name, array in arrays.items()},
        }
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            metadata = {"key": key, "about": json.dumps(about)}
            save_file({name: array.contiguous() for name, array in arrays.items()}, part, metadata)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._make_room(path.parent)

    def _make_room(self, folder: Path) -> None:
        if gone := evict([*folder.glob("features-*.safetensors")], self.most, self.used):
            self.notes.append(
                f"{len(gone)} of the files of features, those used least recently, were deleted: {folder} keeps "
                f"{self.most / 2**30:.3g} GiB ({VARIABLE} sets another bound)"
            )


def _about(path: Path, key: str) -> dict[str, Any]:
    """What a file says of itself; empty when there is none. Raises when it is not ours or not whole."""
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("key") != key:
        raise ValueError("it is of other features")
    return json.loads(metadata["about"])


def _read(path: Path, about: Mapping[str, Any], side: Side, tokens: bool) -> Features:
    with safe_open(path, framework="pt") as file:
        names = [name for name in about["sums"] if tokens or name != "tokens"]
        arrays = {name: file.get_tensor(name) for name in names}
    for name, array in arrays.items():
        if _checksum(array) != about["sums"][name]:
            raise ValueError(f"the checksum of {name} is another")
    side.reasons = {int(index): reason for index, reason in about["unreadable"].items()}
    index = arrays.pop("index")
    patches = arrays.pop("tokens", None)
    parts = {_key(name): array for name, array in arrays.items()}
    labels = side.source.labels
    known = None if labels is None else torch.from_numpy(np.asarray(labels, dtype=np.int64))[index]
    return Features({}, known, index, patches, parts)


def _key(name: str) -> tuple[int, str]:
    """ "12.cls" to (12, "cls")."""
    layer, _, how = name.partition(".")
    return int(layer), how


def _bytes(arrays: Mapping[str, Tensor]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _checksum(array: Tensor) -> int:
    return zlib.crc32(array.contiguous().view(torch.uint8).numpy().data)


def features_folder(encoder: str | Path) -> Path:
    """Where features of an encoder are kept: in its run folder; of all public ones, in the user's cache."""
    return default_folder().parent / "features" if is_public(encoder) else Path(encoder) / "features"
