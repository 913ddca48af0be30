"""From settings to a run folder: what is settled before the loop, and what a run that fails or stops leaves behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from visrep.config import Run
from visrep.continuing.checks import check_options
from visrep.continuing.init import begin
from visrep.data import Source, canvas_size, open_source, open_splits
from visrep.encoders.frozen import NoSuchRun
from visrep.engine import build_fabric, settled_precision, train
from visrep.methods import check_views, load_method, presets
from visrep.rundir import RunFolder, describe


def start(run: Run, *, method: str, preset: str = "", overrides: tuple[str, ...] = ()) -> Path:
    """Train a new run to its end; returns its folder.

    Raises ValueError for settings or data that cannot work, NotFinite when the loss becomes so.
    """
    check_views(run.method)
    check_options(run)
    run, encoder = begin(run) if run.init else (run, None)
    fabric = build_fabric(run)
    fabric.launch()
    if not run.out:
        name = "-".join(filter(None, (Path(method).stem, preset, time.strftime("%Y%m%d-%H%M%S"))))
        run = replace(run, out=fabric.broadcast(str(Path("runs") / name)))
    source = training_images(run)  # errors in the data show here, before a folder is made
    run = resolve(run, source)
    about = describe(run, method=method, preset=preset, overrides=overrides)
    folder = RunFolder.create(run.out, about, writes=fabric.is_global_zero)
    with leaves_nothing_unbegun(folder), says_how_it_ended(folder), names_the_preset(preset):
        train(run, source, folder, fabric, method=method, resume=False, encoder=encoder)
    return folder.path


def resume(path: str | Path) -> Path:
    """Continue a run from its last checkpoint to its end: the result is as if it had never stopped."""
    folder = RunFolder(path)
    about = folder.about()
    load_method(about["method"])  # so that a user's own configuration class is known
    run = folder.run()
    fabric = build_fabric(run)
    fabric.launch()
    folder.writes = fabric.is_global_zero
    if about["status"] != "finished":
        with says_how_it_ended(folder):
            train(run, training_images(run), folder, fabric, method=about["method"], resume=True)
    return folder.path


@contextmanager
def says_how_it_ended(folder: RunFolder) -> Iterator[None]:
    """Leave the reason in run.json when a run stops before its end."""
    try:
        yield
    except KeyboardInterrupt as stop:
        folder.update("stopped", str(stop) or "interrupted")
        raise
    except Exception as error:
        folder.update("failed", str(error))
        raise


@contextmanager
def leaves_nothing_unbegun(folder: RunFolder) -> Iterator[None]:
    """Take a run away again that fails before its first step because its settings or data cannot work."""
    try:
        yield
    except (ValueError, ImportError):
        folder.discard_unbegun()
        raise


@contextmanager
def names_the_preset(preset: str) -> Iterator[None]:
    """Let the message on a missing run of another method ask for that method's preset of the same name."""
    try:
        yield
    except NoSuchRun as missing:
        if preset not in presets(load_method(missing.method)):
            raise
        raise missing.asked_by(preset) from missing


def training_images(run: Run) -> Source:
    """The images to train on: never the test part of data that brings one, so that it can judge honestly."""
    train, _ = open_splits(run.data)
    return open_source(train, limit=run.limit)


def resolve(run: Run, source: Source) -> Run:
    """Settle what was left open, so that the run is the same wherever it is resumed: canvas size and precision."""
    canvas = run.canvas or canvas_size(source, run.method.views.size)
    return replace(run, canvas=canvas, precision=settled_precision(run))
