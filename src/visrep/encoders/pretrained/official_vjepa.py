"""Checkpoint files of the official code of V-JEPA (arXiv:2404.08471) and V-JEPA 2 (arXiv:2506.09985).

Both have the same names. Files of V-JEPA 2 may still hold a position table, which its code ignores, so that a table
does not say which of the two it is: its number of rows does, for published models.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from visrep.encoders.pretrained.convert_vit import Untold, Weights, taken, to_video
from visrep.encoders.video import VideoTransformer
from visrep.nn.positions_video import Grid, sincos_3d

HEADS = {1280: 16}
"""heads of published models, by width, where they are not 64 channels wide"""
TABLE = "pos_embed"
SINES = (1568, 4608)
"""rows of the tables of published V-JEPA models: 16 frames of 224 and of 384 pixels"""
ROTARY: dict[int, tuple[int, int]] = {2048: (16, 256), 8192: (64, 256), 18_432: (64, 384)}
"""frames and pixels of published V-JEPA 2 models, by rows of the table that they do not use"""
PUBLISHED = (64, 256)
"""frames and pixels where a file does not say them"""
KNOWN = re.compile(
    r"pos_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)"
    r"|blocks\.\d+\.(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias)"
)


def to_vjepa(weights: Weights, heads: int = 0, rotary: bool | None = None) -> VideoTransformer:
    """Our encoder of clips with these weights, in evaluation mode.

    ``heads`` of 0 takes those of the published model; ``rotary``: whether positions are rotary (V-JEPA 2) or a table
    (V-JEPA), None for what published sizes tell. Raises ValueError for other encoders of clips, and for what is not
    known.
    """
    if other := next((name for name in weights if not KNOWN.fullmatch(name)), ""):
        raise ValueError(
            f"{other} has no place in V-JEPA's ViT: this is another encoder of clips. Take it from transformers: "
            "hf:NAME."
        )
    width, _, tubelet, patch, _ = taken(weights, "patch_embed.proj.weight").shape
    heads = heads or HEADS.get(width, 0) or (width // 64 if width % 64 == 0 else 0)
    if not heads or width % heads:
        raise ValueError(
            f"a width of {width} with heads={heads or 'unknown'}. Give a number of heads that divides the width: "
            "visrep.encoders.pretrained.load_checkpoint(path, heads=...)."
        )
    table = weights.get(TABLE)
    frames, image = PUBLISHED
    if is_rotary(table) if rotary is None else rotary:
        weights = {name: x for name, x in weights.items() if name != TABLE}
        frames, image = ROTARY.get(0 if table is None else table.shape[1], PUBLISHED)
        return to_video(weights, Untold(heads=heads), frames, image // patch * patch, "rope")
    if table is None:
        raise ValueError("rotary=False was asked for, but there is no position table in the file.")
    times, side, _ = table_grid(table)
    weights = {name: x for name, x in weights.items() if name != TABLE}
    return to_video(weights, Untold(heads=heads), times * tubelet, side * patch, "sincos")


def is_rotary(table: Tensor | None) -> bool:
    """Whether positions are rotary, judged by the rows of the table. Raises ValueError where that does not tell."""
    if table is None:
        return True
    rows = table.shape[1]
    if rows not in (*SINES, *ROTARY):
        raise ValueError(
            f"a position table of {rows} rows is none of the published V-JEPA models', and those of V-JEPA 2 have one "
            "that they do not use. Say which it is: visrep.encoders.pretrained.load_checkpoint(path, rotary=False) for "
            "V-JEPA, rotary=True for V-JEPA 2."
        )
    return rows in ROTARY


def table_grid(table: Tensor) -> Grid:
    """Times, rows and columns of the square grid that V-JEPA's sines were made for.

    Raises ValueError for tables that are not these sines.
    """
    _, rows, width = table.shape
    for side in range(1, math.isqrt(rows) + 1):
        if rows % side**2 == 0:
            grid = (rows // side**2, side, side)
            if torch.allclose(sincos_3d(grid, width), table[0].float(), atol=1e-2):
                return grid
    raise ValueError(
        f"its position table of {rows} rows is not V-JEPA's: sines and cosines with a third of the channels an axis "
        "(uniform_power). This project's encoder of clips has no other table."
    )
