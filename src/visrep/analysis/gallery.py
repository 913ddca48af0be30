"""A sample of a run's images and what its encoder makes of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from torch import Tensor

from visrep.analysis.record import RunRecord
from visrep.data import CanvasSet, Source, Subset, canvas_size, open_source, open_splits
from visrep.encoders import applied_to, load_encoder
from visrep.evaluation.features import extract
from visrep.method import Encoder, Preprocessing, Tokens
from visrep.views import center

THUMBNAIL = 72
"""side of a thumbnail in pixels"""
CLUSTERS = 8
"""groups for colouring images without labels"""


class Missing(Exception):
    """Something a section of the report needs is not there; the message says what, and how to get it."""


class Inapplicable(Exception):
    """A section of the report means nothing for this kind of encoder or method."""


@dataclass(frozen=True)
class Gallery:
    """Images of one source, encoded."""

    name: str
    """of the source"""
    held_out: bool
    """whether the images come from a split that was not trained on"""
    encoder: Encoder
    canvases: CanvasSet
    keys: list[str]
    features: Float[Tensor, "n d"]
    thumbnails: UInt8[np.ndarray, "n h w 3"]
    labels: Int[np.ndarray, " n"] | None
    classes: tuple[str, ...]
    """name of each label; empty without labels"""

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def directions(self) -> Float[np.ndarray, "n d"]:
        """Features divided by their length, as kNN sees them."""
        return torch.nn.functional.normalize(self.features, dim=1).numpy()

    @cached_property
    def distinct(self) -> int:
        """How many images differ in the direction of their features, to five digits."""
        return len(np.unique(self.directions.round(5), axis=0))

    @cached_property
    def groups(self) -> tuple[Int[np.ndarray, " n"], list[str]]:
        """A group for every image (its label, the most frequent first, else a cluster) and their names."""
        if self.labels is not None:
            present, counts = np.unique(self.labels, return_counts=True)
            order = present[np.argsort(-counts, kind="stable")]
            rank = {int(label): i for i, label in enumerate(order)}
            return np.array([rank[int(label)] for label in self.labels]), [self.classes[i] for i in order]
        k = min(CLUSTERS, self.distinct)
        clusters = KMeans(k, random_state=0).fit_predict(self.directions)
        return clusters.astype(np.int64), [f"cluster {i + 1}" for i in range(k)]

    @cached_property
    def similarities(self) -> Float[np.ndarray, "n n"]:
        """Cosine similarity of every image to every other; to itself minus infinity."""
        similarities = self.directions @ self.directions.T
        np.fill_diagonal(similarities, -np.inf)
        return similarities

    def neighbours(self, k: int) -> Int[np.ndarray, "n k"]:
        """The ``k`` most similar other images of every image, most similar first."""
        return np.argsort(-self.similarities, axis=1, kind="stable")[:, :k]

    def examples(self, most: int) -> Int[np.ndarray, " m"]:
        """Up to ``most`` images that differ: one of each group in turn."""
        groups, names = self.groups
        rounds = np.zeros(len(self), dtype=np.int64)
        for group in range(len(names)):
            rounds[groups == group] = np.arange((groups == group).sum())
        return np.lexsort((groups, rounds))[:most]

    def map(self) -> tuple[Float[np.ndarray, "n 2"], float]:
        """Positions in a plane (PCA to at most 50 dimensions, then t-SNE) and their trustworthiness, 0 to 1.

        Raises Missing with fewer than 12 images that differ.
        """
        n = len(self)
        if self.distinct < 12:
            raise Missing(f"A map needs 12 images with different features; {self.distinct} of {n} differ.")
        flat = PCA(min(50, n, self.directions.shape[1]), random_state=0).fit_transform(self.directions)
        tsne = TSNE(perplexity=min(30.0, (n - 1) / 3), init="pca", random_state=0, metric="euclidean")
        points = tsne.fit_transform(flat)
        return points, float(trustworthiness(flat, points, n_neighbors=min(12, n // 2 - 1)))

    def inputs(self, indices: np.ndarray) -> Float[Tensor, "m *t c h w"]:
        """These images or clips, cropped, resized and normalised as the encoder expects them."""
        return center(self.canvases.get(self.canvases.usable[indices]), self.encoder.preprocessing)

    @torch.inference_mode()
    def tokens(self, indices: np.ndarray, *, attention: bool) -> Tokens:
        """Encode these images again, for what is kept for few images only; of clips the patches of the middle."""
        tokens = self.encoder(self.inputs(indices), attention=attention)
        if len(tokens.grid) == 2:
            return tokens
        t, *grid = tokens.grid
        return replace(tokens, patches=tokens.patches.unflatten(1, (t, -1))[:, t // 2], grid=tuple(grid))

    def seen(self, indices: np.ndarray) -> UInt8[np.ndarray, "m h w 3"]:
        """These images as the encoder gets them: cropped and resized, but with their colours."""
        expects = replace(self.encoder.preprocessing, frames=0)
        return _pictures(self.canvases, self.canvases.usable[indices], expects)


def build_gallery(record: RunRecord, n: int) -> Gallery:
    """Encode up to ``n`` evenly spaced images of the run's held-out split, else of its training data.

    Raises Missing when there is no encoder yet or the data is no longer where it was.
    """
    run = record.about["run"]
    try:
        encoder = load_encoder(record.path)
        source, held_out = _open(run)
        chosen = np.unique(np.linspace(0, len(source) - 1, min(n, len(source))).astype(np.int64))
        some = Subset(source, chosen)
        encoder = applied_to(encoder, some.frames)
        size = int(run["canvas"]) or canvas_size(some, encoder.preprocessing.size)
        canvases = CanvasSet(some, size, cache="memory", workers=0)
    except (ValueError, OSError, ImportError) as problem:
        raise Missing(f"{problem}") from problem
    usable = canvases.usable
    vectors = extract(encoder, canvases, usable).vectors
    features = next(iter(vectors.values())).float().cpu()
    if bad := int((~features.isfinite().all(1)).sum()):
        raise Missing(f"the features of {bad} of {len(features)} images are not finite: training diverged.")
    return Gallery(
        name=source.name,
        held_out=held_out,
        encoder=encoder,
        canvases=canvases,
        keys=[some.key(int(i)) for i in usable],
        features=features,
        thumbnails=_pictures(canvases, usable, Preprocessing(THUMBNAIL, ratio=1.0)),
        labels=None if some.labels is None else some.labels[usable],
        classes=_class_names(some),
    )


def _open(run: dict[str, Any]) -> tuple[Source, bool]:
    if run["val"]:
        return open_source(run["val"]), True
    train, test = open_splits(run["data"])
    return (train, False) if test is None else (test, True)


def _class_names(source: Source) -> tuple[str, ...]:
    if source.labels is None:
        return ()
    return source.classes or tuple(f"class {i}" for i in range(int(source.labels.max()) + 1))


def _pictures(
    canvases: CanvasSet, indices: np.ndarray, expects: Preprocessing
) -> UInt8[np.ndarray, "n h w 3"]:
    plain = replace(expects, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images = center(canvases.get(indices), plain).clamp(0, 1)
    if images.ndim == 5:  # the middle frame stands for a clip
        images = images[:, images.shape[1] // 2]
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
