"""Judge an encoder on images with an answer for every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from visrep.data.canvas import canvas_size
from visrep.data.dense import DenseSource
from visrep.encoders.pyramid import Pyramid
from visrep.evaluation.dense.patches import input_size
from visrep.evaluation.dense.protocols import DENSE, lacking
from visrep.evaluation.dense.roles import Roles, assign_roles
from visrep.evaluation.dense.sitting import DenseSitting, ReadOut
from visrep.evaluation.examples import Strip
from visrep.evaluation.feature_cache import FeatureStore
from visrep.evaluation.fingerprint import fingerprint, judged_by
from visrep.evaluation.minutes import Journal, Minutes
from visrep.evaluation.results import Inapplicable, Result
from visrep.method import Encoder


@dataclass(frozen=True)
class DenseFindings:
    """What dense protocols found of one encoder on one data set."""

    results: list[Result]
    roles: Roles
    mark: dict[str, Any]
    """the fingerprint"""
    warnings: list[str]
    notes: list[str]
    pictures: dict[str, list[Strip]]
    """by protocol, of some of the judged images"""
    unjudged: dict[str, str]
    """protocols without any number, with the reason"""

    @property
    def split(self) -> str:
        """In words: which images were fitted on and which judged."""
        fitted, judged, whole = self.roles.fitted, self.roles.judged, self.roles.whole
        training = [result for result in self.results if DENSE[result.protocol].fits]
        said = []
        if training and self.roles.crossed:
            videos = training[0].settings.get("folds", 1)
            said.append(
                f"dense protocols judged on each of {videos} videos of {judged.source.name} ({len(judged)} images) "
                "by what was fitted on the others"
            )
        elif training:
            said.append(
                f"dense protocols fitted on {len(fitted)} images of {fitted.source.name}, judged on "
                f"{len(judged)} of {judged.source.name}"
            )
        if len(training) < len(self.results):
            said.append(f"those that fit nothing judged on {len(whole)} of {whole.source.name}")
        return "; ".join(said)


def judge_dense(
    encoder: Encoder,
    train: DenseSource,
    test: DenseSource | None,
    protocols: tuple[str, ...],
    *,
    lenient: bool,
    layers: tuple[int, ...] | Literal["all"],
    baselines: bool,
    size: int,
    read_out: ReadOut,
    share: float,
    limits: tuple[int, int],
    keep: Path | None,
    journal: Journal,
    device: torch.device,
    seed: int,
    progress: bool,
) -> DenseFindings:
    """See `visrep.evaluation.evaluate.evaluate`. ``share`` of the images is held out where there is no ``test``.

    ``lenient``: protocols that need what data or encoder do not have are left out, and a caution says so.
    Raises ValueError for those otherwise, before anything is computed, for an encoder of clips, and for layers and
    sizes that it does not have.
    """
    if encoder.preprocessing.frames:
        raise ValueError(
            "this encoder takes clips, and dense protocols judge single images. Judge an encoder of images."
        )
    if train.frames:
        raise ValueError(
            f"{train.name} holds clips, and dense protocols judge single images. Give images or frames."
        )
    obstacles = _obstacles(encoder, train, protocols, read_out)
    runnable = tuple(name for name in protocols if name not in obstacles)
    if obstacles and (not lenient or not runnable):
        others = _obstacles(encoder, train, tuple(DENSE), read_out)
        possible = ", ".join(name for name in DENSE if name not in others) or "no dense protocol"
        raise Inapplicable(f"{next(iter(obstacles.values()))} Possible there: {possible}.")
    image, judged = input_size(encoder, size, device), encoder
    if read_out == "pyramid":
        encoder = Pyramid(encoder, image)
    canvas = canvas_size(train, image)
    roles = assign_roles(
        train,
        test,
        fitting=any(DENSE[name].fits for name in runnable),
        free=not all(DENSE[name].fits for name in runnable),
        canvas=canvas,
        share=share,
        limits=limits,
        seed=seed,
        progress=progress,
    )
    mark = fingerprint(judged, roles.fitted.source, roles.judged.source, [], seed=seed)
    fits = any(
        DENSE[name].fits for name in runnable
    )  # the twin is calibrated on what is fitted on, if anything is
    options = {"size": image, "asked": size, "read_out": read_out, "whole": len(roles.whole), "fits": fits}
    minutes = Minutes(journal, {**mark, **options})
    sitting = DenseSitting(
        roles,
        runnable,
        image,
        size,
        read_out,
        _layers(encoder, layers),
        FeatureStore(keep),
        device,
        seed,
        progress,
        minutes,
    )
    sitting.judge_encoder(encoder)
    if baselines and minutes.results:
        sitting.judge_twin(encoder)
        grid = sitting.grid()
        if grid is not None and any(DENSE[name].reads == "tokens" for name in runnable):
            sitting.judge_pixels(grid)
    notes = list(dict.fromkeys(sitting.store.notes))
    warnings = [*sitting.warnings(), *(f"left out: {reason}" for reason in obstacles.values())]
    unjudged = {**obstacles, **minutes.unjudged}
    pictures = sitting.pictures()
    return DenseFindings(
        minutes.results, roles, judged_by(mark, minutes.results), warnings, notes, pictures, unjudged
    )


def _obstacles(
    encoder: Encoder, train: DenseSource, protocols: tuple[str, ...], read_out: ReadOut
) -> dict[str, str]:
    """Protocols that cannot be judged, with the reason, as far as data and encoder tell before anything is computed."""
    found: dict[str, str] = {}
    for name in protocols:
        if what := lacking(name, train):
            has = ", ".join(sorted(train.knows))
            found[name] = f"{name} needs {what}, which {train.name} does not have. It has: {has}."
        elif read_out == "pyramid" and DENSE[name].reads == "network":
            found[name] = f"{name} needs the network itself, not a pyramid of its maps."
        else:
            try:
                DENSE[name].check(encoder)
            except Inapplicable as reason:
                found[name] = str(reason)
    return found


def _layers(encoder: Encoder, asked: tuple[int, ...] | Literal["all"]) -> tuple[int, ...]:
    """The last one first."""
    depth = encoder.depth
    wanted = tuple(range(1, depth + 1)) if asked == "all" else asked
    if wrong := [layer for layer in wanted if not 1 <= layer <= depth]:
        raise ValueError(f"layer {wrong[0]} was asked for; this encoder has layers 1 to {depth}.")
    return (depth, *sorted({*wanted} - {depth}))
