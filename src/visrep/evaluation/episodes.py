"""Few-shot episodes: nearest class mean among five classes of one or five images each (arXiv:1703.05175, frozen).

600 episodes: five classes drawn, of each five images to make its mean of and fifteen to sort by the nearest mean, in
Euclidean distance, of features as they are; as Ericsson et al., "How well do self-supervised models transfer?"
(arXiv:2011.13377). Everything comes from the test images: no label of the others is used. The episodes of one image a
class are the same with the first of the five. The interval is that of the mean over episodes, 1.96 s / sqrt(600).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from visrep.evaluation.results import TOP_1, Inapplicable, Measure, Setting

EPISODES = 600
WAYS = 5
SHOTS = (1, 5)
QUERIES = 15
CHUNK = 50
"""episodes at a time"""


def episodes(
    train: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    answers: Int64[Tensor, " m"],
    *,
    seed: int = 0,
) -> list[Measure]:
    """The mean accuracy for each number of images of a class; ``seed`` draws episodes.

    Raises Inapplicable when fewer than five classes have 20 test images.
    """
    drawn = draw_episodes(answers.cpu().numpy(), seed)
    measures = []
    for n in SHOTS:
        right = torch.cat([
            nearest_mean(test[rows.to(test.device)], n).double().mean((1, 2)) for rows in drawn.split(CHUNK)
        ])  # fmt: skip
        mean, half = float(right.mean()), 1.96 * float(right.std(correction=0)) / EPISODES**0.5
        settings: dict[str, Setting] = {"n": n, "ways": WAYS, "queries": QUERIES, "episodes": EPISODES}
        measures.append(
            Measure("episodes", TOP_1, mean, mean - half, mean + half, settings, n_test=len(answers))
        )
    return measures


def draw_episodes(labels: Int64[np.ndarray, " m"], seed: int) -> Int64[Tensor, "e w i"]:
    """Images of each class of each episode, those that make the mean first. Raises Inapplicable for too few."""
    needed = max(SHOTS) + QUERIES
    classes, counts = np.unique(labels, return_counts=True)
    if (counts >= needed).sum() < WAYS:
        raise Inapplicable(
            f"episodes draws {WAYS} classes with {needed} images each ({max(SHOTS)} to learn from, {QUERIES} to "
            f"classify), and {(counts >= needed).sum()} of the {len(classes)} classes of the test images have as many. "
            "Give more test images, or leave episodes out."
        )
    images = [np.flatnonzero(labels == label) for label in classes[counts >= needed]]
    rng = np.random.default_rng(seed)
    drawn = [
        [
            rng.choice(images[way], needed, replace=False)
            for way in rng.choice(len(images), WAYS, replace=False)
        ]
        for _ in range(EPISODES)
    ]
    return torch.as_tensor(np.array(drawn))


def nearest_mean(x: Float[Tensor, "e w i d"], n: int) -> Bool[Tensor, "e w q"]:
    """Which of the last fifteen images of each class are nearest to the mean of its first ``n``."""
    means = x[:, :, :n].mean(2)  # e w d
    queries = x[:, :, -QUERIES:]
    nearest = torch.cdist(queries.flatten(1, 2), means).argmin(-1).unflatten(1, queries.shape[1:3])  # e w q
    return nearest == torch.arange(x.shape[1], device=x.device)[:, None]
