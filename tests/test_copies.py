"""Copy detection: scores against scikit-learn and a loop over thresholds; changes that do what they say."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from _stubs import Stub, grid_colours
from visrep.data import CanvasSet, Source, open_source
from visrep.encoders import ViT
from visrep.evaluation import copies as module
from visrep.evaluation.copies import (
    CHANGES,
    Pairs,
    as_jpeg,
    average_precision,
    changed,
    copies,
    nearest,
    one_list,
    recall_at_precision,
)
from visrep.evaluation.features import extract
from visrep.evaluation.fitting import Images
from visrep.evaluation.results import Inapplicable
from visrep.method import Encoder, Preprocessing
from visrep.views import center

SIZE = 24
CPU = torch.device("cpu")


def colours() -> Encoder:
    """Mean pixels of a 3 x 3 grid: a mirror image is another, a JPEG hardly."""
    return Stub(SIZE, grid_colours(3), width=27, stride=8)


def pictures(n: int) -> Source:
    """Smooth random pictures."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (n, 3, 3, 3), dtype=np.uint8)
    large = [
        np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in coarse
    ]
    return open_source([(image, i % 2) for i, image in enumerate(large)])


def images(n: int) -> Images:
    source = pictures(n)
    assert source.labels is not None
    return Images(CanvasSet(source, SIZE), torch.arange(n), torch.from_numpy(source.labels))


def random_pairs(seed: int = 0) -> tuple[Pairs, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    right = rng.random(200) < 0.3
    cosine = np.sort(rng.normal(size=200) + right)[::-1].copy()
    order = np.argsort(-(rng.normal(size=200) + 0.5 * right))
    right = right[order]
    return Pairs(torch.from_numpy(cosine), torch.arange(200), torch.from_numpy(right), 80), cosine, right


def test_average_precision_is_scikit_learns() -> None:
    pairs, cosine, right = random_pairs()
    # scikit-learn knows of no right pairs that are not on the list
    expected = average_precision_score(right, cosine) * right.sum() / 80
    assert average_precision(pairs, np.ones(200), 80) == pytest.approx(expected, abs=1e-12)
    weight = np.random.default_rng(1).integers(0, 3, 200).astype(float)
    expected = average_precision_score(right, cosine, sample_weight=weight) * (weight * right).sum() / 80
    assert average_precision(pairs, weight, 80) == pytest.approx(expected, abs=1e-12)


def test_recall_at_precision_is_a_loop_over_thresholds() -> None:
    right = torch.tensor([True] * 9 + [False] + [True] * 3 + [False] * 5 + [True])
    pairs = Pairs(torch.linspace(1, 0, 19), torch.arange(19), right, 20)
    best = 0.0
    for threshold in pairs.cosine:
        taken = pairs.cosine >= threshold
        if right[taken].double().mean() >= 0.9:
            best = max(best, float(right[taken].sum()) / 20)
    assert recall_at_precision(pairs, np.ones(19), 20) == pytest.approx(best) == 12 / 20
    none = Pairs(pairs.cosine, pairs.copy, torch.zeros(19, dtype=torch.bool), 20)
    assert recall_at_precision(none, np.ones(19), 20) == 0


def test_thresholds_do_not_part_equal_pairs() -> None:
    pairs = Pairs(torch.ones(4), torch.arange(4), torch.tensor([True, False, False, False]), 1)
    assert recall_at_precision(pairs, np.ones(4), 1) == 0


def test_nearest_are_a_loop() -> None:
    rng = torch.Generator().manual_seed(0)
    x, references = torch.randn(5, 4, generator=rng), torch.randn(30, 4, generator=rng)
    original = torch.tensor([3, -1, 12, -2, 29])
    found = nearest(x, references, original)
    assert found.possible == 3 and len(found.cosine) == 50
    for i in range(5):
        cosine = torch.nn.functional.cosine_similarity(x[i][None], references)
        top = cosine.topk(10)
        mine = found.copy == i
        torch.testing.assert_close(found.cosine[mine], top.values)
        assert found.right[mine].tolist() == [int(j) == int(original[i]) for j in top.indices]
    joined = one_list([found, found], seed=0)
    assert joined.possible == 6 and (joined.cosine.diff() <= 0).all()
    assert joined.right.sum() == 2 * found.right.sum()


def test_changes_do_what_they_say() -> None:
    encoder, of = colours(), images(12)
    plain = center(of.canvases.get(np.arange(12)), encoder.preprocessing)
    expected = encoder(plain.flip(-1)).patches[:, 0]
    flipped = changed(encoder, of, "flip", (1,), CPU, 0)[1, "mean"]
    torch.testing.assert_close(flipped, expected, atol=0.02, rtol=0)
    saved = changed(encoder, of, "jpeg", (1,), CPU, 0)[1, "mean"]
    away = (saved - encoder(plain).patches[:, 0]).abs().mean()
    assert 0 < away < 0.1
    again = changed(encoder, of, "together", (1,), CPU, 0)[1, "mean"]
    torch.testing.assert_close(changed(encoder, of, "together", (1,), CPU, 0)[1, "mean"], again)
    assert not torch.equal(changed(encoder, of, "together", (1,), CPU, 1)[1, "mean"], again)


def test_jpeg_is_pillows() -> None:
    pixels = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    file = io.BytesIO()
    Image.fromarray(pixels[1].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=20)
    assert torch.equal(as_jpeg(pixels)[1], torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    assert not torch.equal(as_jpeg(pixels), pixels)


def test_copies_are_found_by_what_survives_the_change() -> None:
    encoder, of = colours(), images(60)
    vectors = extract(encoder, of.canvases, np.arange(60)).vectors
    ((where, (ap, recall)),) = copies(encoder, of, vectors, device=CPU).items()
    assert where == (1, "mean") and (ap.metric, recall.metric) == ("AP", "R@P90")
    assert set(CHANGES) < set(ap.settings)
    assert (ap.settings["references"], ap.settings["copies"], ap.n_test) == (48, 300, 60)
    # the copies of images that cannot be found cost precision, hardly any of them
    assert float(ap.settings["jpeg"]) > 95 > 50 > float(ap.settings["flip"])
    assert float(recall.settings["jpeg"]) > 90
    for measure in (ap, recall):
        assert 0 <= measure.low < measure.value < measure.high <= 1
    assert copies(encoder, of, vectors, device=CPU)[where] == [ap, recall]
    assert copies(encoder, of, vectors, device=CPU, seed=1)[where] != [ap, recall]


def test_copies_of_every_layer_and_pooling() -> None:
    torch.manual_seed(0)
    encoder, of = ViT(image=SIZE, patch=8, width=24, depth=5, heads=2).build().eval(), images(12)
    encoder.preprocessing = Preprocessing(SIZE, ratio=1.0)
    keys = [(5, "cls"), (5, "last-4"), (2, "cls")]
    widths = (24, 96, 24)
    vectors = {key: torch.randn(12, width) for key, width in zip(keys, widths, strict=True)}
    assert list(copies(encoder, of, vectors, device=CPU)) == keys


def test_what_copies_need(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Inapplicable, match="at least 10 test images, there are 4"):
        copies(colours(), images(4), {(1, "mean"): torch.randn(4, 27)}, device=CPU)
    few = images(20)
    few.canvases.source.frames = 2
    with pytest.raises(Inapplicable, match="these are clips"):
        copies(colours(), few, {(1, "mean"): torch.randn(20, 27)}, device=CPU)
    monkeypatch.setattr(module, "MOST", 15)
    few = images(20)
    found = copies(colours(), few, {(1, "mean"): torch.randn(20, 27)}, device=CPU)
    assert found[1, "mean"][0].settings["references"] == 12
