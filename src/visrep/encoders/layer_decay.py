"""Learning rates that grow with depth, for the vision transformer of a method."""

from __future__ import annotations

from visrep.schedules import Constant, Schedule


def layer_decay(encoder: str, depth: int, factor: float) -> tuple[tuple[str, Schedule], ...]:
    """Values for `Optim.multipliers`: ``factor`` to the power of the number of layers above.

    ``encoder`` is its path in the method, ``student.encoder``. Tokens and positions count as the layer below the first
    block, as does the patch embedding, which moves at a fifth of that, as in DINOv2 (arXiv:2304.07193).
    """
    first = factor ** (depth + 1)
    slower = [(f"{encoder}.blocks.{i}.*", factor ** (depth - i)) for i in range(depth)]
    # The last pattern takes what the first ones left: cls, mask and register tokens, positions.
    slower += [(f"{encoder}.patch_embed.*", 0.2 * first), (f"{encoder}.[cmpr]*", first)]
    return tuple((pattern, Constant(multiplier)) for pattern, multiplier in slower)
