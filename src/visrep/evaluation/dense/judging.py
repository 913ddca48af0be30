"""Judge an encoder on images with an answer for every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
from visrep.evaluation.results import Inapplicable, Result
from visrep.method import Encoder


@dataclass(frozen=True)
class DenseFindings:
    """What dense protocols found of one encoder on one data set."""

    results: list[Result]
    roles: Roles
    warnings: list[str]
    notes: list[str]
    pictures: dict[str, list[Strip]]
    """by protocol, of some of the judged images"""

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
    device: torch.device,
    seed: int,
    progress: bool,
) -> DenseFindings:
    """See `visrep.evaluation.evaluate.evaluate`. ``share`` of the images is held out where there is no ``test``.

    ``lenient``: protocols that need what the data does not have are left out, and a caution says so.
    Raises ValueError for those otherwise, for an encoder of clips, and for layers and sizes that it does not have.
    """
    if encoder.preprocessing.frames:
        raise ValueError(
            "this encoder takes clips, and dense protocols judge single images. Judge an encoder of images."
        )
    if train.frames:
        raise ValueError(
            f"{train.name} holds clips, and dense protocols judge single images. Give images or frames."
        )
    missing = {name: lacking(name, train) for name in protocols}
    left_out = [
        f"left out: {name} needs {what}, which {train.name} does not have"
        for name, what in missing.items()
        if what
    ]
    if read_out == "pyramid":
        whole = [name for name in protocols if DENSE[name].reads == "network" and not missing[name]]
        left_out += [
            f"left out: {name} needs the network itself, not a pyramid of its maps" for name in whole
        ]
        missing.update(dict.fromkeys(whole, "the network itself"))
    runnable = tuple(name for name in protocols if not missing[name])
    if left_out and (not lenient or not runnable):
        raise Inapplicable(
            f"{left_out[0].removeprefix('left out: ')}. It has: {', '.join(sorted(train.knows))}. Possible there: "
            f"{', '.join(name for name in DENSE if not lacking(name, train)) or 'no dense protocol'}."
        )
    image = input_size(encoder, size, device)
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
    sitting = DenseSitting(
        roles,
        runnable,
        lenient,
        image,
        read_out,
        _layers(encoder, layers),
        FeatureStore(keep),
        device,
        seed,
        progress,
    )
    sitting.judge_encoder(encoder)
    if baselines:
        sitting.judge_twin(encoder)
        grid = sitting.grid()
        if grid is not None and any(DENSE[name].reads == "tokens" for name in runnable):
            sitting.judge_pixels(grid)
    notes = list(dict.fromkeys(sitting.store.notes))
    warnings = [*sitting.warnings(), *left_out]
    return DenseFindings(sitting.results, roles, warnings, notes, sitting.pictures())


def _layers(encoder: Encoder, asked: tuple[int, ...] | Literal["all"]) -> tuple[int, ...]:
    """The last one first."""
    depth = encoder.depth
    wanted = tuple(range(1, depth + 1)) if asked == "all" else asked
    if wrong := [layer for layer in wanted if not 1 <= layer <= depth]:
        raise ValueError(f"layer {wrong[0]} was asked for; this encoder has layers 1 to {depth}.")
    return (depth, *sorted({*wanted} - {depth}))
