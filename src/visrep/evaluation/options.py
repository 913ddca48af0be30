"""Options of `evaluate` that only some protocols read: refused where none of them does, named where others do not."""

from __future__ import annotations

from collections.abc import Sequence

from visrep.evaluation.dense.protocols import DENSE, OWN_SHAPE
from visrep.evaluation.protocols import COPIES, ORDER, reads_tokens, reads_vectors
from visrep.evaluation.robustness.registry import EVERY_LAYER, ROBUST


def check_read(
    protocols: Sequence[str], *, layers: bool, poolings: bool, size: bool, pyramid: bool
) -> list[str]:
    """Notes on protocols that do not read what was asked for; the flags say which options were given.

    Raises ValueError, with protocols that read it, for an option that none of ``protocols`` reads.
    """
    notes: list[str] = []
    for option, given, reads in (
        ("layers", layers, reads_layers),
        ("poolings", poolings, reads_poolings),
        ("size", size, reads_size),
        ("read_out='pyramid'", pyramid, is_dense),
    ):
        if not given:
            continue
        others = [name for name in protocols if not reads(name)]
        if len(others) == len(protocols):
            raise ValueError(
                f"{option} was asked for, and {', '.join(protocols)} would ignore it. Leave it out, or add a protocol "
                f"that reads it: {', '.join(filter(reads, ORDER))}."
            )
        if option == "size":
            others = [name for name in others if is_dense(name)]
        if others and option in ("layers", "poolings", "size"):
            notes.append(f"{option} is not read by: {', '.join(others)}.")
    return notes


def reads_layers(name: str) -> bool:
    """Whether a protocol judges each of the layers that are asked for."""
    return reads_tokens(name) or reads_poolings(name) or (is_dense(name) and DENSE[name].reads == "tokens")


def reads_poolings(name: str) -> bool:
    """Whether a protocol judges each of the poolings that are asked for."""
    return reads_vectors(name) or name == COPIES or (name in ROBUST and name not in EVERY_LAYER)


def reads_size(name: str) -> bool:
    """Whether a protocol shows images of the side that is asked for."""
    return is_dense(name) and name not in OWN_SHAPE


def is_dense(name: str) -> bool:
    """Whether a protocol sees squares, of patches or maps."""
    return name in DENSE
