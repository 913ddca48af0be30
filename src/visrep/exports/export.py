"""Hand an encoder to another tool: a folder that loads there and gives the same features, with a model card."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from visrep.analysis.record import read_run
from visrep.config import save_json, to_json
from visrep.data import Source
from visrep.encoders import load_encoder
from visrep.encoders.pretrained.onnx import OnnxEncoder
from visrep.exports.agreement import Agreement, check
from visrep.exports.card import Facts, card
from visrep.exports.folder import new_folder
from visrep.exports.heads import write_heads
from visrep.exports.licence import check_licence, licence_of
from visrep.exports.quantize import KINDS, Cost, Kind, Sides, cost, measured, quantise, sides
from visrep.exports.written import Target, Written
from visrep.method import Encoder

TARGETS = {
    "safetensors": "visrep.exports.safetensors",
    "timm": "visrep.exports.timm",
    "hf": "visrep.exports.hf",
    "onnx": "visrep.exports.onnx",
    "torch-export": "visrep.exports.torch_export",
    "torchscript": "visrep.exports.torchscript",
}
"""the file of each"""
RECORDED = ("onnx", "torch-export", "torchscript")
"""targets that hold a recorded program, and nothing else that says what images it expects"""


@dataclass(frozen=True)
class Export:
    """What was written."""

    folder: Path
    tool: str
    """what loads it"""
    agreement: list[Agreement]
    """with the encoder's features, after loading it back"""
    notes: tuple[str, ...]
    """where it differs from the encoder"""
    quantised: Kind = ""
    cost: Cost | None = None
    """of 8 bits, where it was asked for and could be measured"""


def export(
    run: str | Path,
    to: str,
    out: str | Path,
    *,
    heads: bool = False,
    licence: str = "",
    quantize: Kind = "",
    data: str | Path | Source | None = None,
    limit: int = 0,
    progress: bool = False,
) -> Export:
    """Write the encoder of a run, or any that `load_encoder` knows, into the new folder ``out``.

    ``to`` is one of `TARGETS`. ``heads`` adds the method's other weights; ``licence`` is an SPDX identifier for the
    card; ``quantize`` adds an ONNX file in 8 bits, calibrated and judged on ``data``, of which ``limit`` images a side
    are judged. The result is loaded back and compared before it is kept.
    Raises ValueError for what a target cannot express, ImportError without its extra, RuntimeError for a full disk.
    """
    out = Path(out)
    target = chosen(to)
    check_licence(licence)
    _check_quantize(to, quantize, data)
    encoder = load_encoder(run)
    if isinstance(encoder, OnnxEncoder):
        raise ValueError(
            f"{run} is an ONNX file already, whose weights cannot be taken out. Export the run itself."
        )
    trained = (Path(run) / "run.json").is_file()
    if heads and not trained:
        raise ValueError(f"--heads needs a run folder with a checkpoint, and {run} is none.")
    record = read_run(Path(run)) if trained else None
    between = sides(data) if data is not None else None
    with new_folder(out) as folder:
        written = target.write(encoder, folder)
        found = check(encoder, target.load(folder))
        if to in RECORDED:
            save_json(folder / "preprocessing.json", _plain(encoder))
        other = write_heads(Path(run), encoder, folder) if heads else []
        paid = _quantised(folder, quantize, between, encoder, limit=limit, progress=progress)
        if quantize:
            command = _command(run, out, quantize, data, limit)
            save_json(folder / "quantized.json", measured(folder, quantize, paid, command))
        about = record.about if record else {}
        facts = Facts(
            name=out.name,
            source=str(run),
            encoder=encoder,
            written=written,
            agreement=found,
            about=about,
            evaluation=record.evaluation if record else {},
            recorded=to in RECORDED,
            heads=other,
            quantised=quantize,
            cost=paid,
            licence=licence_of(licence, str(run), about),
        )
        (folder / "README.md").write_text(card(facts), encoding="utf-8")
    return _result(out, written, found, quantize, paid)


def chosen(to: str) -> Target:
    """The file of a target. Raises ValueError with those there are."""
    if to not in TARGETS:
        raise ValueError(f"there is no target {to!r}. Export to one of: {', '.join(TARGETS)}.")
    module: Any = import_module(TARGETS[to])
    return module


def _check_quantize(to: str, quantize: str, data: object) -> None:
    if quantize not in KINDS:
        raise ValueError(f"--quantize {quantize}: use one of {', '.join(filter(None, KINDS))}.")
    if quantize and to != "onnx":
        raise ValueError(f"--quantize {quantize} is for --to onnx, not for {to}.")
    if quantize == "int8" and data is None:
        raise ValueError(
            "--quantize int8 needs --data: images that scales are measured on and, where they have labels, the loss in "
            "accuracy. --quantize int8-dynamic does without, for vision transformers."
        )
    if data is not None and not quantize:
        raise ValueError("--data is for --quantize, which was not asked for.")


def _quantised(
    folder: Path, kind: Kind, between: Sides | None, encoder: Encoder, *, limit: int, progress: bool
) -> Cost | None:
    if not kind:
        return None
    quantise(folder, kind, between.train if between else None, encoder.preprocessing)
    return cost(folder, between, limit=limit, progress=progress) if between else None


def _command(run: str | Path, out: Path, kind: Kind, data: str | Path | Source | None, limit: int) -> str:
    """What to type for the same; images that came as a value of Python stand there as DATA."""
    words = ["visrep", "export", str(run), "--to", "onnx", "--out", str(out), "--quantize", kind]
    if data is not None:
        words += ["--data", str(data) if isinstance(data, str | Path) else "DATA"]
    return shlex.join([*words, *(["--limit", str(limit)] if limit else [])])


def _plain(encoder: Encoder) -> dict[str, Any]:
    """What images must go through, as JSON values for tools other than this one."""
    said = {name: value for name, value in to_json(encoder.preprocessing).items() if name != "type"}
    return {**said, "antialias": True, "values": "RGB in [0, 1] before mean and std"}


def _result(out: Path, written: Written, found: list[Agreement], kind: Kind, paid: Cost | None) -> Export:
    return Export(out, written.tool, found, written.notes, kind, paid)
