"""Spectra of several layers in one drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from visrep.analysis.figures import COLOURS, NEUTRAL, _axes, _svg


def layer_spectra(spectra: Mapping[int, Sequence[float]]) -> str:
    """Share of the variance along each principal axis, strongest first, a line a layer, on logarithmic axes.

    Layers without any variance are left out.
    """
    shown = {layer: np.asarray(shares, float) for layer, shares in spectra.items() if len(shares)}
    with _axes(4.6, 2.6) as (figure, axes):
        for i, (layer, shares) in enumerate(shown.items()):
            index = np.arange(1, len(shares) + 1)
            some = shares > 1e-7
            axes.plot(
                index[some],
                shares[some],
                color=COLOURS[i % len(COLOURS)],
                linewidth=1.8,
                label=f"layer {layer}",
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("principal axis, strongest first")
        axes.set_ylabel("share of variance")
        axes.tick_params(which="minor", color=NEUTRAL)
        axes.grid(which="major")
        if len(shown) > 1:
            axes.legend()
        return _svg(figure, "share of variance along each principal axis, by layer")
