"""What an order by a label-free measure was worth on the runs behind docs/results.md."""

from __future__ import annotations

import json

from visrep.analysis.measures.base import Measure
from visrep.catalogue import records_folder

WITHIN = "within methods"
"""in the name of a group of runs that are compared with others of their own method only"""


def measured_worth(measure: Measure) -> list[str]:
    """A sentence for each set of runs on record: how the measure's order agreed with that of the linear probe.

    And that they were runs of different methods, where the record has no group of runs within methods. Empty where
    nothing is on record. `benchmarks/label_free.py` writes the record.
    """
    file = records_folder() / "label_free.json"
    if not file.is_file():
        return []
    said, groups = [], json.loads(file.read_text())["groups"]
    for group in groups:
        found = group["correlations"].get(measure.key)
        if found:
            said.append(
                f"On {found['n']} of our own runs ({group['name']}) the order by {measure.title} agreed with that of "
                f"the linear probe by Spearman's correlation {found['spearman']:+.2f} (95 % interval "
                f"{found['low']:+.2f} to {found['high']:+.2f})."
            )
    if said and not any(WITHIN in group["name"] for group in groups):
        said.append(
            "How well it chooses between runs or checkpoints of one method has not been measured here."
        )
    return said
