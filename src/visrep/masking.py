"""Which patches an encoder sees. Vectorised, on the device, from random numbers that the caller draws."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def random_split(
    noise: Float[Tensor, "b n"], mask_ratio: float
) -> tuple[Int[Tensor, "b m"], Int[Tensor, "b q"]]:
    """Indices of kept and of hidden patches, image by image: those with the smallest noise are kept.

    ``int(n * (1 - mask_ratio))`` patches are kept, as in the official MAE code.
    Raises ValueError when that leaves nothing to see or nothing to predict.
    """
    n = noise.shape[1]
    n_keep = int(n * (1 - mask_ratio))
    if not 0 < n_keep < n:
        kept = "keeps none" if n_keep < 1 else "hides none"
        raise ValueError(
            f"mask_ratio={mask_ratio} {kept} of the {n} patches. Choose method.mask_ratio between "
            f"{1 / n:.3g} and {1 - 1 / n:.3g}, or use a smaller patch."
        )
    order = noise.argsort(dim=1)
    return order[:, :n_keep], order[:, n_keep:]
