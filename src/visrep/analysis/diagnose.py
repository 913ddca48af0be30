"""An encoder measured without labels, layer by layer: `visrep diagnose`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

import torch

from visrep.analysis.layers import Amount, chosen_layers, layer_samples, opened
from visrep.analysis.measures.base import Measure, Reading
from visrep.analysis.measures.registry import MEASURES
from visrep.analysis.record import RunRecord
from visrep.analysis.spectra import spectrum
from visrep.data.source import Source
from visrep.encoders import applied_to
from visrep.method import Encoder

LOGGED = ("prototype_use", "prototype_entropy", "patch_prototype_entropy", "teacher_entropy", "code_entropy")
"""what methods with prototypes log of their use, each divided by log k"""


@dataclass(frozen=True)
class LayerReadings:
    """All measures of one layer."""

    layer: int
    """1 is the first"""
    width: int
    readings: dict[str, Reading]
    """by `Measure.key`"""
    spectrum: list[float]
    """share of the variance along each principal axis, strongest first; empty when all images share one vector"""


@dataclass(frozen=True)
class Diagnosis:
    """What was measured and on what."""

    layers: list[LayerReadings]
    """lowest first"""
    pooling: str
    images: str
    """in words: how many of which"""
    amount: Amount
    seed: int
    logged: dict[str, float] = field(default_factory=dict)
    """of a run of a method with prototypes: their use as its head logged it, over the last tenth of the run"""

    def measures(self) -> list[Measure]:
        """Those that were measured in any layer, in the order of tables."""
        return [m for m in MEASURES if any(m.key in layer.readings for layer in self.layers)]

    def cautions(self) -> list[str]:
        """What to keep in mind, each once, with the measures and layers it is about."""
        about: dict[str, list[str]] = {}
        for layer in self.layers:
            for m in self.measures():
                if caution := layer.readings[m.key].caution:
                    about.setdefault(caution, []).append(f"{m.title} (layer {layer.layer})")
        return [
            f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {caution}"
            for caution, names in about.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """JSON values, as diagnostics.json holds them, with every measure's variant and what it can compare."""
        said = {
            m.key: {"title": m.title, "variant": m.variant, "compares": m.compares, "better": m.better}
            for m in self.measures()
        }
        return {**asdict(self), "measures": said, "cautions": self.cautions()}


def diagnose_encoder(
    encoder: Encoder,
    source: Source,
    *,
    layers: tuple[int, ...] = (),
    pooling: str = "auto",
    amount: Amount | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> Diagnosis:
    """Every label-free measure of the last layer and of ``layers``, on evenly spaced images of ``source``.

    An encoder of images sees clips frame by frame. Raises ValueError for a layer or pooling that the encoder does
    not have, features that are not finite, or when no image can be read.
    """
    amount = amount or Amount()
    encoder = applied_to(encoder, source.frames)
    wanted = chosen_layers(encoder, layers)
    canvases = opened(source, encoder, amount.images, progress=progress)
    samples = layer_samples(
        encoder, canvases, wanted, amount, pooling=pooling, device=device, seed=seed, progress=progress
    )
    found = []
    for layer, sample in samples.items():
        measured = [m for m in MEASURES if m.needs != "codes"]
        variances = spectrum(sample.vectors)
        total = float(variances.sum())
        shares = [round(value / total, 8) for value in variances.tolist()] if total > 0 else []
        readings = {m.key: m.read(sample) for m in measured}
        found.append(LayerReadings(layer, sample.vectors.shape[1], readings, shares))
    n = len(canvases.usable)
    return Diagnosis(found, pooling, f"{n} images of {source.name}", amount, seed)


def logged_prototypes(record: RunRecord) -> dict[str, float]:
    """What a run's method logged of its prototypes, mean over the last tenth of the run; empty without prototypes."""
    last = [step["monitor"] for step in record.steps[-max(1, len(record.steps) // 10) :]]
    found = {name: [monitor[name] for monitor in last if name in monitor] for name in LOGGED}
    return {name: mean(values) for name, values in found.items() if values}
