"""How an evaluation was made: images, weights and versions that numbers must share to be compared, and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visrep.analysis.gallery import Inapplicable
from visrep.analysis.page import folded, note, table
from visrep.analysis.record import RunRecord
from visrep.analysis.report_names import protocol, title_of
from visrep.analysis.report_training import flat
from visrep.evaluation.versions import outdated, version_in, version_of

COMPARABLE = "Two numbers can be compared when images, versions and, of dense protocols, grids are the same."


def how_it_was_judged(record: RunRecord) -> str:
    """Of a run. Raises Inapplicable when it was not judged."""
    if not record.evaluation:
        raise Inapplicable("nothing was judged")
    return fingerprint(record.evaluation)


def fingerprint(evaluation: Mapping[str, Any]) -> str:
    """Of an evaluation as evaluation.json holds it, with a caution about each protocol that has changed since."""
    trained = [result for result in evaluation["results"] if result["encoder"] == "trained"]
    old = {result["protocol"]: version_in(result) for result in trained if outdated(result)}
    cautions = "".join(
        note(
            f"{title_of(name)} was judged with settings of version {version}; today's are of version "
            f"{version_of(name)}. Do not set it beside new numbers."
        )
        for name, version in old.items()
    )
    head = ("protocol", "version", "layer", "fitted on", "judged on", "settings")
    rows = [
        [
            protocol(result), str(version_in(result)), str(result["layer"]), f"{result['n_train']:,}",
            f"{result['n_test']:,}", ", ".join(f"{name} {value}" for name, value in result["settings"].items()),
        ]
        for result in trained
    ]  # fmt: skip
    what = table((), flat(evaluation["fingerprint"]))
    settings = folded(f"Settings of all {len(rows)} numbers", table(head, rows))
    return f'{cautions}<div class="facts">{what}{settings}</div>'
