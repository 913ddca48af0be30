"""Copy detection: which image is this a changed copy of, if of any? Cosine between vectors, nothing is fitted.

Up to 1,000 test images, four fifths of which can be found. Of all of them copies are made: cropped to a quarter to
a half of the area, mirrored, changed in colour, saved as a JPEG of quality 20, and all four together. Each copy
names the ten images nearest to it; all these pairs are sorted by cosine. As in the image similarity challenge
(arXiv:2106.09672) and SSCD (arXiv:2202.10261): micro average precision of the one list of pairs, and the greatest
recall at which nine of ten pairs are right. Copies of the fifth that cannot be found only add wrong pairs. The
copies of one image are drawn together in the resamples that intervals come from.

*Deviations*: changes made here, by our views, instead of the challenge's own images.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from scipy.special import ndtri
from torch import Tensor

from visrep.evaluation.features import Parts, encode, evaluation_mode
from visrep.evaluation.fitting import Images
from visrep.evaluation.poolings import assemble, last_layers
from visrep.evaluation.results import Inapplicable, Measure, Setting
from visrep.method import At, Encoder
from visrep.progress import tracked
from visrep.views import OneView, View, draw

MOST = 1000
LEAST = 10
HIDDEN = 0.2
"""share of the images that cannot be found"""
NEAREST = 10
PRECISION = 0.9
QUALITY = 20
RESAMPLES = 200
BATCH = 128

CHANGES: dict[str, dict[str, Any]] = {
    "crop": {"scale": (0.25, 0.5)},
    "flip": {"flip": 1.0},
    "colour": {"jitter": 1.0},
    "jpeg": {},
    "together": {"scale": (0.25, 0.5), "flip": 1.0, "jitter": 1.0},
}
"""settings of the view; "jpeg" and "together" are saved as JPEG before"""


def copies(
    encoder: Encoder,
    test: Images,
    vectors: Parts,
    *,
    device: torch.device,
    seed: int = 0,
    progress: bool = False,
) -> dict[tuple[int, str], list[Measure]]:
    """AP and R@P90 for each of ``vectors`` (of the test images, by layer and pooling); ``seed`` draws changes.

    Raises Inapplicable for clips and for fewer than 10 images.
    """
    if test.canvases.source.frames:
        raise Inapplicable("copies changes images, and these are clips. Leave copies out.")
    if len(test) < LEAST:
        raise Inapplicable(
            f"copies needs at least {LEAST} test images, there are {len(test)}. Give more, or leave it out."
        )
    chosen = torch.from_numpy(np.random.default_rng(seed).permutation(len(test))[:MOST])
    there = chosen[round(HIDDEN * len(chosen)) :]  # can be found
    original = torch.arange(len(chosen)) - (
        len(chosen) - len(there)
    )  # place in ``there``, negative where not
    layers = tuple({layer for layer, _ in vectors})
    poolings = tuple(dict.fromkeys(how for _, how in vectors))
    lists: dict[tuple[int, str], list[Pairs]] = {where: [] for where in vectors}
    for kind in tracked(CHANGES, "copies", shown=progress):
        parts = changed(encoder, test.rows(chosen), kind, layers, device, seed)
        made = assemble(parts, layers, poolings, encoder.depth)
        for where, x in vectors.items():
            lists[where].append(nearest(made[where], x[there], original))
    return {where: _measures(found, len(chosen), len(there), seed) for where, found in lists.items()}


@dataclass(frozen=True, eq=False)
class Pairs:
    """Copies with the images nearest to them, the most similar pair first."""

    cosine: Float[Tensor, " p"]
    copy: Int64[Tensor, " p"]
    right: Bool[Tensor, " p"]
    possible: int
    """right pairs there are, found or not"""


def nearest(
    x: Float[Tensor, "n d"], references: Float[Tensor, "r d"], original: Int64[Tensor, " n"]
) -> Pairs:
    """The ten references nearest to each copy; ``original`` is the right one, negative where there is none."""
    cosine, found = (F.normalize(x, dim=-1) @ F.normalize(references, dim=-1).T).topk(
        min(NEAREST, len(references))
    )
    copy = torch.arange(len(x))[:, None].expand_as(found)
    right = found == original[:, None]
    return Pairs(cosine.flatten(), copy.flatten(), right.flatten(), int((original >= 0).sum()))


def one_list(lists: list[Pairs], seed: int) -> Pairs:
    """All pairs of several kinds of copies, sorted; equal ones in random order."""
    cosine, copy, right = (
        torch.cat([torch.as_tensor(part) for part in parts])
        for parts in zip(*((pairs.cosine, pairs.copy, pairs.right) for pairs in lists), strict=True)
    )
    mixed = torch.randperm(len(cosine), generator=torch.Generator().manual_seed(seed))
    order = mixed[cosine[mixed].argsort(descending=True, stable=True)]
    return Pairs(cosine[order], copy[order], right[order], sum(pairs.possible for pairs in lists))


def average_precision(pairs: Pairs, weight: Float[np.ndarray, " p"], possible: float) -> float:
    """Precision at each right pair, averaged over the right pairs that there are."""
    right = weight * pairs.right.numpy()
    precision = right.cumsum() / np.maximum(weight.cumsum(), 1e-12)
    return float((right * precision).sum() / possible)


def recall_at_precision(pairs: Pairs, weight: Float[np.ndarray, " p"], possible: float) -> float:
    """Greatest share of the right pairs found by a threshold above which at least nine of ten pairs are right."""
    right, every = (weight * pairs.right.numpy()).cumsum(), weight.cumsum()
    # a threshold cannot part equal similarities, nor stand above the first pair
    ends = np.append(np.diff(pairs.cosine.numpy()) != 0, True)
    enough = ends & (right >= PRECISION * every) & (every > 0)
    return float(right[enough].max(initial=0.0) / possible)


def changed(
    encoder: Encoder, images: Images, kind: str, layers: tuple[int, ...], device: torch.device, seed: int
) -> Parts:
    """cls and mean of changed copies of the images, of these and the last four layers."""
    expects = encoder.preprocessing
    plain = View(size=expects.size, scale=(1.0, 1.0), jitter=0.0, gray=0.0, blur=0.0, flip=0.0, mean=expects.mean,
                 std=expects.std)  # fmt: skip
    recipe = OneView(replace(plain, **CHANGES[kind]))
    others = tuple(sorted({*layers, *last_layers(encoder.depth)} - {encoder.depth}))
    rng = torch.Generator(device).manual_seed((seed << 8) + list(CHANGES).index(kind))
    rows = images.index.split(BATCH)
    found = []
    encoder.to(device)
    with evaluation_mode(encoder):
        for step, index in enumerate(rows):
            canvases = images.canvases.get(index.numpy())
            if kind in ("jpeg", "together"):
                canvases = replace(canvases, pixels=as_jpeg(canvases.pixels))
            views = draw(recipe, canvases.to(device), At(step, len(rows), len(rows), rng))
            found.append(encode(encoder, views.crops[0][0], others, ("auto", "mean"))[0])
    return {key: torch.cat([part[key] for part in found]) for key in found[0]}


def as_jpeg(pixels: UInt8[Tensor, "b 3 s s"], quality: int = QUALITY) -> UInt8[Tensor, "b 3 s s"]:
    """The images as they are after saving."""
    saved = []
    for image in pixels.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        saved.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(saved)).permute(0, 3, 1, 2)


Score = Callable[[Pairs, np.ndarray, float], float]


def _measures(lists: list[Pairs], n: int, references: int, seed: int) -> list[Measure]:
    every = one_list(lists, seed)
    shares = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(float)
    hidden = n - references
    measures = []
    for metric, of in (("AP", average_precision), ("R@P90", recall_at_precision)):

        def value(pairs: Pairs, weight: np.ndarray, kinds: int, of: Score = of) -> float:
            possible = kinds * weight[hidden:].sum()
            return of(pairs, weight[pairs.copy.numpy()], max(possible, 1.0))

        whole = value(every, np.ones(n), len(lists))
        half = ndtri(0.975) * float(np.std([value(every, weight, len(lists)) for weight in shares], ddof=1))
        settings: dict[str, Setting] = {"references": references, "copies": n * len(lists)}
        for kind, pairs in zip(CHANGES, lists, strict=True):
            settings[kind] = 100 * value(one_list([pairs], seed), np.ones(n), 1)
        ends = max(whole - half, 0.0), min(whole + half, 1.0)
        measures.append(Measure("copies", metric, whole, *ends, settings, n_test=n))
    return measures
