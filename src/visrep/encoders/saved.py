"""An encoder on disk: ``encoder.safetensors`` has the weights, ``encoder.json`` what to build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from visrep.config import from_json, save_json, to_json
from visrep.method import Encoder

WEIGHTS, DESCRIPTION = "encoder.safetensors", "encoder.json"
FORMAT = 1


def save_encoder(folder: Path, encoder: Encoder) -> None:
    """Write both files into ``folder`` (made if need be), so that a reader never sees half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    # safetensors refuses views and channels-last tensors
    weights = {name: x.detach().cpu().contiguous() for name, x in encoder.state_dict().items()}
    temporary = folder / (WEIGHTS + ".part")
    save_file(weights, temporary)
    temporary.replace(folder / WEIGHTS)
    description = {
        "format": FORMAT,
        "config": to_json(encoder.config),
        "preprocessing": to_json(encoder.preprocessing),
    }
    save_json(folder / DESCRIPTION, description)


def saved_config(path: str | Path) -> Any:
    """The configuration of the encoder in a folder that `save_encoder` wrote, without its weights.

    Raises FileNotFoundError when there is none.
    """
    return from_json(json.loads((Path(path) / DESCRIPTION).read_text())["config"])


def load_encoder(path: str | Path) -> Encoder:
    """The encoder of a run folder, or of any folder that `save_encoder` wrote, on the CPU and in eval mode.

    Raises FileNotFoundError when there is none, ValueError when the files are damaged or do not fit.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"No folder {folder}. Give a run folder, or the folder that holds {WEIGHTS}.")
    missing = [name for name in (WEIGHTS, DESCRIPTION) if not (folder / name).is_file()]
    if missing:
        started = (folder / "run.json").is_file()
        hint = (
            "This run has not saved an encoder yet; let it finish an epoch."
            if started
            else "Is it a run folder?"
        )
        raise FileNotFoundError(f"{folder} holds no {' and no '.join(missing)}. {hint}")
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        weights = load_file(folder / WEIGHTS)
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"The encoder in {folder} is damaged ({error}). Save it again.") from error
    if description["format"] != FORMAT:
        raise ValueError(
            f"{folder / DESCRIPTION} has format {description['format']}; this version of visrep reads format "
            f"{FORMAT}. Use the version that wrote it, or save it again."
        )
    encoder: Encoder = from_json(description["config"]).build()
    expected = {name: tuple(x.shape) for name, x in encoder.state_dict().items()}
    found = {name: tuple(x.shape) for name, x in weights.items()}
    wrong = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{len(wrong)} weights in {folder} do not fit its configuration, first {name!r}: "
            f"expected {expected.get(name, 'none')}, found {found.get(name, 'none')}. "
            f"{WEIGHTS} and {DESCRIPTION} come from different encoders."
        )
    encoder.load_state_dict(weights)
    encoder.preprocessing = from_json(description["preprocessing"])
    return encoder.eval()
