"""Evaluation and embedding end to end on small images: baselines, splits, files, and errors that help."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from visrep.data import CanvasSet, Source, Subset, open_source
from visrep.encoders import ResNet, ViT
from visrep.evaluation.embed import embed
from visrep.evaluation.evaluate import evaluate
from visrep.evaluation.features import PIXELS, count_bad, extract, pixel_features
from visrep.evaluation.labels import first_of_each_class
from visrep.evaluation.table import render
from visrep.evaluation.untrained import untrained_twin
from visrep.method import Encoder, Preprocessing
from visrep.views import center

SIZE = 16


def images(n: int, k: int = 3, seed: int = 0) -> Source:
    """Noise whose brightness tells the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    level = (60 + 70 * labels)[:, None, None, None]
    pixels = np.clip(level + rng.normal(0, 30, (n, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    return open_source([(image, int(label)) for image, label in zip(pixels, labels, strict=True)])


def vit(**changes: object) -> Encoder:
    torch.manual_seed(0)
    config = replace(ViT(image=SIZE, patch=8, width=24, depth=3, heads=2), **changes)
    encoder = config.build().eval()
    encoder.preprocessing = Preprocessing(SIZE, ratio=1.0)
    return encoder


def resnet() -> Encoder:
    torch.manual_seed(0)
    encoder = ResNet(depth=18, width=8, stem="small").build().eval()
    encoder.preprocessing = Preprocessing(SIZE, ratio=1.0)
    return encoder


def with_broken_file(folder: Path, n: int = 6) -> Path:
    """Two classes of PNG files, the third of which is cut short."""
    for index, label in enumerate([0, 1] * (n // 2)):
        place = folder / "ab"[label] / f"{index}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((SIZE, SIZE, 3), 40 + 100 * label + index, np.uint8)).save(place)
    third = folder / "a" / "4.png"
    third.write_bytes(third.read_bytes()[:60])
    return folder


def test_extract_is_the_encoder() -> None:
    source, encoder = images(10), vit()
    canvases = CanvasSet(source, SIZE)
    features = extract(
        encoder, canvases, np.arange(2, 9), layers=(1, 3), poolings=("auto", "mean"), tokens=True, batch=3
    )
    assert list(features.vectors) == [(3, "cls"), (3, "mean"), (1, "cls"), (1, "mean")]
    out = encoder(center(canvases.get(np.arange(2, 9)), encoder.preprocessing), layers=(1,))
    torch.testing.assert_close(features.vectors[3, "cls"], out.cls)
    torch.testing.assert_close(features.vectors[1, "mean"], out.layers[0].patches.mean(1))
    assert features.tokens is not None and features.labels is not None and source.labels is not None
    torch.testing.assert_close(features.tokens, out.patches.half(), atol=2e-3, rtol=0)
    assert features.index.tolist() == list(range(2, 9))
    assert features.labels.tolist() == source.labels[2:9].tolist()


def test_extract_does_not_depend_on_the_batch() -> None:
    canvases, encoder = CanvasSet(images(20), SIZE), resnet()
    one, many = (
        extract(encoder, canvases, np.arange(20), batch=batch).vectors[4, "mean"] for batch in (20, 7)
    )
    torch.testing.assert_close(one, many, atol=1e-5, rtol=1e-5)


def test_extract_gives_every_mode_back() -> None:
    encoder = resnet().train()
    frozen = next(m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    extract(encoder, CanvasSet(images(8), SIZE), np.arange(8))
    assert encoder.training and not frozen.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("cache", ["memory", "off"])
def test_extract_leaves_out_what_cannot_be_read(tmp_path: Path, cache: str) -> None:
    source = open_source(with_broken_file(tmp_path))
    broken = next(i for i in range(6) if source.key(i).endswith("4.png"))
    canvases = CanvasSet(source, SIZE, cache="memory" if cache == "memory" else "off", workers=0)
    features = extract(vit(), canvases, np.arange(6), batch=6)
    assert features.index.tolist() == [i for i in range(6) if i != broken]
    assert features.labels is not None and source.labels is not None
    assert features.labels.tolist() == source.labels[features.index.numpy()].tolist()
    with pytest.raises(ValueError, match="none of the images"):
        extract(vit(), canvases, np.array([broken]))


def test_extract_refuses_what_the_encoder_lacks() -> None:
    canvases = CanvasSet(images(4), SIZE)
    with pytest.raises(ValueError, match="layer 7 was asked for; this encoder has layers 1 to 3"):
        extract(vit(), canvases, np.arange(4), layers=(7,))
    with pytest.raises(ValueError, match="no pooling 'max'"):
        extract(vit(), canvases, np.arange(4), poolings=("max",))
    with pytest.raises(ValueError, match="needs a cls token"):
        extract(resnet(), canvases, np.arange(4), poolings=("cls",))


def test_pixels_are_the_images() -> None:
    canvases = CanvasSet(images(5), SIZE)
    vectors = pixel_features(canvases, np.arange(5), size=SIZE).vectors[PIXELS]
    expected = center(canvases.get(np.arange(5)), Preprocessing(SIZE, ratio=1.0))
    torch.testing.assert_close(vectors, expected.flatten(1))


def test_untrained_twin_is_fresh_calibrated_and_repeatable() -> None:
    encoder, canvases = resnet(), CanvasSet(images(40), SIZE)
    state = torch.get_rng_state()
    twin, again, other = (
        untrained_twin(encoder, canvases, np.arange(40), seed=seed, device="cpu").state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(twin[name], again[name]) for name in twin)
    assert not torch.equal(twin["conv1.weight"], other["conv1.weight"])
    first = center(canvases.get(np.arange(40)), encoder.preprocessing)
    maps = nn.functional.conv2d(first, twin["conv1.weight"], padding=1)
    torch.testing.assert_close(twin["bn1.running_mean"], maps.mean((0, 2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(twin["bn1.running_var"], maps.var((0, 2, 3)), atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def small() -> tuple[Source, Source]:
    return images(60), images(30, seed=1)


def test_evaluation_is_complete(small: tuple[Source, Source], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visrep.evaluation.attentive.LEAST_STEPS", 100)
    evaluation = evaluate(vit(), *small, protocols=("knn", "linear", "attentive"), layers=(1,))
    found = {(r.protocol, r.encoder, r.layer, r.pooling) for r in evaluation.results}
    of_networks = {
        ("knn", 3, "cls"),
        ("knn", 1, "cls"),
        ("linear", 3, "cls"),
        ("linear", 1, "cls"),
        ("attentive", 3, "tokens"),
        ("attentive", 1, "tokens"),
    }
    assert found == {
        (p, e, layer, pooling) for p, layer, pooling in of_networks for e in ("trained", "untrained")
    } | {
        ("knn", "pixels", 0, "none"),
        ("linear", "pixels", 0, "none"),
    }
    for result in evaluation.results:
        assert 0 <= result.ci_low <= result.value <= result.ci_high <= 100
        assert (result.n_train, result.n_test) == (60, 30)
    pixels = next(r for r in evaluation.results if (r.protocol, r.encoder) == ("linear", "pixels"))
    assert pixels.value > 90  # brightness is the class
    assert any(
        "k=100 was asked for, there are 60" in line and "pixels" in line for line in evaluation.warnings
    )
    assert any("only 30 test images" in line for line in evaluation.warnings)


def test_evaluation_repeats_and_is_json(small: tuple[Source, Source]) -> None:
    first, second = (evaluate(resnet(), *small, protocols=("knn", "linear")).to_json() for _ in range(2))
    assert json.loads(json.dumps(first)) == first == second
    assert set(first) == {"results", "split", "fingerprint", "warnings", "made"}
    other = evaluate(vit(), *small, protocols=("knn",), baselines=False)
    assert other.fingerprint["encoder"] != first["fingerprint"]["encoder"]
    assert other.fingerprint["train"] == first["fingerprint"]["train"] != first["fingerprint"]["test"]
    assert {result.encoder for result in other.results} == {"trained"}


def test_without_test_images_a_fifth_is_held_out() -> None:
    evaluation = evaluate(vit(), images(100, k=2), protocols=("knn",), baselines=False)
    assert (
        evaluation.split.startswith("fitted on 80 images of") and "a fifth of each class" in evaluation.split
    )
    assert {(r.n_train, r.n_test) for r in evaluation.results} == {(80, 20)}


def test_limits_keep_every_class() -> None:
    ordered = Subset(images(90), np.argsort(np.arange(90) % 3, kind="stable"))
    evaluation = evaluate(
        vit(), ordered, images(30), protocols=("knn",), baselines=False, limit=12, test_limit=9
    )
    assert (evaluation.results[0].n_train, evaluation.results[0].n_test) == (12, 9)
    labels = np.array([0] * 60 + [1] * 30)
    kept = first_of_each_class(labels, 9)
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 60, 61, 62]
    assert len(first_of_each_class(labels, 0)) == len(first_of_each_class(labels, 500)) == 90


def test_test_labels_are_never_fitted(small: tuple[Source, Source]) -> None:
    """Another answer sheet changes scores, but nothing that was chosen."""
    train, test = small
    shuffled = Subset(test, np.arange(30))
    assert test.labels is not None
    shuffled.labels = np.roll(test.labels, 1)
    first, second = (evaluate(vit(), train, answers, baselines=False) for answers in (test, shuffled))
    assert [r.settings for r in first.results] == [r.settings for r in second.results]
    assert [r.value for r in first.results] != [r.value for r in second.results]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    for side, names in (("train", "abc"), ("test", "bc")):
        for name in names:
            for index in range(12):
                place = tmp_path / side / name / f"{index}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((SIZE, SIZE, 3), 80 * "abc".index(name) + index, np.uint8)).save(
                    place
                )
    train, test = open_source(tmp_path / "train"), open_source(tmp_path / "test")
    evaluation = evaluate(vit(), train, test, protocols=("knn",))
    assert max(r.value for r in evaluation.results if r.encoder == "trained") == 100
    with pytest.raises(ValueError, match=r"'a' of the test images .* has no training image"):
        evaluate(vit(), test, train)


def test_unreadable_images_are_counted(tmp_path: Path) -> None:
    folder = open_source(with_broken_file(tmp_path, n=20))
    evaluation = evaluate(vit(), folder, protocols=("knn",), baselines=False)
    assert any(
        line.startswith("1 of 20 images could not be read") and "4.png" in line
        for line in evaluation.warnings
    )
    assert sum((evaluation.results[0].n_train, evaluation.results[0].n_test)) == 19


def relabelled(labels: list[int] | None) -> Source:
    source = Subset(images(8), np.arange(8))
    source.labels = None if labels is None else np.array(labels)
    return source


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "has no labels"),
        ([0, 1, -1, -1, 0, 1, 0, 1], "2 of 8 labels .* are negative"),
        ([2] * 8, "all 8 labelled images .* are of one class, class 2"),
        ([0, 0, 0, 0, 1, 1, 1, 5], "class 5 of .* has 1 image"),
    ],
)
def test_unusable_labels(labels: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(vit(), relabelled(labels), images(6), protocols=("linear",))


def test_test_class_without_training_images() -> None:
    with pytest.raises(ValueError, match=r"class 2 of the test images .* has no training image"):
        evaluate(vit(), relabelled([0, 1] * 4), images(6), protocols=("knn",))


def test_diverged_encoder() -> None:
    encoder = vit()
    with torch.no_grad():
        next(p for name, p in encoder.named_parameters() if name == "norm.weight").fill_(math.nan)
    with pytest.raises(
        ValueError, match="NaN or infinite features for 90 of 90 images: its training diverged"
    ):
        evaluate(encoder, images(60), images(30), baselines=False)
    assert count_bad(extract(encoder, CanvasSet(images(4), SIZE), np.arange(4))) == 4


def test_table_shows_every_number(small: tuple[Source, Source]) -> None:
    evaluation = evaluate(vit(), *small, layers=(1,))
    console = Console(file=io.StringIO(), width=80)
    console.print(render(evaluation))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for result in evaluation.results:
        assert f"{result.value:.1f} ({result.ci_low:.1f}-{result.ci_high:.1f})" in shown
    assert "judged on 30" in " ".join(shown.split()) and "only 30 test images" in " ".join(shown.split())


def read(path: Path) -> tuple[list[str], Float[Tensor, "n d"], list[int]]:
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["path"].tolist(), torch.from_numpy(arrays["vector"]), arrays["label"].tolist()
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        vectors = np.array([row[2:] for row in rows], dtype=np.float32)
        return [row[0] for row in rows], torch.from_numpy(vectors), [int(row[1]) for row in rows]
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    vectors = torch.tensor(table["vector"].to_pylist())
    return table["path"].to_pylist(), vectors, table["label"].to_pylist()


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".csv"])
def test_embed_writes_a_row_an_image(tmp_path: Path, suffix: str) -> None:
    source, encoder = open_source(with_broken_file(tmp_path / "images")), vit()
    out = embed(encoder, source, tmp_path / "out" / f"vectors{suffix}", batch=2)
    paths, vectors, labels = read(out)
    expected = extract(encoder, CanvasSet(source, SIZE), np.arange(6))
    assert paths == [source.key(index) for index in expected.index.tolist()]
    assert expected.labels is not None and labels == expected.labels.tolist()
    torch.testing.assert_close(vectors, expected.vectors[3, "cls"], atol=1e-5, rtol=1e-5)
    (line,) = (tmp_path / "out" / "vectors.unreadable.txt").read_text().splitlines()
    assert line.startswith(source.key(next(iter(set(range(6)) - set(expected.index.tolist())))) + "\t")
    assert sorted(path.name for path in out.parent.iterdir()) == sorted([out.name, "vectors.unreadable.txt"])


def test_embed_of_another_layer_without_labels(tmp_path: Path) -> None:
    encoder, source = resnet(), relabelled(None)
    out = embed(encoder, source, tmp_path / "v.npz", layer=2)
    with np.load(out) as arrays:
        assert sorted(arrays) == ["path", "vector"]
        expected = extract(encoder, CanvasSet(source, SIZE), np.arange(8), layers=(2,)).vectors[2, "mean"]
        np.testing.assert_allclose(arrays["vector"], expected.numpy(), atol=1e-5)
    assert not (tmp_path / "v.unreadable.txt").exists()


def test_embed_leaves_no_half_file(tmp_path: Path) -> None:
    encoder = vit()
    with pytest.raises(
        ValueError, match=r"cannot write 'v.txt': use a name that ends in .parquet, .npz, .csv"
    ):
        embed(encoder, images(4), tmp_path / "v.txt")
    with torch.no_grad():
        next(p for name, p in encoder.named_parameters() if name == "norm.weight").fill_(math.inf)
    with pytest.raises(ValueError, match="training diverged"):
        embed(encoder, images(4), tmp_path / "v.csv")
    assert list(tmp_path.iterdir()) == []
