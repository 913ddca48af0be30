"""Which version of their settings protocols are in: numbers of different versions are not put beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERSIONS = {
    "attentive": 2,  # batches shrink for few images
    "depth": 2,  # AdamW's betas are the published ones
    "shifts": 2,  # curves are of 200 images and no longer of 500
    "finetune:": 2,  # with few labels: settings are chosen on the first draw, and not on each
    # RandAugment and random erasing in place of changes of colour; the last norm after the mean; positions are trained
    "finetune-mae": 2,
    "finetune-mae:": 2,
    "finetune-mae-large": 2,
    "finetune-mae-large:": 2,
}
"""protocols whose settings were changed so that their numbers change; a colon stands for those with few labels"""


def version_of(protocol: str) -> int:
    """Of the settings that a protocol has today: 1 as long as they were never changed."""
    name, few, _ = protocol.partition(":")
    return VERSIONS.get(f"{name}{few}", 1)


def version_in(result: Mapping[str, Any]) -> int:
    """Of the settings that a result in a file was made with; the oldest files do not say, and are version 1."""
    return result.get("version", 1)


def outdated(result: Mapping[str, Any]) -> bool:
    """Whether a result in a file is of another version of its protocol than today's."""
    return version_in(result) != version_of(result["protocol"])
