"""Maths that several methods share. Pure functions of tensors, at least 32 bits wide."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def widen(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Half-precision activations as float32, others unchanged: losses are not computed in 16 bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def patchify(images: Float[Tensor, "b c h w"], patch: int) -> Float[Tensor, "b n q"]:
    """Cut images into patches, row by row; each patch is flattened as (row, column, channel), as in MAE.

    Raises ValueError when the images do not divide into patches.
    """
    b, c, h, w = images.shape
    if h % patch or w % patch:
        raise ValueError(f"Images of {h}x{w} pixels do not divide into patches of {patch}x{patch} pixels.")
    cells = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def unpatchify(
    patches: Float[Tensor, "b n q"], patch: int, grid: tuple[int, ...]
) -> Float[Tensor, "b c h w"]:
    """Undo `patchify` for a grid of (rows, columns) patches."""
    rows, columns = grid
    cells = patches.reshape(len(patches), rows, columns, patch, patch, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, rows * patch, columns * patch)


REPAINTED = (
    "Columns: the image; the patches that the encoder sees; these, with predictions in place of hidden ones."
)
"""what `repainted` draws"""
CONTRAST = (
    " Where pixels are normalised patch by patch (norm_pixels), a prediction is drawn with its patch's true mean and "
    "contrast, which the model is not asked for."
)
"""what else to say of it for methods with ``norm_pixels``"""


def repainted(
    images: Float[Tensor, "b c h w"],
    prediction: Float[Tensor, "b n q"],
    hidden: Bool[Tensor, "b n"],
    patch: int,
) -> Float[Tensor, "b 3 c h w"]:
    """Columns of a picture: the image, its visible patches, these with predictions in place of the hidden ones."""
    patches, covered = patchify(images, patch), hidden.unsqueeze(-1)
    columns = [patches, patches.masked_fill(covered, 0.0), torch.where(covered, prediction, patches)]
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    return torch.stack([unpatchify(column, patch, grid) for column in columns], dim=1)


def displayed(
    images: Float[Tensor, "*any c h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "*any c h w"]:
    """Normalised images as numbers in [0, 1]."""
    centre, scale = (images.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (images * scale + centre).clamp(0, 1)


def without_gaps(
    images: Float[Tensor, "b c h w"], u: Float[Tensor, "b rows columns 2"], patch: int
) -> Float[Tensor, "b c _ _"]:
    """Of each cell of a grid one patch, put side by side. Where a patch begins in its cell, u in [0, 1) says.

    As in LatentMIM's official code, it never begins at the last place that it could. Wei et al. 2024, arXiv:2407.15837.
    """
    c, h, w = images.shape[1:]
    rows, columns = u.shape[1:3]
    free = u.new_tensor([h // rows - patch, w // columns - patch])
    down, across = (u * free).long().unsqueeze(-1).unbind(3)  # b rows columns 1
    inside = torch.arange(patch, device=u.device)
    y = h // rows * torch.arange(rows, device=u.device).view(-1, 1, 1) + down + inside  # b rows columns p
    x = w // columns * torch.arange(columns, device=u.device).view(-1, 1) + across + inside
    pixels = (y.unsqueeze(-1) * w + x.unsqueeze(-2)).transpose(2, 3)  # b rows p columns p
    taken = images.flatten(2).gather(2, pixels.flatten(1).unsqueeze(1).expand(-1, c, -1))
    return taken.unflatten(2, (rows * patch, columns * patch))


def patch_statistics(
    patches: Float[Tensor, "b n q"],
) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
    """Mean and deviation of the values of each patch, from the unbiased variance plus 1e-6, as in MAE."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def entropy(probabilities: Float[Tensor, "*any k"]) -> Float[Tensor, "*any"]:
    """Entropy over the last axis in nats; a probability of 0 contributes 0."""
    return torch.special.entr(probabilities).sum(-1)


def share_in_use(codes: Float[Tensor, "*any k"]) -> Float[Tensor, ""]:
    """Share of the k entries that are the largest one of some row, 1/k to 1; at most n/k of n rows."""
    largest = codes.argmax(-1).flatten()
    return codes.new_zeros(codes.shape[-1]).index_fill(0, largest, 1.0).mean()


def coding_rate(z: Float[Tensor, "*any m d"], eps: float) -> Float[Tensor, "*any"]:
    """Nats to code one of the m rows up to a squared error of eps: log det(I + d / (m eps) z' z) / 2.

    Large when the rows spread over many directions; not centred. Yu et al. 2020, arXiv:2006.08558, whose eps is
    the root of this one. Raises ValueError unless eps is positive.
    """
    if eps <= 0:
        raise ValueError(f"eps={eps} is not a squared error. Use a positive number, such as 0.5.")
    m, d = z.shape[-2:]
    gram = z @ z.mT if m < d else z.mT @ z  # both have one determinant: the smaller is cheaper
    identity = torch.eye(gram.shape[-1], dtype=z.dtype, device=z.device)
    # The determinant is the squared product of the factor's diagonal.
    factor = torch.linalg.cholesky_ex(identity + d / (m * eps) * gram).L
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def crop_similarity(
    s: Float[Tensor, "v b d"], t: Float[Tensor, "g b d"], w_local: float = 1.0
) -> Float[Tensor, ""]:
    """Mean dot product of each global crop in ``t`` with each other crop of its image in ``s``.

    The g crops of ``t`` are the first g of ``s``; products with the others, local ones, are multiplied by ``w_local``.
    """
    similarity = torch.einsum("gbd,vbd->gv", t, s) / s.shape[1]
    similarity = torch.cat([similarity[:, : len(t)], w_local * similarity[:, len(t) :]], dim=1)
    same = torch.eye(*similarity.shape, dtype=torch.bool, device=similarity.device)
    return similarity[~same].mean()


def off_diagonal(matrices: Float[Tensor, "*any d d"]) -> Float[Tensor, "*any d d"]:
    """Square matrices with zeros on the diagonal."""
    return matrices.masked_fill(torch.eye(matrices.shape[-1], dtype=torch.bool, device=matrices.device), 0.0)


@torch.no_grad()
def feature_std(features: Float[Tensor, "b d"]) -> Float[Tensor, ""]:
    """Deviation of L2-normalised features, mean over dimensions.

    0 when collapsed, 1 / sqrt(d) when spread evenly.
    Chen & He 2021, arXiv:2011.10566, section 4.1.
    """
    return F.normalize(widen(features), dim=-1).std(0, correction=0).mean()


def dino_loss(
    p: Float[Tensor, "g b k"], s: Float[Tensor, "v b k"], tau: float, w_local: float = 1.0
) -> Float[Tensor, ""]:
    """Cross-entropy of each teacher code with each other crop's prediction, mean over pairs and images.

    The g crops of ``p`` are the first g of ``s``; ``w_local`` multiplies what the others cost.
    Caron et al. 2021, arXiv:2104.14294.
    """
    return -crop_similarity((s / tau).log_softmax(-1), p, w_local)


def mean_over_hidden(x: Float[Tensor, " m"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, ""]:
    """Mean over the hidden patches of an image, then over images; an image without any counts 0.

    ``x`` has one number for each hidden patch of ``mask``, row by row.
    """
    weight = mask.to(x) / mask.sum(1, keepdim=True).clamp(min=1)  # b n
    return (weight[mask] * x).sum() / len(mask)


def masked_patch_loss(
    p: Float[Tensor, "m k"], s: Float[Tensor, "m k"], mask: Bool[Tensor, "b n"], tau: float
) -> Float[Tensor, ""]:
    """Cross-entropy of the teacher's codes of hidden patches, averaged by `mean_over_hidden`.

    Zhou et al. 2021, arXiv:2111.07832.
    """
    return mean_over_hidden(-(p * (s / tau).log_softmax(-1)).sum(-1), mask)


def koleo(x: Float[Tensor, "b d"], everyone: Float[Tensor, "m d"], first: int) -> Float[Tensor, ""]:
    """Minus the log distance of each row, at length 1, to its nearest neighbour: least when spread evenly.

    ``x`` is rows ``first`` and on of ``everyone``. The estimator of entropy of Kozachenko and Leonenko as in
    Sablayrolles et al. 2019, arXiv:1806.03198. Raises ValueError for a row without others.
    """
    if len(everyone) < 2:
        raise ValueError("KoLeo compares images and got one. Use a batch of at least 2 images.")
    x, everyone = (F.normalize(rows, dim=-1, eps=1e-8) for rows in (x, everyone))
    itself = torch.arange(first, first + len(x), device=x.device).unsqueeze(1)
    nearest = (x @ everyone.T).scatter(1, itself, -torch.inf).argmax(1)
    return -(F.pairwise_distance(x, everyone[nearest], eps=1e-8) + 1e-8).log().mean()
