"""Where to probe: accuracy after the encoder and after each layer of the projection head, for finished runs.

    python benchmarks/projection_head.py runs/records/simclr-small32-cifar10-jpeg-* --data train.parquet \
        --test test.parquet --limit 10000 --test-limit 2000

writes ``docs/methods/projection_head.json`` and the figure beside it. Runs of one method are seeds of one line.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
import tyro
from torch import Tensor, nn

from visrep.config import save_json
from visrep.data import open_source
from visrep.engine import build_method
from visrep.evaluation.evaluate import evaluate
from visrep.method import Encoder, Method, Tokens
from visrep.rundir import RunFolder

DOCS = Path(__file__).parents[1] / "docs/methods"
HEADS = ("head", "projector", "student.head", "online.projector", "student.projector")
"""where methods keep a projection that is a sequence of layers"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to probe."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    data: str
    test: str
    limit: int = 0
    test_limit: int = 0
    out: Path = DOCS / "projection_head.json"


class Staged(Encoder):
    """An encoder followed by the first layers of a head: its one vector is the only patch."""

    def __init__(self, encoder: Encoder, layers: nn.Sequential) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, layers
        widths = [layer.out_features for layer in layers if isinstance(layer, nn.Linear)]
        self.width, self.depth, self.stride = (widths or [encoder.width])[-1], encoder.depth, encoder.stride
        self.config, self.preprocessing = encoder.config, encoder.preprocessing

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        return Tokens(self.layers(self.encoder(images).pool())[:, None], (1, 1))


def head_of(method: Method) -> nn.Sequential:
    """The projection head. Raises ValueError for a method that has none we know how to cut."""
    modules = dict(method.named_modules())
    found = [modules[name] for name in HEADS if isinstance(modules.get(name), nn.Sequential)]
    if not found:
        raise ValueError(
            f"{type(method).__name__} has no sequential projection at {', '.join(HEADS)}: nothing to cut."
        )
    head = found[0]
    assert isinstance(head, nn.Sequential)
    return head


def stages(head: nn.Sequential) -> dict[str, nn.Sequential]:
    """The head cut before it, after each hidden layer and after its end."""
    ends = [i + 1 for i, layer in enumerate(head) if isinstance(layer, nn.ReLU)]
    cuts = (
        {"encoder": 0} | {f"hidden {n}": end for n, end in enumerate(ends, start=1)} | {"output": len(head)}
    )
    return {name: nn.Sequential(*[*head][:end]) for name, end in cuts.items()}


def probe(path: Path, settings: Settings) -> list[dict[str, Any]]:
    """kNN and linear accuracy of one run at every stage."""
    folder = RunFolder(path)
    about, run = folder.about(), folder.run()
    method = build_method(run, about["method"])
    method.load_state_dict(folder.load_checkpoint()["method"])
    method.encoder.preprocessing = run.method.views.preprocessing
    method.eval()
    train = open_source(settings.data, limit=settings.limit)
    test = open_source(settings.test, limit=settings.test_limit)
    rows = []
    for stage, layers in stages(head_of(method)).items():
        with torch.no_grad():
            judged = evaluate(
                Staged(method.encoder, layers).eval(), train, test, baselines=False, seed=run.seed
            )
        for result in judged.results:
            protocol = f"knn k={result.settings['k']}" if result.protocol == "knn" else result.protocol
            if protocol in ("knn k=20", "linear"):
                rows.append(
                    {"method": about["method"], "seed": run.seed, "stage": stage, "protocol": protocol,
                     "value": result.value, "ci_low": result.ci_low, "ci_high": result.ci_high}
                )  # fmt: skip
                print(json.dumps(rows[-1]), flush=True)
    return rows


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Accuracy against the stage, one line a method and protocol, a dot a seed."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, constrained_layout=True)
    for axis, protocol in zip(axes, ("linear", "knn k=20"), strict=True):
        for n, method in enumerate(sorted({row["method"] for row in rows})):
            mine = [row for row in rows if row["method"] == method and row["protocol"] == protocol]
            names = list(dict.fromkeys(row["stage"] for row in mine))
            place = {name: i / (len(names) - 1) for i, name in enumerate(names)}
            means = [statistics.mean(r["value"] for r in mine if r["stage"] == name) for name in names]
            axis.plot([place[name] for name in names], means, color=f"C{n}", label=method)
            axis.scatter([place[r["stage"]] for r in mine], [r["value"] for r in mine], s=9, color=f"C{n}")
        axis.set_title(protocol)
        axis.set_xticks([0, 1], ["encoder", "end of the head"])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("top-1, %")
    axes[1].legend(frameon=False)
    figure.savefig(file)


def main(settings: Settings) -> None:
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "visrep"
    rows = [row for path in settings.runs for row in probe(path, settings)]
    save_json(settings.out, {"rows": rows})
    draw(rows, settings.out.with_suffix(".svg"))


if __name__ == "__main__":
    main(tyro.cli(Settings))
