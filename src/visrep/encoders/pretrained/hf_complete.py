"""Whether the weights that `transformers` loaded are all of a model's, of the shapes that its config.json says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.hf_families import Family
from visrep.encoders.pretrained.hf_names import HEADS

PATCHES = "patch_embed"
"""in the name of the kernel that makes tokens of patches"""


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its table of what does not fit: `check_complete` says what matters of it."""
    logging = extra("transformers.utils.logging")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def check_complete(place: str, kind: Family, info: dict[str, Any]) -> None:
    """Raises ValueError for weights that are missing or have other shapes, with the first and what to change."""
    if missing := [key for key in sorted(info["missing_keys"]) if not key.startswith(HEADS)]:
        raise ValueError(
            f"hf:{place} lacks {len(missing)} weights of {kind.model}, first {missing[0]!r}. Its config.json and its "
            "weights are of different models."
        )
    # patches first: their side also changes the table of positions
    other = sorted(info["mismatched_keys"], key=lambda said: (PATCHES not in said[0], said[0]))
    other = [said for said in other if not said[0].startswith(HEADS)]
    if not other:
        return
    key, found, wanted = other[0][0], tuple(other[0][1]), tuple(other[0][2])
    of_patches = PATCHES in key and len(found) == len(wanted) and found[:2] == wanted[:2]
    raise ValueError(
        f"hf:{place} has weights that do not fit its config.json: {key!r} is {found}, and by config.json {wanted}. "
        + (
            f"Set patch_size to {found[-1]} in config.json."
            if of_patches
            else "Fetch both files from one place."
        )
    )
