"""What moves, when and how fast in a run that begins with an encoder's weights: multipliers of the learning rate."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase

from visrep.config import Optim, Run
from visrep.continuing.init import carriers
from visrep.continuing.layers import Layers, children_of, layers_of
from visrep.continuing.lora import PARAMETRIZED, add_low_rank
from visrep.method import Encoder, Method
from visrep.schedules import Constant, Schedule, Step

Multipliers = tuple[tuple[str, Schedule], ...]


def adapt(method: Method, run: Run) -> Run:
    """Make the method's encoders learn as ``run.adapt`` says; the run with the multipliers that are part of it.

    The encoder's multipliers take the place of those that the preset has for it. Raises ValueError for more blocks
    than there are, and for an encoder whose layers cannot be told.
    """
    chosen = run.adapt
    ours: Multipliers = ()
    for name, encoder in carriers(method, run.method.encoder):
        apart = chosen.layer_decay < 1 or chosen.train_blocks > 0
        layers = layers_of(encoder) if apart else children_of(encoder)
        trained = last_blocks(layers, chosen.train_blocks)
        learns = any(p.requires_grad for p in encoder.parameters())
        if chosen.lora_rank:
            add_low_rank(encoder, chosen.lora_rank, trained, run.seed)
        elif chosen.train_blocks:
            keep_still(encoder, trained + layers.above)
        for token in chosen.fresh:
            encoder.get_parameter(token).requires_grad_(learns)
        if learns:
            ours += rates(run, f"{name}." if name else "", layers)
    return replace(run, optim=replace(run.optim, multipliers=joined(method, ours, run.optim)))


def last_blocks(layers: Layers, wanted: int) -> tuple[str, ...]:
    """The last so many blocks, all of them for 0. Raises ValueError when there are fewer."""
    if wanted > len(layers.blocks):
        raise ValueError(
            f"adapt.train_blocks={wanted}, and the encoder has {len(layers.blocks)}. Use at most as many, 0 for all."
        )
    return layers.blocks[-wanted:]


def keep_still(encoder: Encoder, parts: tuple[str, ...]) -> None:
    """Leave out of training what is not under one of ``parts``: no gradient, and no memory for it."""
    inside = tuple(f"{part}." for part in parts)
    for name, parameter in encoder.named_parameters():
        if not f"{name}.".startswith(inside):
            parameter.requires_grad_(False)


def rates(run: Run, prefix: str, layers: Layers) -> Multipliers:
    """Factors on the learning rate of the encoder under ``prefix``: still at first, then slower from layer to layer."""
    chosen, n = run.adapt, len(layers.blocks)
    freeze = min(chosen.freeze_epochs, run.epochs / 4)

    def after(factor: float) -> Schedule:
        return Step((0.0, factor), (freeze,)) if freeze else Constant(factor)

    factors = [chosen.lr_scale * chosen.layer_decay ** (n - i) for i in range(-1, n)]
    patterns = [(prefix + token, Constant(1.0)) for token in chosen.fresh]
    patterns += [(f"{prefix}*{PARAMETRIZED}*", after(1.0))]
    patterns += [
        (f"{prefix}{path}.*", after(factor)) for path, factor in zip(layers.blocks, factors[1:], strict=True)
    ]
    patterns += [(prefix + name, after(factors[0])) for name in layers.below if name not in chosen.fresh]
    patterns += [(prefix + name, after(chosen.lr_scale)) for name in layers.above]
    return tuple(patterns)


def joined(method: Method, ours: Multipliers, optim: Optim) -> Multipliers:
    """Ours before the preset's, without those that are left with no parameter.

    A pattern of the preset that never had one stays, so that a slip of the pen is still told.
    """
    names = [name for name, p in method.named_parameters() if p.requires_grad]
    every = (*ours, *optim.multipliers)
    first = {name: next((p for p, _ in every if fnmatchcase(name, p)), "") for name in names}
    matches = {pattern for pattern, _ in every if any(fnmatchcase(name, pattern) for name in names)}
    used = set(first.values())
    theirs = {pattern for pattern, _ in optim.multipliers}
    return tuple((p, s) for p, s in every if p in used or (p in theirs and p not in matches))
