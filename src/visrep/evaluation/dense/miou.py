"""Mean intersection over union of a whole set of images, from one confusion matrix, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from visrep.data.dense import IGNORE
from visrep.evaluation.dense.intervals import jackknife
from visrep.evaluation.results import Measure, Setting

MIOU = "mIoU"


@dataclass(frozen=True)
class Counts:
    """Pixels by image and class: all that IoU needs of the confusion matrix of each image."""

    right: Int64[Tensor, "n k"]
    predicted: Int64[Tensor, "n k"]
    true: Int64[Tensor, "n k"]

    @staticmethod
    def of(predicted: Integer[Tensor, "n h w"], true: Integer[Tensor, "n h w"], k: int) -> Counts:
        """Pixels marked `IGNORE` count nowhere."""
        asked = true != IGNORE
        return Counts(*(
            _histogram(classes, seen, k)
            for classes, seen in ((true, asked & (predicted == true)), (predicted, asked), (true, asked))
        ))  # fmt: skip

    @staticmethod
    def joined(parts: list[Counts]) -> Counts:
        return Counts(*(
            torch.cat(rows) for rows in zip(*((x.right, x.predicted, x.true) for x in parts), strict=True)
        ))  # fmt: skip

    def iou(self) -> Float[Tensor, " k"]:
        """Of each class over all images; NaN for a class that nowhere is and nowhere was predicted."""
        return _iou(self.right.sum(0), self.predicted.sum(0), self.true.sum(0))

    def interval(self, groups: Int64[np.ndarray, " n"], *, level: float = 0.95) -> tuple[float, float]:
        """Jackknife interval of the mean IoU, leaving out whole groups: videos, or single images (see `jackknife`).

        The mean is over the same classes whatever is left out. What a class that is in no other group would have come
        to is not known, and half of its IoU stands for it: all of it makes intervals too narrow, nothing too wide
        (docs/protocols.md has the coverage that was measured). From 0 to 1 where there is a single group.
        """
        _, group = np.unique(groups, return_inverse=True)
        right, predicted, true = (
            torch.zeros(int(group.max()) + 1, counts.shape[1], dtype=torch.int64).index_add_(
                0, torch.from_numpy(group), counts
            )
            for counts in (self.right, self.predicted, self.true)
        )
        iou = self.iou()
        without = _iou(right.sum(0) - right, predicted.sum(0) - predicted, true.sum(0) - true)
        left = torch.where(without.isnan(), iou / 2, without)[:, ~iou.isnan()]
        return jackknife(left.mean(1).numpy(), float(iou.nanmean()), level=level)

    def measure(
        self,
        protocol: str,
        settings: Mapping[str, Setting],
        names: tuple[str, ...],
        *,
        groups: Int64[np.ndarray, " n"],
        n_train: int,
        caution: str = "",
    ) -> Measure:
        """Mean over classes that are in the answers or the predictions, with each class's IoU as details.

        ``groups``: the video of each image, or a number of its own (see `DenseSide.groups`).
        """
        iou = self.iou()
        present = (~iou.isnan()).nonzero().flatten().tolist()
        low, high = self.interval(groups)
        accuracy = float(self.right.sum() / self.true.sum())
        return Measure(
            protocol,
            MIOU,
            float(iou.nanmean()),
            low,
            high,
            {**settings, "classes": len(present), "pixel_accuracy": round(100 * accuracy, 2)},
            caution,
            n_train=n_train,
            n_test=len(self.true),
            details={f"IoU of {names[k]}": round(100 * float(iou[k]), 2) for k in present},
        )


def _histogram(classes: Integer[Tensor, "n h w"], seen: Tensor, k: int) -> Int64[Tensor, "n k"]:
    """How many of the ``seen`` pixels of each image have each class."""
    n = len(classes)
    flat = torch.arange(n, device=classes.device)[:, None, None] * k + classes
    return torch.bincount(flat[seen].long(), minlength=n * k).view(n, k).cpu()


def _iou(right: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """0 / 0 is NaN."""
    return right.double() / (predicted + true - right).double()
