"""Judge an encoder: every protocol on the same images, beside its untrained twin and raw pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from visrep.data.canvas import CanvasSet, canvas_size
from visrep.data.source import Source, Subset
from visrep.data.split import stratified_split
from visrep.encoders import applied_to
from visrep.evaluation.features import Features, extract, pixel_features
from visrep.evaluation.fingerprint import fingerprint
from visrep.evaluation.fitting import Images
from visrep.evaluation.labels import check_classes, first_of_each_class, labels_of, numbered_as
from visrep.evaluation.protocols import ON_TOKENS, ON_VECTORS, check_protocols, judge, judge_tuned
from visrep.evaluation.results import Judged, Result
from visrep.evaluation.untrained import untrained_twin
from visrep.method import Encoder

TEST_SHARE = 0.2
"""of each class, when no test images are given"""
FEW = 200
"""test images below which intervals are too wide for most questions"""


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one encoder on one data set."""

    results: list[Result]
    split: str
    """in words: which images were fitted on and which judged"""
    fingerprint: dict[str, Any]
    """what two evaluations must share to be compared"""
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON values, as evaluation.json holds them."""
        return asdict(self)


def evaluate(
    encoder: Encoder,
    train: Source,
    test: Source | None = None,
    *,
    protocols: tuple[str, ...] = ("knn", "linear"),
    layers: tuple[int, ...] = (),
    poolings: tuple[str, ...] = ("auto",),
    baselines: bool = True,
    limit: int = 0,
    test_limit: int = 0,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Judge an encoder on labelled images, frozen or fine-tuned; no setting is chosen on the test images.

    Without ``test`` a stratified fifth of ``train`` is held out, of clips a fifth of their videos. ``limit`` and
    ``test_limit`` keep so many images, the first of every class. The last layer is always judged, ``layers`` adds
    others. ``baselines`` adds the untrained twin (see `untrained_twin`) in every protocol and raw pixels (32 x 32,
    normalised) in those that read one vector an image. An encoder of images sees clips frame by frame (see
    `FrameAverage`).
    ``seed`` draws splits, twin, probes and resamples.
    Raises ValueError for an unknown protocol, labels that cannot be used, or features that are not finite.
    """
    check_protocols(protocols)
    device = torch.device(device)
    fifth = "a fifth of each class" if train.groups is None else "a fifth of each class's videos"
    origin = f"{train.name}: {fifth}, seed {seed}" if test is None else test.name
    train, test = _split(train, test, limit, test_limit, seed)
    size = canvas_size(train, encoder.preprocessing.size)
    sides = [CanvasSet(source, size, progress=progress) for source in (train, test)]
    encoder = applied_to(encoder, train.frames)
    results: list[Result] = []
    cautions: dict[str, list[str]] = {}

    def add(name: Judged, found: list[Result], said: list[str]) -> None:
        results.extend(found)
        for caution in said:
            cautions.setdefault(caution, []).append(name)

    def add_features(name: Judged, features: list[Features]) -> None:
        add(name, *judge(name, features[0], features[1], protocols, device=device, seed=seed))

    def add_network(name: Judged, network: Encoder, features: list[Features]) -> None:
        add_features(name, features)
        train, test = (Images.of(*pair) for pair in zip(sides, features, strict=True))
        settings = {"device": device, "seed": seed, "progress": progress}
        add(name, *judge_tuned(name, network, train, test, protocols, **settings))

    def features_of(network: Encoder) -> list[Features]:
        tokens = any(name in ON_TOKENS for name in protocols)
        return [
            extract(
                network,
                canvases,
                np.arange(len(canvases)),
                layers=layers,
                poolings=poolings,
                tokens=tokens,
                device=device,
                progress=progress,
            )
            for canvases in sides
        ]

    trained = features_of(encoder)
    counts = [len(features) for features in trained]
    if trained[0].labels is not None:  # again: unreadable images may have emptied a class
        check_classes(train, trained[0].labels.numpy())
    add_network("trained", encoder, trained)
    if baselines:
        twin = untrained_twin(encoder, sides[0], np.arange(len(train)), seed=seed, device=device)
        add_network("untrained", twin, features_of(twin))
    if baselines and any(name in ON_VECTORS for name in protocols):
        add_features("pixels", [pixel_features(canvases, np.arange(len(canvases))) for canvases in sides])

    warnings = [f"{caution} ({', '.join(names)})" for caution, names in cautions.items()]
    warnings += _unreadable(sides)
    if counts[1] < FEW:
        warnings.append(
            f"only {counts[1]} test images: intervals are wide. Use {FEW} or more to see small differences."
        )
    split = f"fitted on {counts[0]} images of {train.name}, judged on {counts[1]} of {origin}"
    return Evaluation(results, split, fingerprint(encoder, train, test, results, seed=seed), warnings)


def _split(
    train: Source, test: Source | None, limit: int, test_limit: int, seed: int
) -> tuple[Source, Source]:
    """Images to fit on and images to judge, with usable labels in one numbering."""
    labels = labels_of(train)
    check_classes(train, labels)
    if test is None:
        fitted, judged = stratified_split(labels, TEST_SHARE, seed, train.groups)
        train, test = Subset(train, fitted), Subset(train, judged)
    else:
        test = numbered_as(train, test)
    train, test = (
        Subset(source, first_of_each_class(labels_of(source), n))
        for source, n in ((train, limit), (test, test_limit))
    )
    check_classes(train, labels_of(train))
    return train, test


def _unreadable(sides: list[CanvasSet]) -> list[str]:
    found = [reason for canvases in sides for reason in canvases.unreadable.values()]
    if not found:
        return []
    n = sum(map(len, sides))
    return [f"{len(found)} of {n} images could not be read and were left out, the first: {found[0]}"]
