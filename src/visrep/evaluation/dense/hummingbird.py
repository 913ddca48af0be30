"""In-context segmentation without training (Hummingbird, arXiv:2306.01667): patches ask their nearest neighbours.

A memory holds patches of training images with the shares of classes among their pixels. A patch of a test image
takes the mean of the shares of its 30 nearest by cosine, weighted by the softmax of cosine / 0.02. The shares are
enlarged bilinearly to the size of the mask; the greatest wins. The search is exact.

Deviations: images are seen once, whole, as squares, without random crops; pixels that are marked as nobody's business
count in no share, and patches without others are left out, where the published code takes them for class 0.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from visrep.evaluation.dense.exam import DenseSide, Exam, Folds
from visrep.evaluation.dense.examples import class_examples
from visrep.evaluation.dense.miou import Counts
from visrep.evaluation.dense.segmentation import JUDGED, check_marked, named, unseen
from visrep.evaluation.examples import Example, some_of, spread
from visrep.evaluation.results import Measure

NEIGHBOURS = 30
TEMPERATURE = 0.02
MEMORY = 102_400
"""patches at most: 1,024 x 10², the smallest memory that is published"""
QUERIES = 1024
"""patches that search at a time, which bounds memory"""


def hummingbird(exam: Exam) -> list[Measure]:
    """mIoU over the test images, with the IoU of each class as details.

    Raises Inapplicable when fewer than two classes are marked in the training images.
    """
    exams = exam.folds()
    found = [_judged(fold) for fold in exams]
    folds, memory = Folds.of(exams, ()), min(size for size, _, _ in found)
    settings = {
        **folds.settings, "image": exam.image, "memory": memory, "neighbours": min(NEIGHBOURS, memory),
    }  # fmt: skip
    counts = Counts.joined([counts for _, counts, _ in found])
    how = {"groups": folds.groups, "n_train": folds.n_train}
    measure = counts.measure("hummingbird", settings, exam.test.names, **how, caution=unseen(exams))
    return [replace(measure, examples=some_of(examples for _, _, examples in found))]


def _judged(exam: Exam) -> tuple[int, Counts, list[Example]]:
    """How many patches are remembered, what they say of the test images, and some of it."""
    check_marked(exam.train)
    keys, values = remember(exam.train, seed=exam.seed, device=exam.device)
    test, parts = exam.test, []
    for rows in torch.arange(len(test)).split(JUDGED):
        side = test.at(rows)
        parts.append(Counts.of(answered(side, keys, values), side.classes, len(test.names)))
    some = test.at(torch.tensor(spread(len(test))))
    return len(keys), Counts.joined(parts), class_examples(some, answered(some, keys, values))


def answered(
    side: DenseSide, keys: Float[Tensor, "m d"], values: Float[Tensor, "m k"]
) -> Int64[Tensor, "b s s"]:
    """The class of each pixel, from the memory."""
    queries = side.tokens.to(keys.device).float()
    found = look_up(queries.flatten(0, 2), keys, values).unflatten(0, queries.shape[:3])
    return named(found.permute(0, 3, 1, 2), side.size)


def remember(
    side: DenseSide, *, seed: int, device: torch.device, limit: int = MEMORY
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m k"]]:
    """Patches of length one with their shares of classes, of patches that have a marked pixel.

    Where there are more than ``limit`` patches, each image gives equally many: those of rare classes of the image
    more likely, as published (see `rareness`).
    """
    n, h, w = side.tokens.shape[:3]
    each = max(1, limit // n)
    rng = torch.Generator().manual_seed(seed)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for rows in torch.arange(n).split(JUDGED):
        part = side.at(rows)
        shares = shares_of(part.classes, (h, w), len(side.names))
        kept = shares.sum(-1) > 0
        if n * h * w > limit:
            score = rareness(shares) * torch.rand(kept.shape, generator=rng)
            first = score.masked_fill(~kept, torch.inf).argsort(1)[:, :each]
            kept &= torch.zeros_like(kept).scatter_(1, first, True)
        keys.append(F.normalize(part.tokens.flatten(1, 2)[kept].float(), dim=-1))
        values.append(shares[kept])
    return torch.cat(keys).to(device), torch.cat(values).to(device)


def shares_of(classes: UInt8[Tensor, "b s s"], grid: tuple[int, int], k: int) -> Float[Tensor, "b p k"]:
    """Of each class among the marked pixels of each patch, whose borders may cut pixels; all 0 where none is marked."""
    known = F.one_hot(classes.long().clamp(max=k), k + 1)[..., :k].permute(0, 3, 1, 2).float()
    mean = F.adaptive_avg_pool2d(known, grid).flatten(2).transpose(1, 2)
    return mean / mean.sum(-1, keepdim=True).clamp(min=1e-9)


def rareness(shares: Float[Tensor, "b p k"]) -> Float[Tensor, "b p"]:
    """In how many patches of its image the classes of a patch are, summed over them: low for what is rare."""
    has = (shares > 0).float()
    return (has * has.sum(1, keepdim=True)).sum(-1)


def look_up(
    queries: Float[Tensor, "q d"],
    keys: Float[Tensor, "m d"],
    values: Float[Tensor, "m k"],
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Float[Tensor, "q k"]:
    """The values of the nearest keys, weighted. ``keys`` have length one, queries any."""
    found: list[Tensor] = []
    for rows in queries.split(QUERIES):
        cosine, nearest = (F.normalize(rows, dim=-1) @ keys.T).topk(min(neighbours, len(keys)))
        weights = (cosine / temperature).softmax(-1)
        found.append((weights[..., None] * values[nearest]).sum(1))
    return torch.cat(found)
