"""Attention as a mask, DINO's (arXiv:2104.14294, section 4.2.2): does the cls token look at objects?

Of each head of the last block, the patches that the cls token looks at most, until they have 60 % of what it gives to
patches, are a mask; it is enlarged without smoothing and compared with the true foreground. Of each image the head that
fits best counts, which is chosen by the answer: the number is what the best head could do, and grows with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from visrep.data.dense import nearest
from visrep.encoders.vit import ViTLike
from visrep.evaluation.dense.boundaries import jaccard
from visrep.evaluation.dense.exam import Exam
from visrep.evaluation.dense.examples import region_example
from visrep.evaluation.dense.intervals import interval
from visrep.evaluation.dense.objects import counted, foreground
from visrep.evaluation.examples import Example, spread
from visrep.evaluation.results import Inapplicable, Measure
from visrep.method import Encoder

MASS = 0.6
"""share of the attention that a mask has more than"""
LARGEST = 2**26
"""values of attention at a time, of all layers"""


def masks_of(attention: Float[Tensor, "h n"], *, mass: float = MASS) -> Bool[Tensor, "h n"]:
    """The fewest patches of each head, the most looked at first, that have more than this share of its attention."""
    order = attention.argsort(dim=-1, stable=True)
    shares = attention.gather(1, order)
    shares = shares / shares.sum(1, keepdim=True)
    kept = shares.cumsum(1) > 1 - mass
    return torch.zeros_like(kept).scatter(1, order, kept)


def head_overlaps(
    masks: Bool[Tensor, "h n"],
    grid: tuple[int, int],
    foreground: Bool[np.ndarray, "rows columns"],
    counted: Bool[np.ndarray, "rows columns"],
) -> list[float]:
    """Jaccard of each head's mask with the foreground, over the pixels that are ``counted``."""
    cells = masks.unflatten(1, grid).cpu().numpy()
    large = [nearest(mask, foreground.shape) for mask in cells]
    return [jaccard(mask & counted, foreground & counted) for mask in large]


def attention_masks(exam: Exam) -> list[Measure]:
    """Mean Jaccard over images of the best head, and of the mean over heads, with that of an image all marked.

    Raises Inapplicable for an encoder without attention or without a cls token, or when no image has an object.
    """
    network = exam.network
    assert network is not None, "attention is the network's"
    check_looks(network)
    overlaps: list[list[float]] = []
    rows: list[int] = []
    everything: list[float] = []
    examples: list[Example] = []
    shown = spread(len(exam.test))
    for row, (attention, grid) in enumerate(_looks(exam, network)):
        answers = exam.test.source.answers(int(exam.test.index[row]))
        asked = counted(answers)
        marked = foreground(answers, exam.test.names) & asked
        if not marked.any():
            continue
        rows.append(row)
        masks = masks_of(attention)
        overlaps.append(head_overlaps(masks, grid, marked, asked))
        if row in shown:
            best = masks[int(np.argmax(overlaps[-1]))].unflatten(0, grid).numpy()
            examples.append(region_example(exam.test, row, marked, best))
        everything.append(float(marked.sum() / asked.sum()))
    if not rows:
        raise Inapplicable(f"attention-masks needs objects, and none of the {len(exam.test)} images has one.")
    by_head = np.array(overlaps)
    groups = exam.test.groups[rows]
    settings = {"mass": MASS, "heads": by_head.shape[1], "image": exam.image}
    details = {"the whole image": round(100 * float(np.mean(everything)), 2)}
    best, mean = (
        Measure(
            "attention-masks", metric, float(values.mean()), *interval(values, groups, seed=exam.seed), {**settings},
            n_test=len(rows), details=details,
        )
        for metric, values in (("Jaccard", by_head.max(1)), ("Jaccard, mean head", by_head.mean(1)))
    )  # fmt: skip
    return [replace(best, examples=examples), mean]


def check_looks(network: Encoder) -> None:
    """Raises Inapplicable unless there is a cls token that attends to patches."""
    config = network.config
    if not (isinstance(config, ViTLike) and config.has_attention):
        raise Inapplicable(
            f"attention-masks reads the attention of the last block, and {type(config).__name__} gives none. It "
            "applies to a ViT."
        )
    if not config.cls:
        raise Inapplicable(
            "attention-masks asks where the cls token looks, and this encoder has none. discovery-tokencut finds "
            "objects without one."
        )


@torch.no_grad()
def _looks(exam: Exam, network: Encoder) -> Iterator[tuple[Float[Tensor, "h n"], tuple[int, int]]]:
    """What each head's cls token gives to the patches of each image, and the grid."""
    config = network.config
    tokens = (exam.image // network.stride) ** 2 + config.cls + config.registers
    batch = max(1, LARGEST // (config.depth * config.heads * tokens**2))
    for pixels in exam.pixels(exam.test, batch):
        out = network(pixels, attention=True)
        assert out.attention is not None, "a ViT asked for attention returns it"
        last = out.attention[-1][:, :, 0, -out.patches.shape[1] :]
        for heads in last.float().cpu():
            yield heads, (out.grid[0], out.grid[1])
