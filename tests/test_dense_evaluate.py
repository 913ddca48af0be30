"""Dense protocols from data to the sheet: baselines, splits, reuse, tables, and errors that help."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import nn

from test_report import Page
from visrep import api
from visrep.analysis.record import RunRecord
from visrep.analysis.report_probes import clearly_better, probes
from visrep.data import open_source
from visrep.data.dense import DenseSource
from visrep.data.dense_opening import dense_splits
from visrep.data.dense_playground import DensePlayground
from visrep.encoders import ViT, save_encoder
from visrep.evaluation.compare import evaluate_alike, leaderboard
from visrep.evaluation.dense import heads
from visrep.evaluation.dense.opening import open_for
from visrep.evaluation.dense.protocols import AS_PUBLISHED, DENSE
from visrep.evaluation.effort import Effort
from visrep.evaluation.evaluate import by_kind, evaluate
from visrep.evaluation.results import Judged, Result, clearly_ahead, goodness
from visrep.evaluation.sheet_pictures import read_pictures
from visrep.evaluation.table import render
from visrep.method import Encoder, Preprocessing

SIZE = 16
FITTED = ("segmentation", "hummingbird", "depth")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of a few steps: what they learn is tested elsewhere."""
    monkeypatch.setattr(heads, "LEAST_STEPS", 20)
    monkeypatch.setattr(heads, "CHOOSING_STEPS", 10)


def vit(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    encoder = ViT(image=SIZE, patch=4, width=24, depth=2, heads=2, cls=False).build().eval()
    encoder.preprocessing = Preprocessing(SIZE, ratio=1.0)
    return encoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two halves, left and right, of two of three classes, which their colours tell."""
    rng = np.random.default_rng(0)
    colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])
    for part, n in (("train", 12), ("val", 6)):
        for index in range(n):
            left, right = rng.choice(3, 2, replace=False)
            mask = np.full((20, 30), left, np.uint8)
            mask[:, 15:] = right
            image = np.clip(colours[mask] + rng.normal(0, 20, (20, 30, 3)), 0, 255).astype(np.uint8)
            for kind, values in (("images", image), ("masks", mask)):
                place = tmp_path / "data" / kind / part / f"{index}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(place)
    (tmp_path / "data" / "classes.json").write_text('["red", "green", "blue"]')
    return tmp_path / "data"


def trained_to_segment(world: DensePlayground, steps: int) -> Encoder:
    """A small ViT that learned the shapes' pixels from ``world``, with a head that is thrown away."""
    encoder = vit().train()
    head = nn.Linear(24, len(world.names))
    pixels = torch.from_numpy(np.stack([world.read(i) for i in range(len(world))]))
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in (encoder.preprocessing.mean, encoder.preprocessing.std)
    )
    x = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    answers = [world.answers(i, (4, 4)).classes for i in range(len(world))]
    y = torch.from_numpy(np.stack([classes for classes in answers if classes is not None])).flatten(1)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], 3e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(x), (16,), generator=rng)
        loss = F.cross_entropy(head(encoder(x[rows]).patches).flatten(0, 1), y[rows].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return encoder.eval()


def test_training_shows_in_linear_segmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Better than the same network untrained, and than calling everything background."""
    monkeypatch.setattr(heads, "LEAST_STEPS", 60)
    world, test = DensePlayground(n=96, size=SIZE), DensePlayground(n=40, size=SIZE, split="test")
    encoder = trained_to_segment(world, steps=300)
    evaluation = evaluate(encoder, world, test, protocols=("segmentation",), size=SIZE, limit=40)
    trained, untrained, pixels = evaluation.results
    assert [r.encoder for r in evaluation.results] == ["trained", "untrained", "pixels"]
    known = [test.answers(i).classes for i in range(len(test))]
    background = np.mean([(classes == 0).mean() for classes in known if classes is not None])
    assert trained.value > 100 * background / len(world.names)
    assert trained.value > untrained.value and trained.value > pixels.value


def test_a_folder_of_masks_from_the_command_to_the_sheet(folder: Path) -> None:
    run = folder.parent / "run"
    run.mkdir()
    save_encoder(run, vit())
    asked = ("hummingbird", "segmentation")
    first = api.evaluate(run, folder, protocols=asked)
    assert {(r.protocol, r.encoder, r.metric, r.n_train, r.n_test) for r in first.results} == {
        (name, who, "mIoU", 12, 6) for name in asked for who in ("trained", "untrained", "pixels")
    }
    assert {r.settings["image"] for r in first.results} == {2 * SIZE}
    assert {r.settings["grid"] for r in first.results} == {"8 x 8"}
    assert set(first.results[0].details) == {"IoU of red", "IoU of green", "IoU of blue"}
    assert "fitted on 12 images" in first.split and "judged on 6" in first.split
    assert "only 6 test images" in first.warnings[-1] and not first.notes
    colours = next(r for r in first.results if (r.protocol, r.encoder) == ("hummingbird", "pixels"))
    assert colours.value > 80  # this data is nothing but colours

    drawn = read_pictures(run / "evaluation.json")
    columns = ("image", "true classes", "trained", "untrained", "pixels")
    assert {(name, row.titles) for name in drawn for row in drawn[name]} == {
        (name, columns) for name in asked
    }
    image, true, *_, by_colour = drawn["hummingbird"][0].pictures
    assert len(drawn["hummingbird"]) == 4 and image.shape == (75, 112, 3)  # as the images, 20 x 30
    assert {*drawn["hummingbird"][0].legend} <= {"red", "green", "blue"}
    assert (by_colour == true).all(-1).mean() > 0.8

    page = probes(RunRecord(Path("run"), {}, [], [], first.to_json(), {}, []))
    assert "linear segmentation: mIoU, in parts" in page and "IoU of green" in page

    again = api.evaluate(run, folder, protocols=("hummingbird",))
    assert {note.split(":")[0] for note in again.notes} == {
        "features reused (trained)",
        "features reused (untrained)",
    }
    assert [r for r in first.results if r.protocol == "hummingbird"] == again.results
    sheet = json.loads((run / "evaluation.json").read_text())
    assert {r["protocol"] for r in sheet["results"]} == set(asked)
    assert read_pictures(run / "evaluation.json").keys() == set(asked)
    assert len(Page(api.report(run / "evaluation.json")).images) == 2 * 4 * 5

    mask = next((folder / "masks" / "val").iterdir())
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(mask)
    other = api.evaluate(run, folder, protocols=("hummingbird",), baselines=False)
    assert other.fingerprint["test"] != again.fingerprint["test"]
    assert other.fingerprint["train"] == again.fingerprint["train"]
    assert {r["protocol"] for r in json.loads((run / "evaluation.json").read_text())["results"]} == {
        "hummingbird"
    }
    now = read_pictures(run / "evaluation.json")
    assert now.keys() == {"hummingbird"} and now["hummingbird"][0].titles == columns[:3]
    (aside,) = run.glob("evaluation-*.json")
    assert read_pictures(aside).keys() == set(asked)


def test_layers_and_no_baselines() -> None:
    world, test = dense_splits("playground:n=12,size=16")
    evaluation = evaluate(vit(), world, test, protocols=("hummingbird",), layers="all", baselines=False)
    assert [(r.encoder, r.layer) for r in evaluation.results] == [("trained", 2), ("trained", 1)]
    assert evaluation.results[0].value != evaluation.results[1].value


def test_all_is_every_dense_protocol_that_applies(folder: Path) -> None:
    train, _ = dense_splits(folder)
    every = tuple(name for name in DENSE if name not in AS_PUBLISHED)
    assert by_kind(("all",), train) == ((), every)
    assert by_kind(("all", "propagation-dino"), train) == ((), (*every, "propagation-dino"))
    labels, dense = by_kind(("all",), DensePlayground(n=10))
    assert "knn" in labels and not set(labels) & set(DENSE) and dense == every
    assert by_kind(("knn", "depth"), DensePlayground(n=10)) == (("knn",), ("depth",))
    with pytest.raises(ValueError, match=r"depth needs depth, which .* It has: classes"):
        evaluate(vit(), *dense_splits(folder), protocols=("depth",))


def test_labels_and_masks_share_a_sheet() -> None:
    world, test = DensePlayground(n=40, size=SIZE), DensePlayground(n=20, size=SIZE, split="test")
    both = evaluate(vit(), world, test, protocols=("knn", "hummingbird"), baselines=False)
    alone = evaluate(vit(), world, test, protocols=("knn",), baselines=False)
    assert [r.protocol for r in both.results] == ["knn"] * 3 + ["hummingbird"]
    assert both.fingerprint == {**alone.fingerprint, "protocols": {"hummingbird": 1, "knn": 1}}
    assert both.results[:3] == alone.results


def test_a_fifth_is_held_out_where_the_data_has_no_test_part() -> None:
    world = DensePlayground(n=50, size=SIZE)
    evaluation = evaluate(vit(), world, protocols=("hummingbird",), baselines=False)
    assert {(r.n_train, r.n_test) for r in evaluation.results} == {(40, 10)}
    few = evaluate(vit(), world, protocols=("hummingbird",), baselines=False, limit=20, test_limit=10)
    assert {(r.n_train, r.n_test) for r in few.results} == {(20, 10)}


def test_errors_that_help(folder: Path) -> None:
    train, test = dense_splits(folder)
    with pytest.raises(ValueError, match="has no labels"):
        evaluate(vit(), train, test, protocols=("knn", "hummingbird"))
    with pytest.raises(ValueError, match="layer 9 was asked for"):
        evaluate(vit(), train, test, protocols=("hummingbird",), layers=(9,))
    with pytest.raises(ValueError, match="does not take images of size 18"):
        evaluate(vit(), train, test, protocols=("hummingbird",), size=18)
    with pytest.raises(ValueError, match=r"there is no protocol 'segmentatoin'.*segmentation"):
        evaluate(vit(), train, test, protocols=("segmentatoin",))
    broken = vit()
    with torch.no_grad():
        next(p for name, p in broken.named_parameters() if name == "norm.weight").fill_(math.nan)
    with pytest.raises(ValueError, match="NaN or infinite patches for 6 of 6 images: its training diverged"):
        evaluate(broken, train, test, protocols=("hummingbird",), baselines=False)
    clips = vit()
    clips.preprocessing = Preprocessing(SIZE, frames=4)
    with pytest.raises(ValueError, match="dense protocols judge single images"):
        evaluate(clips, train, test, protocols=("hummingbird",))
    with pytest.raises(ValueError, match="dense protocols judge by masks or depth, and sequence has none"):
        evaluate(vit(), open_source([np.zeros((9, 9, 3), np.uint8)] * 5), protocols=("hummingbird",))


def test_a_folder_of_images_and_masks_is_not_one_of_two_classes(folder: Path) -> None:
    for protocols in (("knn",), ("all",), ("segmentation",), ()):
        train, test = open_for(protocols, folder)
        assert train.labels is None and test is not None and (len(train), len(test)) == (12, 6)
    assert not isinstance(open_for(("knn",), "playground:n=20,size=16")[0], DenseSource)
    assert isinstance(open_for(("all",), "playground:n=20,size=16")[0], DenseSource)
    train, test = open_for(("depth",), "playground:n=20,size=16", "playground:n=7,size=16,split=test")
    assert test is not None and len(test) == 7


def test_masks_that_do_not_fit_stop_the_evaluation(folder: Path) -> None:
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / "masks" / "val" / "3.png")
    with pytest.raises(
        ValueError, match=r"masks/val/3.png is 5 x 5 pixels and its image images/val/3.png 30 x 20"
    ):
        evaluate(vit(), *dense_splits(folder), protocols=("hummingbird",), baselines=False)


def test_an_image_that_cannot_be_read_is_left_out_with_its_mask(folder: Path) -> None:
    (folder / "images" / "val" / "3.png").write_bytes(b"no image")
    evaluation = evaluate(vit(), *dense_splits(folder), protocols=("hummingbird",), baselines=False)
    assert evaluation.results[0].n_test == 5
    assert any("1 of 6 images could not be read" in line and "3.png" in line for line in evaluation.warnings)


def test_of_errors_less_is_better() -> None:
    assert goodness("RMSE", 3.0) < goodness("RMSE", 2.0) and goodness("mIoU", 3.0) > goodness("mIoU", 2.0)
    assert clearly_ahead("mIoU", (5, 6), (3, 4)) and not clearly_ahead("mIoU", (3, 4), (5, 6))
    assert clearly_ahead("RMSE", (3, 4), (5, 6)) and not clearly_ahead("RMSE", (5, 6), (3, 4))
    assert not clearly_ahead("RMSE", (3, 5.5), (5, 6)) and not clearly_ahead("mIoU", (3, 5.5), (2, 4))


def rmse(who: Judged, value: float) -> Result:
    return Result("depth", who, 2, "tokens", "RMSE", value, value - 1, value + 1, 9, 9)


def test_tables_and_pages_know_errors() -> None:
    world, test = dense_splits("playground:n=12,size=16")
    found = evaluate(vit(), world, test, protocols=("depth",))
    results = [rmse("trained", 10), rmse("untrained", 20), rmse("pixels", 15)]
    better = type(found)(results, found.split, found.fingerprint)
    shown = Console(file=io.StringIO(), width=100, force_terminal=True)
    shown.print(render(better))
    assert isinstance(shown.file, io.StringIO)
    assert "\x1b[1;32m10.0 (9.0-11.0)" in shown.file.getvalue()  # green
    mine, *others = (r.__dict__ for r in results)
    assert clearly_better(mine, others) and not clearly_better(others[0], [mine])
    page = probes(RunRecord(Path("run"), {}, [], [], better.to_json(), {}, []))
    assert "linear depth: RMSE" in page and "+5.0" in page


def test_a_leaderboard_of_errors_has_the_smallest_on_top() -> None:
    world, test = dense_splits("playground:n=12,size=16")
    found = evaluate_alike({"a": vit(), "b": vit(1)}, world, test, protocols=("depth",), limit=0)
    assert {r.encoder for r in found["b"].results} == {"trained", "untrained", "pixels"}
    efforts = {name: Effort("", "", "", "", 1, 1, 1.0, 1, 1.0, "healthy", "") for name in found}
    entries = leaderboard(found, efforts, ("depth",), seed=0).entries
    values = [entry.headline("depth") for entry in entries]
    ordered = [result.value for result in values if result is not None]
    assert len(ordered) == 4 and ordered == sorted(ordered)


def filmed(videos: int) -> DenseSource:
    """Scenes that are said to be frames of so many videos."""
    world, _ = dense_splits("playground:n=24,size=16")
    world.groups, world.labels = np.arange(24) % videos, None
    return world


def test_each_of_few_videos_is_judged_by_what_was_fitted_on_the_others() -> None:
    found = evaluate(vit(), filmed(2), protocols=FITTED, baselines=False)
    assert {(r.n_train, r.n_test, r.settings["folds"]) for r in found.results} == {(12, 24, 2)}
    assert found.split.startswith("dense protocols judged on each of 2 videos of")
    assert found.fingerprint["train"] == found.fingerprint["test"]
    (said,) = [line for line in found.warnings if "videos" in line]
    assert said.startswith("segmentation, hummingbird, depth: judged on frames of 2 videos only")
    many = evaluate(vit(), filmed(12), protocols=("hummingbird",), baselines=False)
    assert any("hummingbird: judged on frames of 2 videos only" in line for line in many.warnings)
    assert (many.results[0].n_test, many.results[0].settings.get("folds")) == (4, None)
    apart = evaluate(vit(), filmed(24), filmed(24), protocols=("hummingbird",), baselines=False)
    assert not any("videos" in line for line in apart.warnings)
