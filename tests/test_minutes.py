"""Nothing that was judged is lost: calls that are stopped go on, and what does not apply stops nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visrep.cli.evaluate import evaluate as command
from visrep.data.dense_playground import DensePlayground
from visrep.data.playground import Playground
from visrep.encoders import ResNet, ViT, save_encoder
from visrep.evaluation import protocols
from visrep.evaluation.dense import sitting as dense_sitting
from visrep.evaluation.dense.protocols import DENSE
from visrep.evaluation.evaluate import Evaluation, evaluate
from visrep.evaluation.examples import Example
from visrep.evaluation.minutes import Journal, Judgement
from visrep.evaluation.results import Inapplicable, Result
from visrep.method import Encoder, Preprocessing

SIZE = 16


def vit() -> Encoder:
    torch.manual_seed(0)
    encoder = ViT(image=SIZE, patch=4, width=24, depth=2, heads=2).build().eval()
    encoder.preprocessing = Preprocessing(SIZE, ratio=1.0)
    return encoder


def judged(folder: Path | None, *names: str, **more: Any) -> Evaluation:
    """On scenes whose masks and labels are known."""
    world, test = DensePlayground(20, size=SIZE), DensePlayground(10, size=SIZE, split="test")
    return evaluate(vit(), world, test, protocols=names, journal=Journal(folder), **more)


def counting(monkeypatch: pytest.MonkeyPatch, *, stop_at: int = 0) -> list[str]:
    """The protocols that are run from now on; the run of this number of `hummingbird` fails."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **how: Any) -> Any:
            calls.append(name)
            if name == "hummingbird" and calls.count(name) == stop_at:
                raise RuntimeError("stopped")
            return real(*args, **how)

        return run

    dense = DENSE["hummingbird"]
    monkeypatch.setitem(DENSE, "hummingbird", replace(dense, run=counted("hummingbird", dense.run)))
    monkeypatch.setitem(protocols.ON_VECTORS, "knn", counted("knn", protocols.ON_VECTORS["knn"]))
    return calls


def test_a_stopped_call_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = judged(None, "knn", "hummingbird")
    with monkeypatch.context() as patch:
        calls = counting(patch, stop_at=2)
        with pytest.raises(RuntimeError, match="stopped"):
            judged(tmp_path, "knn", "hummingbird")
        assert calls == ["knn", "knn", "knn", "hummingbird", "hummingbird"]
    calls = counting(monkeypatch)
    found = judged(tmp_path, "knn", "hummingbird")
    assert calls == ["hummingbird", "hummingbird"]  # of the twin, whose run failed, and of pixels
    assert (found.results, found.warnings) == (whole.results, whole.warnings)
    assert "4 judgements are of an earlier call that did not come to its end" in found.notes
    (mine, *_), (theirs, *_) = found.pictures["hummingbird"], whole.pictures["hummingbird"]
    assert mine.titles == theirs.titles and np.array_equal(mine.pictures, theirs.pictures)
    judged(tmp_path, "knn", baselines=False, seed=1)
    assert calls[2:] == ["knn"]  # another fingerprint


def test_a_journal_gives_back_what_it_was_given(tmp_path: Path) -> None:
    result = Result("knn", "trained", 2, "cls", "top-1", 50.5, 40.1, 60.0, 9, 4, {"k": 20}, {"a": 1.5}, 1)
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    given = Judgement([result], ["few"], [Example({"image": picture}, picture[::-1], {"cat": "#ff0000"})])
    first, other = Journal(tmp_path / "unfinished"), Journal(tmp_path / "unfinished")
    first.keep("a", given)
    other.keep("b", given)
    (tmp_path / "unfinished" / "c.npz").write_bytes(b"half of it")
    assert first.find("c") is None and first.find("d") is None
    found = Journal(tmp_path / "unfinished").find("a")
    assert found is not None and (found.results, found.cautions) == ([result], ["few"])
    (example,) = found.examples
    assert np.array_equal(example.known["image"], picture) and np.array_equal(example.found, picture[::-1])
    assert example.legend == {"cat": "#ff0000"}
    first.close()
    assert sorted(file.name for file in (tmp_path / "unfinished").iterdir()) == ["b.npz", "c.npz"]


def test_what_does_not_apply_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is shown and saved; the command says at its end what is missing."""
    run = tmp_path / "run"
    save_encoder(run, vit())
    data = f"playground:n=30,size={SIZE}"
    with pytest.raises(
        ValueError, match=r"episodes could not be judged, the rest was\. episodes draws 5 classes"
    ):
        command(str(run), data, protocols=("episodes", "knn"))
    sheet = json.loads((run / "evaluation.json").read_text())
    assert {result["protocol"] for result in sheet["results"]} == {"knn"} and "unjudged" not in sheet
    assert any(line.startswith("left out: episodes") for line in sheet["warnings"])
    assert not (run / "evaluation-unfinished").exists()
    monkeypatch.setattr(protocols, "ORDER", ("retrieval-within", "episodes", "knn"))
    found = evaluate(vit(), Playground(30, size=SIZE), protocols=("all", "episodes"), baselines=False)
    assert set(found.unjudged) == {"episodes"} and any(
        "no class of the test" in line for line in found.warnings
    )


def test_what_an_encoder_lacks_is_said_before_it_sees_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def unseen(*args: Any, **how: Any) -> None:
        raise AssertionError("a pass")

    monkeypatch.setattr(dense_sitting, "extract_patches", unseen)
    encoder = ResNet(depth=18, width=4, stem="small").build().eval()
    said = r"ResNet gives none\. It applies to a ViT\. Possible there: segmentation, hummingbird, depth, discovery-lost"
    with pytest.raises(Inapplicable, match=said):
        evaluate(encoder, DensePlayground(8, size=32), protocols=("segmentation", "attention-masks"))
