"""The command line: one file a command, imported when it is called, so that help and mistakes come at once."""

from __future__ import annotations

import sys
from importlib import import_module

import tyro
from rich.console import Console
from rich.text import Text

USAGE = """\
visrep: learn, judge and use visual representations

  visrep pretrain METHOD[:PRESET] --data FOLDER --out RUN   train an encoder on a folder of images
  visrep pretrain METHOD --init NAME --data FOLDER          continue from public weights, or those of a run
  visrep pretrain --resume RUN                              continue a stopped run
  visrep evaluate RUN --data FOLDER                         how good is it? (labelled images)
  visrep suite RUN --data A B C                             the mean over several data sets, 1,000 images of each
  visrep compare WHAT WHAT ... --data FOLDER                which is best? runs, or methods under one --budget
  visrep embed RUN --data FOLDER --out FILE                 one vector an image: .parquet, .npz or .csv
  visrep export RUN --to TOOL --out FOLDER                  for timm, hf (transformers), onnx, torch-export, ...
  visrep report RUN                                         one HTML file with everything about a run, or a sheet
  visrep doctor RUN                                         is it healthy? if not: what it is, and what to change
  visrep diagnose RUN --data FOLDER                         measured without labels, layer by layer
  visrep similarity RUN [RUN ...] --data FOLDER             how alike are layers and encoders? heat maps
  visrep explain RUN --data FOLDER                          look inside: attention, causes, inversion, concepts
  visrep list                                               methods, presets, what is proven
  visrep demo                                               all of it on built-in images, in minutes

evaluate and embed also take public encoders: timm:NAME, hf:NAME_OR_FOLDER, open_clip:NAME@TAG, pip:NAME, a file.
Add --help to a command for its options. METHOD may be a path to your own Python file.
"""

COMMANDS: dict[str, tuple[str, str]] = {
    "evaluate": ("visrep.cli.evaluate", "evaluate"),
    "suite": ("visrep.cli.suite", "suite"),
    "compare": ("visrep.cli.compare", "compare"),
    "embed": ("visrep.cli.embed", "embed"),
    "export": ("visrep.cli.export", "export"),
    "report": ("visrep.cli.report", "report"),
    "doctor": ("visrep.cli.doctor", "doctor"),
    "diagnose": ("visrep.cli.diagnose", "diagnose"),
    "similarity": ("visrep.cli.similarity", "similarity"),
    "explain": ("visrep.cli.explain", "explain"),
    "list": ("visrep.cli.catalogue", "list_methods"),
    "demo": ("visrep.cli.demo", "demo"),
}
"""Module and function of each command; ``pretrain`` builds its flags from the method."""


def main() -> None:
    """Entry point. Mistakes of the user end with one clear message, not with a traceback."""
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return
    try:
        if name == "pretrain":
            from visrep.cli.pretrain import pretrain

            pretrain(arguments)
        elif name in COMMANDS:
            module, function = COMMANDS[name]
            tyro.cli(getattr(import_module(module), function), args=arguments, prog=f"visrep {name}")
        else:
            raise ValueError(f"There is no command {name!r}. Available: pretrain, {', '.join(COMMANDS)}.")
    except KeyboardInterrupt:
        kept = "A checkpoint was saved if training had begun"
        how = "the same command" if name in ("compare", "evaluate") else "--resume"
        kept = "What was judged is kept" if name == "evaluate" else kept
        Console(stderr=True).print(f"Stopped. {kept}: {how} continues it.")
        sys.exit(130)
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        # not as markup, which would swallow the brackets of visrep[hf]
        said = Text.assemble((f"visrep {name}:", "bold red"), f" {error}")
        Console(stderr=True).print(said, soft_wrap=True)
        sys.exit(1)
