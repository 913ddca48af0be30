"""Class-embedding view of a vision transformer's layers (arXiv:2310.18969): the last layer's probe, read early.

A linear probe of the last layer is applied to every token of every layer, each after the final norm. Identifiability
of the right class is 1 where its logit is the highest of the k, 0 where it is the lowest, and 0.5 by chance: how early,
and in which tokens, the class is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from visrep.analysis.inside.target import Head
from visrep.evaluation.features import evaluation_mode
from visrep.method import Encoder, Tokens

BATCH = 64


@dataclass(frozen=True, eq=False)
class Lens:
    """Layer by layer, the first to the last."""

    patches: Float[Tensor, "l n p"]
    """identifiability of each image's class in each of its patch tokens"""
    cls: Float[Tensor, "l n"] | None
    """and in its cls token, where there is one"""
    top_1: Float[Tensor, " l"]
    """share of images whose pooled tokens give the right class"""
    grid: tuple[int, int]


def identifiability(logits: Float[Tensor, "*n k"], label: Int64[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """1 minus the rank of the right class among k, from 0 to k - 1, as a share; equal logits count half."""
    right = logits.gather(-1, label.unsqueeze(-1))
    above, level = (logits > right).sum(-1), (logits == right).sum(-1) - 1
    return 1 - (above + 0.5 * level) / (logits.shape[-1] - 1)


@torch.no_grad()
def class_lens(
    encoder: Encoder, head: Head, images: Float[Tensor, "n c h w"], label: Int64[Tensor, " n"]
) -> Lens:
    """Identifiability in every layer; ``label`` counts the head's outputs.

    Raises ValueError for a head of one output, and for encoders whose layers differ in width, which share no space.
    """
    if len(head.names) < 2:
        raise ValueError("a class lens needs at least 2 classes. Give labelled images.")
    found: list[tuple[Tensor, Tensor | None, Tensor]] = []
    layers = tuple(range(1, encoder.depth + 1))
    grid = (0, 0)
    with evaluation_mode(encoder):
        for part, y in zip(images.split(BATCH), label.split(BATCH), strict=True):
            states = encoder(part, layers=layers).layers
            widths = {state.patches.shape[-1] for state in states}
            if widths != {len(head.weight)}:
                raise ValueError(
                    f"the layers of this encoder are {sorted(widths)} wide: a probe of the last one cannot read the "
                    "others. A class lens needs a vision transformer."
                )
            rows, columns = states[-1].grid[-2:]
            grid = rows, columns
            found.append(_read(states, head, y))
    patches, cls, right = zip(*found, strict=True)
    return Lens(
        torch.cat(patches, dim=1),
        torch.cat([part for part in cls if part is not None], dim=1) if cls[0] is not None else None,
        torch.cat(right, dim=1).double().mean(1),
        grid,
    )


def _read(states: tuple[Tokens, ...], head: Head, label: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    patches = torch.stack([head.logits(state.patches) for state in states])  # l n p k
    pooled = torch.stack([head.logits(state.pool(head.pooling)) for state in states])
    in_patches = identifiability(patches, label[None, :, None].expand(patches.shape[:-1]))
    first = [head.logits(state.cls) for state in states if state.cls is not None]
    in_cls = identifiability(torch.stack(first), label.expand(len(first), -1)) if first else None
    return in_patches, in_cls, pooled.argmax(-1) == label
