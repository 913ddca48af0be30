"""What is in it? Runs and encoders looked into: reports, health, measures without labels, likeness, explanations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from visrep.api.use import load_encoder

if TYPE_CHECKING:
    from visrep.analysis.diagnose import Diagnosis
    from visrep.analysis.doctor import Checkup
    from visrep.analysis.inside.explain import Explanation
    from visrep.analysis.layers import Amount
    from visrep.analysis.similarity.compare import Comparison
    from visrep.data import Source


def report(run: str | Path) -> Path:
    """Write report.html into a run folder, or the page of a sheet beside it: one self-contained file; returns its path.

    ``run`` may be the .json file that `evaluate` wrote, of any encoder: its page has the results, without training.
    Raises ValueError for what is neither, with what to do.
    """
    from visrep.analysis.report import report
    from visrep.analysis.report_sheet import report_sheet
    from visrep.comparison.sheets import read_sheet
    from visrep.encoders.pretrained.resolve import is_public

    path = Path(run)
    if path.suffix == ".json":
        _check_judged(path)
        return report_sheet(read_sheet(path), path)
    if is_public(run):
        raise ValueError(
            f"{run} is no run folder and no sheet of results. If it is an encoder, judge it first: visrep evaluate "
            f"{run} --data FOLDER --out sheet.json; then: visrep report sheet.json."
        )
    return report(path)


def _check_judged(sheet: Path) -> None:
    """Raises ValueError where results are asked for that are not there yet."""
    if sheet.exists():
        return
    run = sheet.parent
    if (run / "run.json").is_file():
        raise ValueError(
            f"there is no {sheet}: the run was not judged. Judge it: visrep evaluate {run} --data FOLDER; or see how "
            f"its training went: visrep report {run}."
        )
    raise ValueError(
        f"there is no file {sheet}. Give a run folder, or the file that `visrep evaluate ENCODER --data FOLDER --out "
        "FILE.json` wrote."
    )


def diagnose(
    encoder: str | Path,
    data: str | Path | Source | Sequence,
    *,
    layers: tuple[int, ...] = (),
    pooling: str = "auto",
    amount: Amount | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Diagnosis:
    """Measure an encoder without labels, layer by layer; writes diagnostics.json into the run folder or ``out``.

    ``encoder`` is whatever `load_encoder` knows. The last layer is always measured, ``layers`` adds others;
    ``amount`` says how many images, views and tokens. Nothing is written for a public encoder without ``out``.
    """
    from visrep.analysis.diagnose import diagnose_encoder, logged_prototypes
    from visrep.analysis.record import read_run
    from visrep.config import save_json
    from visrep.data import open_source
    from visrep.encoders.pretrained.resolve import is_public
    from visrep.machine import default_device

    diagnosis = diagnose_encoder(
        load_encoder(encoder),
        open_source(data),
        layers=layers,
        pooling=pooling,
        amount=amount,
        device=default_device(),
        seed=seed,
        progress=progress,
    )
    folder = Path(out) if out is not None else None if is_public(encoder) else Path(encoder)
    if not is_public(encoder):
        diagnosis = replace(diagnosis, logged=logged_prototypes(read_run(Path(encoder))))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        save_json(folder / "diagnostics.json", {"encoder": str(encoder), **diagnosis.to_json()})
    return diagnosis


def doctor(run: str | Path) -> Checkup:
    """Is a run healthy, and if not, what is it, by which numbers, and which field to change? Reads, writes nothing."""
    from visrep.analysis.doctor import examine
    from visrep.analysis.record import read_run

    return examine(read_run(Path(run)))


def similarity(
    encoders: Sequence[str | Path],
    data: str | Path | Source | Sequence,
    *,
    measures: tuple[str, ...] = ("cka", "mutual-knn", "procrustes", "rsa", "cca", "svcca", "pwcca"),
    layers: tuple[int, ...] = (),
    pooling: str = "auto",
    images: int = 1000,
    permutations: int = 10,
    untrained: bool = True,
    out: str | Path = "similarity",
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """How alike are the layers of these encoders on the same images? Writes similarity.json and similarity.html.

    One encoder is compared with itself. Each value stands beside its chance level, from random pairings of images,
    and that of the untrained networks.
    """
    from visrep.analysis.similarity.compare import compare_layers
    from visrep.analysis.similarity.page import write_similarity
    from visrep.config import save_json
    from visrep.data import open_source
    from visrep.machine import default_device

    names = [str(encoder) for encoder in encoders]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise ValueError(
            f"{twice} was given twice. Give one encoder alone to compare its layers with each other."
        )
    folder = Path(out)
    last = [name if ":" in name else Path(name).resolve().name for name in names]
    shown = last if len(set(last)) == len(last) else names  # a path only where its end is not enough
    compared = compare_layers(
        {short: load_encoder(name) for short, name in zip(shown, names, strict=True)},
        open_source(data),
        names=measures,
        layers=layers,
        pooling=pooling,
        images=images,
        permutations=permutations,
        untrained=untrained,
        device=default_device(),
        seed=seed,
        progress=progress,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_json(
        folder / "similarity.json", {"sources": dict(zip(shown, names, strict=True)), **compared.to_json()}
    )
    write_similarity(compared, folder / "similarity.html")
    return compared


def explain(
    encoder: str | Path,
    data: str | Path | Source | Sequence,
    *,
    image: int = 0,
    images: int = 6,
    point: tuple[float, float] | None = None,
    layers: tuple[int, ...] = (),
    steps: int = 200,
    decoder_steps: int = 400,
    out: str | Path = "explain",
    seed: int = 0,
    progress: bool = False,
) -> Explanation:
    """What does an encoder look at, and what does it know? Writes explain.html and explain.json into ``out``.

    ``image`` is the number of the image looked at most closely, ``images`` how many are shown with it. ``point``
    (across, down, as shares) is the patch that others are compared with; ``layers`` are turned back into pictures in
    ``steps`` steps, and by decoders trained for ``decoder_steps``, 0 for none. Labels add a probe and its classes,
    masks the concepts of channels.
    """
    from visrep.analysis.inside.explain import Settings, explain_encoder
    from visrep.analysis.inside.page import write_explanation
    from visrep.config import save_json
    from visrep.data import open_source
    from visrep.data.dense_opening import is_dense, open_dense
    from visrep.machine import default_device

    folder, name = Path(out), str(encoder)
    source = open_dense(data) if is_dense(data) else open_source(data)
    explanation = explain_encoder(
        load_encoder(encoder),
        source,
        Settings(image, images, point, layers, steps, decoder_steps),
        device=default_device(),
        seed=seed,
        progress=progress,
    )
    folder.mkdir(parents=True, exist_ok=True)
    about = {"encoder": name, "data": source.name, **explanation.numbers}
    save_json(folder / "explain.json", about)
    short = name if ":" in name else Path(name).resolve().name
    write_explanation(explanation, short, source.name, folder / "explain.html")
    return explanation
