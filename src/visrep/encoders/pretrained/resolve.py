"""One name for every encoder: a run, a checkpoint or ONNX file, or a model of timm, transformers or open_clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from visrep.encoders import saved
from visrep.encoders.pretrained import hf, open_clip, packages, timm
from visrep.encoders.pretrained.official import load_checkpoint
from visrep.encoders.pretrained.onnx import is_onnx, load_onnx
from visrep.method import Encoder

SOURCES: dict[str, Callable[[str], Encoder]] = {
    "timm": timm.load,
    "hf": hf.load,
    "open_clip": open_clip.load,
    "pip": packages.load,
}


def load_encoder(name: str | Path) -> Encoder:
    """An encoder on the CPU, in evaluation mode, with what it expects of images in ``preprocessing``.

    ``name`` is a run folder, an official checkpoint file (see `load_checkpoint`), ``timm:NAME``, ``hf:NAME_OR_FOLDER``,
    ``open_clip:NAME@TAG`` or ``pip:NAME``, an installed package. After ``timm:NAME`` or ``open_clip:NAME``, ``@FILE``
    takes the weights from a file, ``@random`` none. ``FILE.onnx`` and ``FILE.onnx@OUTPUT`` can be judged and used, not
    trained.

    Raises FileNotFoundError, ImportError without the extra, ConnectionError when nothing can be downloaded, and
    ValueError for weights that do not fit.
    """
    source, colon, rest = str(name).partition(":")
    if colon and source in SOURCES:
        return SOURCES[source](rest)
    if is_onnx(str(name)):
        return load_onnx(str(name))
    path = Path(name)
    if path.is_file():
        return load_checkpoint(path)
    if not path.exists():
        raise FileNotFoundError(
            f"No folder or file {path}. Give a run folder, a checkpoint file, or one of "
            f"{', '.join(f'{source}:NAME' for source in SOURCES)}."
        )
    if (path / "config.json").is_file() and not (path / saved.DESCRIPTION).is_file():
        of_timm = '"architecture"' in (path / "config.json").read_text()
        raise FileNotFoundError(
            f"{path} is no run folder; it looks like one of "
            + (f"timm: timm:local-dir:{path}." if of_timm else f"transformers: hf:{path}.")
        )
    if not (path / saved.DESCRIPTION).is_file() and (files := sorted(path.glob("*.onnx"))):
        raise FileNotFoundError(f"{path} is no run folder; it holds an ONNX file: give {files[0]}.")
    return saved.load_encoder(path)


def is_public(name: str | Path) -> bool:
    """Whether the name is not that of a run folder, so that nothing should be written there."""
    return str(name).partition(":")[0] in SOURCES or is_onnx(str(name)) or Path(name).is_file()
