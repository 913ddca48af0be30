"""``visrep diagnose``: measure an encoder without labels."""

from __future__ import annotations

from pathlib import Path

import tyro
from rich.console import Console


def diagnose(
    encoder: tyro.conf.Positional[str],
    data: str,
    layers: tuple[int, ...] = (),
    pooling: str = "auto",
    images: int = 2000,
    view_images: int = 500,
    views: int = 10,
    out: str = "",
    seed: int = 0,
) -> None:
    """Measure an encoder without labels: ranks, spectra, spread, dimension; a table here, and diagnostics.json.

    Args:
        encoder: run folder, or a public encoder: checkpoint file, timm:NAME, hf:NAME, open_clip:NAME@TAG
        data: images, with or without labels
        layers: layers to measure besides the last one, 1 = first
        pooling: auto, cls, mean, cls+mean
        images: look at this many at most, evenly spaced; ranks want four times the width
        view_images: of so many, random views as well, for LiDAR and alignment; LiDAR wants more than the width
        views: random views of each of those; 0 for none
        out: folder for diagnostics.json; default: the run folder, or here for a public encoder
        seed: of the views
    """
    from visrep import api
    from visrep.analysis.diagnosis_table import print_diagnosis
    from visrep.analysis.layers import Amount
    from visrep.encoders.pretrained.resolve import is_public

    folder = Path(out or ("." if is_public(encoder) else encoder))
    diagnosis = api.diagnose(
        encoder,
        data,
        layers=layers,
        pooling=pooling,
        amount=Amount(images=images, view_images=view_images, views=views),
        out=folder,
        seed=seed,
        progress=True,
    )
    print_diagnosis(diagnosis)
    Console(stderr=True).print(f"Written: {folder / 'diagnostics.json'}", highlight=False, markup=False)
