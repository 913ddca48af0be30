"""What an order by a label-free measure was worth: among methods, and among settings and checkpoints of one."""

from __future__ import annotations

import json
from typing import Any

from visrep.analysis.measures.base import Measure
from visrep.catalogue import records_folder

WITHIN = "within methods"
"""in the name of a group of runs that are compared with others of their own method only"""


def measured_worth(measure: Measure) -> list[str]:
    """A sentence for each set of runs on record: how the measure's order agreed with that of the linear probe.

    Sets are runs of different methods (``benchmarks/label_free.py`` writes the record) and one method in several
    settings with all its checkpoints (``benchmarks/selection.py``); a last sentence says where nothing of the second
    kind is on record. Empty where nothing is.
    """
    among, within = _among_methods(measure), _among_settings(measure)
    if among and not within and not any(WITHIN in sentence for sentence in among):
        among.append(
            "How well it chooses between runs or checkpoints of one method has not been measured here."
        )
    return among + within


def _among_methods(measure: Measure) -> list[str]:
    file = records_folder() / "label_free.json"
    groups = json.loads(file.read_text())["groups"] if file.is_file() else []
    found = [(group["name"], group["correlations"].get(measure.key)) for group in groups]
    return [
        f"On {row['n']} of our own runs ({name}) the order by {measure.title} agreed with that of the linear probe by "
        f"Spearman's correlation {row['spearman']:+.2f} (95 % interval {row['low']:+.2f} to {row['high']:+.2f})."
        for name, row in found
        if row
    ]


def _among_settings(measure: Measure) -> list[str]:
    said = []
    for record in selections():
        settings, checkpoints = (
            record["agreement"][kind].get(measure.key) for kind in ("settings", "checkpoints")
        )
        if settings and checkpoints:
            said.append(
                f"Among {len(record['settings'])} settings of {record['method']} ({record['data']}) its order agreed "
                f"by {settings['spearman']:+.2f}, and the one it chose was {settings['behind']:.1f} points behind the "
                f"best; among the checkpoints of a run by {checkpoints['spearman']:+.2f}, "
                f"{checkpoints['behind']:.1f} points behind, means over these runs."
            )
    return said


def selections() -> list[dict[str, Any]]:
    """The records of ``benchmarks/selection.py``: one method in several settings."""
    return [json.loads(file.read_text()) for file in sorted((records_folder() / "selection").glob("*.json"))]
