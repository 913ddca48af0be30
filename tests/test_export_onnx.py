"""ONNX files: the same features in onnxruntime, read back as encoders, other tools' files by their shapes, 8 bits."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import visrep
from _exports import SMALL, card_features, cosine, saved, unchecked
from _extras import needs
from visrep import cli
from visrep.encoders import ConvNet, ResNet, save_encoder
from visrep.encoders.pretrained.onnx import OnnxEncoder
from visrep.exports.onnx import load
from visrep.exports.quantize import sides, weighted_nodes
from visrep.method import Encoder

onnx = needs("onnx")
onnxruntime = needs("onnxruntime")
needs("onnxscript")

CONFIG = replace(SMALL, registers=2)
DATA = "playground:n=60,size=32"


@pytest.fixture(autouse=True, scope="module")
def without_checks() -> Iterator[None]:
    with unchecked():
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Encoder, Any]:
    """A folder made by ``--to onnx`` with a file in 8 bits, its encoder and what was said."""
    folder = tmp_path_factory.mktemp("onnx")
    run, encoder = saved(folder / "run", CONFIG)
    return folder / "out", encoder, visrep.export(run, "onnx", folder / "out", quantize="int8", data=DATA)


def test_any_batch_and_size_in_onnxruntime(exported: tuple[Path, Encoder, Any]) -> None:
    folder, encoder, result = exported
    assert [one.error < 1e-4 * one.scale for one in result.agreement] == [True, True]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert [x.name for x in session.get_outputs()] == ["features", "patches", "registers"]
    assert session.get_outputs()[1].shape == ["batch", 48, "rows", "columns"]
    for shape in ((1, 3, 32, 32), (5, 3, 16, 72), (2, 3, 40, 32)):
        images = torch.randn(shape)
        features, patches, registers = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            tokens = encoder(images)
        assert cosine(torch.tensor(features), tokens.pool()) > 0.99999
        torch.testing.assert_close(torch.tensor(patches).flatten(2).mT, tokens.patches, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.tensor(registers), tokens.registers, atol=1e-5, rtol=1e-5)


def test_the_card(exported: tuple[Path, Encoder, Any]) -> None:
    folder, encoder, _ = exported
    features, images = card_features(folder)
    with torch.no_grad():
        assert cosine(features, encoder(images).pool()) > 0.9999


def test_it_is_an_encoder_for_evaluation(exported: tuple[Path, Encoder, Any]) -> None:
    folder, encoder, _ = exported
    back = visrep.load_encoder(folder / "model.onnx")
    assert (back.width, back.depth, back.stride) == (48, 1, 8)
    assert back.preprocessing == encoder.preprocessing
    images = torch.randn(3, 3, 48, 32)
    with torch.no_grad():
        found, expected = back(images, layers=(1,)), encoder(images)
    assert found.grid == expected.grid == (6, 4)
    assert found.cls is not None and expected.cls is not None
    torch.testing.assert_close(found.cls, expected.cls, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.layers[0].patches, expected.patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.registers, expected.registers, atol=1e-5, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"model\.onnx is an ONNX file: it can be judged and used, not trained"
    ):
        back.train()
    with pytest.raises(ValueError, match="cannot do keep="):
        back(images, keep=torch.zeros(3, 1).long())
    with pytest.raises(ValueError, match="has layers 1 to 1"):
        back(images, layers=(2,))
    with pytest.raises(ValueError, match="is an ONNX file already"):
        visrep.export(folder / "model.onnx", "hf", folder / "again")
    with pytest.raises(FileNotFoundError, match=r"holds an ONNX file: give .*model\.onnx"):
        visrep.load_encoder(folder)


def test_evaluated_beside_its_untrained_twin(
    exported: tuple[Path, Encoder, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, encoder, _ = exported
    before = sorted(path.name for path in folder.iterdir())
    arguments = ["evaluate", str(folder / "model.onnx"), "--data", DATA, "--protocols", "knn", "--no-keep"]
    monkeypatch.setattr(sys, "argv", ["visrep", *arguments])
    cli.main()
    assert sorted(path.name for path in folder.iterdir()) == before  # nothing is written beside it
    found = visrep.evaluate(folder / "model.onnx", DATA, protocols=("knn",), keep=False)
    save_encoder(tmp_path / "run", encoder)
    expected = visrep.evaluate(tmp_path / "run", DATA, protocols=("knn",), keep=False)
    assert {result.encoder for result in found.results} == {"trained", "untrained", "pixels"}
    for ours, theirs in zip(found.results, expected.results, strict=True):
        assert ours.encoder == theirs.encoder and abs(ours.value - theirs.value) < 10  # a twelfth of an image
    with pytest.raises(ValueError, match="no weights that can be trained: an ONNX file"):
        visrep.evaluate(folder / "model.onnx", DATA, protocols=("finetune",), baselines=False, keep=False)


def test_8_bits_and_what_they_cost(exported: tuple[Path, Encoder, Any]) -> None:
    folder, _, result = exported
    assert result.cost is not None and result.cost.int8.protocol == "knn"
    sizes = [(folder / name).stat().st_size for name in ("model_int8.onnx", "model.onnx")]
    graph = onnx.load(folder / "model_int8.onnx").graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) > 4
    assert {x.data_type for x in graph.initializer} >= {onnx.TensorProto.INT8}
    whole, small = (visrep.load_encoder(folder / name) for name in ("model.onnx", "model_int8.onnx"))
    images = torch.randn(4, 3, 32, 32)
    close = cosine(small(images).pool(), whole(images).pool())
    assert 0.9 < close < 0.999999, (close, sizes)
    # the numbers are those of evaluating both files on the same split
    train, test = sides(DATA).train, sides(DATA).test
    for file, said in (("model.onnx", result.cost.float32), ("model_int8.onnx", result.cost.int8)):
        judged = visrep.evaluate(
            folder / file, train, test=test, protocols=("knn",), baselines=False, keep=False
        )
        assert next(r for r in judged.results if r.settings["k"] == said.settings["k"]).value == said.value
    text = (folder / "README.md").read_text()
    assert f"{result.cost.int8.value:.1f} %" in text and f"{result.cost.change:+.1f} points" in text
    said = json.loads((folder / "quantized.json").read_text())
    assert said["command"] == f"visrep export run --to onnx --out out --quantize int8 --data {DATA}"
    assert said["bytes"] == {"model.onnx": sizes[1], "model_int8.onnx": sizes[0]} and said["kind"] == "int8"
    assert said["knn"]["change"] == result.cost.change and said["knn"]["data"] == result.cost.data
    for name, beside in (("float32", result.cost.float32), ("int8", result.cost.int8)):
        assert said["knn"][name]["value"] == beside.value and said["knn"][name]["n_test"] == beside.n_test
        assert (said["knn"][name]["ci_low"], said["knn"][name]["ci_high"]) == (beside.ci_low, beside.ci_high)


@pytest.mark.parametrize(
    "config",
    [ConvNet(width=4), pytest.param(ResNet(18, width=4, stem="small"), marks=pytest.mark.slow)],
    ids=str,
)
def test_convolutions_in_8_bits(config: ConvNet | ResNet, tmp_path: Path) -> None:
    run, encoder = saved(tmp_path / "run", config)
    unlabelled = [np.full((32, 32, 3), 9 * i, np.uint8) for i in range(8)]
    result = visrep.export(run, "onnx", tmp_path / "out", quantize="int8", data=unlabelled)  # pyright: ignore
    assert len(result.agreement) == 2 and all(one.cosine > 0.9999 for one in result.agreement)
    assert result.cost is None
    assert "was not measured" in (tmp_path / "out" / "README.md").read_text()
    images = torch.randn(2, 3, 40, 32)
    with torch.no_grad():
        assert cosine(load(tmp_path / "out")(images), encoder(images).pool()) > 0.9999
    with pytest.raises(ValueError, match=r"nothing that could be quantised so\. Use --quantize int8"):
        visrep.export(run, "onnx", tmp_path / "other", quantize="int8-dynamic")
    assert not (tmp_path / "other").exists()


def test_only_products_of_pixels_with_weights_are_quantised() -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Shape", ["images"], ["shape"], "a"),
        make("MatMul", ["shape", "w"], ["positions"], "b"),
        make("MatMul", ["images", "w"], ["x"], "c"),
        make("MatMul", ["x", "x"], ["y"], "d"),
        make("Add", ["y", "w"], ["z"], "e"),
        make("Gemm", ["z", "w"], ["out"], "f"),
    ]
    weights = [onnx.numpy_helper.from_array(np.zeros((2, 2), np.float32), "w")]
    graph = onnx.helper.make_graph(nodes, "graph", [], [], weights)
    assert weighted_nodes(graph, ("MatMul", "Gemm")) == ["c", "f"]


def foreign(
    path: Path, nodes: list[Any], outputs: list[str], shape: list[Any], **constants: np.ndarray
) -> Path:
    """A file of another tool."""
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("pixel_values", floats, shape)],
        [helper.make_tensor_value_info(name, floats, None) for name in outputs],
        [onnx.numpy_helper.from_array(x, name) for name, x in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def tokens_file(path: Path, shape: list[Any], *, front: int = 1) -> Path:
    """Patches of 8 x 8 pixels through a convolution, the mean of an image in front as often as asked for."""
    rng = np.random.default_rng(0)
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["pixel_values", "kernel"], ["map"], kernel_shape=[8, 8], strides=[8, 8]),
        make("Reshape", ["map", "flat"], ["columns"]),
        make("Transpose", ["columns"], ["patches"], perm=[0, 2, 1]),
        make("ReduceMean", ["patches"], ["mean"], axes=[1]),
        make("Concat", ["mean"] * front + ["patches"], ["last_hidden_state"], axis=1),
        make("ReduceMean", ["mean"], ["pooler_output"], axes=[1], keepdims=0),
    ]
    kernel = rng.normal(size=(6, 3, 8, 8)).astype(np.float32)
    flat = np.array([0, 6, -1])
    return foreign(
        path, nodes, ["last_hidden_state", "pooler_output", "map"], shape, kernel=kernel, flat=flat
    )


def kernel_of(path: Path) -> Tensor:
    return torch.tensor(onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]))


@pytest.mark.parametrize("batch", ["batch", 1, 4])
@pytest.mark.parametrize("front", [1, 3])
def test_tokens_of_other_tools(batch: str | int, front: int, tmp_path: Path) -> None:
    path = tokens_file(tmp_path / "model.onnx", [batch, 3, "height", "width"], front=front)
    said = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    encoder = visrep.load_encoder(path)
    assert (encoder.preprocessing.size, encoder.preprocessing.mean) == (32, (0.5, 0.5, 0.5))
    assert (encoder.width, encoder.stride) == (6, 8)
    for height, width in ((32, 32), (16, 48)):
        images = torch.randn(3, 3, height, width)
        expected = torch.nn.functional.conv2d(images, kernel_of(path), stride=8)
        tokens = encoder(images)
        assert tokens.grid == expected.shape[2:]
        torch.testing.assert_close(tokens.patches, expected.flatten(2).mT, atol=1e-4, rtol=1e-4)
        assert tokens.cls is not None
        torch.testing.assert_close(tokens.cls, expected.mean((2, 3)), atol=1e-4, rtol=1e-4)
        assert (tokens.registers is None) == (front == 1)
        if tokens.registers is not None:
            assert tokens.registers.shape == (3, front - 1, 6)


def test_another_output_can_be_asked_for(tmp_path: Path) -> None:
    path = tokens_file(tmp_path / "model.onnx", ["batch", 3, 32, 32])
    images = torch.randn(2, 3, 32, 32)
    expected = torch.nn.functional.conv2d(images, kernel_of(path), stride=8)
    maps = visrep.load_encoder(f"{path}@map")
    torch.testing.assert_close(maps(images).patches, expected.flatten(2).mT, atol=1e-4, rtol=1e-4)
    assert maps(images).cls is None and maps(images).grid == (4, 4)
    vector = visrep.load_encoder(f"{path}@pooler_output")(images)
    torch.testing.assert_close(vector.pool(), expected.mean((2, 3)), atol=1e-4, rtol=1e-4)
    assert vector.patches.shape == (2, 1, 6)
    with pytest.raises(
        ValueError, match=r"no output 'other' .* last_hidden_state \(1, 17, 6\), pooler_output"
    ):
        visrep.load_encoder(f"{path}@other")


def test_without_an_architecture_there_is_no_twin(tmp_path: Path) -> None:
    path = tokens_file(tmp_path / "model.onnx", ["batch", 3, 32, 32])
    result = visrep.evaluate(path, DATA, protocols=("knn",), keep=False)
    assert {one.encoder for one in result.results} == {"trained", "pixels"}
    assert any("does not say what it was exported from" in text for text in result.warnings)


def test_files_that_are_not_understood(tmp_path: Path) -> None:
    make, path = onnx.helper.make_node, tmp_path / "model.onnx"
    relu = [make("Relu", ["pixel_values"], ["a"]), make("Neg", ["a"], ["b"])]
    for shape, message in (
        (["batch", 32, 32, 3], "images need 3 channels"),
        (["batch", 3, 32, 48], "square images"),
        (["batch", 12], "single one, of images"),
    ):
        with pytest.raises(ValueError, match=message):
            visrep.load_encoder(foreign(path, relu, ["a"], shape))
    with pytest.raises(ValueError, match=r"several outputs: a \(1, 3, 32, 32\), b .*model\.onnx@OUTPUT"):
        visrep.load_encoder(foreign(path, relu, ["a", "b"], ["batch", 3, 32, 32]))
    rows = [make("Reshape", ["pixel_values", "flat"], ["tokens"])]
    with pytest.raises(ValueError, match=r"gives 48 tokens .* no square grid|gives 48"):
        visrep.load_encoder(foreign(path, rows, ["tokens"], [1, 3, 32, 32], flat=np.array([0, 48, -1])))
    path.write_bytes(b"no graph")
    with pytest.raises(ValueError, match="cannot be read by onnxruntime"):
        visrep.load_encoder(path)
    with pytest.raises(FileNotFoundError, match=r"No file .*none\.onnx"):
        visrep.load_encoder(tmp_path / "none.onnx")


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tokens_file(tmp_path / "model.onnx", ["batch", 3, 32, 32])
    run, _ = saved(tmp_path / "run", SMALL)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "visrep\[onnx\]"'):
        visrep.load_encoder(path)
    with pytest.raises(ImportError, match=r'pip install "visrep\[onnx\]"'):
        visrep.export(run, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fingerprints_tell_files_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    tokens_file(paths[0], ["batch", 3, 32, 32])
    tokens_file(paths[1], ["batch", 3, 32, 32], front=2)
    a, b = (visrep.load_encoder(path) for path in paths)
    assert isinstance(a, OnnxEncoder) and isinstance(b, OnnxEncoder)
    assert not torch.equal(a.digest, b.digest)
