"""``visrep pretrain``: train an encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import tyro
from rich.console import Console


def pretrain(arguments: list[str]) -> None:
    """``visrep pretrain``: the flags after the method are the leaf fields of its `Run`."""
    from visrep.api.train import check_one_encoder, with_encoder
    from visrep.continuing.checks import as_asked
    from visrep.methods import preset
    from visrep.starting import resume, start

    if arguments[:1] == ["--resume"] and len(arguments) == 2:
        finish(resume(arguments[1]))
        return
    if arguments[:1] == ["--from"] and len(arguments) >= 2:
        from visrep.rundir import RunFolder

        about = RunFolder(arguments[1]).about()
        method, name = about["method"], about["preset"]
        preset(method)
        run = replace(as_asked(RunFolder(arguments[1]).run()), out="")
        flags = arguments[2:]
    elif not arguments or arguments[0].startswith("-"):
        raise ValueError(
            "Which method? `visrep pretrain METHOD --data FOLDER --out RUN`; `visrep list` shows the methods."
        )
    else:
        method = arguments[0] if arguments[0].endswith(".py") else arguments[0].split(":")[0]
        _, name, run = preset(arguments[0])
        flags = arguments[1:]
    encoder, fields = taken("--encoder", flags, example="vit_small")
    if not encoder:  # the same, as its leaf fields are called
        encoder, fields = taken("--method.encoder", flags, example="vit_small")
    if encoder:
        run = with_encoder(run, encoder)
    if "teacher" in vars(run.method):
        teacher, fields = taken("--teacher", fields, example="timm:NAME")
        fields += ["--method.teacher", teacher] if teacher else []
    kind = tyro.conf.AvoidSubcommands[type(run)[type(run.method)]]  # pyright: ignore
    run = tyro.cli(kind, default=run, args=fields, prog=f"visrep pretrain {method}:{name}")
    check_one_encoder(encoder, run.init)
    finish(start(run, method=method, preset=name, overrides=tuple(flags)))


def taken(flag: str, flags: list[str], *, example: str) -> tuple[str, list[str]]:
    """The value of a flag that is short for others, "" without it; and the other flags.

    Raises ValueError without a value.
    """
    for at, word in enumerate(flags):
        if word.startswith(f"{flag}="):
            return word.partition("=")[2], flags[:at] + flags[at + 1 :]
        if word == flag:
            if at + 1 == len(flags):
                raise ValueError(f"{flag} needs a name, such as {flag} {example}.")
            return flags[at + 1], flags[:at] + flags[at + 2 :]
    return "", flags


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
        markup=False,
    )
