"""What was last known about every image of the data set."""

from __future__ import annotations

from typing import Any, final

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn

from visrep.distributed import gather


@final
class Memory(nn.Module):
    """The last row written for each image, by its position in the data set: state of the run, the same on every rank.

    Its buffers grow with the greatest position met, so nobody needs to know the size of the data set, and take the
    size of a checkpoint that is loaded. Every rank holds all of it: 1.3 million images of 2 x 128 numbers are 1.3 GB.
    """

    rows: Tensor
    known: Tensor

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        """An empty memory whose rows have this shape and dtype."""
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, *shape, dtype=dtype))
        self.register_buffer("known", torch.zeros(0, dtype=torch.bool))

    def __len__(self) -> int:
        """Rows that there is room for, known or not."""
        return len(self.known)

    @torch.no_grad()
    def write(self, index: Int[Tensor, " b"], rows: Shaped[Tensor, "b *any"]) -> None:
        """Keep the rows of all ranks, each of which brings its own. Call it between steps."""
        self.put(gather(index), gather(rows.detach()))

    @torch.no_grad()
    def put(self, index: Int[Tensor, " b"], rows: Shaped[Tensor, "b *any"]) -> None:
        """Keep rows that every rank has alike. Of several rows of one image the last one counts."""
        self._resize(max(len(self), int(index.max()) + 1))
        order = torch.arange(len(index), device=index.device)
        last = index.new_zeros(len(self)).scatter_reduce(0, index, order, "amax")
        self.rows[index] = rows[last[index]].to(
            self.rows.dtype
        )  # one value an image: no order of writing matters
        self.known[index] = True

    def read(self, index: Int[Tensor, " b"]) -> tuple[Shaped[Tensor, "b *any"], Bool[Tensor, " b"]]:
        """The rows of these images, zeros for unknown ones, and which are known."""
        inside = index < len(self)
        rows, known = self.rows.new_zeros(len(index), *self.rows.shape[1:]), torch.zeros_like(inside)
        rows[inside], known[inside] = self.rows[index[inside]], self.known[index[inside]]
        return rows, known

    def _resize(self, n: int) -> None:
        before = len(self)
        for buffer in (self.rows, self.known):
            buffer.resize_(n, *buffer.shape[1:])[before:] = 0

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = state_dict.get(prefix + "known")
        if saved is not None:
            self._resize(len(saved))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
