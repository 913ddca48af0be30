"""The untrained twin and raw pixels, judged once for all runs that share them.

Both depend on the architecture, the seed and the images, not on the method: runs in one folder that agree on these
get one set of numbers, copied with the name of the run in which they were measured. What two runs must agree on is
known before anything is judged, so the trained encoder is judged once either way.
"""

from __future__ import annotations

import json
from pathlib import Path

import visrep
from visrep.data import Source
from visrep.evaluation.dense.opening import open_for
from visrep.evaluation.fingerprint import fingerprint, images_in
from visrep.evaluation.sheet import SIDES
from visrep.evaluation.sides import labelled_sides
from visrep.evaluation.versions import version_of

SHARED = ("image", "protocols", "seed", "versions")
"""what two fingerprints agree on, beside the images, when their baselines are the same numbers"""


def mark_of(folder: Path, train: Source, test: Source | None, protocols: tuple[str, ...], seed: int) -> dict:
    """The fingerprint that an evaluation of this run will have, before it is made."""
    sides = labelled_sides(*open_for(protocols, train, test), seed=seed)
    made = fingerprint(visrep.load_encoder(folder), *sides, [], seed=seed)
    return {**made, "protocols": {protocol: version_of(protocol) for protocol in sorted({*protocols})}}


def known_baselines(folder: Path, mark: dict) -> tuple[Path, list[dict]] | None:
    """Results of the twin and of pixels from another run beside this one, with its folder; or None.

    ``mark``: what `mark_of` gives for this run. The other must have the same encoder and preprocessing.
    """
    encoder = json.loads((folder / "encoder.json").read_text())
    for other in sorted(folder.parent.iterdir()):
        judged = other / "evaluation.json"
        if other == folder or not judged.exists():
            continue
        found = json.loads(judged.read_text())
        theirs = found["fingerprint"]
        if isinstance(theirs["protocols"], list):  # from before protocols had versions: all were the first
            theirs = {**theirs, "protocols": dict.fromkeys(theirs["protocols"], 1)}
        if any(images_in(theirs[side]) != images_in(mark[side]) for side in SIDES):
            continue
        if any(theirs[name] != mark[name] for name in SHARED):
            continue
        about = json.loads((other / "encoder.json").read_text())
        if any(about[name] != encoder[name] for name in ("config", "preprocessing")):
            continue
        results = [result for result in found["results"] if result["encoder"] != "trained"]
        if {result["encoder"] for result in results} >= {"untrained"}:
            return other, results
    return None
