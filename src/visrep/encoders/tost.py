"""ToST (arXiv:2412.17810): a vision transformer whose attention costs as much a token, however many there are.

    out_j = - concat_k  pi_kj  u_kj / (1 + m_k)         u_k = LN(x) U_k
    m_ki  = sum_j pi_kj u_kji^2 / sum_j pi_kj           second moments of subspace k, one a dimension i
    pi_kj = softmax over k of  t_k |v_kj|^2             v_k: u_k, each dimension divided by its norm over tokens

This is TSSA, token statistics self-attention: no token is compared with another, each sees moments of all. In a
dimension with little power tokens move towards 0, in one with much they stay: a step down the gradient of the coding
rate, `variational_rate`, hence the minus sign. The rest of the block is ViT's.

Verified against: the official TSSA and block, forward and gradient, 1e-9.
Deviations: the official network is XCiT's (convolutional stem, Fourier positions, two layers of class attention on
top); here TSSA is in a plain ViT, cls token and all, so that patches can be left out or masked. Drop path grows with
depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from visrep.encoders.vit import ViTLike
from visrep.functional import coding_rate, widen
from visrep.nn.transformer import Block, linear


@dataclass(frozen=True)
class ToST(ViTLike):
    """A ToST, by default the blocks of ToST-S/16.

    Raises ValueError for sizes that do not divide and for rotary positions.
    """

    has_attention: ClassVar[bool] = False

    heads: int = 8
    mlp_ratio: float = 4.0
    layer_scale: float = 1.0
    """first value of LayerScale, 0 for none; 1e-5 for 24 blocks"""
    bias: bool = True
    """of the subspaces' projection"""

    def __post_init__(self) -> None:
        if self.position == "rope":
            raise ValueError(
                "position='rope' turns queries and keys, and ToST has none. Use 'learned' or 'sincos'."
            )
        super().__post_init__()

    def block(self, drop_path: float) -> Block:
        return Block(
            self.width,
            self.heads,
            mlp_ratio=self.mlp_ratio,
            layer_scale=self.layer_scale,
            drop_path=drop_path,
            norm_eps=self.norm_eps,
            attention=TokenStatistics(self.width, self.heads, bias=self.bias),
        )


def second_moments(
    u: Float[Tensor, "b h n c"], membership: Float[Tensor, "b h n"]
) -> Float[Tensor, "b h 1 c"]:
    """Of each dimension of each subspace, over the tokens that belong to it."""
    return (_weights(membership) * u.square()).sum(-2, keepdim=True)


def _weights(membership: Float[Tensor, "b h n"]) -> Float[Tensor, "b h n 1"]:
    """What share of a subspace each token is."""
    return (membership / (membership.sum(-1, keepdim=True) + 1e-8)).unsqueeze(-1)


def variational_rate(u: Float[Tensor, "b h n c"], membership: Float[Tensor, "b h n"]) -> Float[Tensor, " b"]:
    """What TSSA reduces: a bound on the coding rate of an image's tokens in h subspaces.

    Each dimension of a subspace is coded by itself, and a subspace counts as many tokens as belong to it. TSSA is minus
    n times its gradient in ``u``, memberships held. Wu et al. 2024, arXiv:2412.17810, with f(x) = log(1 + x).
    """
    share = membership.mean(-1)  # b h
    return (share * second_moments(u, membership).log1p().sum((-1, -2))).sum(-1) / 2


def membership_rate(u: Float[Tensor, "b h n c"], membership: Float[Tensor, "b h n"]) -> Float[Tensor, " b"]:
    """What `variational_rate` bounds: nats to code an image's tokens in the subspaces to which they belong.

    Dimensions of a subspace are coded together, so that what one says of another is not paid for twice. Both are equal
    where dimensions are uncorrelated. Yu et al. 2020, arXiv:2006.08558, with memberships by degrees.
    """
    n, c = u.shape[-2:]
    rows = _weights(membership).sqrt() * u  # their squares add up to means
    return (membership.mean(-1) * coding_rate(rows, eps=c / n)).sum(-1)  # eps takes d / (m eps) to 1


@final
class TokenStatistics(nn.Module):
    """TSSA, in the place of `visrep.nn.transformer.Attention`."""

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.subspaces = linear(width, width, bias=bias)
        self.temperature = nn.Parameter(torch.ones(heads, 1))
        self.proj = linear(width, width)

    def coordinates(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n c"]:
        """Of each token in each subspace, in 32 bits: sums over many tokens are made of them."""
        return widen(self.subspaces(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def membership(self, u: Float[Tensor, "b h n c"]) -> Float[Tensor, "b h n"]:
        """How much each token belongs to each subspace; sums to 1 over subspaces."""
        power = u.square()
        share = (power / power.sum(-2, keepdim=True).clamp_min(1e-24)).sum(-1)
        return (share * self.temperature).softmax(dim=1)

    def forward(self, x: Float[Tensor, "b n d"], rotary: None = None, maps: None = None) -> Tensor:
        """There are no queries to turn and no maps to return, so both are None."""
        u = self.coordinates(x)
        membership = self.membership(u)
        out = -membership.unsqueeze(-1) * u / (1 + second_moments(u, membership))
        return self.proj(out.transpose(1, 2).flatten(2).to(x.dtype))
