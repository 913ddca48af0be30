"""The same as the command line, from Python. Heavy parts are imported when called, so that `import visrep` is quick."""

from visrep.api.judge import compare, evaluate, suite
from visrep.api.look import diagnose, doctor, explain, report, similarity
from visrep.api.train import override, pretrain, resume, with_encoder
from visrep.api.use import embed, export, load_encoder

__all__ = [
    "compare",
    "diagnose",
    "doctor",
    "embed",
    "evaluate",
    "explain",
    "export",
    "load_encoder",
    "override",
    "pretrain",
    "report",
    "resume",
    "similarity",
    "suite",
    "with_encoder",
]
