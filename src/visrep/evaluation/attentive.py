"""Attentive probe of AIM (arXiv:2401.08541): a learned query pools patch tokens, a linear layer classifies.

    x <- BatchNorm without affine (tokens)     a_h = softmax over tokens of q_h . (K_h x) / sqrt(e)
    y = W concat_h (V_h sum over tokens of a_h x)

As there, neither the query nor the output is projected, K, V and W have no bias, and the query starts at N(0,
0.02). Reads what the mean hides: the usual protocol for masked and predictive methods.

*Deviations*: trained by AdamW for 20 epochs with a cosine, the learning rate chosen of three on a held-out
part of the training images; heads = the largest divisor of the width up to 12.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from visrep.evaluation.holdout import hold_out
from visrep.evaluation.results import Prediction

LRS = (3e-4, 1e-3, 3e-3)
EPOCHS = 20
BATCH = 128
WEIGHT_DECAY = 0.1
MAX_HEADS = 12


class AttentiveProbe(nn.Module):
    """Tokens "b p d" to logits "b k"."""

    def __init__(self, d: int, k: int, heads: int, rng: torch.Generator) -> None:
        super().__init__()
        e = d // heads
        self.norm = nn.BatchNorm1d(d, affine=False, eps=1e-6)
        self.query = nn.Parameter(0.02 * torch.randn(heads, e, generator=rng))
        self.key, self.value = (
            nn.Parameter((2 * torch.rand(heads, e, d, generator=rng) - 1) / math.sqrt(d)) for _ in range(2)
        )
        self.head = nn.Parameter(0.01 * torch.randn(d, k, generator=rng))

    def forward(self, tokens: Float[Tensor, "b p d"]) -> Float[Tensor, "b k"]:
        x = self.norm(tokens.transpose(1, 2)).transpose(1, 2)  # b p d
        # With one fixed query K can be applied to it instead of to all tokens, and V after pooling instead of
        # before: the same function for a fraction of the products.
        query = torch.einsum("he,hed->hd", self.query, self.key) / math.sqrt(self.query.shape[1])
        attention = (x @ query.T).softmax(1)  # b p h
        pooled = attention.transpose(1, 2) @ x  # b h d
        return torch.einsum("bhd,hed->bhe", pooled, self.value).flatten(1) @ self.head


def attentive(
    train: Float[Tensor, "n p d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m p d"],
    *,
    seed: int = 0,
    lrs: tuple[float, ...] = LRS,
    epochs: int = EPOCHS,
) -> list[Prediction]:
    """One prediction, with the learning rate of highest held-out accuracy.

    ``seed`` draws held-out images, initial weights and batches. Tokens may be stored in half precision.
    Raises ValueError when there is only one class.
    """
    classes, targets = labels.unique(return_inverse=True)
    fitted, held_out = hold_out(labels, seed)
    accuracies: dict[float, float] = {}
    for lr in lrs:
        probe = _train(train[fitted], targets[fitted], len(classes), lr, epochs, seed)
        accuracies[lr] = float((_predict(probe, train[held_out]) == targets[held_out]).double().mean())
    best = max(lrs, key=lambda lr: accuracies[lr])
    probe = _train(train, targets, len(classes), best, epochs, seed)
    settings = {
        "lr": best,
        "epochs": epochs,
        "heads": len(probe.query),
        "held_out": len(held_out),
        "held_out_top1": 100 * accuracies[best],
    }
    return [Prediction("attentive", classes[_predict(probe, test)], settings)]


def _train(tokens: Tensor, targets: Tensor, k: int, lr: float, epochs: int, seed: int) -> AttentiveProbe:
    n, _, d = tokens.shape
    heads = max(h for h in range(1, MAX_HEADS + 1) if d % h == 0)
    rng = torch.Generator().manual_seed(seed)
    probe = AttentiveProbe(d, k, heads, rng).to(tokens.device)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    steps = epochs * math.ceil(n / BATCH)
    warm_up = max(1, steps // epochs)
    step = 0
    for _ in range(epochs):
        # parts of almost equal size: a last batch of one image would give BatchNorm nothing to normalise by
        for rows in torch.randperm(n, generator=rng).to(tokens.device).tensor_split(steps // epochs):
            step += 1
            cosine = (1 + math.cos(math.pi * step / (steps + 1))) / 2
            optimiser.param_groups[0]["lr"] = lr * min(1.0, step / warm_up) * cosine
            loss = F.cross_entropy(probe(tokens[rows].float()), targets[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return probe.eval()


@torch.no_grad()
def _predict(probe: AttentiveProbe, tokens: Tensor) -> Tensor:
    return torch.cat([probe(rows.float()).argmax(-1) for rows in tokens.split(1024)])
