"""Images for a page: data URIs, sheets, heat maps over images, colours from patch tokens."""

from __future__ import annotations

import base64
import io

import matplotlib as mpl
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

PLAIN = 64
"""colours up to which a picture is plain, such as one of classes"""


def data_uri(image: UInt8[np.ndarray, "h w c"]) -> str:
    """An RGB or RGBA image inside a URI: PNG when it is so small or so plain that artefacts would show, else WebP."""
    out = io.BytesIO()
    picture = Image.fromarray(image)
    if max(image.shape[:2]) <= 48 or picture.getcolors(PLAIN):
        picture.save(out, "PNG", optimize=True)
        kind = "png"
    else:
        picture.save(out, "WEBP", quality=86)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def clip_uri(frames: UInt8[np.ndarray, "t h w 3"]) -> str:
    """A clip that plays again and again, eight frames a second, inside a URI: PNG or WebP as for images."""
    out = io.BytesIO()
    first, *others = map(Image.fromarray, frames)
    lasts = [125] * len(others) + [
        500
    ]  # milliseconds; the end shows for longer, so that it is not taken for motion
    kind = "png" if max(frames.shape[1:3]) <= 48 else "webp"
    first.save(out, kind, save_all=True, append_images=others, duration=lasts, loop=0, quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def heat(
    image: UInt8[np.ndarray, "h w 3"], values: Float[np.ndarray, "rows columns"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Values as colours (dark low, bright high) over the greyed image, scaled to their own range."""
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    height, width = image.shape[:2]
    large = Image.fromarray(scaled.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    colours = mpl.colormaps["inferno"](np.clip(np.asarray(large), 0, 1))[..., :3] * 255
    grey = image.mean(-1, keepdims=True)
    return (0.3 * grey + 0.7 * colours).clip(0, 255).astype(np.uint8)


def token_colours(
    tokens: Float[np.ndarray, "b n d"], grid: tuple[int, int]
) -> UInt8[np.ndarray, "b rows columns 3"]:
    """The first three principal components of all tokens together as red, green and blue (DINOv2's picture).

    Signs are fixed so that the largest loading is positive; each component is scaled from its 1st to its 99th
    percentile.
    """
    b, n, d = tokens.shape
    flat = tokens.reshape(b * n, d)
    centred = flat - flat.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    signs = np.sign(axes[np.arange(3), np.abs(axes).argmax(1)])
    scores = centred @ (axes.T * signs)
    low, high = np.quantile(scores, (0.01, 0.99), axis=0)
    scaled = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (scaled * 255).astype(np.uint8).reshape(b, *grid, 3)


def fit(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "s s 3"]:
    """The image at ``side`` pixels: smooth when that makes it smaller, with sharp cells when larger."""
    how = Image.Resampling.LANCZOS if side < min(image.shape[:2]) else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((side, side), how))


def image_map(
    points: Float[np.ndarray, "n 2"],
    images: UInt8[np.ndarray, "n h w 3"],
    *,
    side: int = 900,
    cells: int = 20,
) -> UInt8[np.ndarray, "side side 4"]:
    """Images laid where their points are: one a cell of a grid, the one nearest to the cell's middle.

    The background is transparent.
    """
    spread = points - points.min(0)
    spread = spread / np.maximum(spread.max(0), 1e-12) * (cells - 1e-6)
    cell = side // cells
    sheet = np.zeros((cell * cells, cell * cells, 4), np.uint8)
    taken: dict[tuple[int, int], int] = {}
    distance = np.abs(spread - np.floor(spread) - 0.5).sum(1)
    for i in np.argsort(distance, kind="stable"):
        taken.setdefault((int(spread[i, 0]), int(spread[i, 1])), int(i))
    for (column, row), i in taken.items():
        tile = Image.fromarray(images[i]).resize((cell - 2, cell - 2), Image.Resampling.LANCZOS)
        top, left = (cells - 1 - row) * cell + 1, column * cell + 1  # the y axis of a plot points up
        sheet[top : top + cell - 2, left : left + cell - 2, :3] = np.asarray(tile)
        sheet[top : top + cell - 2, left : left + cell - 2, 3] = 255
    return sheet
