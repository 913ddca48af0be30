"""``visrep embed``: one vector an image."""

from __future__ import annotations

from pathlib import Path

import tyro


def embed(run: tyro.conf.Positional[str], data: str, out: Path, pooling: str = "auto") -> None:
    """Write one vector an image, with its path.

    Args:
        run: run folder, or a public encoder: checkpoint file, timm:NAME, hf:NAME, open_clip:NAME@TAG
        data: images
        out: .parquet, .npz or .csv file
        pooling: auto, cls, mean, cls+mean
    """
    from visrep import api

    print(api.embed(run, data, out, pooling=pooling, progress=True))
