"""Data and features that protocols and measures cannot use: a message or a caution for each, and no wrong number."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from _stubs import Stub
from visrep.analysis.diagnose import diagnose_encoder
from visrep.analysis.layers import Amount
from visrep.analysis.measures.base import Measure, Sample
from visrep.analysis.measures.registry import MEASURES
from visrep.data import Source, open_source
from visrep.data.dense_opening import dense_splits
from visrep.data.dense_playground import DensePlayground
from visrep.encoders import ViT
from visrep.evaluation import attentive
from visrep.evaluation.dense import heads
from visrep.evaluation.evaluate import Evaluation, evaluate
from visrep.evaluation.finetune import RECIPES, SMALL
from visrep.evaluation.linear_dinov2 import Grid
from visrep.evaluation.probe_training import predict
from visrep.evaluation.protocols import least_images
from visrep.evaluation.results import Inapplicable
from visrep.method import Encoder, Preprocessing, Tokens

SIZE = 16
OF_IMAGES = (
    "knn", "knn-loo", "linear", "fewlabels", "attentive", "finetune", "finetune:1", "clustering", "retrieval",
    "retrieval-within",
)  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training of a few steps: what comes of it is tested elsewhere."""
    monkeypatch.setitem(RECIPES, "finetune", replace(SMALL, tries=SMALL.tries[:2], epochs=1, least_steps=4))
    monkeypatch.setattr(attentive, "LEAST_STEPS", 20)
    monkeypatch.setattr(heads, "LEAST_STEPS", 4)
    monkeypatch.setattr(heads, "CHOOSING_STEPS", 2)


def images(labels: list[int], seed: int = 0) -> Source:
    """Noise whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    level = (50 + 60 * np.array(labels))[:, None, None, None]
    pixels = np.clip(level + rng.normal(0, 10, (len(labels), SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    return open_source(list(zip(pixels, labels, strict=True)))


def vit() -> Encoder:
    torch.manual_seed(0)
    encoder = ViT(image=SIZE, patch=8, width=24, depth=2, heads=2).build().eval()
    encoder.preprocessing = Preprocessing(SIZE, ratio=1.0)
    return encoder


def colours(scale: float) -> Encoder:
    """Tokens as large as asked for; those of bright images are NaN for a scale of NaN."""

    def look(pixels: Tensor) -> Tokens:
        found = pixels.unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2)).flatten(2).mT
        bright = found.mean((1, 2), keepdim=True) > 0
        return Tokens(found.where(~bright, math.nan) if math.isnan(scale) else found * scale, (2, 2))

    return Stub(SIZE, look, look, width=3, stride=8)


def judged(encoder: Encoder, train: Source, test: Source | None, *protocols: str) -> Evaluation:
    return evaluate(encoder, train, test, protocols=protocols, baselines=False)


# --- labels


def test_a_class_without_test_images_is_named_and_the_others_are_judged() -> None:
    train, test = images([0, 1, 2] * 12), images([0, 2] * 6, seed=1)
    found = judged(colours(1.0), train, test, *(name for name in OF_IMAGES if "finetune" not in name))
    (said,) = [warning for warning in found.warnings if "no test image" in warning]
    assert said.startswith("class 1 of ")
    right = {result.protocol: result for result in found.results}
    for name in ("knn", "linear", "fewlabels"):
        assert right[name].value == 100 and right[name].n_test == 12
    assert right["clustering"].settings["clusters"] == 2 and right["clustering"].value == 100
    assert right["retrieval"].value == 100
    tuned = judged(vit(), train, test, "finetune", "finetune:1")
    assert [result.n_test for result in tuned.results] == [12, 12]
    assert all(0 <= result.value <= 100 for result in [*found.results, *tuned.results])
    assert any("no test image" in said for said in tuned.warnings)
    assert not any("no test image" in said for said in judged(colours(1.0), train, train, "knn").warnings)


HOLD_NOTHING_OUT = ("knn", "knn:1", "knn-loo", "retrieval", "retrieval-within", "clustering")


NAMED = (*OF_IMAGES, "linear-dinov2", "attentive-vjepa", "episodes", "copies")


@pytest.mark.parametrize(
    ("protocol", "test"),
    [
        *((name, None) for name in NAMED),
        *((name, images([0, 1, 2])) for name in NAMED if least_images((name,)) == 2),
    ],
)
def test_one_image_a_class_to_fit_on(protocol: str, test: Source | None) -> None:
    with pytest.raises(
        ValueError, match=r"class 0, class 1, class 2 of .* have 1 image to fit on.*Add images"
    ):
        judged(vit(), images([0, 1, 2]), test, protocol)


def test_a_single_folder_is_a_class_to_judge_and_none_to_fit_on(tmp_path: Path) -> None:
    """Of two classes one is missing in test: folders that stand alone bring no labels of their own."""
    train, test = images([0, 1] * 6), images([1] * 5, seed=1)
    for part, source, names in (("train", train, "ab"), ("test", test, "ab"), ("others", test, "cd")):
        assert source.labels is not None
        for index, label in enumerate(source.labels):
            place = tmp_path / part / names[label] / f"{index}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(source.read(index))).save(place)
    train, test, others = (open_source(tmp_path / part) for part in ("train", "test", "others"))
    found = judged(colours(1.0), train, test, "linear")
    assert found.results[0].value == 100 and found.results[0].n_test == 5
    assert any(said.startswith("'a' of ") and "no test image" in said for said in found.warnings)
    with pytest.raises(
        ValueError, match=r"others has no labels \(all lie in one folder, 'd', and classes are"
    ):
        judged(colours(1.0), train, others, "linear")
    with pytest.raises(ValueError, match=r"test has no labels \(all lie in one folder, 'b'"):
        judged(colours(1.0), test, None, "linear")


def test_one_image_a_class_where_nothing_is_held_out() -> None:
    asked = ("k-nn", *HOLD_NOTHING_OUT[1:-1], "kmeans")
    sheet = judged(colours(1.0), images([0, 1, 2]), images([0, 1, 2] * 4), *asked)
    found = {result.protocol: result for result in sheet.results}
    assert set(found) == {*HOLD_NOTHING_OUT}
    assert found["knn-loo"].value == 0 == found["knn-loo"].ci_high  # none is among the others
    assert any("knn-loo: 3 classes have one image" in said for said in sheet.warnings)
    right = {name: found[name].value for name in ("knn", "knn:1")}
    assert right == {"knn": 100, "knn:1": 100}
    with pytest.raises(ValueError, match=r"knn, retrieval or clustering, which hold nothing out"):
        judged(colours(1.0), images([0, 1, 2]), images([0, 1, 2] * 4), *asked, "linear")


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("episodes", r"draws 5 classes with 20 images each.*0 of the 3 classes"),
        ("clustering", r"more images than classes among the test images; there are 3 images of 3"),
        ("retrieval-within", r"no class of the test images has any to be found"),
    ],
)
def test_one_image_a_class_to_judge(protocol: str, message: str) -> None:
    train, test = images([0, 1, 2] * 4), images([0, 1, 2], seed=1)
    with pytest.raises(Inapplicable, match=message):
        judged(colours(1.0), train, test, protocol)
    found = judged(colours(1.0), train, test, "knn", "linear", "fewlabels", "retrieval")
    assert {result.n_test for result in found.results} == {3}
    assert any("only 3 test images" in said for said in found.warnings)


def test_one_label_a_class_chooses_nothing() -> None:
    found = judged(vit(), images([0, 1] * 6), images([0, 1] * 3, seed=1), "finetune:1", "fewlabels")
    assert any("settings were not chosen" in said for said in found.warnings)
    assert any("n=10, n=50 is left out" in said for said in found.warnings)


# --- features


@pytest.mark.parametrize("protocol", [*OF_IMAGES, "linear-dino", "attentive-efficient", "copies"])
@pytest.mark.parametrize("scale", [math.nan, math.inf, 1e30])
def test_features_that_are_not_finite(protocol: str, scale: float) -> None:
    """Also such whose length is not finite: cosines of them would be 0."""
    with pytest.raises(
        ValueError, match=r"NaN or infinite features for \d+ of 24 images: its training diverged"
    ):
        judged(colours(scale), images([0, 1, 2] * 6), images([0, 1, 2] * 2), protocol)


def test_tokens_beyond_half_precision() -> None:
    """The vectors are finite, so that other protocols still judge."""
    train, test = images([0, 1, 2] * 6), images([0, 1, 2] * 2)
    with pytest.raises(Inapplicable, match=r"attentive reads patch tokens.* of 24 images are beyond 65,504"):
        judged(colours(1e6), train, test, "attentive")
    assert judged(colours(1e6), train, test, "knn").results[0].value == 100
    with pytest.raises(ValueError, match="beyond 65,504, where the half precision ends"):
        evaluate(colours(1e6), *playground(), protocols=("hummingbird",), baselines=False, size=SIZE)


def playground() -> tuple[Source, Source]:
    return DensePlayground(6, size=SIZE), DensePlayground(4, size=SIZE, split="test")


def test_a_probe_that_diverges_gives_no_answer() -> None:
    probe = nn.Linear(3, 2)
    with torch.no_grad():
        probe.weight[1, 1] = math.nan
    x = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    with pytest.raises(Inapplicable, match=r"answers for 2 of 2 images are not finite.*Use linear"):
        predict(probe, x)


def test_a_head_that_diverges_is_never_chosen() -> None:
    """Its first class would be the answer for all images, and often the right one."""
    weight = torch.eye(2).repeat(1, 2)
    weight[:, 2:] = math.inf
    grid = Grid(weight, torch.zeros(2, 2))
    x, y = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 0])
    assert grid.answers(x).tolist() == [[0, -1], [0, -1], [1, -1]]
    assert grid.accuracies(x, y).tolist() == [pytest.approx(2 / 3), 0]


def test_fine_tuning_that_diverges_counts_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    wild = replace(SMALL, tries=((1e30, 1.0),), epochs=1, least_steps=4, warmup=0.0)
    monkeypatch.setitem(RECIPES, "finetune", wild)
    found = judged(vit(), images([0, 1] * 6), images([0, 1] * 3, seed=1), "finetune")
    assert found.results[0].value == 0
    assert any("training diverged, and 6 of 6 answers are not finite" in said for said in found.warnings)


# --- masks


def masked(folder: Path, train: tuple[int, ...], test: tuple[int, ...]) -> Path:
    """Images of two halves, whose colours tell the class, of these classes."""
    rng = np.random.default_rng(0)
    for part, classes, n in (("train", train, 8), ("val", test, 4)):
        for index in range(n):
            mask = np.zeros((20, 30), np.uint8)
            mask[:, :15], mask[:, 15:] = rng.choice(classes, 2, replace=False)
            image = np.clip(60 * mask[..., None] + rng.normal(20, 5, (20, 30, 3)), 0, 255).astype(np.uint8)
            for kind, values in (("images", image), ("masks", mask)):
                place = folder / kind / part / f"{index}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(place)
    (folder / "classes.json").write_text('["red", "green", "blue"]')
    return folder


@pytest.mark.parametrize("protocol", ["segmentation", "hummingbird"])
def test_classes_of_masks_that_one_side_lacks(protocol: str, tmp_path: Path) -> None:
    fewer = masked(tmp_path / "a", (0, 1, 2), (0, 1))
    found = evaluate(vit(), *dense_splits(fewer), protocols=(protocol,), baselines=False)
    assert not any("no training image" in said for said in found.warnings)
    more = masked(tmp_path / "b", (0, 1), (0, 2))
    found = evaluate(vit(), *dense_splits(more), protocols=(protocol,), baselines=False)
    assert found.results[0].details["IoU of blue"] == 0
    (said,) = [said for said in found.warnings if "no training image" in said]
    assert said.startswith("blue: in masks of test images")


def test_masks_of_one_class_and_of_another_size(tmp_path: Path) -> None:
    folder = masked(tmp_path, (0, 1), (0, 1))
    for file in sorted((folder / "masks/train").iterdir()):
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(file)
    with pytest.raises(
        Inapplicable, match="at least 2 classes in the masks of the training images; only 'red'"
    ):
        evaluate(vit(), *dense_splits(folder), protocols=("segmentation",), baselines=False)
    with pytest.raises(
        Inapplicable, match=r"no protocol can be judged\.(\n- .*)*\n- segmentation needs at least 2"
    ):
        evaluate(vit(), *dense_splits(folder), protocols=("all",), baselines=False)
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(folder / "masks/train/0.png")
    with pytest.raises(
        ValueError, match=r"masks/train/0.png is 7 x 9 pixels .* 30 x 20\..*resize one of them"
    ):
        evaluate(vit(), *dense_splits(folder), protocols=("segmentation",), baselines=False)


# --- measures without labels


def sample(n: int, d: int, fill: float | None = None) -> Sample:
    """Of n images, with views, tokens and codes; one number of each may be replaced."""
    rng = torch.Generator().manual_seed(0)
    x, views, tokens = (torch.randn(shape, generator=rng) for shape in ((n, d), (n, 3, d), (n, 5, d)))
    codes = torch.rand(n, d, generator=rng).softmax(-1)
    if fill is not None:
        for part in (x, views, tokens, codes):
            part.view(-1)[0] = fill
    return Sample(x, views, tokens, codes)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_measures_of_bad_samples_are_silent_and_say_why(measure: Measure) -> None:
    assert measure.read(sample(120, 20)).value is not None  # else the rest would show nothing
    for fill in (math.nan, math.inf):
        found = measure.read(sample(120, 20, fill))
        assert found.value is None and found.caution.startswith("not shown"), found
    if measure.over_width:
        few = measure.read(sample(16, 32))
        assert few.value is None and ("Use more than 32" in few.caution or "too few" in few.caution)
    if measure.needs == "vectors":
        one = measure.read(sample(1, 4))
        assert one.value is None and one.caution.startswith("not shown: 1 images are too few")


def test_a_diagnosis_of_bad_features() -> None:
    amount = Amount(images=12, view_images=4, views=2, token_images=2)
    with pytest.raises(ValueError, match=r"the features of \d+ of 12 images are not finite in layer 2"):
        diagnose_encoder(colours(math.nan), images([0, 1, 2] * 4), amount=amount)
    found = diagnose_encoder(vit(), images([0, 1, 2] * 4), amount=amount)
    for name in ("rankme", "alpha_req", "coding_rate"):
        assert found.layers[0].readings[name].value is None
    assert any("24 dimensions" in said for said in found.cautions())
    with pytest.raises(ValueError, match="features of at least 2 images"):
        diagnose_encoder(vit(), images([0]), amount=amount)
