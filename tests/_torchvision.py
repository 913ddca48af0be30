"""torchvision's transforms, also where its compiled part does not load (it was built for another torch).

The transforms are plain torch; only the detection operators are compiled, and their mere names must be known for
torchvision to import.
"""

from __future__ import annotations

from visrep.encoders.pretrained.extras import tolerate_torchvision

tolerate_torchvision()

from torchvision.transforms import v2  # noqa: E402 - after the operators are declared
from torchvision.transforms.v2 import functional  # noqa: E402

__all__ = ["functional", "v2"]
