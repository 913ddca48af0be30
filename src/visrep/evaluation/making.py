"""How numbers were made: an entry for each call that judged an encoder, as sheets and leaderboards hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from visrep.evaluation.evaluate import Evaluation
from visrep.evaluation.timing import CLOCK
from visrep.machine import described


def with_making(
    judge: Callable[[], Evaluation],
    encoder: str | Path,
    command: str | None,
    device: torch.device | str,
) -> Evaluation:
    """What ``judge`` finds, and how it was made (see `made_by`)."""
    with CLOCK.measuring() as seconds:
        found = judge()
    protocols = (result.protocol for result in found.results)
    return replace(found, made=[made_by(protocols, encoder, command, device, seconds)])


def made_by(
    protocols: Iterable[str],
    encoder: str | Path,
    command: str | None,
    device: torch.device | str,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """How numbers of these protocols were made, as JSON values: ``encoder`` and ``command`` as they were given.

    ``seconds`` are of the encoder, and of its untrained twin and raw pixels where they were judged with it.
    """
    return {
        "encoder": str(encoder),
        "command": command,
        "protocols": list(dict.fromkeys(protocols)),
        "machine": described(torch.device(device)),
        "seconds": {name: round(spent, 2) for name, spent in seconds.items()},
    }
