"""The part of a report on a white-box encoder: what each of its layers does, beside the same network untrained."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from visrep.analysis.figures import Line, curves
from visrep.analysis.gallery import Gallery, Inapplicable
from visrep.analysis.page import figure, grid, note
from visrep.analysis.whitebox import is_whitebox, layer_curves
from visrep.evaluation.untrained import untrained_twin

IMAGES = 64
"""measured, at most"""


def whitebox_section(gallery: Gallery) -> str:
    """Coding rate and sparsity, layer by layer. Raises Inapplicable for other encoders."""
    if not is_whitebox(gallery.encoder):
        raise Inapplicable("only white-box encoders have layers that minimise something known")
    chosen = gallery.examples(IMAGES)
    images = gallery.inputs(chosen)
    twin = untrained_twin(gallery.encoder, gallery.canvases, gallery.canvases.usable, seed=0, device="cpu")
    trained, untrained = layer_curves(gallery.encoder, images), layer_curves(twin, images)
    parts = [_panel(trained.rate, untrained.rate, "Coding rate: nats an image, in subspaces")]
    said = f"Means of {len(chosen)} images, bands are one deviation. Coding rate {_change(trained.rate)}"
    if len(trained.nonzero):
        parts.append(_panel(trained.nonzero, untrained.nonzero, "Sparsity: share of codes that are not zero"))
        said += f"; not zero {_change(trained.nonzero)}"
    if len(trained.bound):
        parts.append(_panel(trained.bound, untrained.bound, "The bound on it that layers step down: nats"))
        said += f"; bound {_change(trained.bound)}"
    return grid(parts, kind="halves") + note(f"{said}.")


def layer_plot(trained: Float[np.ndarray, "l n"], untrained: Float[np.ndarray, "l n"]) -> str:
    """Means over images, with their deviation as a band, over layers."""
    layers = range(1, 1 + len(trained))
    lines = [
        Line([*layers], values.mean(1).tolist(), label, values.std(1).tolist())
        for values, label in ((trained, "trained"), (untrained, "untrained"))
    ]
    return curves(lines, x_label="layer")


def _panel(trained: np.ndarray, untrained: np.ndarray, title: str) -> str:
    return figure(layer_plot(trained, untrained), title)


def _change(values: Float[np.ndarray, "l n"]) -> str:
    """From the first layer to the last, in words, and how often it falls between."""
    means = values.mean(1)
    falls = int((np.diff(means) < 0).sum())
    ends = f"{means[0]:.3g} in the first layer, {means[-1]:.3g} in the last"
    return f"{ends} (falls in {falls} of {len(means) - 1} steps)"
