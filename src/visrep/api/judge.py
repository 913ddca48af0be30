"""How good is it? Encoders judged by labels and masks: one, on several data sets, or several beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from visrep.api.use import load_encoder

if TYPE_CHECKING:
    from visrep.data import Source
    from visrep.evaluation.evaluate import Evaluation
    from visrep.evaluation.standings import Comparison
    from visrep.evaluation.suite import Suite


def evaluate(
    run: str | Path,
    data: str | Path | Source | Sequence,
    *,
    test: str | Path | Source | Sequence | None = None,
    protocols: tuple[str, ...] = ("knn", "linear"),
    layers: tuple[int, ...] | Literal["all"] = (),
    poolings: tuple[str, ...] = ("auto",),
    baselines: bool = True,
    limit: int = 0,
    test_limit: int = 0,
    size: int = 0,
    read_out: Literal["tokens", "pyramid"] = "tokens",
    keep: bool = True,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
    command: str | None = None,
) -> Evaluation:
    """Judge the encoder of a run on labelled images; writes evaluation.json into the run folder, or the file ``out``.

    ``run`` may be any encoder that `load_encoder` knows; nothing is written then without ``out``. ``protocols`` of
    ("all",) are those that leave the encoder as it is. A file of the same images and weights keeps the protocols that
    it has, one of others is put beside it. Until it is written each judgement is kept in ``evaluation-unfinished``: the
    same call again continues one that was stopped. Protocols that do not apply are left out (`Evaluation.unjudged`).
    With ``keep``, features stay in ``features`` of the run folder (of public encoders in the user's cache), so that the
    next call needs no pass over the images.

    Without ``test``, a held-out part of ``data`` is used: its own test or val part, else a fifth of it.
    ``limit`` and ``test_limit`` keep the first images of every class, in proportion. Dense protocols (segmentation,
    hummingbird, depth, ...) want images with masks and see them as squares of ``size`` pixels (see `open_dense`); what
    they say of a few images is drawn into the folder ``evaluation-pictures`` beside the file;
    ``read_out="pyramid"`` gives their probes maps of several resolutions (see `Pyramid`). ``command`` is the
    line that was typed, if any: the file holds it, with ``run`` as it is given, the machine and the seconds that
    everything took.
    """
    from visrep.encoders.pretrained.resolve import is_public
    from visrep.evaluation.dense.opening import open_for
    from visrep.evaluation.evaluate import evaluate
    from visrep.evaluation.feature_cache import features_folder
    from visrep.evaluation.making import with_making
    from visrep.evaluation.minutes import Journal
    from visrep.evaluation.sheet import save_sheet
    from visrep.machine import default_device, keep_freed_memory

    keep_freed_memory()
    train, held_out = open_for(protocols, data, test)
    device = default_device()
    path = Path(out) if out is not None else None if is_public(run) else Path(run) / "evaluation.json"
    journal = Journal(path and path.with_name(f"{path.stem}-unfinished"))
    judge = partial(
        evaluate,
        load_encoder(run),
        train,
        held_out,
        protocols=protocols,
        layers=layers,
        poolings=poolings,
        baselines=baselines,
        limit=limit,
        test_limit=test_limit,
        size=size,
        read_out=read_out,
        keep=features_folder(run) if keep else None,
        journal=journal,
        device=device,
        seed=seed,
        progress=progress,
    )
    result = with_making(judge, run, command, device)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        result = replace(result, notes=[*result.notes, *save_sheet(path, result)])
        journal.close()
    return result


def suite(
    encoder: str | Path,
    data: Sequence[str],
    *,
    protocols: tuple[str, ...] = ("linear",),
    train: int = 1000,
    test_limit: int = 0,
    baselines: bool = True,
    keep: bool = True,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
    command: str | None = None,
) -> Suite:
    """Judge an encoder on several labelled data sets and take the mean, in the style of VTAB-1k.

    Of each data set ``train`` training images are used, a fifth of which chooses settings; 0 takes all. Writes
    suite.json into the run folder, or the file ``out``; of a public encoder nothing is written without ``out``.
    Features are kept with ``keep``, as in `evaluate`, and ``command`` is told as there.
    """
    from visrep.config import save_json
    from visrep.encoders.pretrained.resolve import is_public
    from visrep.evaluation.dense.opening import open_for
    from visrep.evaluation.evaluate import evaluate
    from visrep.evaluation.feature_cache import features_folder
    from visrep.evaluation.making import with_making
    from visrep.evaluation.suite import run_suite
    from visrep.machine import default_device

    network, device = load_encoder(encoder), default_device()

    def evaluate_one(name: str) -> Evaluation:
        fitted, judged = open_for(protocols, name, None)
        judge = partial(
            evaluate,
            network,
            fitted,
            judged,
            protocols=protocols,
            baselines=baselines,
            limit=train,
            test_limit=test_limit,
            keep=features_folder(encoder) if keep else None,
            device=device,
            seed=seed,
            progress=progress,
        )
        return with_making(judge, encoder, command, device)

    found = run_suite(data, evaluate_one)
    path = Path(out) if out is not None else None if is_public(encoder) else Path(encoder) / "suite.json"
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_json(path, {"encoder": str(encoder), **found.to_json()})
    return found


def compare(
    entries: Sequence[str | Path],
    data: str = "",
    *,
    labelled: str = "",
    budget: str = "",
    preset: str = "small32",
    encoder: str = "",
    init: str = "",
    out: str | Path = "runs/compare",
    seed: int = 0,
    protocols: tuple[str, ...] = ("knn", "linear"),
    limit: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    labels: bool = True,
    select: str = "",
    keep: bool = True,
    progress: bool = False,
    command: str | None = None,
) -> Comparison:
    """Train methods under one budget and judge them, and finished encoders, alike; writes comparison.json and .html.

    ``entries`` are methods (``name``, ``name:preset``, your own file), run folders, kept encoders
    (``RUN/encoders`` for all that a run kept: `Run.keep_encoders`), public encoders (see `load_encoder`) and sheets,
    the ``out`` of `evaluate`. A method is trained in ``<out>/<name>``, or continued, or
    left as it is when it was finished there under the same terms. A sheet is not judged again: its numbers are
    compared where images and version of the protocol are those of the others, and notes say which are not. ``budget``
    is a time for each (``30m``) or images seen by each (``500k``), by default what the most demanding preset asks for.
    Judged on ``labelled``, else ``data``, as in `evaluate`; without labels, or with ``labels=False``, the order is by
    ``select`` (rankme, lidar, alpha-req, clid, ...; default rankme), which says little. ``encoder``, or
    the weights ``init`` to begin with, and ``overrides`` are common to all methods that are trained; ``limit`` is how
    many images they and the probes are trained on. Features are kept with ``keep``, as in `evaluate`, and ``command``
    is told as there.
    """
    from visrep.comparison.candidates import Common
    from visrep.comparison.compare import compare

    return compare(
        entries,
        Common(data, preset, encoder, init, seed, limit, overrides or {}),
        labelled=labelled,
        budget=budget,
        out=Path(out),
        protocols=protocols,
        labels=labels,
        select=select,
        keep=keep,
        progress=progress,
        command=command,
    )
