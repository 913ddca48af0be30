"""Pictures of what a masked method predicts when it predicts features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from visrep.functional import displayed, widen

FEATURES = (
    "Columns: the image; the patches that the encoder sees; the target features of all patches; these, with "
    "predictions in place of those of hidden patches. Colours are the first three principal components of the targets."
)
"""what `feature_pictures` draws"""


@torch.no_grad()
def feature_pictures(
    images: Float[Tensor, "b c h w"],
    hidden: Bool[Tensor, "b n"],
    target: Float[Tensor, "b n d"],
    prediction: Float[Tensor, "b n d"],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Float[Tensor, "b 4 c h w"]:
    """Columns: the image; its visible patches; the target; the target with predictions in the place of what is hidden.

    Features are shown by their first three principal components over all targets, as red, green and blue. ``mean`` and
    ``std`` are those the images were normalised with; patches form a square.
    """
    target, prediction = widen(target), widen(prediction)
    side = round(hidden.shape[1] ** 0.5)
    flat = target.flatten(0, 1)
    centred = flat - flat.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)  # d 3, the longest first
    shown = torch.where(hidden.unsqueeze(-1), prediction, target)
    colours = (torch.stack([target, shown], dim=1) - flat.mean(0)) @ axes  # b 2 n 3
    scale = 2 * (centred @ axes).std(0).clamp(min=1e-6)  # two deviations either way
    colours = (0.5 + 0.5 * colours / scale).clamp(0, 1).transpose(2, 3).unflatten(3, (side, side))
    h, w = images.shape[-2:]
    colours = F.interpolate(colours.flatten(0, 1), size=(h, w)).unflatten(0, (-1, 2))
    image = displayed(images, mean, std)
    visible = F.interpolate((~hidden).to(images).view(-1, 1, side, side), size=(h, w))
    return torch.stack([image, image * visible, *colours.to(images).unbind(1)], dim=1)
