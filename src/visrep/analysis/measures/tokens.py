"""Patch-token entropy: how much the patches of one image differ from each other."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from visrep.analysis.measures.base import Measure


def token_entropy(tokens: Float[Tensor, "t p d"]) -> float:
    """Entropy of the spectrum of each image's token Gram matrix over log min(p, d), mean over images: 0 to 1.

    Tokens of length 1, uncentred; the p x p Gram matrix divided by p has trace 1 and its eigenvalues are the
    probabilities (matrix-based entropy; "prompt entropy" in arXiv:2502.02013). 0 when all patches of an image have
    one direction, 1 when they share nothing.
    Raises ValueError for a single token an image or values that are not finite.
    """
    _, p, d = tokens.shape
    if min(p, d) < 2:
        raise ValueError(f"{p} tokens of width {d} have no spectrum to speak of.")
    tokens = tokens.detach().double()
    if not tokens.isfinite().all():
        raise ValueError("some tokens are NaN or infinite: the encoder diverged.")
    unit = F.normalize(tokens, dim=-1) / math.sqrt(p)
    shares = torch.linalg.svdvals(unit).square()
    return float(torch.special.entr(shares).sum(-1).mean() / math.log(min(p, d)))


TOKEN_ENTROPY = Measure(
    name="token-entropy",
    title="patch-token entropy",
    variant="matrix-based entropy of the Gram matrix of unit tokens, uncentred, over log min(p, d), mean of images",
    compares="Compares layers of one encoder, and encoders with the same number of patches, on the same images; "
    "low can be a collapse of patches or an image of one thing.",
    better="",
    of=token_entropy,
    needs="tokens",
    least=8,
)
