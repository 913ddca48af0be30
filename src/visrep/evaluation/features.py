"""Frozen features: one pass over the images for all layers, poolings and patch tokens that probes ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast, get_args

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor, nn

from visrep.data.canvas import CanvasSet
from visrep.data.workers import default_workers
from visrep.evaluation.results import Inapplicable
from visrep.method import Canvases, Encoder, Pooling, Preprocessing, Tokens
from visrep.progress import tracked
from visrep.views import center

Parts = dict[tuple[int, str], Float[Tensor, "_ _"]]
"""one vector an image by (layer, pooling)"""
PIXELS = (0, "none")
"""key of raw pixels among `Features.vectors`"""
AT_ONCE = 2**20
"""pixels of images through an encoder on a CPU: more leave its caches, and take two to four times as long an image"""


@dataclass(frozen=True)
class Features:
    """Features of n images, on the CPU."""

    vectors: Parts
    """by (layer, pooling); the last layer first, "auto" named by what it stands for"""
    labels: Int64[Tensor, " n"] | None
    index: Int64[Tensor, " n"]
    """position of each image in its source"""
    tokens: Float16[Tensor, "n p d"] | None = None
    """patch tokens of one layer, or their mean over several, when asked for"""
    parts: Parts = field(default_factory=dict)
    """what ``vectors`` are made of, for protocols that put layers together by themselves"""

    def __len__(self) -> int:
        return len(self.index)


def extract(
    encoder: Encoder,
    canvases: CanvasSet,
    indices: Int64[np.ndarray, " n"],
    *,
    layers: tuple[int, ...] = (),
    poolings: tuple[str, ...] = ("auto",),
    tokens: bool = False,
    tokens_of: tuple[int, ...] = (),
    batch: int = 256,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Features:
    """Features of the central square of each image, resized and normalised, in evaluation mode.

    The last layer is always included, ``layers`` (1 is the first) adds others, each with every one of
    ``poolings``. ``tokens`` are those of the last layer, or the mean over ``tokens_of``, some of ``layers``. Unreadable
    images are left out: ``index`` says which remain. The encoder is moved to ``device`` and gets its training mode
    back. Values may be NaN if training diverged: `count_bad` tells.
    Raises ValueError for a layer or pooling that the encoder does not have, or when no image can be read; Inapplicable
    for a mean of layers whose tokens differ in number or width.
    """
    parts = stream(
        encoder,
        canvases,
        indices,
        layers=layers,
        poolings=poolings,
        tokens=tokens,
        tokens_of=tokens_of,
        batch=batch,
        device=device,
    )
    n_batches = -(-len(indices) // batch)
    return _join(list(tracked(parts, "features", total=n_batches, shown=progress)))


def stream(
    encoder: Encoder,
    canvases: CanvasSet,
    indices: Int64[np.ndarray, " n"],
    *,
    layers: tuple[int, ...] = (),
    poolings: tuple[str, ...] = ("auto",),
    tokens: bool = False,
    tokens_of: tuple[int, ...] = (),
    batch: int = 256,
    device: torch.device | str = "cpu",
) -> Iterator[Features]:
    """`extract` a batch at a time, for more images than fit in memory. The mode is set back at the end."""
    if unknown := [how for how in poolings if how not in get_args(Pooling)]:
        raise ValueError(f"there is no pooling {unknown[0]!r}. Use one of: {', '.join(get_args(Pooling))}.")
    wrong = [layer for layer in layers if not 1 <= layer <= encoder.depth]
    if wrong:
        raise ValueError(f"layer {wrong[0]} was asked for; this encoder has layers 1 to {encoder.depth}.")
    others = tuple(sorted(set(layers) - {encoder.depth}))

    encoder.to(device)
    with evaluation_mode(encoder):
        for pixels, labels, index in centred(canvases, indices, encoder.preprocessing, batch, device):
            vectors, patches = encode(encoder, pixels, others, poolings, tokens_of)
            yield Features(vectors, labels, index, patches.half().cpu() if tokens else None)


@torch.no_grad()  # not inference mode: probes train on these tensors
def encode(
    encoder: Encoder,
    pixels: Tensor,
    others: tuple[int, ...],
    poolings: tuple[str, ...],
    tokens_of: tuple[int, ...] = (),
) -> tuple[Parts, Float[Tensor, "b p d"]]:
    """Vectors of the last layer and of ``others``, on the CPU, and the mean of the patch tokens of some of them.

    Without ``tokens_of`` these are those of the last layer. Raises Inapplicable where there is no such mean.
    """
    if pixels.device.type == "cpu" and len(pixels) > 1 and pixels[:, 0].numel() > AT_ONCE:
        halves = [encode(encoder, half, others, poolings, tokens_of) for half in pixels.tensor_split(2)]
        vectors = {key: torch.cat([half[0][key] for half in halves]) for key in halves[0][0]}
        return vectors, torch.cat([half[1] for half in halves])
    out = encoder(pixels, layers=others)
    found = {encoder.depth: out, **dict(zip(others, out.layers, strict=True))}
    vectors = {
        (layer, _named(how, part)): part.pool(cast(Pooling, how)).float().cpu()
        for layer, part in found.items()
        for how in poolings
    }
    return vectors, _mean_tokens([found[layer].patches for layer in tokens_of or (encoder.depth,)])


def _mean_tokens(layers: list[Float[Tensor, "b _ _"]]) -> Float[Tensor, "b p d"]:
    """Raises Inapplicable for layers whose tokens differ in number or width."""
    shapes = [layer.shape[1:] for layer in layers]
    if len(set(shapes)) > 1:
        said = ", ".join(f"{tokens} of {width} numbers" for tokens, width in shapes)
        raise Inapplicable(f"tokens of {len(layers)} layers have no mean, as they differ in shape: {said}.")
    return torch.stack(layers).mean(0) if len(layers) > 1 else layers[0]


def pixel_features(canvases: CanvasSet, indices: Int64[np.ndarray, " n"], size: int = 32) -> Features:
    """The images as vectors "n 3*size*size": whole central square, resized, normalised as for encoders.

    Frames of clips are so much smaller that all of them together have about as many pixels.
    """
    side = round(size / max(1, canvases.source.frames) ** 0.5)
    preprocessing = Preprocessing(size=side, ratio=1.0)
    parts = [
        Features({PIXELS: pixels.flatten(1)}, labels, index)
        for pixels, labels, index in centred(canvases, indices, preprocessing, batch=512)
    ]
    return _join(parts)


def count_bad(features: Features) -> int:
    """Images with a NaN or infinity in any vector, or in its squared length."""
    bad = torch.zeros(len(features), dtype=torch.bool)
    for vectors in features.vectors.values():
        bad |= ~vectors.float().square().sum(-1).isfinite()
    return int(bad.sum())


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every part has the mode it had, also parts frozen on purpose."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def centred(
    canvases: CanvasSet,
    indices: Int64[np.ndarray, " n"],
    preprocessing: Preprocessing,
    batch: int,
    device: torch.device | str = "cpu",
    *,
    whole: bool = False,
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """Pixels "b 3 h w" on ``device`` as encoders want them, labels, index; without unreadable images.

    ``whole``: all of each image, squashed to a square, and not its central square alone.
    """
    batches = [indices[start : start + batch] for start in range(0, len(indices), batch)]
    workers = default_workers() if len(batches) > 1 else 0  # for one batch, starting processes costs more
    for asked, found in zip(batches, canvases.stream(batches, rows=batch, workers=workers), strict=True):
        # another image stands in for an unreadable one, which is right for training and wrong here
        readable = found.index == torch.from_numpy(asked)
        if not readable.any():
            continue
        labels = None if found.labels is None else found.labels[readable]
        sizes = torch.full_like(found.sizes, canvases.size) if whole else found.sizes
        kept = Canvases(found.pixels[readable], sizes[readable], found.index[readable], labels)
        yield center(kept.to(torch.device(device)), preprocessing), labels, kept.index


def _named(how: str, tokens: Tokens) -> str:
    if how != "auto":
        return how
    return "mean" if tokens.cls is None else "cls"


def _join(parts: list[Features]) -> Features:
    n = sum(map(len, parts))
    if not n:
        raise ValueError("none of the images asked for can be read, so there are no features.")
    labels = [part.labels for part in parts if part.labels is not None]
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Features(
        vectors={key: torch.cat([part.vectors[key] for part in parts]) for key in parts[0].vectors},
        labels=torch.cat(labels) if labels else None,
        index=torch.cat([part.index for part in parts]),
        tokens=torch.cat(tokens) if tokens else None,
    )
