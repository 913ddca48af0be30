"""TokenCut (arXiv:2202.11539): where is an object? The smaller side of the best cut through the graph of patches.

Two patches are joined by 1 when the cosine of their features exceeds tau, else by eps. The second smallest solution of
(D - W) v = λ D v, with D the degrees, is the relaxed normalised cut; patches above its mean are one side. The object is
the side of the patch with the largest |v|, as far as it hangs together with that patch.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from scipy.linalg import eigh
from torch import Tensor

from visrep.evaluation.dense.boxes import connected_to
from visrep.evaluation.dense.lost import Found, check_grid

TAU, EPS = 0.2, 1e-5


def tokencut(
    features: Float[Tensor, "n d"], grid: tuple[int, int], *, tau: float = TAU, eps: float = EPS
) -> Found:
    """The most salient object of one image. Raises ValueError when features do not fit the grid."""
    check_grid(features, grid)
    vector = second_eigenvector(features, tau=tau, eps=eps)
    above = vector > vector.mean()
    seed = int(np.abs(vector).argmax())
    side = (above == above[seed]).reshape(grid)
    return Found(seed, connected_to(side, (seed // grid[1], seed % grid[1])))


def second_eigenvector(
    features: Float[Tensor, "n d"], *, tau: float = TAU, eps: float = EPS
) -> Float64[np.ndarray, " n"]:
    """v above, up to its sign, with vᵀ D v = 1."""
    x = F.normalize(features.double(), dim=-1)
    weights = torch.where(x @ x.T > tau, 1.0, eps).to(torch.float64).cpu().numpy()
    root = np.sqrt(weights.sum(1))
    # the largest of D^-1/2 W D^-1/2 are the smallest of the Laplacian, at the same eigenvectors
    n = len(root)
    _, vectors = eigh(weights / np.outer(root, root), subset_by_index=[n - 2, n - 2])
    return vectors[:, 0] / root
