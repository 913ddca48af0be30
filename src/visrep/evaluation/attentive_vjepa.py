"""Attentive probe of V-JEPA (arXiv:2404.08471): a block of cross-attention with one learned query, then a linear layer.

    y = q + concat_h softmax((W_q q)_h . (W_k norm(x))_h / sqrt(e)) (W_v norm(x))_h        z = y + MLP(norm(y))

Keys, values and the query have biases, the output of attention is not projected (the official code holds such a matrix
and never applies it), the MLP is four times as wide. 20 epochs of batches of 1024 by AdamW, learning rate 0.001 along
half a cosine to 0 without warm-up, weight decay of matrices from 0.001 to 1e-6 along another. I-JEPA's and V-JEPA's
ImageNet numbers are of this probe; for that of V-JEPA 2 see `attentive_vjepa2`.

*Deviations*: one view of each image in place of random crops and flips; small sets have smaller batches (see
`probe_training`); heads of 64 dimensions, as all their encoders have, where the width allows it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from visrep.evaluation.probe_training import Published, check_two_classes, predict, seeded
from visrep.evaluation.probe_training import train as train_probe
from visrep.evaluation.results import Prediction

SCHEDULE = Published(epochs=20, batch=1024, lr=1e-3, weight_decay=1e-3, last_weight_decay=1e-6)
STD = 0.02
HEAD = 64
"""dimensions of a head"""


class CrossAttentionProbe(nn.Module):
    """Tokens "b p d" to logits "b k"."""

    def __init__(self, d: int, k: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, d))
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v = (nn.Linear(d, d) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        nn.init.trunc_normal_(self.query, std=STD)
        for layer in (self.q, self.k, self.v, self.mlp[0], self.mlp[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=STD)
            nn.init.zeros_(layer.bias)
            if layer is self.mlp[2]:
                layer.weight.data /= math.sqrt(2)
        self.head = nn.Linear(d, k)

    def forward(self, tokens: Float[Tensor, "b p d"]) -> Float[Tensor, "b k"]:
        x = F.layer_norm(tokens, tokens.shape[-1:], eps=self.norm1.eps)
        # As in AIM's probe: with one fixed query, what is linear in the tokens can be applied to the query, or after
        # pooling. The bias of the keys and the norm's shift add the same to all scores of a head, so they vanish.
        query = self.q(self.query).view(self.heads, -1)  # h e
        keys = self.k.weight.view(self.heads, -1, x.shape[-1])  # h e d
        asked = torch.einsum("he,hed->hd", query, keys) * self.norm1.weight / math.sqrt(query.shape[1])
        attention = (x @ asked.T).softmax(1)  # b p h
        pooled = self.norm1.weight * (attention.transpose(1, 2) @ x) + self.norm1.bias  # b h d
        values = self.v.weight.view_as(keys)
        y = self.query + torch.einsum("bhd,hed->bhe", pooled, values).flatten(1) + self.v.bias
        return self.head(y + self.mlp(self.norm2(y)))


def attentive_vjepa(
    train: Float[Tensor, "n p d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m p d"],
    *,
    seed: int = 0,
) -> list[Prediction]:
    """One prediction; ``seed`` draws initial weights and batches. Tokens may be stored in half precision.

    Raises ValueError when there is only one class.
    """
    classes, targets = labels.unique(return_inverse=True)
    check_two_classes(classes)
    n, _, d = train.shape
    heads = max(h for h in range(1, max(1, d // HEAD) + 1) if d % h == 0)
    probe = seeded(lambda: CrossAttentionProbe(d, len(classes), heads), seed).to(train.device)
    matrices = [parameter for parameter in probe.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in probe.parameters() if parameter.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": SCHEDULE.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=SCHEDULE.lr, fused=True)
    train_probe(probe, train, targets, optimiser, SCHEDULE, torch.Generator().manual_seed(seed))
    settings = SCHEDULE.settings(n) | {"heads": heads}
    return [Prediction("attentive-vjepa", classes[predict(probe, test)], settings)]
