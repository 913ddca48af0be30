"""Sheets of `visrep evaluate` in a comparison: not judged again, and beside others only where both are alike."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from visrep.evaluation.evaluate import Evaluation
from visrep.evaluation.fingerprint import hashed, images_in
from visrep.evaluation.protocols import ALL
from visrep.evaluation.results import Result

BY_PROTOCOL = ("tokens", "pyramid", "layers")
"""poolings that belong to a protocol; the others are an encoder's own choice"""


def read_sheet(path: Path) -> Evaluation:
    """Raises ValueError for a file that is no sheet."""
    try:
        content = json.loads(path.read_text())
        results = [Result(**result) for result in content["results"]]
        return Evaluation(
            results,
            content["split"],
            content["fingerprint"],
            content["warnings"],
            made=content.get("made", []),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no sheet of results ({type(error).__name__}: {error}). Give the evaluation.json of a run "
            "folder, or the file that `visrep evaluate ENCODER --data FOLDER --out FILE.json` wrote."
        ) from error


def comparable(
    judged: Mapping[str, Evaluation], sheets: Mapping[str, Evaluation], protocols: tuple[str, ...]
) -> tuple[dict[str, Evaluation], list[str]]:
    """What of ``sheets`` may stand beside ``judged``, with these, and what may not, with the reason.

    The same images on both sides (those of the first of all), the same version of a protocol (that of ``judged``, else
    the newest), the same way of reading tokens and grid of patches; of each encoder the last layer and the first
    pooling.
    Raises ValueError, with the reasons, when fewer than two are left.
    """
    first, reference = next(iter({**judged, **sheets}.items()))
    of_images: dict[str, Evaluation] = {}
    notes: list[str] = []
    unhashed: list[str] = []
    for name, sheet in sheets.items():
        if others := _other_images(sheet, first, reference):
            notes.append(f"{name} is not compared: {others}.")
            continue
        if not hashed(sheet.fingerprint["test"]):
            unhashed.append(name)
        wanted = [r for r in sheet.results if ALL in protocols or r.protocol in protocols]
        wanted, said = _one_each(name, wanted)
        of_images[name] = replace(sheet, results=wanted)
        notes += said
    if unhashed:
        notes.append(
            f"{', '.join(unhashed)}: made before images were hashed. Names and labels of the images are known to be "
            "the same, and the images themselves are not."
        )
    ways = {**_ways(of_images), **_ways(judged)}
    found = dict(judged)
    for name, sheet in of_images.items():
        kept = [result for result in sheet.results if _way(result) == ways[result.protocol]]
        left_out = dict.fromkeys((r.protocol, _way(r)) for r in sheet.results if _way(r) != ways[r.protocol])
        notes += [
            f"{name}: {protocol} is not compared: it is {_said(*way)}, and others are {_said(*ways[protocol])}."
            for protocol, way in left_out
        ]
        if any(result.encoder == "trained" for result in kept):
            found[name] = replace(sheet, results=kept)
        else:
            notes.append(f"{name} is not compared: it holds no such number of {', '.join(protocols)}.")
    if len(found) < 2:
        raise ValueError(" ".join(["nothing is left to compare.", *notes]))
    return found, notes


def _other_images(sheet: Evaluation, first: str, reference: Evaluation) -> str:
    """In what the images differ, in words; "" when they do not."""
    for side, said in (("train", "fitted"), ("test", "judged")):
        mine, theirs = sheet.fingerprint[side], reference.fingerprint[side]
        if hashed(mine) != hashed(theirs):
            old = first if hashed(mine) else "it"
            return f"{old} was made before images were hashed, so nobody can say whether both are of the same ones"
        if images_in(mine) != images_in(theirs):
            return (
                f"it was {said} on other images ({mine['images']} of {mine['name']}) than {first} "
                f"({theirs['images']} of {theirs['name']})"
            )
    return ""


def _one_each(name: str, results: list[Result]) -> tuple[list[Result], list[str]]:
    """The results of the last layer and of the first pooling in the file, and a note where there are more poolings."""
    last = max((result.layer for result in results), default=0)
    results = [result for result in results if result.layer == last or result.encoder == "pixels"]
    poolings: dict[tuple[str, str], list[str]] = {}
    for result in results:
        mine = poolings.setdefault((result.protocol, result.encoder), [])
        if result.pooling not in mine:
            mine.append(result.pooling)
    notes = [
        f"{name}: {of[0]} stands for its poolings ({', '.join(of)})."
        for (_, encoder), of in poolings.items()
        if len(of) > 1 and encoder == "trained"
    ]
    kept = [r for r in results if r.pooling == poolings[r.protocol, r.encoder][0]]
    return kept, list(dict.fromkeys(notes))


def other_grids(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """A note for each protocol whose numbers are of several grids of patches, which decide what they can be."""
    grids: dict[str, dict[str, str]] = {}
    for name, evaluation in evaluations.items():
        for result in evaluation.results:
            if result.encoder == "trained" and "grid" in result.settings:
                grids.setdefault(result.protocol, {})[name] = str(result.settings["grid"])
    return [
        f"{protocol}: numbers of different grids of patches do not compare "
        f"({', '.join(f'{name}: {grid}' for name, grid in of.items())}). --size of visrep evaluate sets the side."
        for protocol, of in grids.items()
        if len({*of.values()}) > 1
    ]


Way = tuple[int, str, str]
"""what numbers of one protocol share that stand beside each other: version, pooling, grid of patches"""


def _way(result: Result) -> Way:
    pooling = result.pooling if result.pooling in BY_PROTOCOL else ""
    return result.version, pooling, str(result.settings.get("grid", ""))


def _ways(evaluations: Mapping[str, Evaluation]) -> dict[str, Way]:
    """By protocol that of the newest version, and of these the first."""
    ways: dict[str, Way] = {}
    for result in (result for evaluation in evaluations.values() for result in evaluation.results):
        known = ways.get(result.protocol)
        if known is None or result.version > known[0]:
            ways[result.protocol] = _way(result)
    return ways


def _said(version: int, pooling: str, grid: str) -> str:
    read = f", read as {pooling}" if pooling else ""
    return f"of version {version}{read}" + (f", on {grid} patches" if grid else "")
