"""The pre-norm transformer block (arXiv:2010.11929), for encoders and decoders alike.

Parameter names are those of the official DINOv2 code: ``norm1``, ``attn.qkv``, ``attn.proj``, ``ls1.gamma``,
``norm2``, ``mlp.fc1``, ``mlp.fc2``, ``ls2.gamma``. Linear layers start from a truncated normal of deviation
0.02 and zero biases, as in DINO.
"""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.nn.positions import Rotary

MlpKind = Literal["gelu", "swiglu"]


def linear(n_in: int, n_out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer initialised as in DINO."""
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def xavier(module: nn.Module) -> None:
    """Start a linear layer as MAE's official code does; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def attend(
    q: Float[Tensor, "b h n c"],
    k: Float[Tensor, "b h n c"],
    v: Float[Tensor, "b h n c"],
    maps: list[Tensor] | None = None,
) -> Float[Tensor, "b h n c"]:
    """What each token gathers from all tokens; for ``maps`` see `Attention`."""
    if maps is None and (q.dtype != torch.bfloat16 or q.is_cuda):
        return F.scaled_dot_product_attention(q, k, v)
    # also bfloat16 on a CPU, where plain products are 1.6 to 4 times faster than the fused kernel
    attention = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)
    if maps is not None:
        maps.append(attention)
    return attention.to(v.dtype) @ v


@final
class Attention(nn.Module):
    """Multi-head self-attention, optionally with rotary positions."""

    def __init__(self, width: int, heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(
                f"width={width} does not split into heads={heads} equal heads. Change one of them."
            )
        self.heads = heads
        self.qkv = linear(width, 3 * width, bias=qkv_bias)
        self.proj = linear(width, width)

    def forward(
        self, x: Float[Tensor, "b n d"], rotary: Rotary | None = None, maps: list[Tensor] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Each token gathers from all tokens.

        The attention "b h n n" of each token (row) over all tokens is appended to ``maps``; without a list
        they are never formed, which is faster.
        """
        # chunks, not a permutation: backward then joins the three gradients in one copy instead of two
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        return self.proj(attend(q, k, v, maps).transpose(1, 2).flatten(2))


@final
class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = linear(width, hidden)
        self.fc2 = linear(hidden, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.fc2(F.gelu(self.fc1(x)))


@final
class SwiGLU(nn.Module):
    """Gated MLP (arXiv:2002.05202) of DINOv2.

    Two thirds of ``hidden``, rounded up to a multiple of 8, so that it costs what the plain MLP costs.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        inner = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = linear(width, 2 * inner)
        self.w3 = linear(inner, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


@final
class LayerScale(nn.Module):
    """A learned factor a channel on a residual branch (arXiv:2103.17239)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(start * torch.ones(width))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return x * self.gamma


@final
class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): drops a residual branch for some images, while training.

    Draws from torch's global generator.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


@final
class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); LayerScale and DropPath on each branch where asked."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        mlp: MlpKind = "gelu",
        qkv_bias: bool = True,
        layer_scale: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-6,
        attention: nn.Module | None = None,
    ) -> None:
        """``attention`` takes the place of the usual one; ``heads`` and ``qkv_bias`` are then not used."""
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, qkv_bias=qkv_bias) if attention is None else attention
        self.ls1 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden) if mlp == "gelu" else SwiGLU(width, hidden)
        self.ls2 = LayerScale(width, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        rotary: Rotary | None = None,
        maps: list[Tensor] | None = None,
        added: list[Tensor] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """``maps``: see `Attention`. What the MLP adds is appended to ``added``."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), rotary, maps)))
        out = self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        if added is not None:
            added.append(out)
        return x + out
