"""Weighted k-nearest neighbours among few labelled images of every class, as DINOv2 (arXiv:2304.07193, eval/knn.py).

``knn:5`` has five labelled images of each class, ``knn:10%`` a tenth of each; the vote is that of `knn`. With n images
of each class k is n and, of 10, 20, 100 and 200, what is smaller; of a percentage n is the number of the smallest
class. The labelled images are drawn five times; the value is the mean over draws, its interval see
`interval_over_draws`.

*Deviation*: five draws, where the published code leaves their number to its caller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from visrep.evaluation.draws import Amount, amount, draw_labelled
from visrep.evaluation.knn import KS, knn
from visrep.evaluation.results import Prediction

DRAWS = 5


@dataclass(frozen=True)
class FewLabelled:
    """A protocol such as ``knn:5``."""

    protocol: str
    wanted: Amount

    @staticmethod
    def named(protocol: str) -> FewLabelled:
        """Raises ValueError for what is no amount of labels, none included: all of them are ``knn``."""
        _, _, text = protocol.partition(":")
        return FewLabelled(protocol, amount(text or "no amount"))

    def __call__(
        self,
        train: Float[Tensor, "n d"],
        labels: Int64[Tensor, " n"],
        test: Float[Tensor, "m d"],
        /,
        *,
        seed: int = 0,
    ) -> list[Prediction]:
        """One prediction, of all draws, for each k; ``seed`` draws the labelled images."""
        chosen = [draw_labelled(labels, self.wanted, seed=seed, draw=draw) for draw in range(DRAWS)]
        smallest = int(labels[chosen[0]].unique(return_counts=True)[1].min())
        most = self.wanted.each or smallest
        ks = (*(k for k in KS if k < most), most)
        # all draws have equally many images, so that k is the same in each
        by_k = zip(*(knn(train[rows], labels[rows], test, ks=ks) for rows in chosen), strict=True)
        return [
            replace(
                drawn[0],
                protocol=self.protocol,
                predicted=torch.stack([each.predicted for each in drawn]),
                settings={**drawn[0].settings, "draws": DRAWS},
                n_train=len(chosen[0]),
            )
            for drawn in by_k
        ]
