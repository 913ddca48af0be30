"""Attentive probes of any layer: the same numbers as of that layer's tokens by hand, one layer in memory at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from test_evaluate import SIZE, resnet, vit
from visrep.data import CanvasSet, Source, open_source
from visrep.evaluation import sitting
from visrep.evaluation.attentive import attentive
from visrep.evaluation.attentive_vjepa import attentive_vjepa
from visrep.evaluation.evaluate import evaluate
from visrep.evaluation.features import Features, extract
from visrep.evaluation.results import Prediction, Result, score
from visrep.method import Encoder
from visrep.views import center


def images(n: int, seed: int) -> Source:
    """Noise, with labels that say nothing of it: whatever a probe reads, it answers something else."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)
    return open_source([(image, index % 3) for index, image in enumerate(pixels)])


def lively() -> Encoder:
    """Whose layers differ, which those of fresh weights hardly do."""
    encoder = vit()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(6 if parameter.ndim > 1 else 1)
    return encoder


TRAIN, TEST = images(45, 0), images(45, 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedules of a few steps."""
    monkeypatch.setattr("visrep.evaluation.probe_training.LEAST_STEPS", 4)
    monkeypatch.setattr("visrep.evaluation.attentive.EPOCHS", 2)
    monkeypatch.setattr("visrep.evaluation.attentive.LEAST_STEPS", 4)


def by_hand(encoder: Encoder, source: Source, layer: int) -> Tensor:
    """Patch tokens of a layer, straight from the network."""
    canvases = CanvasSet(source, SIZE, cache="memory", workers=0)
    pixels = center(canvases.get(np.arange(len(source))), encoder.preprocessing)
    with torch.no_grad():
        out = encoder(pixels, layers=(1, 2, 3))
    return out.layers[layer - 1].patches.half()


@pytest.mark.parametrize("kept", [False, True])
def test_a_layer_is_its_tokens_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    answered: dict[tuple[str, int], Prediction] = {}

    def remembered(prediction: Prediction, *args: Any, **how: Any) -> Result:
        answered[prediction.protocol, how["layer"]] = prediction
        return score(prediction, *args, **how)

    monkeypatch.setattr("visrep.evaluation.judging.score", remembered)
    probes: dict[str, Callable[..., list[Prediction]]] = {
        "attentive": attentive,
        "attentive-vjepa": attentive_vjepa,
    }
    encoder = lively()
    how: dict[str, Any] = {"protocols": (*probes,), "layers": (1, 2), "baselines": False}
    if kept:  # and then read from disk
        evaluate(encoder, TRAIN, TEST, keep=tmp_path, **how)
        answered.clear()
    found = evaluate(encoder, TRAIN, TEST, keep=tmp_path if kept else None, **how)
    assert TRAIN.labels is not None
    labels = torch.from_numpy(TRAIN.labels)
    assert answered.keys() == {(name, layer) for name in probes for layer in (1, 2, 3)}
    for (name, layer), answer in answered.items():
        train, test = (by_hand(encoder, side, layer) for side in (TRAIN, TEST))
        (expected,) = probes[name](train, labels, test, seed=0)
        assert torch.equal(answer.predicted, expected.predicted) and answer.settings == expected.settings
    for name in probes:  # so that tokens of another layer would be noticed
        one, two, three = (answered[name, layer].predicted for layer in (1, 2, 3))
        assert not (torch.equal(one, two) or torch.equal(one, three) or torch.equal(two, three))
    assert [(r.layer, r.pooling) for r in found.results if r.protocol == "attentive"] == [
        (layer, "tokens") for layer in (3, 1, 2)
    ]


def test_maps_of_layers_may_differ_in_size() -> None:
    found = evaluate(resnet(), TRAIN, TEST, protocols=("attentive",), layers="all")
    of = [(r.encoder, r.layer) for r in found.results]
    assert sorted(of) == [(who, layer) for who in ("trained", "untrained") for layer in (1, 2, 3, 4)]


def test_tokens_of_one_layer_are_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    counts: list[int] = []
    judge = sitting.judge

    def remembered(*args: Any, **how: Any) -> Features:
        assert sum(each() is not None for each in alive) == len(alive) % 2  # those of the other side
        found = extract(*args, **how)
        assert found.tokens is not None
        alive.append(weakref.ref(found.tokens))
        return found

    def counted(*args: Any, **how: Any) -> Any:
        counts.append(sum(each() is not None for each in alive))
        return judge(*args, **how)

    monkeypatch.setattr(sitting, "extract", remembered)
    monkeypatch.setattr(sitting, "judge", counted)
    evaluate(vit(), TRAIN, TEST, protocols=("attentive",), layers=(1, 2))
    assert counts == [2] * 6  # two sides, of three layers of the encoder and of its untrained twin
