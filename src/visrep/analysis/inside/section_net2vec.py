"""The part of an explanation on concepts that channels show together."""

from __future__ import annotations

from typing import Any

import numpy as np

from visrep.analysis.inside.concept_maps import LEAST, ConceptMaps
from visrep.analysis.inside.net2vec import Combination, combinations
from visrep.analysis.inside.subject import Inapplicable
from visrep.analysis.page import Section, table

LISTED = 12
"""concepts in the table"""


def net2vec_section(maps: ConceptMaps) -> tuple[Section, dict[str, Any]]:
    """A weighted sum of all channels for each concept, beside the best single channel, on images held out."""
    found = {
        who: combinations(activations, maps.masks, maps.names, maps.fitted, maps.held_out, least=LEAST)
        for who, activations in maps.each()
    }
    trained = sorted(found["trained"], key=lambda c: -c.combined)
    if not trained:
        raise Inapplicable(
            f"no concept is shown by {LEAST} images or more both among those to fit on and among those to judge on"
        )
    reading = (
        f"A concept may be spread over channels. For each, one weight a channel is learned on {len(maps.fitted)} "
        "images; the weighted sum of the channels' strongest half percent of activations shows the concept where it is "
        f"positive. Intersection over union on {len(maps.held_out)} other images, those that show the concept, beside "
        "that of the single channel that was best on the images to fit on, and of all pixels, whatever they show."
    )
    body = table(
        ("mean over concepts", "concepts", "combination", "best channel", "all pixels", "combination ahead"),
        [_row(who, each) for who, each in found.items()],
    )
    body += table(
        ("concept", "images", "combination", "best channel", "IoU of it", "all pixels"),
        [
            [
                c.name,
                str(c.judged_on),
                f"{c.combined:.3f}",
                str(c.channel),
                f"{c.single:.3f}",
                f"{c.everywhere:.3f}",
            ]
            for c in trained[:LISTED]
        ],
    )
    return Section("Concepts of combinations", reading, body), {
        who: {c.name: _numbers(c) for c in each} for who, each in found.items()
    }


def _row(who: str, found: list[Combination]) -> list[str]:
    means = np.mean([(c.combined, c.single, c.everywhere) for c in found], axis=0)
    ahead = sum(c.combined > c.single for c in found)
    return [who, str(len(found)), *(f"{mean:.3f}" for mean in means), f"{ahead} of {len(found)}"]


def _numbers(found: Combination) -> dict[str, float]:
    return {
        "combination": found.combined,
        "best channel": found.single,
        "channel": found.channel,
        "all pixels": found.everywhere,
        "images": found.judged_on,
    }
