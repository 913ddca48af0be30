"""``visrep pretrain``: train an encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tyro
from rich.console import Console


def pretrain(arguments: list[str]) -> None:
    """``visrep pretrain``: the flags after the method are the leaf fields of its `Run`."""
    from visrep.api import with_encoder
    from visrep.engine import resume, start
    from visrep.methods import preset

    if arguments[:1] == ["--resume"] and len(arguments) == 2:
        finish(resume(arguments[1]))
        return
    if arguments[:1] == ["--from"] and len(arguments) >= 2:
        from visrep.rundir import RunFolder

        about = RunFolder(arguments[1]).about()
        method, name = about["method"], about["preset"]
        preset(method)
        run = replace(RunFolder(arguments[1]).run(), out="")
        flags = arguments[2:]
    elif not arguments or arguments[0].startswith("-"):
        raise ValueError(
            "Which method? `visrep pretrain METHOD --data FOLDER --out RUN`; `visrep list` shows the methods."
        )
    else:
        method = arguments[0] if arguments[0].endswith(".py") else arguments[0].split(":")[0]
        _, name, run = preset(arguments[0])
        flags = arguments[1:]
    if "--encoder" in flags:
        at = flags.index("--encoder")
        if at + 1 == len(flags):
            raise ValueError("--encoder needs a name, such as --encoder vit_small.")
        run = with_encoder(run, flags[at + 1])
        fields = flags[:at] + flags[at + 2 :]
    else:
        fields = flags
    kind = tyro.conf.AvoidSubcommands[type(run)[type(run.method)]]  # pyright: ignore
    run = tyro.cli(kind, default=run, args=fields, prog=f"visrep pretrain {method}:{name}")
    finish(start(run, method=method, preset=name, overrides=tuple(flags)))


def finish(folder: Path) -> None:
    """Say where the result is and what to do with it; and, where the guard of its start ended it, why."""
    from visrep.rundir import RunFolder

    about = RunFolder(folder).about()
    ended = f"Ended early ({about['message']})" if about["status"] == "stopped" else "Done"
    Console(stderr=True).print(
        f"{ended}: {folder}\n"
        f"  how good is it?  visrep evaluate {folder} --data LABELLED\n"
        f"  look at it:      visrep report {folder}",
        highlight=False,
    )
