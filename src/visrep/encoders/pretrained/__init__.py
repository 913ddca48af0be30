"""Encoders with public weights: converted into ours where ours can express them, wrapped where not."""

from visrep.encoders.pretrained.official import load_checkpoint
from visrep.encoders.pretrained.resolve import load_encoder

__all__ = ["load_checkpoint", "load_encoder"]
