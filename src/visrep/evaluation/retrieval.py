"""Image retrieval: images of the same class should come first when others are sorted by their cosine to a query.

Every test image is a query. ``retrieval`` searches the training images, ``retrieval-within`` the other test images.
Reported: mAP, the mean over queries of the average precision of the whole list, and R@1, R@5, R@10, the share of
queries with at least one image of their class among the first k. Nothing is fitted. Images that are equally near
come in random order, so that an encoder which gives all images one vector scores chance. Intervals are bootstrap
over queries.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from visrep.evaluation.results import Inapplicable, Measure, bootstrap_mean

KS = (1, 5, 10)
CHUNK = 256
"""queries at a time"""


def retrieval(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    answers: Int64[Tensor, " m"],
    *,
    seed: int = 0,
) -> list[Measure]:
    """mAP and R@k among the training images; ``seed`` orders ties. Raises Inapplicable when no class is there."""
    return _search("retrieval", test, answers, train, labels, seed, itself=False)


def retrieval_within(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    answers: Int64[Tensor, " m"],
    *,
    seed: int = 0,
) -> list[Measure]:
    """The same among the other test images. Raises Inapplicable when no class has two of them."""
    return _search("retrieval-within", test, answers, test, answers, seed, itself=True)


def _search(
    protocol: str, queries: Tensor, wanted: Tensor, found: Tensor, labels: Tensor, seed: int, *, itself: bool
) -> list[Measure]:
    precision, first = ranked(queries, wanted, found, labels, seed=seed, itself=itself)
    possible = first >= 0
    lonely = int((~possible).sum())
    if lonely == len(queries):
        raise Inapplicable(
            f"{protocol} looks for images of the query's class, and no class of the test images has any to be found. "
            f"Give more images of each class, or leave {protocol} out."
        )
    precision, first = precision[possible].numpy(), first[possible]
    values = {"mAP": precision, **{f"R@{k}": (first < k).double().numpy() for k in KS}}
    left_out = (
        f"{protocol}: {lonely} of {len(queries)} test images have no other of their class and are no queries."
    )
    caution = left_out if lonely else ""
    n_train = 0 if itself else len(found)
    return [
        Measure(
            protocol, metric, float(each.mean()), *bootstrap_mean(each, seed=seed), {"among": len(found) - itself},
            caution, n_train, len(each),
        )
        for metric, each in values.items()
    ]  # fmt: skip


def ranked(
    queries: Float[Tensor, "m d"],
    wanted: Int64[Tensor, " m"],
    found: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    *,
    seed: int = 0,
    itself: bool = False,
) -> tuple[Float[Tensor, " m"], Int64[Tensor, " m"]]:
    """Average precision of each query, and the place of the first image of its class, from 0 on; -1 without any.

    ``itself``: image i is query i, and not to be found.
    """
    queries, found = F.normalize(queries, dim=-1), F.normalize(found, dim=-1)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).to(found.device)
    precisions, firsts = [], []
    for part, rows in enumerate(queries.split(CHUNK)):
        cosine = rows @ found.T
        if itself:
            cosine.diagonal(part * CHUNK).fill_(-torch.inf)  # comes last, and is cut off below
        nearest = order[cosine[:, order].argsort(dim=-1, descending=True, stable=True)]
        nearest = nearest[:, : len(found) - itself]
        relevant = labels[nearest] == wanted[part * CHUNK :][: len(rows), None]
        precisions.append(average_precision(relevant).cpu())
        firsts.append(torch.where(relevant.any(1), relevant.int().argmax(1), -1).cpu())
    return torch.cat(precisions), torch.cat(firsts)


def average_precision(relevant: Bool[Tensor, "m n"]) -> Float[Tensor, " m"]:
    """Mean over relevant places of the share of relevant ones up to there; 0 without any."""
    right = relevant.cumsum(1, dtype=torch.float64)
    places = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    return (right / places * relevant).sum(1) / right[:, -1].clamp_min(1)
