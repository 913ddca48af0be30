"""The model card: README.md of an exported folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visrep.encoders import FrameAverage
from visrep.evaluation.fingerprint import digest_of
from visrep.exports.agreement import Agreement
from visrep.exports.card_parts import anonymous, images_code, preprocessing, results, settings, table
from visrep.exports.licence import Licence
from visrep.exports.quantize import SMALL_FILE, Cost
from visrep.exports.written import Written
from visrep.method import Encoder
from visrep.methods import load_method

OUTPUTS = """\
Besides `features` it returns `patches` "b d rows columns", the map of the last layer, and `registers` "b r d" where the
encoder has register tokens.
"""


@dataclass(frozen=True)
class Facts:
    """What a card tells."""

    name: str
    source: str
    """the run, or the name that the encoder was loaded by"""
    encoder: Encoder
    written: Written
    agreement: list[Agreement]
    about: dict[str, Any]
    """run.json; empty where the encoder is not of a run"""
    evaluation: dict[str, Any]
    """evaluation.json; empty where there is none"""
    recorded: bool
    """whether the file returns a dictionary; see `visrep.exports.traced`"""
    heads: list[str]
    quantised: str
    """kind, "" for none"""
    cost: Cost | None
    licence: Licence


def card(facts: Facts) -> str:
    """The card as Markdown, with a head that model hubs read."""
    encoder, written = facts.encoder, facts.written
    weights = sum(x.numel() for x in encoder.parameters())
    parts = [
        HEAD.format(licence=_front(facts.licence), library=_library(written)),
        f"# {facts.name}",
        f"An image encoder, {type(encoder.config).__name__} with {weights / 1e6:.3g} M parameters, that gives one "
        f"vector of {encoder.width} numbers an image. {_origin(facts)} Written by visrep for {written.tool}.",
        "## How to use it",
        "In this folder:",
        f"```python\n{images_code(encoder.preprocessing)}```",
        f"```python\n{written.snippet}```",
        *([OUTPUTS.strip()] if facts.recorded else []),
        *_heads(facts),
        "## Preprocessing",
        preprocessing(encoder.preprocessing),
        "## How good it is",
        _judged(facts),
        *_int8(facts),
        "## How it was trained",
        _trained(facts),
        "## The same as the original",
        agreed(facts.agreement, written.notes),
        "## Licence",
        facts.licence.text,
    ]
    return "\n\n".join(parts) + "\n"


HEAD = """\
---
{licence}
library_name: {library}
pipeline_tag: image-feature-extraction
tags: [visrep, self-supervised-learning]
---"""


def _front(licence: Licence) -> str:
    """The line that model hubs read, in small letters as they have it; SPDX knows no difference."""
    return f"license: {licence.name.lower()}" if licence.name else "# license: (yours to fill in, see below)"


def _library(written: Written) -> str:
    """What model hubs call the tool."""
    name = written.tool.split(",")[0].split(" ")[0]
    return {"torch": "pytorch", "onnxruntime": "onnx"}.get(name, name)


def agreed(found: list[Agreement], notes: tuple[str, ...]) -> str:
    """How near the features are to the encoder's, and where they are not."""
    rows = [
        [f"{one.height} x {one.width}", f"{one.cosine:.7f}", f"{one.error / one.scale:.1g}"] for one in found
    ]
    head = ("image", "lowest cosine", "greatest difference, in standard deviations")
    said = ["Loaded back by the tool, on random images:", table(head, rows), *notes]
    if len(found) == 1:
        said.append(f"Images must be {found[0].height} x {found[0].width}: the file takes no other size.")
    return "\n\n".join(said)


def cost_in_words(kind: str, cost: Cost | None) -> str:
    """What 8 bits change."""
    if cost is None:
        return f"{kind}: what it costs in accuracy was not measured, for want of labelled --data."
    before, after = cost.float32, cost.int8
    return (
        f"{kind}: kNN (k={after.settings['k']}) {after.value:.1f} % ({after.ci_low:.1f} to {after.ci_high:.1f}) "
        f"against {before.value:.1f} % ({before.ci_low:.1f} to {before.ci_high:.1f}) of the file in 32 bits: "
        f"{cost.change:+.1f} points, on {after.n_test} images of {anonymous(cost.data)} with {after.n_train} to "
        "compare with."
    )


def _origin(facts: Facts) -> str:
    if not facts.about:
        return f"Its weights are those of `{anonymous(facts.source)}`."
    run = facts.about["run"]
    preset = f", preset {facts.about['preset']}" if facts.about["preset"] else ""
    return f"Trained with {facts.about['method']}{preset} on {anonymous(run['data'])}."


def _judged(facts: Facts) -> str:
    if not facts.evaluation:
        return (
            "Not judged. `visrep evaluate RUN --data LABELLED_IMAGES`, then export again, puts results here."
        )
    of = facts.evaluation["fingerprint"]["encoder"]
    if of not in (digest_of(facts.encoder), digest_of(FrameAverage(facts.encoder))):
        return "Judged were other weights than these (the run went on, or was changed), so their results are left out."
    return results(facts.evaluation)


def _trained(facts: Facts) -> str:
    about = facts.about
    if not about:
        return f"Not by visrep: see where `{anonymous(facts.source)}` comes from."
    run, versions = about["run"], about["versions"]
    rows = [
        ["method", f"{about['method']}: {_idea(about['method'])}"],
        ["images", anonymous(run["data"]) + (f", the first {run['limit']}" if run["limit"] else "")],
        ["length", f"{run['epochs']:g} epochs, {run['batch']} images a step, seed {run['seed']}"],
        ["began from", anonymous(run.get("init", "") or run.get("start_from", "")) or "random weights"],
        ["status", f"{about['status']} {about['message']}".strip()],
        [
            "on",
            ", ".join(filter(None, [about["hardware"]["gpu"], f"{about['hardware']['cores']} CPU cores"])),
        ],
        ["versions", ", ".join(f"{name} {number}" for name, number in versions.items())],
    ]
    return table(["", ""], rows) + "\n\n" + settings(run)


def _idea(method: str) -> str:
    """The sentence that a method's file begins with; "" where the file is no longer there."""
    try:
        return " ".join((load_method(method).__doc__ or "").split("\n\n")[0].split()).partition(": ")[2]
    except (ValueError, ImportError):
        return ""


def _heads(facts: Facts) -> list[str]:
    if not facts.heads:
        return []
    return [
        f"`heads.safetensors` has the method's other weights, from its last checkpoint: {', '.join(facts.heads)}."
    ]


def _int8(facts: Facts) -> list[str]:
    if not facts.quantised:
        return []
    said = f"`{SMALL_FILE}` is the same network in 8 bits; it is loaded and run alike."
    return ["## In 8 bits", said, cost_in_words(facts.quantised, facts.cost)]
