"""Attentive probe of AIM (arXiv:2401.08541): a learned query pools patch tokens, a linear layer classifies.

    x <- BatchNorm without affine (tokens)     a_h = softmax over tokens of q_h . (K_h x) / sqrt(e)
    y = W concat_h (V_h sum over tokens of a_h x)

As there, neither the query nor the output is projected, K, V and W have no bias, and the query starts at N(0,
0.02). Reads what the mean hides: the usual protocol for masked and predictive methods.

*Deviations*: reads the patch tokens of the last layer alone, where the paper averages those of the last six layers, or
of the six best ones for 0.9 to 1.7 points more; trained by AdamW for 20 epochs of batches of 128 with a cosine, or more
where these are fewer than 3,000 steps (features of low rank are read slowly, and would look worse than they are); where
this makes more than 40 epochs, batches shrink, to 32 at least; the learning rate is chosen of three on a held-out part
of the training images; heads = the largest divisor of the width up to 12. `attentive_aim` averages layers, and trains
by the published settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from visrep.evaluation.holdout import hold_out
from visrep.evaluation.probe_training import check_answered, choose, read_rows
from visrep.evaluation.results import Prediction
from visrep.progress import within

LRS = (1e-3, 3e-3, 1e-2)
EPOCHS = 20
LEAST_STEPS = 3000
BATCH = 128
MOST_EPOCHS, LEAST_BATCH = 40, 32
EPS, MOMENTUM = 1e-6, 0.1
"""of the BatchNorm"""
WEIGHT_DECAY = 0.1
MAX_HEADS = 12


class AttentiveProbe(nn.Module):
    """What is learned, for tokens of d channels and k classes."""

    def __init__(self, d: int, k: int, heads: int, rng: torch.Generator) -> None:
        super().__init__()
        e = d // heads
        self.query = nn.Parameter(0.02 * torch.randn(heads, e, generator=rng))
        self.key, self.value = (
            nn.Parameter((2 * torch.rand(heads, e, d, generator=rng) - 1) / math.sqrt(d)) for _ in range(2)
        )
        self.head = nn.Parameter(0.01 * torch.randn(d, k, generator=rng))


class AttentiveProbes(nn.Module):
    """Several probes that read the same tokens at once: "b p d" to logits "b k" of each.

    Most of the time goes into reading tokens, so that three probes cost hardly more than one.
    """

    def __init__(self, probes: Sequence[AttentiveProbe]) -> None:
        super().__init__()
        self.probes = nn.ModuleList(probes)
        d = probes[0].key.shape[2]
        self.mean: Tensor
        self.var: Tensor
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("var", torch.ones(d))

    def forward(self, tokens: Float[Tensor, "b p d"]) -> list[Float[Tensor, "b k"]]:
        mean, var = self._statistics(tokens)
        scale = (var + EPS).rsqrt()
        probes = [cast(AttentiveProbe, probe) for probe in self.probes]
        # With one fixed query K can be applied to it instead of to all tokens, and V and BatchNorm after pooling
        # instead of before (its mean shifts the scores of all tokens alike): the same function, far fewer products.
        queries = [
            torch.einsum("he,hed->hd", probe.query, probe.key) / math.sqrt(probe.query.shape[1])
            for probe in probes
        ]
        attention = (tokens @ (torch.cat(queries) * scale).T).softmax(1)  # b p h, heads of all probes
        pooled = (attention.transpose(1, 2) @ tokens - mean) * scale  # b h d
        return [
            torch.einsum("bhd,hed->bhe", mine, probe.value).flatten(1) @ probe.head
            for probe, mine in zip(probes, pooled.split([len(q) for q in queries], dim=1), strict=True)
        ]

    @torch.no_grad()
    def _statistics(self, tokens: Float[Tensor, "b p d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
        """Of the batch while training, of the batches seen then afterwards, as BatchNorm has them."""
        if not self.training:
            return self.mean, self.var
        x = tokens.flatten(0, 1)
        mean = x.mean(0)
        var = (x - mean).square_().mean(0)
        self.mean.lerp_(mean, MOMENTUM)
        self.var.lerp_(var * (len(x) / max(1, len(x) - 1)), MOMENTUM)
        return mean, var


def attentive(
    train: Float[Tensor, "n p d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m p d"],
    *,
    seed: int = 0,
    lrs: tuple[float, ...] = LRS,
    epochs: int = 0,
) -> list[Prediction]:
    """One prediction, with the learning rate of highest held-out accuracy.

    ``seed`` draws held-out images, initial weights and batches; ``epochs`` of 0 are chosen by the number of images (see
    above). Tokens may be stored in half precision.
    Raises ValueError when there is only one class.
    """
    classes, targets = labels.unique(return_inverse=True)
    batch = max(LEAST_BATCH, min(BATCH, math.ceil(len(train) * MOST_EPOCHS / LEAST_STEPS)))
    epochs = epochs or max(EPOCHS, math.ceil(LEAST_STEPS / math.ceil(len(train) / batch)))
    fitted, held_out = hold_out(labels, seed)
    probes = _train(train[fitted], targets[fitted], len(classes), lrs, epochs, batch, seed)
    best, choice = choose(answers_of(probes, train[held_out]), targets[held_out])
    probes = _train(train, targets, len(classes), (lrs[best],), epochs, batch, seed)
    settings = {
        "lr": lrs[best],
        "epochs": epochs,
        "batch": batch,
        "heads": heads_for(train.shape[2]),
        **choice,
    }
    return [Prediction("attentive", classes[answers_of(probes, test)[:, 0]], settings)]


def heads_for(d: int, most: int = MAX_HEADS) -> int:
    """As many as divide the width, up to ``most``."""
    return max(h for h in range(1, most + 1) if d % h == 0)


def _train(
    tokens: Tensor, targets: Tensor, k: int, lrs: tuple[float, ...], epochs: int, batch: int, seed: int
) -> AttentiveProbes:
    """A probe for each learning rate, all from one start and on the same batches."""
    n, _, d = tokens.shape
    rngs = [torch.Generator().manual_seed(seed) for _ in lrs]
    probes = AttentiveProbes([AttentiveProbe(d, k, heads_for(d), rng) for rng in rngs]).to(tokens.device)
    groups = [
        {"params": [*probe.parameters()], "lr": lr} for probe, lr in zip(probes.probes, lrs, strict=True)
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
    steps = epochs * math.ceil(n / batch)
    warm_up = max(1, steps // epochs)
    step = 0
    for _ in within(range(epochs), "passes"):
        # parts of almost equal size: a last batch of one image would give BatchNorm nothing to normalise by
        for rows in torch.randperm(n, generator=rngs[0]).to(tokens.device).tensor_split(steps // epochs):
            step += 1
            cosine = (1 + math.cos(math.pi * step / (steps + 1))) / 2
            for group, lr in zip(optimiser.param_groups, lrs, strict=True):
                group["lr"] = lr * min(1.0, step / warm_up) * cosine
            losses = [F.cross_entropy(logits, targets[rows]) for logits in probes(read_rows(tokens, rows))]
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()
            optimiser.step()
    return probes.eval()


@torch.no_grad()
def answers_of(probes: AttentiveProbes, tokens: Tensor) -> Int64[Tensor, "m h"]:
    """The answers of each probe. Raises Inapplicable when those of all of them diverged."""
    parts = [torch.stack(probes(rows.float())) for rows in tokens.split(1024)]
    logits = torch.cat(parts, dim=1)  # probes, images, classes
    finite = logits.isfinite().all(-1)
    check_answered(finite[finite.sum(1).argmax()])
    return logits.nan_to_num(-math.inf).argmax(-1).T
