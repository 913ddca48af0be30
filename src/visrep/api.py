"""The same as the command line, from Python. Heavy parts are imported when called, so that `import visrep` is quick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from visrep.config import Run

if TYPE_CHECKING:
    from visrep.analysis.diagnose import Diagnosis
    from visrep.analysis.doctor import Checkup
    from visrep.analysis.inside.explain import Explanation
    from visrep.analysis.layers import Amount
    from visrep.analysis.similarity.compare import Comparison as SimilarityComparison
    from visrep.data import Source
    from visrep.evaluation.evaluate import Evaluation
    from visrep.evaluation.standings import Comparison
    from visrep.evaluation.suite import Suite
    from visrep.exports.export import Export
    from visrep.exports.quantize import Kind
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

    Where both are like a ViT, cls, mask and register tokens stay those that the method was given; Swin keeps the mask
    token.
    Raises ValueError with the names there are.
    """
    from visrep.encoders import NAMED, Swin, ViTLike

    if name not in NAMED:
        raise ValueError(f"There is no encoder {name!r}. Available: {', '.join(NAMED)}.")
    encoder, old = NAMED[name], run.method.encoder
    if isinstance(encoder, Swin):
        masked = isinstance(old, ViTLike | Swin) and old.mask_token
        encoder = replace(encoder, image=run.method.views.size, mask_token=masked)
    if isinstance(encoder, ViTLike):
        encoder = replace(encoder, image=run.method.views.size)
        if isinstance(old, ViTLike):
            encoder = replace(encoder, cls=old.cls, mask_token=old.mask_token, registers=old.registers)
    return override(run, "method.encoder", encoder)


def pretrain(
    method: str,
    data: str = "",
    out: str = "",
    *,
    encoder: str = "",
    init: str = "",
    epochs: float = 0,
    batch: int = 0,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Train an encoder on images; returns the run folder.

    ``method`` is a name, ``name:preset`` or the path of your own file; empty ``data``, and ``epochs`` and ``batch``
    of 0, keep the preset's; ``overrides`` changes any other field: ``{"method.tau": 0.2}``. ``encoder`` is the name of
    one with fresh weights, ``init`` of one to continue with: whatever `load_encoder` knows; see `visrep.config.Adapt`.
    """
    from visrep.engine import start
    from visrep.methods import preset

    _, preset_name, run = preset(method)
    run = replace(run, data=data or run.data, out=out, seed=seed, init=init or run.init)
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

    ``name`` is a run folder, an official checkpoint file, ``timm:NAME``, ``hf:NAME_OR_FOLDER``, ``open_clip:NAME@TAG``
    or ``pip:NAME``; or an ONNX file, which can be judged and used, not trained.
    """
    from visrep.encoders import load_encoder

    return load_encoder(name)


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
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Judge the encoder of a run on labelled images; writes evaluation.json into the run folder.

    ``run`` may be any encoder that `load_encoder` knows; no result is written then. ``protocols`` of ("all",) are
    those that leave the encoder as it is. An evaluation.json of the same images and weights keeps the protocols that
    it has, one of others is put beside it. With ``keep``, features stay in ``features`` of the run folder (of public
    encoders in the user's cache), so that the next call needs no pass over the images.

    Without ``test``, a held-out part of ``data`` is used: its own test or val part, else a fifth of it.
    ``limit`` and ``test_limit`` keep the first images of every class, in proportion. Dense protocols (segmentation,
    hummingbird, depth, ...) want images with masks and see them as squares of ``size`` pixels (see `open_dense`);
    ``read_out="pyramid"`` gives their probes maps of several resolutions (see `Pyramid`).
    """
    from visrep.data.cache import default_folder
    from visrep.encoders.pretrained.resolve import is_public
    from visrep.evaluation.dense.opening import open_for
    from visrep.evaluation.evaluate import evaluate
    from visrep.evaluation.sheet import save_sheet
    from visrep.machine import default_device

    public = is_public(run)
    folder = default_folder().parent / "features" if public else Path(run) / "features"
    train, held_out = open_for(protocols, data, test)
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
        size=size,
        read_out=read_out,
        keep=folder if keep else None,
        device=default_device(),
        seed=seed,
        progress=progress,
    )
    if not public:
        save_sheet(Path(run) / "evaluation.json", result)
    return result


def suite(
    encoder: str | Path,
    data: Sequence[str],
    *,
    protocols: tuple[str, ...] = ("linear",),
    train: int = 1000,
    test_limit: int = 0,
    baselines: bool = True,
    out: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Suite:
    """Judge an encoder on several labelled data sets and take the mean, in the style of VTAB-1k.

    Of each data set ``train`` training images are kept, a fifth of which chooses settings; 0 keeps all. Writes
    suite.json into the run folder, or the file ``out``; of a public encoder nothing is written without ``out``.
    """
    from visrep.config import save_json
    from visrep.encoders.pretrained.resolve import is_public
    from visrep.evaluation.dense.opening import open_for
    from visrep.evaluation.evaluate import evaluate
    from visrep.evaluation.suite import run_suite
    from visrep.machine import default_device

    network = load_encoder(encoder)

    def evaluate_one(name: str) -> Evaluation:
        fitted, judged = open_for(protocols, name, None)
        return evaluate(
            network,
            fitted,
            judged,
            protocols=protocols,
            baselines=baselines,
            limit=train,
            test_limit=test_limit,
            device=default_device(),
            seed=seed,
            progress=progress,
        )

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
    out: str | Path = "runs/compare",
    seed: int = 0,
    protocols: tuple[str, ...] = ("knn", "linear"),
    limit: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    labels: bool = True,
    select: str = "",
    progress: bool = False,
) -> Comparison:
    """Train methods under one budget and judge them, and finished runs, alike; writes comparison.json and .html.

    ``entries`` are run folders and methods (``name``, ``name:preset``, your own file); a method is trained in
    ``<out>/<name>``, or continued, or left as it is when it was finished there under the same terms. ``budget`` is
    a time for each (``30m``) or images seen by each (``500k``), by default what the most demanding preset asks for.
    Judged on ``labelled``, else ``data``, as in `evaluate`; without labels, or with ``labels=False``, the order is by
    ``select`` (rankme, lidar, alpha-req, clid, ...; default rankme), which says little. ``encoder`` and
    ``overrides`` are common to all methods that are trained; ``limit`` is how many images they and the probes are
    trained on.
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
        select=select,
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


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    heads: bool = False,
    quantize: Kind = "",
    data: str | Path | Source | None = None,
    limit: int = 0,
    progress: bool = False,
) -> Export:
    """Write an encoder into a new folder for another tool: safetensors, timm, hf, onnx, torch-export or torchscript.

    ``run`` is whatever `load_encoder` knows but an ONNX file. The folder is loaded back by that tool and compared with
    the encoder before it is kept; its README.md is a model card. ``heads`` adds the method's other weights;
    ``quantize`` (int8, int8-dynamic) adds an ONNX file in 8 bits, calibrated on ``data`` and judged on ``limit`` images
    a side of it.
    """
    from visrep.exports.export import export

    return export(run, to, out, heads=heads, quantize=quantize, data=data, limit=limit, progress=progress)


def report(run: str | Path) -> Path:
    """Write the run's report.html, one self-contained file; returns its path."""
    from visrep.analysis.report import report

    return report(Path(run))


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
) -> SimilarityComparison:
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
    out: str | Path = "explain",
    seed: int = 0,
    progress: bool = False,
) -> Explanation:
    """What does an encoder look at, and what does it know? Writes explain.html and explain.json into ``out``.

    ``image`` is the number of the image looked at most closely, ``images`` how many are shown with it. ``point``
    (across, down, as shares) is the patch that others are compared with; ``layers`` are turned back into pictures in
    ``steps`` steps, 0 for none. Labels add a probe and its classes, masks the concepts of channels.
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
        Settings(image, images, point, layers, steps),
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
