"""What the layers of a white-box encoder do to tokens: how far they compress them, how sparse they make them.

CRATE's blocks are steps that reduce, in turn, the coding rate of tokens within subspaces and the number of their
coordinates that are not zero; ToST's reduce a bound on that rate. All can be watched, layer by layer, on any images.
Falling curves mean that layers do what they are derived from, not that features are good: compare with the same
network untrained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from visrep.encoders.crate import ISTA, SubspaceAttention, subspace_rate
from visrep.encoders.crate_alpha import OvercompleteISTA
from visrep.encoders.tost import TokenStatistics, membership_rate, variational_rate
from visrep.method import Encoder

BATCH = 32


@dataclass(frozen=True)
class LayerCurves:
    """Numbers of each layer for each image."""

    rate: Float[np.ndarray, "l n"]
    """in nats: R^c of the tokens that enter MSSA (`subspace_rate`), or of those that enter TSSA (`membership_rate`)"""
    nonzero: Float[np.ndarray, "_ n"]
    """share of the numbers that ISTA gives that are not zero; no rows for encoders without ISTA"""
    bound: Float[np.ndarray, "_ n"]
    """in nats: the bound on the rate that TSSA steps down (`variational_rate`); no rows for encoders without TSSA"""


@torch.inference_mode()
def layer_curves(encoder: Encoder, images: Float[Tensor, "n *t c h w"]) -> LayerCurves:
    """Coding rate and sparsity of every layer, for images as the encoder expects them.

    Computed in the encoder's precision but for the rates, which need float64: log det of nearly singular matrices.
    Raises ValueError for encoders that have neither MSSA nor TSSA.
    """
    if not is_whitebox(encoder):
        raise ValueError(
            f"{type(encoder.config).__name__} is no white-box encoder: it has no subspaces to measure a rate in. "
            "Use CRATE, CRATEAlpha, ToST, or AoT with attention='mssa'."
        )
    parts = []
    for part in images.split(BATCH):
        with _watched(encoder) as found:
            encoder(part)
        parts.append([_stacked(layers, len(part)) for layers in found])
    rate, nonzero, bound = (np.concatenate(of_parts, axis=1) for of_parts in zip(*parts, strict=True))
    return LayerCurves(rate, nonzero, bound)


def is_whitebox(encoder: Encoder) -> bool:
    """Whether it has layers that `layer_curves` can measure."""
    return any(isinstance(module, SubspaceAttention | TokenStatistics) for module in encoder.modules())


@contextmanager
def _watched(encoder: Encoder) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
    """Rates, shares that are not zero and bounds, "n" a layer, which fill while the encoder runs."""
    rate: list[Tensor] = []
    nonzero: list[Tensor] = []
    bound: list[Tensor] = []
    hooks = []
    for module in encoder.modules():
        if isinstance(module, SubspaceAttention):
            hooks.append(module.register_forward_pre_hook(_filling(rate, _rate)))
        elif isinstance(module, TokenStatistics):
            hooks.append(module.register_forward_pre_hook(_filling_both(rate, bound)))
        elif isinstance(module, OvercompleteISTA):
            hooks.append(module.register_forward_pre_hook(_filling(nonzero, _codes)))
        elif isinstance(module, ISTA):
            hooks.append(module.register_forward_hook(lambda _, __, out: nonzero.append(_share(out))))
    try:
        yield rate, nonzero, bound
    finally:
        for hook in hooks:
            hook.remove()


def _filling(
    into: list[Tensor], measure: Callable[[nn.Module, Tensor], Tensor]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that measures what enters a module."""

    def hook(module: nn.Module, entering: tuple[Any, ...]) -> None:
        into.append(measure(module, entering[0]))

    return hook


def _rate(module: nn.Module, x: Float[Tensor, "n m d"]) -> Float[Tensor, " n"]:
    assert isinstance(module, SubspaceAttention)
    return subspace_rate(module.coordinates(x).double())


def _filling_both(rate: list[Tensor], bound: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that measures the rate and its bound of what enters TSSA, from one pass of coordinates."""

    def hook(module: nn.Module, entering: tuple[Any, ...]) -> None:
        assert isinstance(module, TokenStatistics)
        u = module.coordinates(entering[0])
        of_subspaces = u.double(), module.membership(u).double()
        rate.append(membership_rate(*of_subspaces))
        bound.append(variational_rate(*of_subspaces))

    return hook


def _codes(module: nn.Module, y: Float[Tensor, "n m d"]) -> Float[Tensor, " n"]:
    assert isinstance(module, OvercompleteISTA)
    return _share(module.codes(y))


def _share(codes: Float[Tensor, "n m k"]) -> Float[Tensor, " n"]:
    return (codes != 0).flatten(1).double().mean(1)


def _stacked(layers: list[Tensor], n: int) -> Float[np.ndarray, "_ n"]:
    return torch.stack(layers).cpu().numpy() if layers else np.empty((0, n))
