"""A folder that is there whole or not at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = ("No space left", "PytorchStreamWriter")
"""words of errors of libraries that could not write"""


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` at the end; after an error nothing of it is left.

    Raises ValueError when ``out`` holds something already, and RuntimeError when the disk is full.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} already holds something, and nothing is overwritten. Choose another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # that of a temporary folder is for its owner only
        if out.is_dir():
            out.rmdir()  # empty
        temporary.replace(out)
    except Exception as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if full or any(word in str(error) for word in FULL):
            free = shutil.disk_usage(out.parent).free / 2**20
            raise RuntimeError(
                f"{out} could not be written: the disk has {free:.0f} MiB left ({error}). Nothing was kept. Free some "
                "space or choose another --out."
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
