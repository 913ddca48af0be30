"""Attentive probe of AIM (arXiv:2401.08541) on the mean of the last six layers' tokens, with the published settings.

    x <- BatchNorm without affine (mean over the last six layers of the tokens), then pooling and W as in `attentive`

14 probes see the same batches: AdamW, peak learning rates 5e-5 to 2e-3 x weight decays 0.05 and 0.1, of all weights;
100 epochs of batches of 1024, 5 of them to warm up, half a cosine to 1e-5, gradients no longer than 3. This is the
ImageNet column of the authors' table for AIMv2 (arXiv:2411.14402, table A2), which has the same probe; their code
holds the probe and what it reads, and trains none. Weights start as theirs: the query at N(0, 0.02), K, V and W as
layers of torch do.

The probe of highest held-out accuracy is chosen and trained again on all training images. AIM reports the best of all
on ImageNet's validation images.

*Deviations*: one view of each image, the central square, in place of random crops, flips and RandAugment; small sets
have smaller batches (see `probe_training`); layers are as encoders give them, behind the final norm, where AIM averages
what enters it; 12 heads, or as many below as divide the width, where AIM has heads of 128 dimensions.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from visrep.evaluation.attentive import AttentiveProbe, AttentiveProbes, answers_of, heads_for
from visrep.evaluation.holdout import hold_out
from visrep.evaluation.probe_training import Published, batches, choose, read_rows
from visrep.evaluation.results import Prediction

LAYERS = 6
"""last ones whose tokens are averaged, or all where there are fewer"""
LRS = (5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3)
WEIGHT_DECAYS = (0.05, 0.1)
GRID = tuple(
    Published(
        epochs=100,
        batch=1024,
        lr=lr,
        last_lr=1e-5,
        warmup=5,
        weight_decay=decay,
        last_weight_decay=decay,
    )
    for lr in LRS
    for decay in WEIGHT_DECAYS
)
"""schedules of the probes"""
CLIP = 3.0
"""longest gradient of a probe"""


def attentive_aim(
    train: Float[Tensor, "n p d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m p d"],
    *,
    seed: int = 0,
    grid: tuple[Published, ...] = GRID,
) -> list[Prediction]:
    """One prediction from averaged tokens, by the probe of highest held-out accuracy, the first among equals.

    ``seed`` draws held-out images, initial weights and batches. Tokens may be stored in half precision.
    Raises ValueError when there is only one class, Inapplicable when the training of the chosen probe diverged.
    """
    classes, targets = labels.unique(return_inverse=True)
    k = len(classes)
    fitted, held_out = hold_out(labels, seed)
    tried = answers_of(train_probes(train[fitted], targets[fitted], k, grid, seed), train[held_out])
    best, choice = choose(tried, targets[held_out])
    found = answers_of(train_probes(train, targets, k, (grid[best],), seed), test)[:, 0]
    settings = grid[best].settings(len(train)) | {
        "weight_decay": grid[best].weight_decay,
        "heads": heads_for(train.shape[2]),
        "probes": len(grid),
        **choice,
    }
    return [Prediction("attentive-aim", classes[found], settings)]


def train_probes(
    tokens: Float[Tensor, "n p d"],
    y: Int64[Tensor, " n"],
    k: int,
    grid: tuple[Published, ...],
    seed: int,
) -> AttentiveProbes:
    """A probe for each schedule, all from one start and on the same batches, which are read once for all of them."""
    n, _, d = tokens.shape
    probes = AttentiveProbes([fresh(d, k, seed) for _ in grid]).to(tokens.device).train()
    groups = [[*probe.parameters()] for probe in probes.probes]
    optimiser = torch.optim.AdamW([{"params": group} for group in groups], fused=True)
    for epoch, rows in batches(n, grid[0], torch.Generator().manual_seed(seed)):
        rows = rows.to(tokens.device)
        for schedule, group in zip(grid, optimiser.param_groups, strict=True):
            group["lr"], group["weight_decay"] = schedule.lr_at(epoch), schedule.weight_decay_at(epoch)
        losses = [F.cross_entropy(logits, y[rows]) for logits in probes(read_rows(tokens, rows))]
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        for group in groups:
            nn.utils.clip_grad_norm_(group, CLIP)
        optimiser.step()
    return probes.eval()


def fresh(d: int, k: int, seed: int) -> AttentiveProbe:
    """A probe with the published initial weights."""
    rng = torch.Generator().manual_seed(seed)
    probe = AttentiveProbe(d, k, heads_for(d), rng)
    nn.init.uniform_(probe.head, -1 / math.sqrt(d), 1 / math.sqrt(d), generator=rng)
    return probe
