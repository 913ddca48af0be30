"""mteb on our encoders, on a task made here; suites: means and intervals by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from _extras import needs
from visrep import api
from visrep.data import CanvasSet, canvas_size, open_source
from visrep.data.playground import Playground
from visrep.encoders import ViT
from visrep.evaluation.adapters.mteb import MtebEncoder
from visrep.evaluation.evaluate import Evaluation
from visrep.evaluation.features import extract
from visrep.evaluation.results import Judged, Result
from visrep.evaluation.suite import headline, mean_of, means, run_suite
from visrep.method import Encoder, Preprocessing


def vit(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    encoder = ViT(image=32, patch=8, width=24, depth=2, heads=2).build().eval()
    encoder.preprocessing = Preprocessing(32, ratio=1.0)
    return encoder


def pictures(n: int) -> list[Image.Image]:
    source = Playground(n, size=40)
    return [Image.fromarray(source.read(i)) for i in range(n)]


# --- mteb


def test_encode_gives_the_features_of_every_other_protocol() -> None:
    encoder, images = vit(), pictures(7)
    model = MtebEncoder(encoder, name="mine", pooling="mean")
    batches = [{"image": images[:4]}, {"image": images[4:]}]
    found = model.encode(batches, task_metadata=None, hf_split="test", hf_subset="default", batch_size=4)
    source = open_source(images)
    canvases = CanvasSet(source, canvas_size(source, 32), workers=0)
    expected = extract(encoder, canvases, np.arange(7), poolings=("mean",)).vectors[2, "mean"]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    # neighbours of another size change nothing
    large = [images[0].resize((300, 200)), images[4]]
    mixed = model.encode([{"image": large}], task_metadata=None, hf_split="test", hf_subset="default")
    np.testing.assert_allclose(mixed[1], found[4], atol=1e-5)


def test_similarities_are_cosines() -> None:
    model = MtebEncoder(vit(), name="mine")
    x, y = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    table = model.similarity(x, torch.from_numpy(y)).numpy()
    for i in range(3):
        for j in range(3):
            assert table[i, j] == pytest.approx(
                x[i] @ y[j] / np.linalg.norm(x[i]) / np.linalg.norm(y[j]), rel=1e-5
            )
    np.testing.assert_allclose(model.similarity_pairwise(x, y), table.diagonal(), rtol=1e-5)


def test_texts_and_clips_are_refused() -> None:
    model = MtebEncoder(vit(), name="mine")
    for batch in ({"text": ["a dog"]}, {"image": pictures(1), "text": ["a dog"]}):
        with pytest.raises(ValueError, match="mine is an encoder of images alone"):
            model.encode([batch], task_metadata=None, hf_split="test", hf_subset="default")
    clips = vit()
    clips.preprocessing = Preprocessing(32, frames=4)
    with pytest.raises(ValueError, match="reads clips"):
        MtebEncoder(clips, name="mine")


@pytest.fixture(scope="module")
def mteb():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return needs("mteb")


def test_mteb_knows_it_as_an_encoder(mteb) -> None:
    protocols = needs("mteb.models.models_protocols")
    model, other = MtebEncoder(vit(), name="mine"), MtebEncoder(vit(1), name="mine")
    assert isinstance(model, protocols.EncoderProtocol)
    meta = model.mteb_model_meta
    assert meta.name == "visrep/mine" and meta.modalities == ["image"] and meta.embed_dim == 24
    assert meta.n_parameters == sum(p.numel() for p in vit().parameters())
    assert meta.revision == MtebEncoder(vit(), name="mine").mteb_model_meta.revision
    assert meta.revision != other.mteb_model_meta.revision


@pytest.mark.filterwarnings("ignore")
def test_mteb_judges_it_on_a_task_of_its_kind(mteb) -> None:
    """A task of mteb's own class with images made here, no network: colours that the pixels tell apart."""
    datasets = needs("datasets")
    classification = needs("mteb.abstasks.classification")
    described = needs("mteb.abstasks.task_metadata")
    rng = np.random.default_rng(0)

    def split(n: int) -> dict[str, list]:
        labels = [i % 2 for i in range(n)]
        arrays = [(rng.integers(0, 60, (32, 32, 3)) + 150 * label).astype(np.uint8) for label in labels]
        return {"image": [Image.fromarray(array) for array in arrays], "label": labels}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    made = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict(split(n), features) for name, n in (("train", 40), ("test", 20))}
    )

    class Brightness(classification.AbsTaskClassification):
        metadata = described.TaskMetadata(
            name="Brightness", dataset={"path": "none/none", "revision": "1"}, description="made here",
            reference=None, type="ImageClassification", category="i2c", modalities=["image"], eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="accuracy",
        )  # fmt: skip
        input_column_name = "image"
        samples_per_label = 8
        n_experiments = 2

        def load_data(self, num_proc: int | None = None, timer: object = None) -> None:
            self.dataset, self.data_loaded = made, True

    result = mteb.evaluate(MtebEncoder(vit(), name="mine"), Brightness(), cache=None, show_progress_bar=False)
    assert result.model_name == "visrep/mine"
    assert result.task_results[0].get_score() == 1.0


# --- suites


def result(
    value: float, half: float, *, encoder: Judged = "trained", layer: int = 2, metric: str = "top-1"
) -> Result:
    return Result("linear", encoder, layer, "cls", metric, value, value - half, value + half, 1000, 100)


def evaluation(*results: Result) -> Evaluation:
    return Evaluation(list(results), "split", {}, ["few images"])


def test_the_mean_joins_intervals() -> None:
    mean = mean_of([result(80, 3), result(60, 4)])
    assert (mean.value, mean.tasks) == (70, 2)
    assert mean.ci_low == pytest.approx(70 - 2.5) and mean.ci_high == pytest.approx(72.5)
    # as independent normal means: simulated
    rng = np.random.default_rng(0)
    drawn = (rng.normal(80, 3 / 1.96, 200_000) + rng.normal(60, 4 / 1.96, 200_000)) / 2
    assert np.quantile(drawn, 0.975) == pytest.approx(mean.ci_high, abs=0.05)
    with pytest.raises(ValueError, match="no results"):
        mean_of([])


def test_means_are_of_the_headline_and_of_what_all_have() -> None:
    one = evaluation(result(50, 1, layer=1), result(80, 3), result(30, 1, encoder="untrained"))
    other = evaluation(result(60, 4), result(20, 1, layer=1))
    best = headline(one, "linear", "trained")
    assert best is not None and best.value == 80
    (mean,) = means({"a": one, "b": other})
    assert (mean.encoder, mean.value) == ("trained", 70)  # one lacks the untrained twin
    assert not means({"a": one, "b": evaluation(result(60, 4, metric="mAP"))})


def test_a_suite_is_of_several() -> None:
    found = run_suite(
        ["a", "b"], {"a": evaluation(result(80, 3)), "b": evaluation(result(60, 4))}.__getitem__
    )
    assert [mean.value for mean in found.means] == [70]
    assert found.warnings == ["a: few images", "b: few images"]
    with pytest.raises(ValueError, match="at least 2 data sets"):
        run_suite(["a"], lambda name: evaluation())
    with pytest.raises(ValueError, match="a was given twice"):
        run_suite(["a", "b", "a"], lambda name: evaluation())


def test_suite_fits_on_few_images_of_each(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("visrep.api.judge.load_encoder", lambda name: vit())
    data = ["playground:n=100,size=32", "playground:n=100,size=32,seed=1"]
    out = tmp_path / "suite.json"
    found = api.suite("timm:none", data, train=50, baselines=False, out=out, protocols=("knn",))
    assert list(found.evaluations) == data and out.exists()
    for one in found.evaluations.values():
        assert {(r.n_train, r.n_test) for r in one.results} == {(50, 20)}
    values = [headline(one, "knn", "trained") for one in found.evaluations.values()]
    assert found.means[0].value == pytest.approx(np.mean([v.value for v in values if v]))
