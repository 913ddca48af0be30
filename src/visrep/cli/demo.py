"""``visrep demo``: everything once, on built-in images."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console


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
    Console(stderr=True).print(f"Look at it: {page.resolve()}", highlight=False, markup=False)
