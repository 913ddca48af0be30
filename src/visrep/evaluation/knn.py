"""Weighted k-nearest-neighbour classification as in DINO (arXiv:2104.14294): exact, with nothing to tune.

    score of class c for x = sum over the k nearest training images i of class c of exp(cos(x, x_i) / tau)

tau = 0.07; k = 10, 20, 100, 200 are reported, 20 is the usual headline.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from visrep.evaluation.results import Prediction

KS = (10, 20, 100, 200)
TAU = 0.07


def knn(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    seed: int = 0,
    ks: tuple[int, ...] = KS,
    tau: float = TAU,
    chunk: int = 1024,
    without_itself: bool = False,
) -> list[Prediction]:
    """One prediction for each k. Deterministic: ``seed`` is there because every protocol is called alike.

    A k above the number of training images becomes that number, and the prediction says so; equal ones are
    given once. ``chunk`` test images are compared at a time, which bounds memory and changes nothing else.
    ``without_itself``: image i of ``test`` is image i of ``train`` and no neighbour of itself.
    """
    if min(ks) < 1:
        raise ValueError(f"k={min(ks)}: a vote needs at least one neighbour.")
    n = len(train) - without_itself
    used = {
        min(k, n): k for k in sorted(ks, reverse=True)
    }  # the smallest asked for wins: it is the least clipped
    classes, targets = labels.unique(return_inverse=True)
    train = F.normalize(train, dim=-1)
    votes: dict[int, list[Tensor]] = {k: [] for k in sorted(used)}
    for part, rows in enumerate(test.split(chunk)):
        cosine = F.normalize(rows, dim=-1) @ train.T  # m n
        if without_itself:
            cosine.diagonal(part * chunk).fill_(-torch.inf)
        cosine, nearest = cosine.topk(max(used), dim=-1)  # m k
        weight = (cosine / tau).exp()
        for k in votes:
            score = weight.new_zeros(len(rows), len(classes))
            score.scatter_add_(1, targets[nearest[:, :k]], weight[:, :k])
            votes[k].append(classes[score.argmax(-1)])
    cautions = {
        k: f"kNN: k={asked} was asked for, there are {n} training images: k={k}." for k, asked in used.items()
    }
    return [
        Prediction(
            "knn", torch.cat(predicted), {"k": k, "tau": tau}, caution=cautions[k] if k != used[k] else ""
        )
        for k, predicted in votes.items()
    ]


def knn_leave_one_out(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    *,
    seed: int = 0,
    ks: tuple[int, ...] = KS,
) -> list[Prediction]:
    """`knn` of each training image among all others, as DINOv3's ``skip_first_nn``; the test images are not used.

    The image itself is left out, not the nearest neighbour: these differ where there are copies.
    """
    answers = knn(train, labels, train, seed=seed, ks=ks, without_itself=True)
    alone = int((labels.unique(return_counts=True)[1] == 1).sum())
    said = (
        f"knn-loo: {alone} classes have one image, which no other of its class can find: it counts as wrong."
    )
    return [
        replace(
            answer,
            protocol="knn-loo",
            n_train=len(train) - 1,
            of_train=True,
            caution=" ".join(filter(None, [answer.caution, said if alone else ""])),
        )
        for answer in answers
    ]
