"""The same as the command line, from Python. Heavy parts are imported when called, so that `import visrep` is quick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrep.config import Run

if TYPE_CHECKING:
    from visrep.data import Source
    from visrep.evaluation.evaluate import Evaluation
    from visrep.evaluation.standings import Comparison
    from visrep.method import Encoder


def override(value: Any, path: str, new: Any) -> Any:
    """A copy of nested frozen dataclasses with one field changed: ``override(run, "method.tau", 0.2)``.

    Raises ValueError, with the fields there are, when the path leads nowhere.
    """
    name, _, rest = path.partition(".")
    known = [f.name for f in fields(value)] if is_dataclass(value) else []
    if name not in known:
        raise ValueError(
            f"There is no field {name!r} in {type(value).__name__}. It has: {', '.join(known) or 'none'}."
        )
    changed = override(getattr(value, name), rest, new) if rest else new
    return replace(value, **{name: changed})  # pyright: ignore[reportArgumentType, reportCallIssue]


def with_encoder(run: Run, name: str) -> Run:
    """The run with another named encoder, made to fit the size of its views.

    Raises ValueError with the names there are.
    """
    from visrep.encoders import NAMED, ViT

    if name not in NAMED:
        raise ValueError(f"There is no encoder {name!r}. Available: {', '.join(NAMED)}.")
    encoder = NAMED[name]
    if isinstance(encoder, ViT):
        encoder = replace(encoder, image=run.method.views.size)
    return override(run, "method.encoder", encoder)


def pretrain(
    method: str,
    data: str = "",
    out: str = "",
    *,
    encoder: str = "",
    epochs: float = 0,
    batch: int = 0,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Train an encoder on images; returns the run folder.

    ``method`` is a name, ``name:preset`` or the path of your own file; empty ``data``, and ``epochs`` and ``batch``
    of 0, keep the preset's; ``overrides`` changes any other field: ``{"method.tau": 0.2}``.
    """
    from visrep.engine import start
    from visrep.methods import preset

    _, preset_name, run = preset(method)
    run = replace(run, data=data or run.data, out=out, seed=seed)
    run = replace(run, epochs=epochs or run.epochs, batch=batch or run.batch)
    if encoder:
        run = with_encoder(run, encoder)
    for path, value in (overrides or {}).items():
        run = override(run, path, value)
    return start(
        run, method=method.split(":")[0], preset=preset_name, overrides=tuple(map(str, overrides or ()))
    )


def resume(run: str | Path) -> Path:
    """Continue a stopped run to its end; returns the run folder."""
    from visrep.engine import resume

    return resume(run)


def load_encoder(name: str | Path) -> Encoder:
    """An encoder in evaluation mode: ``encoder(images)`` gives `Tokens`, ``encoder.preprocessing`` what it expects.

    ``name`` is a run folder, an official checkpoint file, ``timm:NAME``, ``hf:NAME_OR_FOLDER`` or
    ``open_clip:NAME@TAG``.
    """
    from visrep.encoders import load_encoder

    return load_encoder(name)


def evaluate(
    run: str | Path,
    data: str | Path | Source | Sequence,
    *,
    test: str | Path | Source | Sequence | None = None,
    protocols: tuple[str, ...] = ("knn", "linear"),
    layers: tuple[int, ...] = (),
    poolings: tuple[str, ...] = ("auto",),
    baselines: bool = True,
    limit: int = 0,
    test_limit: int = 0,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Judge the encoder of a run on labelled images; writes evaluation.json into the run folder.

    ``run`` may be any encoder that `load_encoder` knows; nothing is written then.

    Without ``test``, a held-out part of ``data`` is used: its own test or val part, else a fifth of it.
    ``limit`` and ``test_limit`` keep the first images of every class, in proportion.
    """
    from visrep.config import save_json
    from visrep.data import open_source, open_splits
    from visrep.data.split import numbered_alike
    from visrep.encoders.pretrained.resolve import is_public
    from visrep.evaluation.evaluate import evaluate
    from visrep.machine import default_device

    train, held_out = open_splits(data)
    if test is not None:
        held_out = numbered_alike(open_source(test), train)
    result = evaluate(
        load_encoder(run),
        train,
        held_out,
        protocols=protocols,
        layers=layers,
        poolings=poolings,
        baselines=baselines,
        limit=limit,
        test_limit=test_limit,
        device=default_device(),
        seed=seed,
        progress=progress,
    )
    if not is_public(run):
        save_json(Path(run) / "evaluation.json", result.to_json())
    return result


def compare(
    entries: Sequence[str | Path],
    data: str = "",
    *,
    labelled: str = "",
    budget: str = "",
    preset: str = "small32",
    encoder: str = "",
    out: str | Path = "runs/compare",
    seed: int = 0,
    protocols: tuple[str, ...] = ("knn", "linear"),
    limit: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    labels: bool = True,
    progress: bool = False,
) -> Comparison:
    """Train methods under one budget and judge them, and finished runs, alike; writes comparison.json and .html.

    ``entries`` are run folders and methods (``name``, ``name:preset``, your own file); a method is trained in
    ``<out>/<name>``, or continued, or left as it is when it was finished there under the same terms. ``budget`` is
    a time for each (``30m``) or images seen by each (``500k``), by default what the most demanding preset asks for.
    Judged on ``labelled``, else ``data``, as in `evaluate`; without labels, or with ``labels=False``, the order is by
    RankMe, which says little. ``encoder`` and ``overrides`` are common to all methods that are trained; ``limit`` is
    how many images they and the probes are trained on.
    """
    from visrep.comparison.candidates import Common
    from visrep.comparison.compare import compare

    return compare(
        entries,
        Common(data, preset, encoder, seed, limit, overrides or {}),
        labelled=labelled,
        budget=budget,
        out=Path(out),
        protocols=protocols,
        labels=labels,
        progress=progress,
    )


def embed(
    run: str | Path,
    data: str | Path | Source | Sequence,
    out: str | Path,
    *,
    pooling: str = "auto",
    progress: bool = False,
) -> Path:
    """One vector an image, written with its path: .parquet, .npz or .csv by the name of ``out``."""
    from visrep.data import open_source
    from visrep.evaluation.embed import embed
    from visrep.machine import default_device

    return embed(
        load_encoder(run),
        open_source(data),
        Path(out),
        pooling=pooling,
        device=default_device(),
        progress=progress,
    )


def report(run: str | Path) -> Path:
    """Write the run's report.html, one self-contained file; returns its path."""
    from visrep.analysis.report import report

    return report(Path(run))
