"""Making views: all of a batch at once, on the device its canvases are on."""

from __future__ import annotations

from itertools import groupby

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from visrep.method import At, Batch, Canvases, Preprocessing
from visrep.views import colour
from visrep.views.geometry import Resize, make_axes, plan_resize, transform
from visrep.views.parameters import NUMBERS, Parameters, draw_parameters, join
from visrep.views.recipes import Recipe, View

CHUNK_CPU = 2**21
"""values made at a time on a CPU: they should stay in its cache from one operation to the next"""
CHUNK_GPU = 2**26
"""the same on a GPU: few launches, bounded memory"""


def draw(recipe: Recipe, canvases: Canvases, at: At) -> Batch:
    """Draw all views of ``recipe`` of every image, on the canvases' device.

    All frames of a view of a clip have the same crop and the same changes of colour. Random numbers come from ``at``
    alone, one row an image; what becomes of an image depends on its row only.
    Raises ValueError for clips where the recipe has no frames, and for images or shorter clips where it has.
    """
    b, device = len(canvases), canvases.pixels.device
    sizes, t = canvases.sizes.cpu(), recipe.frames
    if canvases.pixels.ndim == 5 and not t:
        raise ValueError(
            "The data holds clips and the method learns from images. Choose a method for video, or train on images."
        )
    _check_frames(canvases.pixels, t)
    crops, boxes, flipped = [], [], []
    groups = [(views, _choose(views, sizes, at)) for views in recipe.groups]
    if recipe.copies:
        groups.append((recipe.copies, groups[0][1].undistorted()))
    for views, chosen in groups:
        size = views[0].size
        made = torch.empty(len(views), b, 3, max(1, t) * size, size, device=device)
        start = 0
        for _, alike in groupby(views, key=lambda view: (view.interpolation, view.mean, view.std)):
            end = start + len(alike := tuple(alike))
            part = chosen.rows(slice(start * b, end * b))
            pixels = _pick_moments(canvases.pixels, len(alike), at, t) if t else canvases.pixels
            render(alike, pixels, part, out=made[start:end].flatten(0, 1))
            start = end
        crops.append(made.unflatten(3, (t, size)).transpose(2, 3) if t else made)
        boxes.append(chosen.boxes.float().view(len(views), b, 4).to(device))
        flipped.append(chosen.flipped.view(len(views), b).to(device))
    return Batch(tuple(crops), tuple(boxes), tuple(flipped), canvases.index, canvases.labels)


def _check_frames(pixels: Tensor, t: int) -> None:
    if t and pixels.ndim == 4:
        raise ValueError(
            f"Clips of {t} frames are needed and the data holds images. Give a folder of videos, 'playground-video', "
            f"or a folder of folders of frames, with settings behind it: 'folder:frames={t}'."
        )
    if t > pixels.shape[1] and pixels.ndim == 5:
        raise ValueError(
            f"Clips of {t} frames are needed and those of the data have {pixels.shape[1]}. Ask for longer ones with "
            f"'frames={t}' behind the name of the data, or set method.views.frames (and those of the encoder) lower."
        )


def _pick_moments(pixels: UInt8[Tensor, "b t 3 s s"], views: int, at: At, t: int) -> UInt8[Tensor, "m k s s"]:
    """``t`` frames of each clip for each view, as pictures of 3 t channels, colour by colour.

    Views begin at moments of their own, and there is a row for each, view by view; or one for all where clips are no
    longer than views.
    """
    b, spare = len(pixels), pixels.shape[1] - t
    if spare:
        first = (at.rand(b, views) * (spare + 1)).long().to(pixels.device).T.flatten()  # (v b)
        moment = first.unsqueeze(1) + torch.arange(t, device=pixels.device)
        row = torch.arange(b, device=pixels.device).repeat(views).unsqueeze(1)
        pixels = pixels[row, moment]
    return pixels.transpose(1, 2).flatten(1, 2)


def _choose(views: tuple[View, ...], sizes: Float[Tensor, "b 2"], at: At) -> Parameters:
    """The random choices of all views of images of true size ``sizes``, view by view."""
    parts = []
    for view, alike in groupby(views):
        numbers = [at.rand(len(sizes), NUMBERS) for _ in alike]
        parts.append(draw_parameters(view, sizes.repeat(len(numbers), 1), torch.cat(numbers).cpu()))
    return join(parts)


def render(
    views: tuple[View, ...],
    pixels: UInt8[Tensor, "b k s s"],
    chosen: Parameters,
    *,
    out: Float[Tensor, "n 3 h o"],
) -> None:
    """Write views of one size to ``out`` (n = v b, view by view), as ``chosen``.

    Clips have 3 t channels, colour by colour, and become pictures with their frames below each other: so whatever is
    done to a picture, its mean contrast included, is done to all frames alike.
    Views are made a chunk at a time: those without jitter first, then by the order of their changes of colour.
    """
    view, device = views[0], pixels.device
    widest = max(each.blur_sigma[1] if each.blur > 0 else 0.0 for each in views)
    how = plan_resize(pixels.shape[-1], view.size, view.interpolation, widest, device)
    order = torch.where(chosen.jittered, chosen.order, -1)
    for rows in order.argsort(stable=True).split(at_once(out)):
        part = chosen.rows(rows)
        image = _crop(pixels, rows.to(device) % len(pixels), part, how)
        plain = len(rows) - int(part.jittered.sum())  # images without jitter come first
        if plain < len(rows):
            colour.jitter_(image[plain:], part.factors[plain:].to(device), part.order[plain:])
        if part.gray.any():
            colour.remove_colour_(image, part.gray.nonzero()[:, 0].to(device))
        if part.solarized.any():
            colour.solarize_(image, part.solarized.nonzero()[:, 0].to(device))
        colour.normalise_(image, view.mean, view.std)
        _put(out, rows, image)


def at_once(images: Tensor) -> int:
    """How many of such images ("n ...") are best made at a time."""
    return max(1, (CHUNK_CPU if images.device.type == "cpu" else CHUNK_GPU) // images[0].numel())


def _put(out: Tensor, rows: Tensor, image: Tensor) -> None:
    """``out[rows] = image``, for which torch copies value by value on a CPU: slow."""
    if len(rows) == len(out):
        torch.index_select(image, 0, rows.argsort().to(out.device), out=out)
    elif out.device.type == "cpu":
        for row, made in zip(rows.tolist(), image, strict=True):
            out[row].copy_(made)
    else:
        out.index_copy_(0, rows.to(out.device), image)


def _crop(pixels: Tensor, index: Tensor, chosen: Parameters, how: Resize) -> Float[Tensor, "n 3 h o"]:
    device = pixels.device
    boxes = (chosen.boxes * how.canvas).float().to(device)
    y, x = make_axes(boxes, chosen.flipped.to(device), chosen.sigma.to(device), how)
    return transform(pixels, index, y, x, how).view(len(index), 3, -1, how.size)


def center(canvases: Canvases, preprocessing: Preprocessing) -> Float[Tensor, "b *t 3 o o"]:
    """The central square of every image, or of it squashed, resized and normalised for an encoder. Deterministic.

    Of clips the middle frames, as many as the encoder expects, or all for an encoder of images.
    Raises ValueError for images or too short clips where it expects clips.
    """
    pixels, sizes = canvases.pixels, canvases.sizes
    _check_frames(pixels, preprocessing.frames)
    clips = pixels.ndim == 5
    if clips:
        t = preprocessing.frames or pixels.shape[1]
        first = (pixels.shape[1] - t) // 2
        pixels = pixels[:, first : first + t].transpose(1, 2).flatten(1, 2)  # b (3 t) s s
    b, s = len(canvases), pixels.shape[-1]
    square = torch.ones_like(sizes) if preprocessing.squash else sizes.amin(1, keepdim=True) / sizes
    share = preprocessing.ratio * square  # b 2: of height and width
    boxes = torch.cat([(1 - share) / 2, share], dim=1).float() * s
    how = plan_resize(s, preprocessing.size, preprocessing.interpolation, 0.0, pixels.device)
    y, x = make_axes(
        boxes, torch.zeros_like(share[:, 0], dtype=torch.bool), torch.zeros_like(share[:, 0]), how
    )
    image = transform(pixels, torch.arange(b, device=pixels.device), y, x, how)
    image = image.view(b, 3, -1, preprocessing.size)  # the frames of a clip below each other
    colour.normalise_(image, preprocessing.mean, preprocessing.std)
    return image.unflatten(2, (-1, preprocessing.size)).transpose(1, 2) if clips else image
