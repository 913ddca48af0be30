"""A bound on the disk that kept features take: beyond it, those that were used least recently go."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

VARIABLE = "VISREP_FEATURES_GIB"
"""of the environment: another bound, in GiB"""
USUAL = 20.0
"""GiB in one folder: a run's, or the user's for all public encoders"""


def bound() -> float:
    """Bytes of features that one folder may keep. Raises ValueError when the environment holds no such number."""
    given = os.environ.get(VARIABLE, "")
    try:
        size = float(given) if given else USUAL
    except ValueError:
        size = math.nan
    if not size >= 0:
        raise ValueError(
            f"{VARIABLE}={given!r}: use a number of GiB of features to keep in one folder, such as {USUAL:g}; 0 keeps "
            "those of the latest evaluation only, inf all."
        )
    return size * 2**30


def mark_used(path: Path) -> None:
    """Note that a file was read just now, where it may be written."""
    with suppress(OSError):
        os.utime(path)


def evict(files: Collection[Path], most: float, spared: Collection[Path]) -> list[Path]:
    """Delete the files used least recently until all together take ``most`` bytes; ``spared`` ones stay in any case.

    Returns those that were deleted.
    """
    found: list[tuple[int, int, Path]] = []
    for path in files:
        with suppress(FileNotFoundError):  # another process was faster
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    excess = sum(size for _, size, _ in found) - most
    gone: list[Path] = []
    for _, size, path in sorted(found):
        if excess <= 0:
            break
        if path not in spared:
            path.unlink(missing_ok=True)
            gone.append(path)
            excess -= size
    return gone
