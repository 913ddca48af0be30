"""The protocols by name, and how one set of features goes through them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from visrep.evaluation.attentive import attentive
from visrep.evaluation.features import Features, count_bad
from visrep.evaluation.fewlabels import fewlabels
from visrep.evaluation.finetune import RECIPES, finetune, parse
from visrep.evaluation.fitting import Images
from visrep.evaluation.knn import knn, knn_leave_one_out
from visrep.evaluation.linear import linear
from visrep.evaluation.results import Judged, Prediction, Result, score
from visrep.method import Encoder


class Probe(Protocol):
    """What every protocol file holds: training features with labels and test features in, predictions out."""

    def __call__(self, train: Tensor, labels: Tensor, test: Tensor, /, *, seed: int) -> list[Prediction]: ...


ON_VECTORS: dict[str, Probe] = {
    "knn": knn,
    "knn-loo": knn_leave_one_out,
    "linear": linear,
    "fewlabels": fewlabels,
}
"""read one vector an image, of any layer and pooling"""
ON_TOKENS: dict[str, Probe] = {"attentive": attentive}
"""read the patch tokens of the last layer"""


def check_protocols(names: tuple[str, ...]) -> None:
    """Raises ValueError, with the protocols there are, when one does not exist or none is asked for."""
    available = ", ".join([*ON_VECTORS, *ON_TOKENS, *RECIPES])
    if not names:
        raise ValueError(f"no protocol was asked for. Use some of: {available}.")
    for name in names:
        if tunes(name):
            parse(name)
        elif name not in ON_VECTORS and name not in ON_TOKENS:
            raise ValueError(f"there is no protocol {name!r}. Use some of: {available}.")


def tunes(name: str) -> bool:
    """Whether a protocol trains the encoder."""
    return name.partition(":")[0] in RECIPES


def judge(
    encoder: Judged,
    train: Features,
    test: Features,
    protocols: tuple[str, ...],
    *,
    device: torch.device,
    seed: int,
) -> tuple[list[Result], list[str]]:
    """All results of one encoder's features, and the predictions' cautions, each once.

    Raises ValueError when features are missing labels or hold NaN or infinity.
    """
    if train.labels is None or test.labels is None:
        raise ValueError("these features come without labels, and protocols need them on both sides.")
    _check_finite(encoder, train, test)
    results: list[Result] = []
    cautions: dict[str, None] = {}
    # float64 and sorting are poorly supported by other accelerators
    device = device if device.type == "cuda" else torch.device("cpu")
    labels = train.labels.to(device)
    for probe, layer, pooling, x, x_test in _jobs(train, test, protocols):
        for prediction in probe(x.to(device), labels, x_test.to(device), seed=seed):
            where = {"encoder": encoder, "layer": layer, "pooling": pooling}
            answers = train.labels if prediction.of_train else test.labels
            results.append(score(prediction, answers, **where, n_train=len(train), seed=seed))
            if prediction.caution:
                cautions[prediction.caution] = None
    return results, list(cautions)


def judge_tuned(
    encoder: Judged,
    network: Encoder,
    train: Images,
    test: Images,
    protocols: tuple[str, ...],
    *,
    device: torch.device,
    seed: int,
    progress: bool,
) -> tuple[list[Result], list[str]]:
    """Results and cautions of those protocols that train a copy of the encoder."""
    found = [
        finetune(name, network, train, test, device=device, seed=seed, progress=progress)
        for name in filter(tunes, protocols)
    ]
    where = {"encoder": encoder, "layer": network.depth, "pooling": "mean"}
    results = [score(prediction, test.labels, **where, n_train=len(train), seed=seed) for prediction in found]
    return results, [prediction.caution for prediction in found if prediction.caution]


def _jobs(
    train: Features, test: Features, protocols: tuple[str, ...]
) -> Iterator[tuple[Probe, int, str, Tensor, Tensor]]:
    for name in protocols:
        if name in ON_VECTORS:
            for (layer, pooling), x in train.vectors.items():
                yield ON_VECTORS[name], layer, pooling, x, test.vectors[layer, pooling]
        elif name in ON_TOKENS and train.tokens is not None and test.tokens is not None:
            last, _ = next(iter(train.vectors))
            yield ON_TOKENS[name], last, "tokens", train.tokens, test.tokens


def _check_finite(encoder: Judged, train: Features, test: Features) -> None:
    bad, n = count_bad(train) + count_bad(test), len(train) + len(test)
    if bad:
        raise ValueError(
            f"the {encoder} encoder gives NaN or infinite features for {bad} of {n} images: its training "
            "diverged. Judge an earlier checkpoint, or train again with a lower optim.lr or with optim.clip."
        )
