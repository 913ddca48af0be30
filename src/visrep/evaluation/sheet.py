"""evaluation.json as one sheet that grows: a later call adds its protocols to those judged alike before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from visrep.config import save_json
from visrep.evaluation.evaluate import Evaluation
from visrep.evaluation.fingerprint import hashed, images_in
from visrep.evaluation.sheet_pictures import move_pictures, save_pictures
from visrep.evaluation.versions import outdated, version_in, version_of

SIDES = ("train", "test")
ALIKE = ("encoder", "image", "seed", "versions")
"""parts of the fingerprint that numbers on one sheet share, beside the images of both sides"""


def save_sheet(path: Path, evaluation: Evaluation) -> list[str]:
    """Write an evaluation, with what the file holds of other protocols, layers and poolings, if judged alike.

    A file of other images, weights, seed or versions is put beside it, as ``evaluation-<mark>.json``, and taken up
    again by the next evaluation that is like it. Numbers of protocols whose settings have changed since are put into
    ``evaluation-<mark>-outdated.json``. Pictures stay beside their numbers (`sheet_pictures`). Returns notes on these.
    """
    new, earlier = evaluation.to_json(), _earlier(path)
    notes = []
    if earlier and not _alike(earlier, new):
        save_json(_beside(path, earlier), earlier)
        move_pictures(path, _beside(path, earlier))
        notes = _unhashed(_beside(path, earlier), earlier)
        earlier = _earlier(_beside(path, new))
        move_pictures(_beside(path, new), path)
    notes += _put_aside(path, earlier)
    save_json(path, joined(earlier, new))
    _beside(path, new).unlink(missing_ok=True)
    save_pictures(path, evaluation.pictures)
    return notes


def joined(earlier: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The results of both, those of the new evaluation first where both have them; none of outdated versions."""
    if not earlier or not _alike(earlier, new):
        return new
    return _merged(_of(earlier, [result for result in earlier["results"] if not outdated(result)]), new)


def _unhashed(file: Path, sheet: dict[str, Any]) -> list[str]:
    """A note where nobody can say whether a sheet is of the same images."""
    if all(hashed(sheet["fingerprint"].get(side, {})) for side in SIDES):
        return []
    return [
        f"earlier numbers are in {file.name} now: they were made before images were hashed, so nobody can say whether "
        "they are of the same ones; judge those protocols again."
    ]


def _put_aside(path: Path, sheet: dict[str, Any]) -> list[str]:
    """Outdated results into a file of their own, and a note for each of their protocols."""
    old = [result for result in sheet.get("results", ()) if outdated(result)]
    if not old:
        return []
    file = _beside(path, sheet)
    file = file.with_stem(f"{file.stem}-outdated")
    earlier, aside = _earlier(file), _of(sheet, old)
    save_json(file, _merged(earlier, aside) if earlier else aside)
    move_pictures(path, file, {result["protocol"] for result in old})
    return [
        f"{name}: numbers of version {version} are in {file.name} now. Its settings have changed since (version "
        f"{version_of(name)}), so they do not stand beside new ones; judge it again for those."
        for name, version in dict.fromkeys((result["protocol"], version_in(result)) for result in old)
    ]


def _merged(earlier: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    again = {_about(result) for result in new["results"]}
    kept = [result for result in earlier["results"] if _about(result) not in again]
    return {
        **_of(new, [*kept, *new["results"]]),
        "made": [*_still_of(earlier.get("made", ()), kept), *new.get("made", ())],
        "warnings": list(dict.fromkeys([*(earlier["warnings"] if kept else ()), *new["warnings"]])),
    }


def _still_of(made: Iterable[dict[str, Any]], kept: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries with those of their protocols that some kept result is of; those without any are left out."""
    left = {result["protocol"] for result in kept}
    found = [{**one, "protocols": [name for name in one["protocols"] if name in left]} for one in made]
    return [one for one in found if one["protocols"]]


def _of(sheet: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """The sheet with these results."""
    versions = {result["protocol"]: version_in(result) for result in results}
    mark = {**sheet["fingerprint"], "protocols": dict(sorted(versions.items()))}
    return {**sheet, "results": results, "fingerprint": mark}


def _alike(earlier: dict[str, Any], new: dict[str, Any]) -> bool:
    return _shared(earlier) == _shared(new)


def _shared(sheet: dict[str, Any]) -> list[Any]:
    mark = sheet["fingerprint"]
    return [*(images_in(mark.get(side, {})) for side in SIDES), *(mark.get(part) for part in ALIKE)]


def _beside(path: Path, sheet: dict[str, Any]) -> Path:
    """Where a sheet waits that is not the latest, by what was judged."""
    mark = json.dumps(_shared(sheet), sort_keys=True).encode()
    return path.with_name(f"{path.stem}-{hashlib.sha256(mark).hexdigest()[:8]}{path.suffix}")


def _about(result: dict[str, Any]) -> tuple[Any, ...]:
    where = (result[name] for name in ("protocol", "encoder", "layer", "pooling"))
    return *where, version_in(result)


def _earlier(path: Path) -> dict[str, Any]:
    """What the file holds; empty when there is none, or when it is no evaluation."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if {"results", "fingerprint", "warnings"} <= set(content) else {}
