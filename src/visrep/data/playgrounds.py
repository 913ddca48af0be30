"""The playgrounds by name: ``playground:n=5000,size=48`` of images, ``playground-video:n=5000,frames=8`` of clips."""

from __future__ import annotations

import re
from typing import Any

from visrep.data.source import Source

_NUMBERS = {
    "playground": ("n", "size", "seed"),
    "playground-video": ("n", "size", "frames", "seed", "backdrops"),
}
"""settings that are integers, by name of the playground"""


def playground_settings(spec: Any) -> dict[str, int | str] | None:
    """The settings in a ``playground:...`` or ``playground-video:...`` spec, or None for any other spec.

    Raises ValueError for a setting that does not exist or does not parse.
    """
    name, _, listed = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if name not in _NUMBERS:
        return None
    settings: dict[str, int | str] = {}
    for item in filter(None, listed.split(",")):
        setting, _, value = item.partition("=")
        if setting in _NUMBERS[name] and re.fullmatch(r"-?\d+", value):
            settings[setting] = int(value)
        elif setting == "split" and value in ("train", "test"):
            settings[setting] = value
        else:
            raise ValueError(
                f"{spec!r}: cannot use {item!r}. Settings are {', '.join(_NUMBERS[name])} (integers) and split (train "
                f"or test), as in '{name}:n=5000,size=48,seed=3,split=test'."
            )
    return settings


def open_playground(settings: dict[str, int | str], name: str) -> Source:
    """The playground that ``name`` begins with, with settings from `playground_settings`."""
    from visrep.data.playground import Playground
    from visrep.data.playground_video import PlaygroundVideo

    kind = PlaygroundVideo if name.startswith("playground-video") else Playground
    source = kind(**settings)  # pyright: ignore[reportArgumentType] - parsed by playground_settings
    source.name = name
    return source
