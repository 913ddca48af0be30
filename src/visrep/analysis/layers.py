"""What every layer of an encoder makes of the same images: vectors, random views and patch tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast, get_args

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from visrep.analysis.measures.base import Sample
from visrep.data.canvas import CanvasSet, canvas_size
from visrep.data.source import Source, Subset
from visrep.evaluation.features import centred, evaluation_mode, extract
from visrep.method import At, Encoder, Pooling
from visrep.views import TwoViews, View, draw

CHUNK = 64
"""images of which views are drawn and encoded at a time"""


@dataclass(frozen=True)
class Amount:
    """How much of the data is looked at."""

    images: int = 2000
    """at most, evenly spaced over the data"""
    view_images: int = 500
    """so many of them, evenly spaced, are also seen in random views"""
    views: int = 10
    """of each of those; 0 for none"""
    token_images: int = 32
    """of which the patch tokens are looked at"""

    def __post_init__(self) -> None:
        if self.images < 2 or min(self.view_images, self.views, self.token_images) < 0 or self.views == 1:
            raise ValueError(
                f"images={self.images}, views={self.views}: use at least 2 images, and 2 views or 0 for none."
            )


def spread_over(source: Source, n: int) -> Source:
    """At most ``n`` images, evenly spaced."""
    if n >= len(source):
        return source
    return Subset(source, np.unique(np.linspace(0, len(source) - 1, n).astype(np.int64)))


def opened(source: Source, encoder: Encoder, n: int, *, progress: bool = False) -> CanvasSet:
    """At most ``n`` images of a source, decoded as this encoder needs them."""
    some = spread_over(source, n)
    return CanvasSet(some, canvas_size(some, encoder.preprocessing.size), progress=progress)


def chosen_layers(encoder: Encoder, layers: tuple[int, ...]) -> tuple[int, ...]:
    """These layers and the last one, lowest first. Raises ValueError for one that there is not."""
    wrong = [layer for layer in layers if not 1 <= layer <= encoder.depth]
    if wrong:
        raise ValueError(f"layer {wrong[0]} was asked for; this encoder has layers 1 to {encoder.depth}.")
    return tuple(sorted({*layers, encoder.depth}))


def layer_vectors(
    encoder: Encoder,
    canvases: CanvasSet,
    layers: tuple[int, ...],
    *,
    pooling: str = "auto",
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> dict[int, Float32[Tensor, "n _"]]:
    """One vector an image for each of these layers, pooled alike, lowest layer first.

    Raises ValueError for a layer or pooling that the encoder does not have, or features that are not finite.
    """
    features = extract(
        encoder,
        canvases,
        canvases.usable,
        layers=layers,
        poolings=(pooling,),
        device=device,
        progress=progress,
    )
    found = {layer: vectors for (layer, _), vectors in features.vectors.items()}
    for layer, vectors in found.items():
        if bad := int((~vectors.isfinite().all(1)).sum()):
            raise ValueError(
                f"the features of {bad} of {len(vectors)} images are not finite in layer {layer}: training diverged."
            )
    return {layer: found[layer] for layer in sorted(layers)}


def layer_samples(
    encoder: Encoder,
    canvases: CanvasSet,
    layers: tuple[int, ...],
    amount: Amount,
    *,
    pooling: str = "auto",
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> dict[int, Sample]:
    """A `Sample` for each of these layers.

    Views are those of `View` at the encoder's size, the same for every encoder of this size and seed, not those that
    it was trained on. Raises ValueError as `layer_vectors` does.
    """
    vectors = layer_vectors(encoder, canvases, layers, pooling=pooling, device=device, progress=progress)
    views = _views(encoder, canvases, layers, amount, pooling, torch.device(device), seed)
    tokens = _tokens(encoder, canvases, layers, amount.token_images, device)
    return {layer: Sample(vectors[layer], views.get(layer), tokens.get(layer)) for layer in vectors}


@torch.no_grad()
def _views(
    encoder: Encoder,
    canvases: CanvasSet,
    layers: tuple[int, ...],
    amount: Amount,
    pooling: str,
    device: torch.device,
    seed: int,
) -> dict[int, Tensor]:
    """ "m q d" by layer: a row holds the views of one image. Empty where none are asked for."""
    if not amount.views or not amount.view_images:
        return {}
    expects = encoder.preprocessing
    view = View(size=expects.size, mean=expects.mean, std=expects.std)
    recipe = TwoViews(view, view, frames=expects.frames or canvases.source.frames)
    at = At(0, 1, 1, torch.Generator(device).manual_seed(seed))
    chosen = _spaced(canvases.usable, amount.view_images)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    with evaluation_mode(encoder):
        for start in range(0, len(chosen), CHUNK):
            some = canvases.get(chosen[start : start + CHUNK]).to(device)
            pairs = [draw(recipe, some, at).crops[0] for _ in range(-(-amount.views // 2))]
            seen: dict[int, list[Tensor]] = {layer: [] for layer in layers}
            for crops in torch.cat(pairs)[: amount.views]:
                for layer, vectors in _pooled(encoder, crops, layers, pooling).items():
                    seen[layer].append(vectors.float().cpu())
            for layer in layers:
                parts[layer].append(torch.stack(seen[layer], dim=1))
    return {layer: torch.cat(found) for layer, found in parts.items()}


def _pooled(encoder: Encoder, images: Tensor, layers: tuple[int, ...], pooling: str) -> dict[int, Tensor]:
    how = cast(Pooling, pooling)
    if how not in get_args(Pooling):
        raise ValueError(f"there is no pooling {pooling!r}. Use one of: {', '.join(get_args(Pooling))}.")
    others = tuple(layer for layer in layers if layer != encoder.depth)
    out = encoder(images, layers=others)
    found = {layer: part.pool(how) for layer, part in zip(others, out.layers, strict=True)}
    return {**found, encoder.depth: out.pool(how)} if encoder.depth in layers else found


@torch.no_grad()
def _tokens(
    encoder: Encoder, canvases: CanvasSet, layers: tuple[int, ...], n: int, device: torch.device | str
) -> dict[int, Tensor]:
    """ "t p d" by layer, where tokens of several places are left to compare."""
    if not n:
        return {}
    chosen = _spaced(canvases.usable, n)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    others = tuple(layer for layer in layers if layer != encoder.depth)
    with evaluation_mode(encoder):
        for pixels, _, _ in centred(canvases, chosen, encoder.preprocessing, CHUNK, device):
            out = encoder(pixels, layers=others)
            for layer, part in (*zip(others, out.layers, strict=True), (encoder.depth, out)):
                parts[layer].append(part.patches.float().cpu())
    return {layer: torch.cat(found) for layer, found in parts.items() if found and found[0].shape[1] > 1}


def _spaced(usable: np.ndarray, n: int) -> np.ndarray:
    return usable[np.unique(np.linspace(0, len(usable) - 1, min(n, len(usable))).astype(np.int64))]
