"""The layers of any encoder, from below: which of its parameters belong to which block."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from visrep.method import Encoder


@dataclass(frozen=True)
class Layers:
    """Names within an encoder."""

    blocks: tuple[str, ...]
    """paths of its blocks or stages, from below"""
    below: tuple[str, ...]
    """parameters that come before the first: embedding, tokens, positions, stem"""
    above: tuple[str, ...]
    """parameters that come after the last: norms, a last convolution"""


def layers_of(encoder: Encoder) -> Layers:
    """The layers of an encoder. Raises ValueError for a network in which no stack of blocks can be told."""
    blocks = _blocks(encoder)
    names = [name for name, _ in encoder.named_parameters()]
    inside = [any(name.startswith(f"{path}.") for path in blocks) for name in names]
    first = inside.index(True)
    outside = [(i, name) for i, name in enumerate(names) if not inside[i]]
    return Layers(
        blocks=tuple(blocks),
        below=tuple(name for i, name in outside if i < first),
        above=tuple(name for i, name in outside if i > first),
    )


def children_of(encoder: Encoder) -> Layers:
    """The parts of an encoder in no order, where layers need not be told apart."""
    own = tuple(name for name, _ in encoder.named_parameters(recurse=False))
    return Layers(tuple(name for name, _ in encoder.named_children()), below=(), above=own)


def _blocks(encoder: Encoder) -> list[str]:
    """Our transformers' ``blocks``, torchvision's layer1, layer2, ..., or the outermost list of most parameters."""
    own = dict(encoder.named_children()).get("blocks")
    if own is not None:  # of whatever size: the position table of a small ViT may outweigh them
        return [f"blocks.{name}" for name, _ in own.named_children()]
    whole = _size(encoder)
    for path, module in encoder.named_modules():
        inside = f"{path}." if path else ""
        children = [name for name, _ in module.named_children()]
        stages = [name for name in children if re.fullmatch(r"layer\d", name)]
        if len(stages) > 1:
            return [inside + name for name in stages]
        stacked = isinstance(module, nn.ModuleList | nn.Sequential) and len(children) > 1
        if stacked and _size(module) > whole / 2:
            return [inside + name for name in children]
    raise ValueError(
        f"{type(encoder).__name__} has no stack of blocks that holds most of its weights, so that its layers cannot be "
        "told apart. Set adapt.layer_decay=1 and adapt.train_blocks=0."
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
