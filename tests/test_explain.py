"""`visrep explain` end to end: every section where it means something, reasons where it does not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from visrep import cli
from visrep.analysis.inside import concept_maps, sections_counted, subject
from visrep.analysis.inside.explain import Explanation, Settings, explain_encoder
from visrep.analysis.inside.section_inversion import SCORES
from visrep.analysis.inside.sections_maps import with_mark
from visrep.data import Source, open_source
from visrep.data.dense_playground import DensePlayground
from visrep.data.playground_video import PlaygroundVideo
from visrep.encoders import ResNet, ViT
from visrep.method import Encoder, Preprocessing

SECTIONS = [
    "Attention", "Colours of tokens", "Likeness to a patch", "Gradients", "Pictures from features",
    "Classes in layers", "Concepts of channels", "Concepts of combinations", "Gestalt",
]  # fmt: skip


def vit() -> Encoder:
    torch.manual_seed(0)
    encoder = ViT(image=32, patch=8, width=24, depth=2, heads=2).build().eval()
    encoder.preprocessing = Preprocessing(32, ratio=1.0)
    return encoder


def resnet() -> Encoder:
    torch.manual_seed(0)
    return ResNet(depth=18, width=4, stem="small").build().eval()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections_counted, "FIGURES", 8)
    monkeypatch.setattr(concept_maps, "IMAGES", 40)
    monkeypatch.setattr(subject, "PROBED", 80)


def titles(explanation: Explanation) -> list[str]:
    return [section.title for section in explanation.sections]


def test_a_vit_on_the_playground_has_every_section() -> None:
    found = explain_encoder(
        vit(), DensePlayground(80, size=32), Settings(image=7, images=3, steps=3, decoder_steps=3)
    )
    assert titles(found) == SECTIONS and not found.numbers["left out"]
    assert found.numbers["images"][0] == "train-0-000007"
    assert not found.numbers["gradients"]["complete"]  # a ViT is not piecewise linear
    assert list(found.numbers["inversion"]) == ["1", "2"]
    for layer in ("1", "2"):
        scores = found.numbers["inversion"][layer]["pictures"]
        assert scores.keys() == set(SCORES) and all(0 < value < 5 for value in scores.values())
    assert (
        "trained on 62 images" in found.sections[4].body and "judged on 15 others" in found.sections[4].body
    )
    classes = found.numbers["classes"]
    assert len(classes["patches"]) == len(classes["cls"]) == len(classes["top-1"]) == 2
    assert set(found.numbers["dissection"]) == {"trained", "trained, rotated", "untrained"}
    assert set(found.numbers["net2vec"]) == {"trained", "trained, rotated", "untrained"}
    background = found.numbers["net2vec"]["trained"]["background"]
    assert background["images"] == 10 and 0 < background["all pixels"] < 1
    for test in ("closure", "continuity"):
        assert set(found.numbers["gestalt"][test]) == {"trained", "untrained", "raw pixels"}
    json.dumps(found.numbers)
    again = explain_encoder(
        vit(), DensePlayground(80, size=32), Settings(image=7, images=3, steps=3, decoder_steps=3)
    )
    assert again.numbers == found.numbers


def test_a_resnet_without_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    source = open_source([rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(12)])
    found = explain_encoder(resnet(), source, Settings(images=2, steps=0))
    assert set(found.numbers["left out"]) == {"attention", "inversion", "classes", "dissection", "net2vec"}
    assert titles(found)[-1] == "Left out"
    assert "at least 24 images" in found.numbers["left out"]["inversion"]
    assert found.numbers["gradients"]["complete"]
    for terms in found.numbers["gradients"]["FullGrad"]:
        assert terms["sum of terms"] == pytest.approx(terms["output"], rel=1e-3)
    assert "FullGrad" in next(s.body for s in found.sections if s.title == "Gradients")


def test_a_diverged_encoder_is_not_explained() -> None:
    broken = vit()
    with torch.no_grad():
        next(broken.parameters()).fill_(math.nan)
    with pytest.raises(
        ValueError, match="NaN or infinite features for 2 of the 2 images shown: its training"
    ):
        explain_encoder(broken, DensePlayground(12, size=32), Settings(images=2))


def test_classes_need_layers_of_one_width() -> None:
    found = explain_encoder(
        resnet(), DensePlayground(80, size=32), Settings(images=2, steps=1, decoder_steps=0)
    )
    assert found.numbers["left out"]["classes"].startswith(
        "the layers of this encoder are [4, 8, 16, 32] wide"
    )
    assert "dissection" in found.numbers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 0}, "show at least 1"),
        ({"steps": -1}, "use 0 for no inversion"),
        ({"decoder_steps": -1}, "use 0 for no decoder"),
        ({"point": (0.5, 1.0)}, "shares of the image"),
    ],
)
def test_settings_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


def test_images_and_layers_that_there_are_not() -> None:
    source: Source = DensePlayground(20, size=32)
    with pytest.raises(ValueError, match="image 20 was asked for; playground has 0 to 19"):
        explain_encoder(vit(), source, Settings(image=20))
    with pytest.raises(ValueError, match="layer 3 was asked for"):
        explain_encoder(vit(), source, Settings(layers=(3,)))
    with pytest.raises(ValueError, match="holds clips"):
        explain_encoder(vit(), PlaygroundVideo(4, size=32, frames=2))


def test_the_marked_point_is_red_around_what_it_marks() -> None:
    picture = np.full((32, 32, 3), 10, np.uint8)
    large = with_mark(picture, (0.5, 0.25))
    red = np.argwhere((large == (255, 60, 60)).all(-1))
    np.testing.assert_allclose(red.mean(0), (32, 64), atol=1)
    assert (large[32, 64] == 10).all() and (large[0, 0] == 10).all()


def test_the_command_writes_a_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert "explain" in cli.COMMANDS and "visrep explain " in cli.USAGE
    from visrep.cli.explain import explain

    monkeypatch.setattr("visrep.api.look.load_encoder", lambda name: vit())
    asked = {"images": 2, "steps": 2, "decoder_steps": 2, "point": (0.2, 0.7)}
    explain("timm:mine", "playground:n=40,size=32", **asked, out=tmp_path / "out")
    assert "Gestalt" in capsys.readouterr().out
    page = (tmp_path / "out/explain.html").read_text()
    assert all(title in page for title in SECTIONS) and "0.2, 0.7" in page
    assert (
        "http" not in page.replace("http://www.w3.org", "")
        and page.count("<script") == 1
        and "<script src" not in page
    )
    numbers = json.loads((tmp_path / "out/explain.json").read_text())
    assert numbers["encoder"] == "timm:mine" and list(numbers["likeness"]["mean cosine"]) == ["0.2, 0.7"]
