"""How one set of features goes through the protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from visrep.evaluation.copies import copies
from visrep.evaluation.features import Features, Parts, count_bad
from visrep.evaluation.finetune import finetune
from visrep.evaluation.fitting import Images
from visrep.evaluation.protocols import (
    COPIES,
    MEASURED,
    ON_LAYERS,
    ON_MEAN_TOKENS,
    ON_TOKENS,
    ON_TOKENS_AS_PUBLISHED,
    ON_VECTORS_AS_PUBLISHED,
    reads_mean_tokens,
    reads_tokens,
    reads_vectors,
    vector_probe,
)
from visrep.evaluation.results import Inapplicable, Judged, Measure, Prediction, Result, score
from visrep.evaluation.timing import CLOCK
from visrep.method import Encoder
from visrep.progress import tracked

Job = Callable[[], list[Prediction] | list[Measure]]


def judge(
    encoder: Judged,
    train: Features,
    test: Features,
    protocols: tuple[str, ...],
    *,
    device: torch.device,
    seed: int,
    progress: bool = False,
) -> tuple[list[Result], list[str]]:
    """All results of one encoder's features, and the protocols' cautions, each once.

    A layer or pooling that does not apply is left out, and a caution says why; where none applies this raises
    Inapplicable. Raises ValueError when features are missing labels.
    """
    if train.labels is None or test.labels is None:
        raise ValueError("these features come without labels, and protocols need them on both sides.")
    results: list[Result] = []
    left_out: list[str] = []
    cautions: dict[str, None] = {}
    # float64 and sorting are poorly supported by other accelerators
    device = device if device.type == "cuda" else torch.device("cpu")
    jobs = tracked(
        _jobs(train, test, protocols, device, seed),
        f"{', '.join(protocols)}, {encoder}",
        total=sum(len(train.vectors) if reads_vectors(name) else 1 for name in protocols),
        shown=progress,
    )
    for name, job, layer, pooling in jobs:
        try:
            with CLOCK.timed(name):
                found = job()
        except Inapplicable as error:
            left_out.append(str(error))
            continue
        for answer in found:
            if isinstance(answer, Measure):
                results.append(answer.result(encoder, layer, pooling))
            else:
                where = {"encoder": encoder, "layer": layer, "pooling": pooling}
                answers = train.labels if answer.of_train else test.labels
                results.append(score(answer, answers, **where, n_train=len(train), seed=seed))
            if answer.caution:
                cautions[answer.caution] = None
    if left_out and not results:
        raise Inapplicable(left_out[0])
    return results, [*cautions, *(f"left out: {reason}" for reason in dict.fromkeys(left_out))]


def judge_tuned(
    encoder: Judged,
    network: Encoder,
    train: Images,
    test: Images,
    protocol: str,
    *,
    device: torch.device,
    seed: int,
    progress: bool,
) -> tuple[list[Result], list[str]]:
    """Result and caution of a protocol that trains a copy of the encoder."""
    with CLOCK.timed(protocol):
        found = finetune(protocol, network, train, test, device=device, seed=seed, progress=progress)
    where = {"encoder": encoder, "layer": network.depth, "pooling": "mean"}
    result = score(found, test.labels, **where, n_train=len(train), seed=seed)
    return [result], [found.caution] if found.caution else []


def judge_copies(
    encoder: Judged,
    network: Encoder,
    test: Images,
    vectors: Parts,
    *,
    device: torch.device,
    seed: int,
    progress: bool,
) -> list[Result]:
    """Of copy detection, which encodes changed images. Raises Inapplicable as `copies` does."""
    with CLOCK.timed(COPIES):
        found = copies(network, test, vectors, device=device, seed=seed, progress=progress)
    return [measure.result(encoder, *where) for where, measures in found.items() for measure in measures]


def _jobs(
    train: Features, test: Features, protocols: tuple[str, ...], device: torch.device, seed: int
) -> Iterator[tuple[str, Job, int, str]]:
    """Protocol by protocol what to compute, with the layer and the pooling that it is about."""
    assert train.labels is not None and test.labels is not None
    labels, answers = train.labels.to(device), test.labels.to(device)
    last, _ = next(iter(train.vectors))
    for name in protocols:
        if reads_vectors(name):
            for (layer, pooling), vectors in train.vectors.items():
                x, x_test = vectors.to(device), test.vectors[layer, pooling].to(device)
                yield name, _job(name, x, labels, x_test, answers, seed), layer, pooling
        elif reads_tokens(name) or reads_mean_tokens(name):
            if train.tokens is None or test.tokens is None:
                continue  # raw pixels have no tokens
            x, x_test = train.tokens.to(device), test.tokens.to(device)
            pooling = "tokens" if reads_tokens(name) else "layers"
            yield name, _job(name, x, labels, x_test, answers, seed), last, pooling
        elif name in ON_LAYERS and last:  # raw pixels have no layers
            x, x_test = ({key: part.to(device) for key, part in side.parts.items()} for side in (train, test))
            probe = ON_LAYERS[name]
            job = lambda probe=probe, x=x, y=x_test: probe(x, labels, y, answers, seed=seed)  # noqa: E731
            yield name, job, last, "layers"


def _job(name: str, x: Tensor, labels: Tensor, x_test: Tensor, answers: Tensor, seed: int) -> Job:
    if name in MEASURED:
        return lambda: MEASURED[name](x, labels, x_test, answers, seed=seed)
    if name in ON_VECTORS_AS_PUBLISHED:
        return lambda: ON_VECTORS_AS_PUBLISHED[name](x, labels, x_test, answers, seed=seed)
    if reads_vectors(name):
        return lambda: vector_probe(name)(x, labels, x_test, seed=seed)

    def on_tokens() -> list[Prediction]:
        _check_tokens(name, x, x_test)
        if name in ON_TOKENS_AS_PUBLISHED:
            return ON_TOKENS_AS_PUBLISHED[name](x, labels, x_test, answers, seed=seed)
        return (ON_TOKENS | ON_MEAN_TOKENS)[name](x, labels, x_test, seed=seed)

    return on_tokens


def _check_tokens(name: str, *sides: Tensor) -> None:
    """Raises Inapplicable: vectors are finite here, so tokens were too large for the precision they are kept in."""
    bad = sum(int((~tokens.isfinite().flatten(1).all(-1)).sum()) for tokens in sides)
    if bad:
        raise Inapplicable(
            f"{name} reads patch tokens, which are kept in half precision, and those of {bad} of "
            f"{sum(map(len, sides))} images are beyond 65,504, where it ends. Leave {name} out: linear and knn read "
            "vectors in full precision."
        )


def check_finite(encoder: Judged, train: Features, test: Features) -> None:
    """Raises ValueError when features hold NaN or infinity."""
    bad, n = count_bad(train) + count_bad(test), len(train) + len(test)
    if bad:
        raise ValueError(
            f"the {encoder} encoder gives NaN or infinite features for {bad} of {n} images: its training "
            "diverged. Judge an earlier checkpoint, or train again with a lower optim.lr or with optim.clip."
        )
