"""``visrep compare``: runs, methods, public encoders and sheets on one leaderboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console


def compare(
    entries: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN|METHOD|ENCODER|SHEET ...")
    ] = (),
    data: str = "",
    budget: str = "",
    preset: str = "small32",
    out: Path = Path("runs/compare"),
    labelled: str = "",
    protocols: tuple[str, ...] = ("knn", "linear"),
    encoder: str = "",
    init: Annotated[str, tyro.conf.arg(metavar="NAME")] = "",
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="FIELD=VALUE ...")] = (),
    limit: int | None = None,
    labels: bool = True,
    select: str = "",
    keep: bool = True,
    seed: int = 0,
) -> None:
    """Judge encoders alike, after training methods under one budget; comparison.html and .json in out.

    Stopped? The same command continues: finished runs in out are kept, an unfinished one is resumed.

    Args:
        entries: methods to train (METHOD, METHOD:PRESET or your own file), run folders, public encoders (checkpoint or
            ONNX file, timm:NAME, hf:NAME, open_clip:NAME@TAG), and sheets (.json files of visrep evaluate, which are
            not judged again); RUN/encoders stands for all encoders that a run kept (visrep pretrain --keep-encoders)
        data: images to train on and to judge on; default: those of the runs or presets, if they are the same
        budget: for each method, a time (90s, 30m, 2h) or images seen (500000, 500k); default: what the most demanding
            preset asks for
        preset: of methods named without one
        out: a method is trained in OUT/METHOD
        labelled: labelled images to judge on instead of data
        protocols: those of visrep evaluate, such as knn, linear, attentive, fewlabels, finetune, or all; see
            docs/protocols.md
        encoder: one for all methods, by name
        init: weights that all methods begin with: a run, a checkpoint file, timm:NAME, ...; see docs/continue.md
        settings: changed for all methods, such as batch=128 optim.clip=3
        limit: train encoders and probes on only so many images; default: what presets say, and all for probes
        labels: use the labels of data; --no-labels ranks by --select, which says little
        select: without labels, order by rankme (the default), lidar, alpha-req, participation-ratio, nesum,
            coding-rate, uniformity, feature-std, cluster-learnability or clid; see docs/diagnostics.md for their worth
        keep: keep features in the run folders, so that another call needs no pass over the images
        seed: of training, splits, bootstrap and untrained encoders
    """
    from visrep import api
    from visrep.cli.typed import typed
    from visrep.evaluation.leaderboard import print_leaderboard

    comparison = api.compare(
        entries,
        data,
        labelled=labelled,
        budget=budget,
        preset=preset,
        encoder=encoder,
        init=init,
        out=out,
        seed=seed,
        protocols=protocols,
        limit=limit,
        overrides=dict(map(setting, settings)),
        labels=labels,
        select=select,
        keep=keep,
        progress=True,
        command=typed("compare"),
    )
    print_leaderboard(comparison)
    Console(stderr=True).print(
        f"Look at it: {(out / 'comparison.html').resolve()}", highlight=False, markup=False
    )


def setting(text: str) -> tuple[str, Any]:
    """``optim.clip=3`` to a field and its value. Raises ValueError without an equals sign."""
    path, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: write FIELD=VALUE, such as --set batch=128 optim.clip=3.")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = value
    return path, tuple(parsed) if isinstance(parsed, list) else parsed
