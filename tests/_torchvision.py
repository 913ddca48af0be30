"""torchvision's transforms, also where its compiled part does not load (it was built for another torch).

The transforms are plain torch; only the detection operators are compiled, and their mere names must be known for
torchvision to import.
"""

from __future__ import annotations

import torch


def _declare_operators() -> None:
    torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


try:
    import torchvision  # noqa: F401 - may fail; imported for that
except RuntimeError:
    _declare_operators()

from torchvision.transforms import v2  # noqa: E402 - after the operators are declared
from torchvision.transforms.v2 import functional  # noqa: E402

__all__ = ["functional", "v2"]
