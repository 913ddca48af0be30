"""`visrep diagnose` and `visrep similarity` from images to table, file and page; selection without labels."""

from __future__ import annotations

import io
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

import visrep
from test_report import TINY_RESNET, TINY_VIT, Page, write_run
from visrep import cli
from visrep.analysis.diagnose import Diagnosis
from visrep.analysis.diagnosis_table import render_diagnosis
from visrep.analysis.layers import Amount, layer_samples, opened
from visrep.analysis.measures.lidar import lidar
from visrep.analysis.measures.registry import measure, selector
from visrep.analysis.record import read_run
from visrep.analysis.report import report
from visrep.analysis.spectra import rankme
from visrep.comparison import worth
from visrep.data import open_source
from visrep.evaluation.compare import compare_without_labels
from visrep.evaluation.effort import effort
from visrep.evaluation.features import extract
from visrep.evaluation.leaderboard import render_leaderboard

DATA = "playground:n=80,size=32"
SMALL = Amount(images=80, view_images=40, views=3, token_images=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny ViT of two layers, 32 wide; do not write into it."""
    torch.manual_seed(0)
    return write_run(tmp_path_factory.mktemp("runs") / "run", TINY_VIT.build(), data=DATA)


@pytest.fixture(scope="module")
def diagnosed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Diagnosis, Path]:
    out = tmp_path_factory.mktemp("diagnosed")
    return visrep.diagnose(folder, DATA, layers=(1,), amount=SMALL, out=out), out


def test_what_is_shown_is_what_the_functions_give(folder: Path, diagnosed: tuple[Diagnosis, Path]) -> None:
    found, _ = diagnosed
    encoder = visrep.load_encoder(folder)
    canvases = opened(open_source(DATA), encoder, 80)
    vectors = extract(encoder, canvases, canvases.usable, layers=(1,)).vectors
    assert [layer.layer for layer in found.layers] == [1, 2]
    for layer in found.layers:
        z = vectors[layer.layer, "cls"]
        assert layer.readings["rankme"].value == pytest.approx(rankme(z), rel=1e-6)
        assert sum(layer.spectrum) == pytest.approx(1, abs=1e-6) and layer.width == 32
    assert found.layers[0].readings["rankme"].value != found.layers[1].readings["rankme"].value


def test_views_are_grouped_by_image(folder: Path, diagnosed: tuple[Diagnosis, Path]) -> None:
    encoder = visrep.load_encoder(folder)
    canvases = opened(open_source(DATA), encoder, 80)
    views = layer_samples(encoder, canvases, (1, 2), SMALL)[2].views
    assert views is not None and views.shape == (40, 3, 32)
    within = (views - views.mean(1, keepdim=True)).square().mean()
    dealt = views.flatten(0, 1)[torch.randperm(120, generator=torch.Generator().manual_seed(0))].view(
        40, 3, 32
    )
    assert within < (dealt - dealt.mean(1, keepdim=True)).square().mean()
    assert diagnosed[0].layers[1].readings["lidar"].value == pytest.approx(lidar(views), rel=1e-6)
    assert not torch.equal(views[:, 0], views[:, 1])


def test_the_table_names_variants_cautions_and_what_can_be_compared(
    diagnosed: tuple[Diagnosis, Path],
) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(render_diagnosis(diagnosed[0]))
    text = " ".join(console.file.getvalue().split())  # pyright: ignore[reportAttributeAccessIssue]
    assert "layer 1" in text and "layer 2" in text and "entropy of singular values" in text
    assert "40 images for 32 dimensions" in text and measure("rankme").compares in text
    assert "prototype_entropy" not in text and "teacher_entropy 0.7" in text


def test_the_file_and_the_page_of_the_report(
    folder: Path, diagnosed: tuple[Diagnosis, Path], tmp_path: Path
) -> None:
    stored = json.loads((diagnosed[1] / "diagnostics.json").read_text())
    assert stored["measures"]["lidar"]["variant"] == measure("lidar").variant
    assert stored["layers"][1]["readings"]["rankme"]["images"] == 80
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    assert "Not measured yet" in Page(report(run, images=12)).text["without-labels"]
    shutil.copy(diagnosed[1] / "diagnostics.json", run)
    page = Page(report(run, images=12))
    assert "LiDAR" in page.text["without-labels"] and measure("lidar").compares in page.text["without-labels"]
    assert not page.outside


def test_a_convolutional_encoder_without_views(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = write_run(tmp_path / "run", TINY_RESNET.build(), data=DATA)
    found = visrep.diagnose(run, DATA, amount=Amount(images=30, views=0, token_images=8))
    assert (run / "diagnostics.json").exists()
    (only,) = found.layers
    assert only.readings["lidar"].caution == "not measured: there are no views."
    assert only.readings["rankme"].value is None and "Use more than 64" in only.readings["rankme"].caution
    assert only.readings["feature_std"].value is not None


def test_mistakes_of_diagnose(folder: Path) -> None:
    with pytest.raises(ValueError, match="layer 3 was asked for; this encoder has layers 1 to 2"):
        visrep.diagnose(folder, DATA, layers=(3,))
    with pytest.raises(ValueError, match="2 views or 0"):
        Amount(views=1)


def test_layers_of_one_encoder(folder: Path, tmp_path: Path) -> None:
    found = visrep.similarity([folder], DATA, images=80, permutations=3, out=tmp_path)
    cka = next(one for one in found.maps if one.similarity == "cka")
    assert cka.values[0][0] == pytest.approx(1) and cka.values[1][1] == pytest.approx(1)
    assert cka.values[0][1] == pytest.approx(cka.values[1][0]) and cka.row_layers == [1, 2]
    assert cka.best() == cka.values[0][1] or cka.best() == cka.values[1][0]
    assert cka.permuted[0][1] is not None and abs(cka.permuted[0][1]) < 0.1 < (cka.values[0][1] or 0)
    assert all(a <= b for a, b in zip(cka.permuted[0], cka.permuted_most[0], strict=True) if a and b)
    stored = json.loads((tmp_path / "similarity.json").read_text())
    assert {one["similarity"] for one in stored["maps"]} == {"cka", "mutual-knn", "procrustes", "rsa", "cca", "svcca",
                                                             "pwcca"}  # fmt: skip
    page = Page(tmp_path / "similarity.html")
    assert not page.outside and "1.00" in page.text["cka"] and "by chance" in page.text["cka"]


def test_three_images_are_said_to_be_too_few(folder: Path, tmp_path: Path) -> None:
    found = visrep.similarity([folder], "playground:n=3,size=32", permutations=1, out=tmp_path)
    assert {one.values[-1][-1] for one in found.maps} == {None}
    for one in found.maps:
        assert "3 images are too few" in one.caution and "one vector" not in one.caution


def test_three_encoders_with_each_other(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = write_run(tmp_path / "other", TINY_VIT.build(), data=DATA)
    conv = write_run(tmp_path / "conv", TINY_RESNET.build(), data=DATA)
    names = ("cka", "cca")
    found = visrep.similarity(
        [folder, other, conv], DATA, measures=names, images=50, permutations=2, out=tmp_path
    )
    assert len(found.maps) == 2 * 3
    between = found.between("cka")
    assert between[0][0] == 1.0 and between[0][1] == between[1][0] == found.maps[0].values[-1][-1]
    # untrained twins of one architecture are different networks
    assert found.maps[0].untrained[1][1] != pytest.approx(1)
    wide = next(one for one in found.maps if one.similarity == "cca" and one.columns == conv.name)
    assert wide.values[-1][-1] is None and "span all" in wide.caution  # 50 images, 64 wide
    assert "Encoder with encoder" in Page(tmp_path / "similarity.html").text["cka"]
    assert json.loads((tmp_path / "similarity.json").read_text())["last_layers"]["cka"] == between


def test_mistakes_of_similarity(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="given twice"):
        visrep.similarity([folder, folder], DATA, out=tmp_path)
    with pytest.raises(ValueError, match="no similarity 'ckaa'"):
        visrep.similarity([folder], DATA, measures=("ckaa",), out=tmp_path)
    with pytest.raises(ValueError, match="20 or more images"):
        visrep.similarity([folder], DATA, images=5, out=tmp_path)


@pytest.mark.parametrize("name", ["lidar", "alpha-req", "uniformity"])
def test_an_order_by_another_measure(name: str, folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    wider = TINY_VIT.build()
    with torch.no_grad():
        for parameter in wider.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    other = write_run(tmp_path / "other", wider, data=DATA)
    runs = {"one": folder, "other": other}
    found = compare_without_labels(
        {key: visrep.load_encoder(path) for key, path in runs.items()},
        {key: effort(read_run(path)) for key, path in runs.items()},
        open_source(DATA),
        select=selector(name),
    )
    chosen = measure(name)
    keys = [chosen.best_first(entry.scores[chosen.key]) for entry in found.entries]
    assert keys == sorted(keys) and found.selected == name
    console = Console(file=io.StringIO(), width=160)
    console.print(render_leaderboard(found))
    text = " ".join(console.file.getvalue().split())  # pyright: ignore[reportAttributeAccessIssue]
    assert f"Ordered by {chosen.title}, without labels ({chosen.better} is better)" in text
    assert chosen.title in found.summary()


@pytest.mark.parametrize("name", ["rankme", "alpha-req", "lidar"])
def test_too_few_images_choose_nothing(name: str, folder: Path) -> None:
    few = open_source("playground:n=4,size=32")
    with pytest.raises(ValueError, match=r"one: .* not shown: .*Give more images, or another --select"):
        compare_without_labels({"one": visrep.load_encoder(folder)}, {}, few, select=selector(name))


def test_selecting_is_for_comparing_without_labels(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose by one of rankme"):
        visrep.compare([folder, folder], DATA, select="alignment", labels=False, out=tmp_path)
    shutil.copytree(folder, tmp_path / "again")
    with pytest.raises(ValueError, match="add --no-labels"):
        visrep.compare([folder, tmp_path / "again"], DATA, select="lidar", out=tmp_path)


def test_the_worth_of_a_measure_is_what_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worth, "records_folder", lambda: tmp_path)
    assert worth.measured_worth(measure("lidar")) == []
    correlation = {"n": 45, "spearman": 0.314, "kendall": 0.2, "low": 0.02, "high": 0.55}
    group = {"name": "cifar10-jpeg, 15 methods", "correlations": {"lidar": correlation}}
    (tmp_path / "label_free.json").write_text(json.dumps({"groups": [group]}))
    said, not_said = worth.measured_worth(measure("lidar"))
    assert "45 of our own runs" in said and "+0.31" in said and "+0.02 to +0.55" in said
    assert "runs or checkpoints of one method has not been measured" in not_said
    assert worth.measured_worth(measure("clid")) == []
    within = {**group, "name": "cifar10-jpeg, runs within methods"}
    (tmp_path / "label_free.json").write_text(json.dumps({"groups": [group, within]}))
    assert len(worth.measured_worth(measure("lidar"))) == 2
    (tmp_path / "label_free.json").write_text(json.dumps({"groups": [group]}))
    (tmp_path / "selection").mkdir()
    agreed = {
        "settings": {"lidar": {"spearman": 0.7, "behind": 1.26}},
        "checkpoints": {"lidar": {"spearman": -0.1, "behind": 0.4}},
    }
    record = {"method": "mae:small32", "data": "photos", "settings": [{}] * 7, "agreement": agreed}
    (tmp_path / "selection" / "mae-small32-photos.json").write_text(json.dumps(record))
    _, said = worth.measured_worth(measure("lidar"))
    assert "7 settings of mae:small32 (photos)" in said
    assert "by +0.70" in said and "1.3 points behind" in said and "by -0.10, 0.4 points behind" in said


@pytest.mark.parametrize("name", ["doctor", "diagnose", "similarity"])
def test_the_commands_are_known(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name in cli.COMMANDS and f"visrep {name} " in cli.USAGE


def test_the_diagnose_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from visrep.cli.diagnose import diagnose

    diagnose(str(folder), DATA, images=40, views=0, out=str(tmp_path))
    assert "RankMe" in capsys.readouterr().out
    stored = json.loads((tmp_path / "diagnostics.json").read_text())
    assert math.isclose(sum(stored["layers"][0]["spectrum"]), 1, abs_tol=1e-5)


def test_the_similarity_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from visrep.cli.similarity import similarity

    monkeypatch.setattr("visrep.analysis.similarity.cka.BATCH", 20)
    names = ("cka", "cka-minibatch")
    similarity((str(folder),), DATA, measures=names, images=40, permutations=2, out=tmp_path / "out")
    said = capsys.readouterr().out
    assert "last layers" not in said and "untrained" not in said  # an encoder with itself: 1
    assert "by chance" in said and "cka-minibatch" in said and (tmp_path / "out" / "similarity.html").exists()
    whole, parts = json.loads((tmp_path / "out" / "similarity.json").read_text())["maps"]
    assert whole["values"][0][1] != parts["values"][0][1] == pytest.approx(whole["values"][0][1], abs=0.1)
    assert abs(parts["permuted"][0][1]) < 0.2 and parts["values"][0][0] == pytest.approx(1)
