"""evaluation.json as one sheet that grows: a later call adds its protocols to those judged alike before."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from visrep.config import save_json
from visrep.evaluation.evaluate import Evaluation

ALIKE = ("train", "test", "encoder", "image", "seed", "versions")
"""parts of the fingerprint that numbers on one sheet share"""


def save_sheet(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation, with what the file holds of other protocols, layers and poolings, if judged alike.

    A file of other images, weights, seed or versions is put beside it, as ``evaluation-<mark>.json``, and taken up
    again by the next evaluation that is like it.
    """
    new, earlier = evaluation.to_json(), _earlier(path)
    if earlier and not _alike(earlier, new):
        save_json(_beside(path, earlier), earlier)
        earlier = _earlier(_beside(path, new))
    save_json(path, joined(earlier, new))
    _beside(path, new).unlink(missing_ok=True)


def joined(earlier: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The results of both, those of the new evaluation first where both have them."""
    if not earlier or not _alike(earlier, new):
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


def _alike(earlier: dict[str, Any], new: dict[str, Any]) -> bool:
    return all(earlier["fingerprint"].get(part) == new["fingerprint"][part] for part in ALIKE)


def _beside(path: Path, sheet: dict[str, Any]) -> Path:
    """Where a sheet waits that is not the latest, by what was judged."""
    mark = json.dumps([sheet["fingerprint"].get(part) for part in ALIKE], sort_keys=True).encode()
    return path.with_name(f"{path.stem}-{hashlib.sha256(mark).hexdigest()[:8]}{path.suffix}")


def _about(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result[name] for name in ("protocol", "encoder", "layer", "pooling"))


def _earlier(path: Path) -> dict[str, Any]:
    """What the file holds; empty when there is none, or when it is no evaluation."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if {"results", "fingerprint", "warnings"} <= set(content) else {}
