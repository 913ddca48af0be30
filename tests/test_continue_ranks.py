"""Runs that begin with weights on two processes: the same losses as on one; when the guard ends one, both end."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import visrep
from visrep.config import Adapt, Guard, Run, to_json
from visrep.encoders import ViT, save_encoder
from visrep.method import Encoder, Preprocessing
from visrep.methods import preset
from visrep.rundir import RunFolder
from visrep.starting import start

SCRIPT = """
import json, sys
from visrep import starting
from visrep.config import from_json
starting.start(from_json(json.loads(sys.argv[1])), method="dino")
"""


def begun(folder: Path) -> Run:
    """DINO from weights in ``folder``, two epochs of four steps."""
    torch.manual_seed(1)
    encoder: Encoder = ViT(image=32, patch=8, width=32, depth=3, heads=2).build().eval()
    encoder.preprocessing = Preprocessing(32, 1.0)
    save_encoder(folder, encoder)
    _, _, tiny = preset("dino:tiny")
    run = replace(tiny, init=str(folder), epochs=2, monitor_epochs=1, monitor_images=40)
    return replace(run, precision="32-true", accelerator="cpu")


@pytest.mark.parametrize(
    ("adapting", "guard", "steps"),
    [
        (
            Adapt(freeze_epochs=0.5, layer_decay=0.8),
            Guard(act="rollback", min_cka=-1.0, max_knn_drop=100.0, held_out=0.0),
            8,
        ),
        (Adapt(freeze_epochs=0.0, lora_rank=2, train_blocks=2), Guard(act="rollback", min_cka=1.0), 3),
    ],
    ids=["heads first", "LoRA, ended by the guard"],
)
def test_two_ranks_continue_as_one(adapting: Adapt, guard: Guard, steps: int, tmp_path: Path) -> None:
    run = replace(begun(tmp_path / "weights"), adapt=adapting, guard=guard)
    one = RunFolder(start(replace(run, out=str(tmp_path / "one")), method="dino"))
    two = RunFolder(on_two_ranks(replace(run, out=str(tmp_path / "two"), devices=2), tmp_path))
    assert one.about()["status"] == two.about()["status"] == ("finished" if steps == 8 else "stopped")
    losses = [[line["terms"]["dino"] for line in folder.metrics("step")] for folder in (one, two)]
    assert len(losses[0]) == steps and losses[0] == pytest.approx(losses[1], rel=2e-3)
    kept = [folder.metrics("retention")[-1] for folder in (one, two)]
    assert kept[0]["cka"]["data"] == pytest.approx(kept[1]["cka"]["data"], abs=0.01)
    assert kept[0]["step"] == kept[1]["step"] == steps and bool(kept[0]["lost"]) == (steps == 3)
    weights = [visrep.load_encoder(folder.path).state_dict() for folder in (one, two)]
    for name, x in weights[0].items():
        torch.testing.assert_close(weights[1][name], x, rtol=1e-2, atol=2e-3, msg=name)


def on_two_ranks(run: Run, folder: Path) -> str:
    """In a process of its own, of which Fabric starts another for the second rank; the run's folder."""
    script = folder / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), json.dumps(to_json(run))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return run.out
