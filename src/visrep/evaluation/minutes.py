"""The minutes of an evaluation: what was judged so far, on disk too, so that a call that ends early loses nothing.

Each judgement (one protocol on one encoder) is a file in a folder beside the sheet until the sheet is written. The next
call finds those of the same encoder, images, seed, versions and options there, and judges only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visrep.evaluation.examples import Example
from visrep.evaluation.results import Inapplicable, Judged, Result
from visrep.evaluation.versions import version_of


@dataclass(frozen=True, eq=False)
class Judgement:
    """What one protocol says of one encoder."""

    results: list[Result]
    cautions: list[str]
    examples: list[Example] = field(default_factory=list)


class Journal:
    """Judgements in a folder, a file each; without a folder nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.taken = 0
        """judgements of an earlier call that were found"""
        self._mine: list[Path] = []

    @property
    def notes(self) -> list[str]:
        """On what was not judged again."""
        if not self.taken:
            return []
        return [f"{self.taken} judgements are of an earlier call that did not come to its end"]

    def find(self, key: str) -> Judgement | None:
        """One of this call or of an earlier one; None for a file that cannot be read, too."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}.npz"
        try:
            with np.load(path) as arrays:
                found = _from_arrays(dict(arrays))
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None
        self._mine.append(path)
        self.taken += 1
        return found

    def keep(self, key: str, judgement: Judgement) -> None:
        """So that a reader never sees half of it."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{key}.npz"
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **_to_arrays(judgement))
        part.replace(path)
        self._mine.append(path)

    def close(self) -> None:
        """The sheet is written: forget what it holds. What calls with other images or options left stays."""
        for path in self._mine:
            path.unlink(missing_ok=True)
        if self.folder is not None and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


@dataclass(frozen=True)
class Minutes:
    """Results and cautions of one evaluation, which grow with every judgement."""

    journal: Journal
    about: Mapping[str, Any]
    """JSON values on which all judgements depend: the fingerprint and the options"""
    results: list[Result] = field(default_factory=list)
    cautions: dict[str, list[str]] = field(default_factory=dict)
    """with those that they are about"""
    refused: dict[str, str] = field(default_factory=dict)
    """protocols that do not apply to the encoder or to its images, with the reason"""
    judged: set[str] = field(default_factory=set)
    """protocols with results of the trained encoder"""

    @property
    def unjudged(self) -> dict[str, str]:
        """Protocols that gave no number at all, with the reason."""
        return {name: reason for name, reason in self.refused.items() if name not in self.judged}

    def once(
        self, who: Judged, protocol: str, place: object, judge: Callable[[], Judgement]
    ) -> Judgement | None:
        """What an earlier call found, or what ``judge`` finds now; ``place``: of which layers, as JSON.

        None where the protocol does not apply, which a caution says. Baselines of such a protocol are not judged.
        """
        if who != "trained" and protocol in self.unjudged:
            return None
        about = json.dumps([self.about, who, protocol, version_of(protocol), place], sort_keys=True)
        key = hashlib.sha256(about.encode()).hexdigest()[:16]
        found = self.journal.find(key)
        if found is None:
            try:
                found = judge()
            except Inapplicable as reason:
                self.note(who, f"left out: {reason}")
                if who == "trained":
                    self.refused[protocol] = str(reason)
                return None
            self.journal.keep(key, found)
        if who == "trained":
            self.judged.add(protocol)
        self.results.extend(found.results)
        for caution in found.cautions:
            self.note(who, caution)
        return found

    def note(self, who: str, caution: str) -> None:
        """Once for each that it is about."""
        names = self.cautions.setdefault(caution, [])
        if who not in names:
            names.append(who)

    def warnings(self) -> list[str]:
        """Cautions with those that they are about."""
        return [f"{caution} ({', '.join(names)})" for caution, names in self.cautions.items()]


def _to_arrays(judgement: Judgement) -> dict[str, np.ndarray]:
    """Pictures as they are, everything else as one string of JSON."""
    arrays: dict[str, np.ndarray] = {}
    for number, example in enumerate(judgement.examples):
        arrays[f"{number}"] = example.found
        arrays |= {f"{number} {title}": picture for title, picture in example.known.items()}
    said = {
        "results": [asdict(result) for result in judgement.results],
        "cautions": judgement.cautions,
        "examples": [
            {"known": list(example.known), "legend": example.legend} for example in judgement.examples
        ],
    }
    return {**arrays, "said": np.array(json.dumps(said))}


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Judgement:
    said = json.loads(str(arrays["said"]))
    examples = [
        Example(
            {title: arrays[f"{number} {title}"] for title in one["known"]}, arrays[f"{number}"], one["legend"]
        )
        for number, one in enumerate(said["examples"])
    ]
    return Judgement([Result(**result) for result in said["results"]], said["cautions"], examples)
