"""`visrep compare`: train methods under one budget, judge them and finished encoders alike. Stopped, it continues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from visrep.analysis.kept import kept_by
from visrep.analysis.measures.registry import selector
from visrep.analysis.record import read_run
from visrep.analysis.report_compare import report_comparison
from visrep.comparison.budget import Budget
from visrep.comparison.candidates import Candidate, Common, check_init, gather_candidates
from visrep.comparison.plans import common_budget, plan
from visrep.comparison.sheets import comparable, other_grids
from visrep.comparison.worth import measured_worth
from visrep.config import save_json
from visrep.data import Source, open_source
from visrep.encoders import load_encoder
from visrep.evaluation.compare import compare_without_labels, evaluate_alike, leaderboard
from visrep.evaluation.dense.opening import open_for
from visrep.evaluation.effort import Effort, duration, effort
from visrep.evaluation.evaluate import Evaluation, by_kind
from visrep.evaluation.feature_cache import features_folder
from visrep.evaluation.labels import check_classes, labels_of, numbered_as
from visrep.evaluation.protocols import check_protocols, full_names, least_images, without_all
from visrep.evaluation.sheet import save_sheet
from visrep.evaluation.standings import Comparison
from visrep.machine import default_device
from visrep.monitor import NotFinite
from visrep.starting import resume, start


def compare(
    entries: Sequence[str | Path],
    common: Common,
    *,
    labelled: str = "",
    budget: str = "",
    out: Path,
    protocols: tuple[str, ...],
    labels: bool = True,
    select: str = "",
    keep: bool = True,
    progress: bool = False,
    command: str | None = None,
) -> Comparison:
    """See `visrep.api.compare`. All that can be checked is checked before the first training begins."""
    protocols = full_names(protocols)
    check_protocols(without_all(protocols)[0])
    chosen = selector(select or "rankme")
    everyone = gather_candidates(entries, common, out)
    sheets = {candidate.name: candidate.sheet for candidate in everyone if candidate.sheet}
    candidates = [candidate for candidate in everyone if not candidate.sheet]
    _check_sheets(sheets, labels)
    if not candidates:
        out.mkdir(parents=True, exist_ok=True)
        return _written(_beside({}, sheets, {}, protocols, common.seed), out)
    judged = _judged_data(candidates, labelled or common.data)
    train, test = open_for(protocols if labels else (), judged)
    by_masks = labels and not by_kind(protocols, train)[0]
    labels = labels and (bool(labelled) or by_masks or train.labels is not None)
    _check_sheets(sheets, labels)
    if labels and select:
        raise ValueError(f"--select {select} chooses without labels, and there are labels: add --no-labels.")
    if labels and not by_masks:
        _check_labels(candidates, judged, train, test, least_images(by_kind(protocols, train)[0]))
    encoders = {
        candidate.name: load_encoder(candidate.public) for candidate in candidates if candidate.public
    }
    for candidate in candidates:
        check_init(candidate)

    console = Console(stderr=True, quiet=not progress, highlight=False, markup=False)
    out.mkdir(parents=True, exist_ok=True)
    new = [candidate for candidate in candidates if candidate.run]
    spent = common_budget(budget, new) if new else None
    plans = {c.name: plan(c, spent, out, say=console.print) for c in new} if spent else {}
    failed: dict[str, str] = {}
    for number, candidate in enumerate(new, start=1):
        epochs = plans[candidate.name]["epochs"]
        console.print(f"[{number} of {len(new)}] {candidate.name}: {epochs:.3g} epochs")
        try:
            train_to_the_end(candidate, epochs)
        except NotFinite as error:
            failed[candidate.name] = str(error)
    left = [candidate for candidate in candidates if candidate.name not in failed]
    if not left and not sheets:
        raise ValueError("; ".join(f"{name} failed: {why}" for name, why in failed.items()))

    console.print("Judging")
    encoders = {c.name: encoders[c.name] if c.public else load_encoder(c.folder) for c in left}
    efforts = {c.name: effort(read_run(c.folder)) for c in left if not c.public}
    given = {candidate.name: candidate.encoder for candidate in left}
    alike: dict[str, Any] = {"device": default_device(), "seed": common.seed, "progress": progress}
    alike |= {"given": given, "command": command}
    if labels:
        evaluations = evaluate_alike(
            encoders,
            train,
            test,
            protocols=protocols,
            limit=common.limit or 0,
            keep={candidate.name: features_folder(candidate.encoder) for candidate in left} if keep else None,
            **alike,
        )
        for candidate in left:
            if candidate.run:
                save_sheet(candidate.folder / "evaluation.json", evaluations[candidate.name])
        comparison = _beside(evaluations, sheets, efforts, protocols, common.seed)
    else:
        # nothing is held out: more images, and not those of the test part alone
        comparison = compare_without_labels(encoders, efforts, open_source(judged), select=chosen, **alike)
        comparison = replace(comparison, notes=[*comparison.notes, *measured_worth(chosen)])
    comparison = replace(
        comparison,
        budget=str(spent) if spent else "",
        failed=failed,
        plans={
            n: {key: settled[key] for key in ("steps", "epochs", "timing")} for n, settled in plans.items()
        },
        notes=[*comparison.notes, *_not_alike(left, efforts, spent), *_seen(left, judged, test, labels)],
    )
    return _written(comparison, out)


def _beside(
    judged: Mapping[str, Evaluation],
    sheets: Mapping[str, Evaluation],
    efforts: Mapping[str, Effort],
    protocols: tuple[str, ...],
    seed: int,
) -> Comparison:
    """The leaderboard of what was judged now and of what is on file, with notes on what cannot be compared."""
    everyone, notes = comparable(judged, sheets, protocols) if sheets else (judged, [])
    comparison = leaderboard(everyone, efforts, protocols, seed=seed)
    return replace(comparison, notes=[*comparison.notes, *notes, *other_grids(everyone)])


def _written(comparison: Comparison, out: Path) -> Comparison:
    save_json(out / "comparison.json", comparison.to_json())
    report_comparison(comparison, out / "comparison.html")
    return comparison


def train_to_the_end(candidate: Candidate, epochs: float) -> None:
    """From the beginning, from where it stopped, or not at all when it is finished."""
    assert candidate.run is not None
    if (candidate.folder / "checkpoint.pt").exists():
        resume(candidate.folder)
        return
    run = replace(candidate.run, epochs=epochs, out=str(candidate.folder))
    try:
        start(run, method=candidate.method, preset=candidate.preset, overrides=candidate.overrides)
    except ValueError as error:
        raise ValueError(f"{candidate.name}: {error}") from error


def _judged_data(candidates: Sequence[Candidate], given: str) -> str:
    trained_on = {candidate.data: candidate.name for candidate in candidates if candidate.data}
    if not given and not trained_on:
        raise ValueError("public encoders bring no images: say with --data what to judge on.")
    if not given and len(trained_on) > 1:
        listed = "; ".join(f"{name} on {source}" for source, name in trained_on.items())
        raise ValueError(
            f"these were trained on different images ({listed}): say with --data what to judge on."
        )
    return given or next(iter(trained_on))


def _check_labels(
    candidates: Sequence[Candidate], judged: str, train: Source, test: Source | None, least: int
) -> None:
    """Before hours of training: can the labels be used, and has nobody been told those of the test images?"""
    try:
        check_classes(train, labels_of(train), 2 if test is None else least)
        if test is not None:
            numbered_as(train, test)
    except ValueError as error:
        raise ValueError(f"{error} Or compare without labels: --no-labels.") from error
    told = [c.name for c in candidates if c.data == judged and c.learns_from_labels]
    if told and test is None:
        raise ValueError(
            f"{told[0]} learns from labels, and {judged} has no test part: it would be judged on labels that it "
            "was told. Put the images into train/ and test/ folders, or judge on others with --labelled."
        )


def _check_sheets(sheets: Mapping[str, Evaluation], labels: bool) -> None:
    if sheets and not labels:
        raise ValueError(
            f"{next(iter(sheets))} holds numbers that need labels, and there are none here. Leave it out, or judge on "
            "labelled images (--labelled)."
        )


def _not_alike(left: Sequence[Candidate], efforts: Mapping[str, Effort], budget: Budget | None) -> list[str]:
    """In what the conditions differed."""
    said = []
    for candidate in left:
        took = efforts[candidate.name].seconds if candidate.run else 0.0
        if budget and budget.unit == "seconds" and took > 1.05 * budget.amount:
            said.append(
                f"{candidate.name} took {duration(took)}, more than its budget: the machine was slower than when "
                "its steps were timed."
            )
    images = [took.images for took in efforts.values()]
    finished = any(candidate.run is None and not candidate.public for candidate in left)
    kept = [kept_by(candidate.folder) for candidate in left]
    if all(kept) and len({owner[0] for owner in kept if owner}) == 1:
        said.append(
            "These are moments of one run, whose learning rate had not come down at the earlier ones."
        )
    elif finished and max(images) > 1.05 * min(images):
        said.append(
            "Finished runs were trained on terms of their own: mind the images seen and the time beside the "
            "numbers."
        )
    known = [candidate for candidate in left if candidate.data]
    if len({candidate.data for candidate in known}) > 1:
        listed = "; ".join(f"{candidate.name} on {candidate.data}" for candidate in known)
        said.append(f"These were trained on different images: {listed}.")
    if public := [candidate.name for candidate in left if candidate.public]:
        said.append(
            f"{', '.join(public)}: trained elsewhere, on other images and at greater length perhaps, and judged at "
            "the size that each expects."
        )
    limits = {candidate.run.limit: candidate.name for candidate in left if candidate.run}
    if len(limits) > 1:
        listed = ", ".join(f"{name} {limit or 'all'}" for limit, name in limits.items())
        said.append(f"The presets use different numbers of training images ({listed}): give one --limit.")
    return said


def _seen(left: Sequence[Candidate], judged: str, test: Source | None, labels: bool) -> list[str]:
    if not labels or test is not None or all(candidate.data != judged for candidate in left):
        return []
    return [
        f"{judged} has no test part, so the images judged on were also trained on, without their labels. For a "
        "stricter number put the images into train/ and test/ folders."
    ]
