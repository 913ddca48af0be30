"""Any layer and pooling, put together from one pass: cls and mean of single layers are all that is ever extracted."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.evaluation.features import Parts

LAST = 4
"""layers that some protocols put beside each other"""
LAST_4 = "last-4"
"""the cls tokens (mean patches where there are none) of the last four layers beside each other, as DINO with ViT-S"""
POOLINGS = ("auto", "cls", "mean", "cls+mean", LAST_4)


def check_poolings(poolings: tuple[str, ...]) -> None:
    """Raises ValueError, with the poolings there are, for another one."""
    if unknown := [how for how in poolings if how not in POOLINGS]:
        raise ValueError(f"there is no pooling {unknown[0]!r}. Use one of: {', '.join(POOLINGS)}.")


def last_layers(depth: int, number: int = LAST) -> tuple[int, ...]:
    """So many last ones, or all where there are fewer; 1 is the first."""
    return tuple(range(max(1, depth - number + 1), depth + 1))


def assemble(parts: Parts, layers: tuple[int, ...], poolings: tuple[str, ...], depth: int) -> Parts:
    """Vectors by (layer, pooling), the last layer first; "auto" is named by what it stands for.

    ``parts`` holds mean and, where there is one, cls of all these layers. ``last-4`` is of the last layer only.
    Raises ValueError when a cls token is asked for and there is none.
    """
    check_poolings(poolings)
    has_cls = (depth, "cls") in parts
    vectors: Parts = {}
    for layer in (depth, *(other for other in sorted(set(layers)) if other != depth)):
        for how in poolings:
            if how in ("cls", "cls+mean") and not has_cls:
                raise ValueError(
                    f"pooling={how!r} needs a cls token and this encoder has none. Use pooling='mean'."
                )
            if how == LAST_4:
                if layer == depth:
                    vectors[layer, how] = beside(parts, depth, LAST, mean=False)
            elif how == "cls+mean":
                vectors[layer, how] = torch.cat([parts[layer, "cls"], parts[layer, "mean"]], dim=-1)
            else:
                named = how if how != "auto" else "cls" if has_cls else "mean"
                vectors[layer, named] = parts[layer, named]
    return vectors


def beside(parts: Parts, depth: int, layers: int, *, mean: bool) -> Float[Tensor, "n d"]:
    """The cls tokens of so many last layers beside each other, with the mean patch of the last one where asked for.

    An encoder without a cls token gives mean patches instead, and that of the last layer once.
    """
    how = "cls" if (depth, "cls") in parts else "mean"
    chosen = [parts[layer, how] for layer in last_layers(depth)[-layers:]]
    if mean and how == "cls":
        chosen.append(parts[depth, "mean"])
    return torch.cat(chosen, dim=-1)
