"""The number whose causes are looked for: a linear probe's logit, or, without labels, likeness to the image itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from visrep.evaluation.linear import fit, linear, standardise
from visrep.method import Encoder, Pooling


@dataclass(frozen=True, eq=False)
class Head:
    """A linear function of pooled features."""

    weight: Float[Tensor, "d k"]
    bias: Float[Tensor, " k"]
    pooling: Pooling
    """what the features are pooled by: cls or mean"""
    names: tuple[str, ...]
    """of the k outputs"""

    def logits(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        return x @ self.weight.to(x) + self.bias.to(x)

    def of(self, encoder: Encoder, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """The outputs for images, with gradient where there is one."""
        return self.logits(encoder(images).pool(self.pooling))


def probe_head(
    vectors: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    names: tuple[str, ...],
    pooling: Pooling,
    *,
    seed: int,
) -> Head:
    """The protocol `linear`'s probe of all these vectors, standardisation folded into its weights.

    ``names`` are those of the labels, by number. Raises ValueError for a single class.
    """
    classes, targets = labels.unique(return_inverse=True)
    (prediction,) = linear(vectors, labels, vectors[:1], seed=seed)
    x, _ = standardise(vectors, vectors[:1])
    probe = fit(x, targets, len(classes), float(prediction.settings["C"]))
    # x W + b of standardised x is (v - mean) * scale W + b
    mean, std = vectors.mean(0), vectors.std(0, correction=0)
    varies = x.std(0, correction=0) > 0
    weight = torch.where(varies, 1 / std, 0)[:, None] * probe.weight
    bias = probe.bias - mean @ weight
    return Head(weight, bias, pooling, tuple(names[int(label)] for label in classes))


def own_direction(vector: Float[Tensor, " d"], pooling: Pooling) -> Head:
    """One output: how far an image's features go in the direction of ``vector``; of its own, their length."""
    direction = F.normalize(vector, dim=0)[:, None]
    return Head(direction, direction.new_zeros(1), pooling, ("its own features",))
