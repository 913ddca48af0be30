"""Maps of the last layer's channels over images in which one knows where concepts are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from visrep.analysis.inside.concepts import concepts
from visrep.analysis.inside.dissection import turned
from visrep.analysis.inside.sections_maps import checked_grid
from visrep.analysis.inside.subject import Inapplicable, Subject
from visrep.data import CanvasSet
from visrep.data.canvas import canvas_size
from visrep.data.dense import DenseSource, DenseSubset
from visrep.evaluation.features import centred, evaluation_mode
from visrep.method import Encoder

IMAGES = 300
"""at most"""
LEAST = 5
"""images that must show a concept for it to count"""
SIDE = 56
"""of masks, in pixels"""
HELD_OUT = 4
"""one of so many images, or videos, is to judge on"""
BATCH = 64


@dataclass(frozen=True, eq=False)
class ConceptMaps:
    """Activations and masks of the same images."""

    trained: Float[Tensor, "n d rows columns"]
    untrained: Float[Tensor, "n d rows columns"] | None
    masks: Bool[Tensor, "n k s s"]
    names: tuple[str, ...]
    fitted: Int64[np.ndarray, " f"]
    held_out: Int64[np.ndarray, " m"]
    """rows: to fit on, and to judge on"""
    seed: int

    def each(self) -> Iterator[tuple[str, Float[Tensor, "n d rows columns"]]]:
        """Whose activations, and these; the random rotation is made when its turn comes."""
        yield "trained", self.trained
        yield "trained, rotated", turned(self.trained, self.seed)
        if self.untrained is not None:
            yield "untrained", self.untrained


def concept_maps(subject: Subject) -> ConceptMaps:
    """Of up to 300 images, seen whole as squares. Raises Inapplicable without masks, or with too small maps."""
    source = subject.source
    if not isinstance(source, DenseSource) or "classes" not in source.knows:
        raise Inapplicable("concepts need images with masks of classes, such as the playground's")
    chosen = np.unique(np.linspace(0, len(source) - 1, min(IMAGES, len(source))).astype(np.int64))
    canvases = CanvasSet(DenseSubset(source, chosen), canvas_size(source, subject.encoder.preprocessing.size))
    chosen = chosen[canvases.usable]
    known = concepts(source, chosen, SIDE).met(LEAST)
    if not known.names:
        raise Inapplicable(f"no concept is shown by {LEAST} images or more")
    activations = _activations(subject, subject.encoder, canvases)
    checked_grid(tuple(activations.shape))
    twin = None if subject.twin is None else _activations(subject, subject.twin, canvases)
    groups = np.arange(len(chosen)) if source.groups is None else source.groups[chosen]
    fitted, held_out = sides(groups, subject.seed)
    masks = torch.from_numpy(known.masks)
    return ConceptMaps(activations, twin, masks, known.names, fitted, held_out, subject.seed)


def sides(groups: Int64[np.ndarray, " n"], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on, and a quarter of the groups, drawn, to judge on."""
    drawn = np.random.default_rng(seed).permutation(np.unique(groups))
    judged = np.isin(groups, drawn[: len(drawn) // HELD_OUT])
    return np.flatnonzero(~judged), np.flatnonzero(judged)


def _activations(
    subject: Subject, encoder: Encoder, canvases: CanvasSet
) -> Float[Tensor, "n d rows columns"]:
    """Of the last layer's channels at every place; images whole, squashed to squares."""
    found = []
    encoder.to(subject.device)
    with evaluation_mode(encoder), torch.no_grad():
        batches = centred(canvases, canvases.usable, encoder.preprocessing, BATCH, subject.device, whole=True)
        for pixels, _, _ in batches:
            tokens = encoder(pixels)
            rows, columns = tokens.grid[-2:]
            found.append(tokens.patches.float().mT.unflatten(2, (rows, columns)).cpu())
    return torch.cat(found)
