"""The table of benchmarks/attention_quality.py: what it says of given runs, and of their differences."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from visrep import api
from visrep.encoders import ToST, ViT, ViTLike, save_encoder

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "attention_quality.py"
DATA = "playground:n=10,size=16"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("attention_quality", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["attention_quality"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(folder: Path, encoder: ViTLike, epochs: int) -> Path:
    torch.manual_seed(0)
    save_encoder(folder, encoder.build())
    about = {"data": "photos", "epochs": epochs, "batch": 8, "seed": 0, "limit": 0}
    (folder / "run.json").write_text(json.dumps({"method": "dino", "preset": "tiny", "run": about}))
    return folder


def test_the_table(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape: dict[str, Any] = {"image": 16, "patch": 4, "width": 16, "depth": 2, "heads": 2}
    runs = (run(tmp_path / "vit", ViT(**shape), 3), run(tmp_path / "tost", ToST(**shape), 4))
    settings = script.Settings(
        runs=runs, data=(DATA,), size=16, baselines=False, out=tmp_path / "numbers.json"
    )
    script.main(settings)
    said = " ".join(capsys.readouterr().out.split())
    assert "not trained alike: epochs: vit 3, tost 4" in said
    assert "tost, attention-masks: attention-masks reads the attention of the last block" in said
    vit, tost = json.loads((tmp_path / "numbers.json").read_text())["rows"]
    assert {r["protocol"] for r in vit["results"]} == set(script.PROTOCOLS)
    assert {r["protocol"] for r in tost["results"]} == {"discovery-lost", "discovery-tokencut"}
    assert not vit["left_out"] and set(tost["left_out"]) == {"attention-masks"}
    alone = api.evaluate(
        runs[0], DATA, protocols=("discovery-lost",), baselines=False, size=16, keep=False
    ).results[0]
    (same,) = (r for r in vit["results"] if r["protocol"] == "discovery-lost")
    assert same["value"] == alone.value and f"{alone.value:.1f} (" in said
