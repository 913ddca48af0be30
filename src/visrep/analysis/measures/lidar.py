"""LiDAR: rank of what tells images apart, once what differs between views of one image counts as noise."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.measures.base import Measure


def lidar(views: Float[Tensor, "n q d"], delta: float = 1e-4, eps: float = 1e-8) -> float:
    """LiDAR (arXiv:2312.04000): exp of the entropy of the LDA eigenvalues of n images with q views each, 1 to d.

    Each image is a class and its views are the class's members. Between-class scatter from the means of images
    (divided by n - 1), within-class scatter from deviations from them (n (q - 1)) plus ``delta`` on the diagonal;
    eigenvalues of Sw^-1/2 Sb Sw^-1/2 divided by their sum, plus ``eps``.
    Views in the wrong rows do not fail, they give another number: 57 instead of 25 on the reference draw.
    Raises ValueError for fewer than two images or views, for values that are not finite, and where images do not
    differ at all.
    """
    n, q, d = views.shape
    if n < 2 or q < 2:
        raise ValueError(f"LiDAR needs at least 2 views of 2 images, got {q} of {n}.")
    views = views.detach().double()
    if not views.isfinite().all():
        raise ValueError("some views have NaN or infinite features: the encoder diverged, there is no LiDAR.")
    means = views.mean(1)
    between = means - means.mean(0)
    within = (views - means[:, None]).reshape(n * q, d)
    scatter = within.T @ within / (n * (q - 1)) + delta * torch.eye(d, dtype=views.dtype, device=views.device)
    # Sw^-1/2 Sb Sw^-1/2 has the squared singular values of the whitened means, without forming a product of them
    values, vectors = torch.linalg.eigh(scatter)
    whitened = between @ vectors / values.sqrt()
    eigenvalues = torch.linalg.svdvals(whitened).square()
    if not eigenvalues.sum() > 0:
        raise ValueError("all images have one vector: there is nothing to tell apart.")
    p = eigenvalues / eigenvalues.sum()
    p = torch.nn.functional.pad(p, (0, d - len(p))) + eps  # the eigenvalues that few images leave at zero
    return float((-p * p.log()).sum().exp())


LIDAR = Measure(
    name="lidar",
    title="LiDAR",
    variant="each image a class of its views; scatters with n - 1 and n (q - 1), delta 1e-4, eps 1e-8",
    compares="Was proposed to choose between runs and checkpoints of one method with the same images, views and layer "
    "(arXiv:2312.04000); it changes with the number of images, views and the strength of the views, and does not rank "
    "methods or widths.",
    better="higher",
    of=lidar,
    needs="views",
    over_width=True,
)
