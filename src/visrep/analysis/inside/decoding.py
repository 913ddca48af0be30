"""Decoders of several layers of an encoder and of its untrained twin, judged on images that none of them saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from visrep.analysis.inside.decoder import check_enough, decode, encode_maps, picture_error, train_decoder
from visrep.analysis.inside.subject import Inapplicable, Subject
from visrep.method import Encoder

JUDGED = 0.2
"""share of the images that decoders do not see, besides those shown"""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What one decoder draws."""

    pictures: Float[Tensor, "n 3 s s"]
    """of the images shown"""
    error: float
    """over all held-out images"""
    first: float
    """of the first image shown"""


@dataclass(frozen=True, eq=False)
class Decodings:
    """By layer; nothing untrained where the network cannot be built anew."""

    trained: dict[int, Decoded]
    untrained: dict[int, Decoded]
    shown: Float[Tensor, "n 3 s s"]
    """the images shown, as small as the pictures"""
    mean: Float[Tensor, "3 s s"]
    """the mean image of those that decoders learned from"""
    learned: int
    """from so many images"""
    held_out: int


def decodings(subject: Subject, layers: tuple[int, ...], steps: int) -> Decodings:
    """Train a decoder of each layer, and the same for the untrained twin, on up to 1,000 images of the data.

    Raises Inapplicable for too few images, and for features that are not finite.
    """
    fitted, held_out = split(subject)
    try:
        check_enough(len(fitted))
        made = _decodings(subject, subject.encoder, layers, steps, fitted, held_out)
    except ValueError as problem:
        raise Inapplicable(str(problem).rstrip(".")) from problem
    if subject.twin is None:
        return made
    twin = _decodings(subject, subject.twin, layers, steps, fitted, held_out)
    return Decodings(made.trained, twin.trained, made.shown, made.mean, made.learned, made.held_out)


def split(subject: Subject) -> tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " b"]]:
    """Rows of `Subject.sample` to learn from, and a fifth to judge on, in random order; none of the images shown."""
    sample, shown = subject.sample, set(subject.keys)
    others = [int(row) for row in sample.usable if sample.source.key(int(row)) not in shown]
    mixed = np.random.default_rng(subject.seed).permutation(np.array(others, dtype=np.int64))
    judged = round(JUDGED * len(mixed))
    return mixed[judged:], mixed[:judged]


def _decodings(
    subject: Subject,
    encoder: Encoder,
    layers: tuple[int, ...],
    steps: int,
    fitted: Int64[np.ndarray, " a"],
    held_out: Int64[np.ndarray, " b"],
) -> Decodings:
    device, bar = subject.device, subject.progress
    seen = encode_maps(encoder, subject.sample, fitted, layers, device=device, progress=bar)
    unseen = encode_maps(encoder, subject.sample, held_out, layers, device=device, progress=bar)
    shown = encode_maps(encoder, subject.shown, subject.shown.usable, layers, device=device)
    mean, found = seen.images.mean(0), {}
    for layer in layers:
        decoder = train_decoder(
            seen.maps[layer],
            seen.images,
            steps=steps,
            seed=subject.seed,
            device=device,
            progress=bar,
            title=f"decoder of layer {layer}",
        )
        pictures = decode(decoder, shown.maps[layer])
        error = picture_error(decode(decoder, unseen.maps[layer]), unseen.images, mean)
        found[layer] = Decoded(pictures, error, picture_error(pictures[:1], shown.images[:1], mean))
    return Decodings(found, {}, shown.images, mean, len(seen.images), len(unseen.images))
