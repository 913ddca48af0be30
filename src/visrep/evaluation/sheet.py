"""evaluation.json as one sheet that grows: a later call adds its protocols to those judged alike before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from visrep.config import save_json
from visrep.evaluation.evaluate import Evaluation

ALIKE = ("train", "test", "encoder", "image", "seed", "versions")
"""parts of the fingerprint that numbers on one sheet share"""


def save_sheet(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation, with what the file holds of other protocols, layers and poolings, if judged alike.

    A file of other images, weights, seed or versions is replaced.
    """
    save_json(path, joined(_earlier(path), evaluation.to_json()))


def joined(earlier: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The results of both, those of the new evaluation first where both have them."""
    if not earlier or any(earlier["fingerprint"].get(part) != new["fingerprint"][part] for part in ALIKE):
        return new
    again = {_about(result) for result in new["results"]}
    kept = [result for result in earlier["results"] if _about(result) not in again]
    protocols = {result["protocol"] for result in (*kept, *new["results"])}
    return {
        **new,
        "results": [*kept, *new["results"]],
        "fingerprint": {**new["fingerprint"], "protocols": sorted(protocols)},
        "warnings": list(dict.fromkeys([*(earlier["warnings"] if kept else ()), *new["warnings"]])),
    }


def _about(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result[name] for name in ("protocol", "encoder", "layer", "pooling"))


def _earlier(path: Path) -> dict[str, Any]:
    """What the file holds; empty when there is none, or when it is no evaluation."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if {"results", "fingerprint", "warnings"} <= set(content) else {}
