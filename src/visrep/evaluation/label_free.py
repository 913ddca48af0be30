"""Scores of an encoder without any label, and how far to trust them.

RankMe (arXiv:2210.02885) was proposed to choose between runs of *one* method, alignment and uniformity
(arXiv:2005.10242) to understand contrastive features. None of them knows what the features will be used for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from visrep.analysis.layers import Amount, layer_samples
from visrep.analysis.measures.base import Measure, Sample
from visrep.analysis.measures.spectral import RANKME
from visrep.analysis.spectra import alignment, feature_std, rankme, sample_caution, uniformity
from visrep.data.canvas import CanvasSet, canvas_size
from visrep.data.source import Source, Subset
from visrep.evaluation.features import evaluation_mode, extract
from visrep.method import At, Encoder
from visrep.views import TwoViews, View, draw

IMAGES = 2000
"""encoded at most, evenly spaced: RankMe wants several times the encoder's width"""
PAIRS = 256
"""images of which two views are compared"""
SCORES = {"rankme": "RankMe", "uniformity": "uniformity", "alignment": "alignment", "spread": "spread"}


def sample(source: Source, size: int, *, progress: bool = False) -> CanvasSet:
    """The images that every encoder is scored on."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(IMAGES, len(source))).astype(np.int64))
    some = Subset(source, chosen)
    return CanvasSet(some, canvas_size(some, size), progress=progress)


def label_free_scores(
    encoder: Encoder,
    canvases: CanvasSet,
    *,
    select: Measure = RANKME,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, float]:
    """`SCORES` and ``select`` of the last layer, with the number of images and the width they belong to.

    Alignment is between two views that are alike for all encoders (`View`'s crops and colours at the encoder's
    size), not those that it was trained on. Raises ValueError when the features are not finite, or when there are too
    few images for ``select``.
    """
    z = next(iter(extract(encoder, canvases, canvases.usable, device=device).vectors.values()))
    if select.needs == "vectors":
        value = _read(select, Sample(z))
    else:
        value = _read(select, _more(select, encoder, canvases, device, seed))
    return {
        select.key: value,
        "rankme": rankme(z),
        "uniformity": uniformity(z),
        "alignment": alignment(*_pairs(encoder, canvases, torch.device(device), seed)),
        "spread": feature_std(z) * math.sqrt(z.shape[1]),
        "images": len(z),
        "width": z.shape[1],
    }


def _read(select: Measure, sample: Sample) -> float:
    """Raises ValueError where the number would mislead, as for more dimensions than images."""
    reading = select.read(sample)
    if reading.value is None:
        raise ValueError(f"{select.title} {reading.caution} Give more images, or another --select.")
    return reading.value


def _more(
    select: Measure, encoder: Encoder, canvases: CanvasSet, device: torch.device | str, seed: int
) -> Sample:
    """Of the last layer, with as many views and tokens as ``select`` needs and no more."""
    amount = Amount(
        view_images=max(500, 2 * encoder.width) if select.needs in ("views", "pair") else 0,
        token_images=Amount().token_images if select.needs == "tokens" else 0,
    )
    return layer_samples(encoder, canvases, (encoder.depth,), amount, device=device, seed=seed)[encoder.depth]


@torch.no_grad()
def _pairs(encoder: Encoder, canvases: CanvasSet, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    expects = encoder.preprocessing
    view = View(size=expects.size, mean=expects.mean, std=expects.std)
    at = At(0, 1, 1, torch.Generator(device).manual_seed(seed))
    frames = expects.frames or canvases.source.frames
    batch = draw(TwoViews(view, view, frames=frames), canvases.get(canvases.usable[:PAIRS]).to(device), at)
    with evaluation_mode(encoder):
        first, second = (encoder(crops).pool().float().cpu() for crops in batch.crops[0])
    return first, second


def trust(methods: Sequence[str], scores: Sequence[dict[str, float]], select: Measure = RANKME) -> list[str]:
    """What to keep in mind about an order by ``select`` of runs of these methods with these scores."""
    if select is not RANKME:
        said = [f"Ordered by {select.title}, without labels ({select.better} is better). {select.compares}"]
        if len(set(methods)) > 1:
            said.append(
                "These are different methods: label some hundred images before a choice that matters."
            )
    elif len(set(methods)) == 1:
        said = [
            "Ordered by RankMe, without labels. It was proposed for this, runs of one method (arXiv:2210.02885): "
            "a much lower value is a warning, a small difference says little."
        ]
    else:
        said = [
            "Ordered by RankMe, without labels. Trust this order little: RankMe was proposed to choose between "
            "runs and checkpoints of one method (arXiv:2210.02885); between methods it often disagrees with "
            "accuracy. Use it to notice collapse, and label some hundred images to choose."
        ]
    widths = sorted({int(score["width"]) for score in scores})
    if len(widths) > 1:
        said.append(
            f"The encoders' widths differ ({', '.join(map(str, widths))}), which alone changes RankMe."
        )
    cautions = (sample_caution(int(score["images"]), int(score["width"])) for score in scores)
    return [*said, *dict.fromkeys(filter(None, cautions))]
