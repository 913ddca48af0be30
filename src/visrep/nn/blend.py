"""Targets from several layers of a teacher at once, as in data2vec (arXiv:2202.03555)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.functional import widen
from visrep.method import Encoder


@torch.no_grad()
def blended(teacher: Encoder, images: Tensor, k: int) -> Float[Tensor, "b n d"]:
    """Patches of the last layer; of ``k`` > 1 last ones the mean, after each is normalised over the image's patches.

    That takes out what all patches of an image share, which random and half-trained layers are full of: a task too
    easy to teach anything. Lower layers stay near the pixels and keep their spread while the upper ones still change.
    """
    if k == 1:
        return widen(teacher(images).patches)
    layers = teacher(images, layers=tuple(range(teacher.depth - k + 1, teacher.depth + 1))).layers
    with torch.autocast(images.device.type, enabled=False):
        return torch.stack([F.instance_norm(widen(layer.patches).mT).mT for layer in layers]).mean(0)
