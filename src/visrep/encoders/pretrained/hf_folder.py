"""Folders of `transformers`: what must be in one before anything looks for it elsewhere."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = ("*.safetensors", "*.bin")


def folder_of(name: str) -> Path | None:
    """The folder that ``hf:NAME`` is, None for a repository on the hub.

    Folders are those that are there, and all names that no repository can have.
    Raises FileNotFoundError for a folder that is not there or lacks a file, naming it.
    """
    folder = Path(name).expanduser()
    if not (folder.is_dir() or name.startswith(("/", ".", "~")) or name.count("/") > 1):
        return None
    if not folder.is_dir():
        raise FileNotFoundError(
            f"No folder {folder}. Give hf:FOLDER with config.json, model.safetensors and preprocessor_config.json, or "
            "hf:OWNER/NAME of the hub."
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json, which says what hf: is to build. Put the model's there."
        )
    if not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        raise FileNotFoundError(
            f"{folder} has config.json but holds no weights. Put model.safetensors beside it."
        )
    return folder
