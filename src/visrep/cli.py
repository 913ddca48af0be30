"""The command line: visrep pretrain | evaluate | compare | embed | report | list | demo."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

USAGE = """\
visrep: learn, judge and use visual representations

  visrep pretrain METHOD[:PRESET] --data FOLDER --out RUN   train an encoder on a folder of images
  visrep pretrain --resume RUN                              continue a stopped run
  visrep evaluate RUN --data FOLDER                         how good is it? (labelled images)
  visrep compare WHAT WHAT ... --data FOLDER                which is best? runs, or methods under one --budget
  visrep embed RUN --data FOLDER --out FILE                 one vector an image: .parquet, .npz or .csv
  visrep report RUN                                         one HTML file with everything about a run
  visrep list                                               methods, presets, what is proven
  visrep demo                                               all of it on built-in images, in minutes

evaluate and embed also take public encoders: timm:NAME, hf:NAME_OR_FOLDER, open_clip:NAME@TAG, a checkpoint file.
Add --help to a command for its options. METHOD may be a path to your own Python file.
"""


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
    """Say where the result is and what to do with it."""
    Console(stderr=True).print(
        f"Done: {folder}\n"
        f"  how good is it?  visrep evaluate {folder} --data LABELLED\n"
        f"  look at it:      visrep report {folder}",
        highlight=False,
    )


def evaluate(
    run: tyro.conf.Positional[str],
    data: str,
    test: str = "",
    protocols: tuple[str, ...] = ("knn", "linear"),
    layers: tuple[int, ...] = (),
    poolings: tuple[str, ...] = ("auto",),
    baselines: bool = True,
    limit: int = 0,
    test_limit: int = 0,
    seed: int = 0,
) -> None:
    """Judge the encoder of a run on labelled images; a table here, evaluation.json in the run folder.

    Args:
        run: run folder, or a public encoder: checkpoint file, timm:NAME, hf:NAME, open_clip:NAME@TAG
        data: labelled images: folder with a sub-folder a class (train/ and test/ or val/ above them are respected),
            .parquet, .npz, or playground
        test: held-out labelled images; default: the test or val part of data, else a fifth of it
        protocols: knn, knn-loo, linear, attentive, fewlabels, finetune, finetune-mae, finetune-mae-large; the last
            three also with few labels: finetune:10% or finetune:5 (of each class); see docs/protocols.md
        layers: layers to judge besides the last one, 1 = first
        poolings: auto, cls, mean, cls+mean
        baselines: also judge raw pixels and the untrained encoder
        limit: use only the first training images
        test_limit: use only the first test images
        seed: of splits, bootstrap and the untrained encoder
    """
    from visrep import api
    from visrep.evaluation.table import print_table

    result = api.evaluate(
        run,
        data,
        test=test or None,
        protocols=protocols,
        layers=layers,
        poolings=poolings,
        baselines=baselines,
        limit=limit,
        test_limit=test_limit,
        seed=seed,
        progress=True,
    )
    print_table(result)


def compare(
    entries: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN|METHOD RUN|METHOD ...")
    ] = (),
    data: str = "",
    budget: str = "",
    preset: str = "small32",
    out: Path = Path("runs/compare"),
    labelled: str = "",
    protocols: tuple[str, ...] = ("knn", "linear"),
    encoder: str = "",
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="FIELD=VALUE ...")] = (),
    limit: int | None = None,
    labels: bool = True,
    seed: int = 0,
) -> None:
    """Judge runs alike, after training those that are methods under one budget; comparison.html and .json in out.

    Stopped? The same command continues: finished runs in out are kept, an unfinished one is resumed.

    Args:
        entries: run folders and methods: METHOD, METHOD:PRESET or your own file
        data: images to train on and to judge on; default: those of the runs or presets, if they are the same
        budget: for each method, a time (90s, 30m, 2h) or images seen (500000, 500k); default: what the most demanding
            preset asks for
        preset: of methods named without one
        out: a method is trained in OUT/METHOD
        labelled: labelled images to judge on instead of data
        protocols: knn, knn-loo, linear, attentive, fewlabels, finetune, finetune-mae, finetune-mae-large; the last
            three also with few labels: finetune:10% or finetune:5 (of each class); see docs/protocols.md
        encoder: one for all methods, by name
        settings: changed for all methods, such as batch=128 optim.clip=3
        limit: train encoders and probes on only so many images; default: what presets say, and all for probes
        labels: use the labels of data; --no-labels ranks by RankMe, which says little
        seed: of training, splits, bootstrap and untrained encoders
    """
    from visrep import api
    from visrep.evaluation.leaderboard import print_leaderboard

    comparison = api.compare(
        entries,
        data,
        labelled=labelled,
        budget=budget,
        preset=preset,
        encoder=encoder,
        out=out,
        seed=seed,
        protocols=protocols,
        limit=limit,
        overrides=dict(map(setting, settings)),
        labels=labels,
        progress=True,
    )
    print_leaderboard(comparison)
    Console(stderr=True).print(f"Look at it: {(out / 'comparison.html').resolve()}", highlight=False)


def setting(text: str) -> tuple[str, Any]:
    """``optim.clip=3`` to a field and its value. Raises ValueError without an equals sign."""
    path, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: write FIELD=VALUE, such as --set batch=128 optim.clip=3.")
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError:
        parsed = value
    return path, tuple(parsed) if isinstance(parsed, list) else parsed


def embed(run: tyro.conf.Positional[str], data: str, out: Path, pooling: str = "auto") -> None:
    """Write one vector an image, with its path.

    Args:
        run: run folder, or a public encoder: checkpoint file, timm:NAME, hf:NAME, open_clip:NAME@TAG
        data: images
        out: .parquet, .npz or .csv file
        pooling: auto, cls, mean, cls+mean
    """
    from visrep import api

    print(api.embed(run, data, out, pooling=pooling, progress=True))


def report(run: tyro.conf.Positional[Path]) -> None:
    """Write report.html into the run folder: one self-contained file.

    Args:
        run: run folder
    """
    from visrep import api

    print(api.report(run))


def list_methods(as_json: Annotated[bool, tyro.conf.arg(name="json")] = False) -> None:
    """Families, methods, presets and what each is verified for.

    Args:
        as_json: for machines
    """
    from visrep.catalogue import catalogue

    entries = catalogue()
    if as_json:
        print(json.dumps([{**asdict(entry), "status": entry.status} for entry in entries], indent=2))
        return
    table = Table(title="Methods", title_justify="left")
    for column in ("family", "method", "presets", "status", "paper"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        proven = ", ".join(
            f"{record['data']}: {record['protocol']} {record['trained']['mean']:.1f} %"
            for record in entry.records
            if record["verified"]
        )
        status = f"verified ({proven})" if entry.status == "verified" else entry.status
        paper = f"arXiv:{entry.arxiv}" if entry.arxiv else ""
        table.add_row(entry.family, entry.name, ", ".join(entry.presets), status, paper)
    Console().print(table)


def demo(out: Path = Path("runs/demo"), method: str = "simclr") -> None:
    """Train, judge and report on the built-in playground: minutes on a laptop.

    Args:
        out: run folder; an earlier demo in it is replaced
        method: any method with a playground preset
    """
    import shutil

    from visrep import api
    from visrep.evaluation.table import print_table

    if (out / "run.json").exists():
        shutil.rmtree(out)
    run = api.pretrain(f"{method}:playground", out=str(out))
    print_table(api.evaluate(run, "playground", limit=5000, test_limit=1000, progress=True))
    page = api.report(run)
    Console(stderr=True).print(f"Look at it: {page.resolve()}", highlight=False)


COMMANDS: dict[str, Callable[..., None]] = {
    "evaluate": evaluate,
    "compare": compare,
    "embed": embed,
    "report": report,
    "list": list_methods,
    "demo": demo,
}


def main() -> None:
    """Entry point. Mistakes of the user end with one clear message, not with a traceback."""
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("-h", "--help", "help"):
        print(USAGE)
        return
    try:
        if name == "pretrain":
            pretrain(arguments)
        elif name in COMMANDS:
            tyro.cli(COMMANDS[name], args=arguments, prog=f"visrep {name}")
        else:
            raise ValueError(f"There is no command {name!r}. Available: pretrain, {', '.join(COMMANDS)}.")
    except KeyboardInterrupt:
        how = "the same command" if name == "compare" else "--resume"
        Console(stderr=True).print(
            f"Stopped. A checkpoint was saved if training had begun: {how} continues it."
        )
        sys.exit(130)
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        Console(stderr=True).print(f"[bold red]visrep {name}:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
