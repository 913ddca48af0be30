"""visrep: learn, judge and use visual representations."""

from visrep.api import compare, embed, evaluate, load_encoder, pretrain, report, resume
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
    "embed",
    "evaluate",
    "load_encoder",
    "pretrain",
    "report",
    "resume",
]
