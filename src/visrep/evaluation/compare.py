"""Several encoders judged alike: same images, same split, same protocols, same seed; then put in order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from visrep.analysis.measures.base import Measure
from visrep.analysis.measures.spectral import RANKME
from visrep.config import to_json
from visrep.data.source import Source
from visrep.encoders import applied_to
from visrep.evaluation.effort import Effort
from visrep.evaluation.evaluate import Evaluation, evaluate
from visrep.evaluation.label_free import label_free_scores, sample, trust
from visrep.evaluation.making import made_by, with_making
from visrep.evaluation.protocols import ALL, place
from visrep.evaluation.results import Judged, Result, goodness
from visrep.evaluation.standings import Comparison, Entry
from visrep.evaluation.timing import CLOCK
from visrep.evaluation.untrained import untrained_twin
from visrep.method import Encoder


def evaluate_alike(
    encoders: Mapping[str, Encoder],
    train: Source,
    test: Source | None,
    *,
    protocols: tuple[str, ...],
    limit: int = 0,
    keep: Mapping[str, Path] | None = None,
    given: Mapping[str, str | Path] | None = None,
    command: str | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Evaluation]:
    """Each encoder's `evaluate` with baselines, which encoders of one architecture share and are computed once.

    ``keep``: for each encoder the folder for its features. ``given``: what the user calls it, if not by its name, and
    in which ``command`` (see `made_by`).
    Raises ValueError, with the name of the encoder, for what `evaluate` raises.
    """
    evaluations: dict[str, Evaluation] = {}
    first: dict[str, str] = {}
    for name, encoder in encoders.items():
        twin = first.setdefault(_architecture(encoder), name)
        try:
            judge = partial(
                evaluate,
                encoder,
                train,
                test,
                protocols=protocols,
                baselines=twin == name,
                limit=limit,
                keep=keep[name] if keep else None,
                device=device,
                seed=seed,
                progress=progress,
            )
            found = with_making(judge, given[name] if given else name, command, device)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if twin != name:
            shared = [result for result in evaluations[twin].results if result.encoder != "trained"]
            found = replace(found, results=[*found.results, *shared])
        evaluations[name] = found
    return evaluations


def leaderboard(
    evaluations: Mapping[str, Evaluation],
    efforts: Mapping[str, Effort],
    protocols: tuple[str, ...],
    *,
    seed: int,
) -> Comparison:
    """The evaluations in order of the deciding protocol, with each different baseline once.

    ``protocols`` with "all" are those that were found. The first that all encoders have decides. Raises ValueError when
    there is no number of any.
    """
    entries = [
        Entry(name, "trained", _of(evaluation, "trained"), effort=efforts.get(name))
        for name, evaluation in evaluations.items()
    ]
    kinds: tuple[Judged, ...] = ("untrained", "pixels")
    for kind in kinds:
        groups: list[tuple[list[Result], list[str]]] = []
        for name, evaluation in evaluations.items():
            results = _of(evaluation, kind)
            same = next((names for known, names in groups if known == results), None)
            if same is not None:
                same.append(name)
            elif results:
                groups.append((results, [name]))
        entries += [_baseline(kind, names, len(evaluations), results, {}) for results, names in groups]
    have = [{result.protocol for result in entry.results} for entry in entries if entry.kind == "trained"]
    found = set().union(*have)
    asked = found if ALL in protocols else found & {*protocols}
    if not asked:
        raise ValueError(
            f"none of these encoders can be judged by {', '.join(protocols)}. Use knn or linear."
        )
    ordered = tuple(sorted(asked, key=lambda name: (not all(name in mine for mine in have), place(name))))

    def value(entry: Entry) -> float:
        result = entry.headline(ordered[0])
        return (
            goodness(result.metric, result.value) if result else -math.inf
        )  # raw pixels have no patch tokens

    one = next(iter(evaluations.values()))
    # which encoders a caution is about is said behind it, in brackets
    said = (
        re.sub(r" \((trained|untrained|pixels)(, \w+)*\)$", "", warning)
        for evaluation in evaluations.values()
        for warning in evaluation.warnings
    )
    return Comparison(
        entries=sorted(entries, key=value, reverse=True),
        protocols=ordered,
        split=one.split,
        budget="",
        seed=seed,
        fingerprint={
            **one.fingerprint,
            "protocols": {r.protocol: r.version for entry in entries for r in entry.results},
            "encoder": {name: evaluation.fingerprint["encoder"] for name, evaluation in evaluations.items()},
            "image": {name: evaluation.fingerprint["image"] for name, evaluation in evaluations.items()},
        },
        notes=[
            "Intervals say how much another draw of test images would change a number. Another seed of training "
            "changes it too: before a choice that matters, repeat with other seeds.",
            *dict.fromkeys(said),
        ],
        made=[one for evaluation in evaluations.values() for one in evaluation.made],
    )


def compare_without_labels(
    encoders: Mapping[str, Encoder],
    efforts: Mapping[str, Effort],
    source: Source,
    *,
    select: Measure = RANKME,
    given: Mapping[str, str | Path] | None = None,
    command: str | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """The encoders and their untrained twins in order of ``select``, with notes on how little that says.

    ``given`` and ``command`` as in `evaluate_alike`.
    Raises ValueError, with the name of the encoder, when features are not finite or ``select`` needs more images.
    """
    encoders = {name: applied_to(encoder, source.frames) for name, encoder in encoders.items()}
    entries: list[Entry] = []
    made: list[dict[str, Any]] = []
    twins: dict[str, tuple[Encoder, list[str]]] = {}
    for name, encoder in encoders.items():
        canvases = sample(source, encoder.preprocessing.size, progress=progress)
        try:
            with CLOCK.measuring() as seconds, CLOCK.timed(select.name):
                scores = label_free_scores(encoder, canvases, select=select, device=device, seed=seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        entries.append(Entry(name, "trained", scores=scores, effort=efforts.get(name)))
        made.append(made_by([select.name], given[name] if given else name, command, device, seconds))
        twins.setdefault(_architecture(encoder), (encoder, []))[1].append(name)
    methods = [efforts[name].method if name in efforts else name for name in encoders]
    notes = trust(methods, [entry.scores for entry in entries], select)
    for encoder, names in twins.values():
        canvases = sample(source, encoder.preprocessing.size, progress=progress)
        twin = untrained_twin(encoder, canvases, canvases.usable, seed=seed, device=device)
        scores = label_free_scores(twin, canvases, select=select, device=device, seed=seed)
        entries.append(_baseline("untrained", names, len(encoders), [], scores))
    return Comparison(
        entries=sorted(entries, key=lambda entry: select.best_first(entry.scores[select.key])),
        protocols=(),
        selected=select.name,
        split=f"scored on {entries[0].scores['images']} images of {source.name}, without labels",
        budget="",
        seed=seed,
        fingerprint={},
        notes=notes,
        made=made,
    )


def _baseline(
    kind: Judged, names: Sequence[str], everybody: int, results: list[Result], scores: dict[str, float]
) -> Entry:
    """An entry for what these encoders share; the first of them is named when it is not everybody's."""
    said = "untrained" if kind == "untrained" else "raw pixels"
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    shown = said if len(names) == everybody else f"{said} ({names[0]}{more})"
    return Entry(shown, kind, results, scores, of=tuple(names))


def _of(evaluation: Evaluation, kind: Judged) -> list[Result]:
    return [result for result in evaluation.results if result.encoder == kind]


def _architecture(encoder: Encoder) -> str:
    return f"{to_json(encoder.config)} {to_json(encoder.preprocessing)}"
