"""visrep: learn, judge and use visual representations."""

from visrep.api import (
    compare,
    diagnose,
    doctor,
    embed,
    evaluate,
    export,
    load_encoder,
    pretrain,
    report,
    resume,
    similarity,
)
from visrep.config import Optim, Run
from visrep.method import At, Batch, Encoder, Losses, Method, Tokens

__version__ = "0.1.0"

__all__ = [
    "At",
    "Batch",
    "Encoder",
    "Losses",
    "Method",
    "Optim",
    "Run",
    "Tokens",
    "compare",
    "diagnose",
    "doctor",
    "embed",
    "evaluate",
    "export",
    "load_encoder",
    "pretrain",
    "report",
    "resume",
    "similarity",
]
