"""The 15 common corruptions of ImageNet-C (arXiv:1903.12261), made by the package imagecorruptions, repeatably.

The package draws from NumPy's global generator; its state is set for each image and put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from jaxtyping import UInt8

from visrep.encoders.pretrained.extras import extra

KINDS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32
"""pixels a side below which the package refuses"""
_SEEDED = ("glass_blur", "impulse_noise")
"""kinds that do not draw from the global generator and take a seed instead"""


def corrupted(
    images: UInt8[np.ndarray, "n h w 3"], kind: str, severities: Sequence[int], *, seed: int
) -> UInt8[np.ndarray, "n h w 3"]:
    """Each image changed with its severity; what is drawn depends on the seed, the kind and the image's place.

    Raises ImportError, naming the extra, without the package; ValueError for an unknown kind or images below 32 pixels.
    """
    if kind not in KINDS:
        raise ValueError(f"there is no corruption {kind!r}. Use one of: {', '.join(KINDS)}.")
    if min(images.shape[1:3]) < SMALLEST:
        raise ValueError(
            f"corruptions are defined for images of {SMALLEST} pixels and more, these have "
            f"{min(images.shape[1:3])}. Leave corruptions out."
        )
    corrupt = extra("imagecorruptions").corrupt
    found = []
    for place, (image, severity) in enumerate(zip(images, severities, strict=True)):
        drawn = int(np.random.default_rng([seed, KINDS.index(kind), place]).integers(2**31))
        with _globally_seeded(drawn):
            seeded = {"seed": drawn} if kind in _SEEDED else {}
            found.append(corrupt(image, severity=severity, corruption_name=kind, **seeded))
    return np.stack(found)


def severities_in_turn(n: int, kind: str) -> list[int]:
    """One severity an image: a fifth of the images each, another fifth for the next kind."""
    return [SEVERITIES[(place + KINDS.index(kind)) % len(SEVERITIES)] for place in range(n)]


@contextmanager
def _globally_seeded(seed: int) -> Iterator[None]:
    before = np.random.get_state()  # noqa: NPY002 - the package draws from it
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
