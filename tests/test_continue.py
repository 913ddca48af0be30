"""Runs that begin with an encoder's weights: what they take, what moves, what comes out."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import visrep
from conformance import moment
from visrep.config import Adapt, Guard, Optim, Run
from visrep.continuing.adapting import adapt
from visrep.continuing.checks import as_asked, check_options
from visrep.continuing.init import begin, carriers, take_encoder
from visrep.continuing.layers import layers_of
from visrep.continuing.lora import add_low_rank, merge, merged
from visrep.continuing.views import fitted
from visrep.encoders import ConvNet, ResNet, VideoViT, ViT, save_encoder
from visrep.engine import build_method
from visrep.log import TrainingLog
from visrep.method import Encoder, Method, Preprocessing
from visrep.methods import preset
from visrep.optim import build_optimizers, set_schedules
from visrep.rundir import RunFolder
from visrep.schedules import Constant
from visrep.starting import resume, start
from visrep.views import MultiCrop, TwoViews, View, crops

VIT = ViT(image=32, patch=8, width=32, depth=3, heads=2)


def saved(folder: Path, config: Any, seed: int = 1) -> Encoder:
    """An encoder with random weights, written where ``init`` can find it, normalised in a way of its own."""
    torch.manual_seed(seed)
    encoder: Encoder = config.build().eval()
    encoder.preprocessing = Preprocessing(32, 1.0, (0.4, 0.5, 0.6), (0.3, 0.2, 0.1))
    save_encoder(folder, encoder)
    return encoder


def continued(name: str, folder: Path, **adapting: Any) -> Run:
    _, _, run = preset(f"{name}:tiny")
    run = replace(run, init=str(folder), adapt=Adapt(**adapting), guard=Guard(held_out=0.0))
    return replace(run, monitor_images=40, precision="32-true")


def begun(name: str, run: Run) -> tuple[Method, Run]:
    """The method as it is before the first step, and the run with its multipliers."""
    run, encoder = begin(run)
    method = build_method(run, name)
    take_encoder(method, run, encoder)
    return method, adapt(method, run)


# what is taken


@pytest.mark.parametrize("name", ["dinov2", "simclr", "mae", "data2vec"])
def test_student_and_teacher_begin_with_the_weights(name: str, tmp_path: Path):
    source = saved(tmp_path / "e", VIT)
    method, run = begun(name, continued(name, tmp_path / "e"))
    found = carriers(method, run.method.encoder)
    assert len(found) == {"dinov2": 2, "simclr": 1, "mae": 1, "data2vec": 2}[name]
    for _, encoder in found:
        state = encoder.state_dict()
        for key, x in source.state_dict().items():
            assert torch.equal(state[key], x), key


def test_tokens_that_the_weights_lack_are_added_and_drop_path_is_the_methods(tmp_path: Path):
    saved(tmp_path / "e", replace(VIT, cls=False, drop_path=0.3))
    run, _ = begin(continued("dinov2", tmp_path / "e"))
    assert run.adapt.fresh == ("cls_token", "mask_token")
    assert run.method.encoder == replace(VIT, mask_token=True, drop_path=0.0), "dinov2:tiny drops no path"
    method, run = begun("dinov2", run)
    tokens = {
        str(encoder.get_parameter("mask_token").detach().sum())
        for _, encoder in carriers(method, run.method.encoder)
    }
    assert len(tokens) == 1, "the teacher has the student's"


def test_what_the_weights_have_stays_where_the_method_would_not_ask_for_it(tmp_path: Path):
    saved(tmp_path / "e", replace(VIT, cls=True, registers=2))
    run, _ = begin(continued("simmim", tmp_path / "e"))
    assert run.method.encoder == replace(VIT, cls=True, registers=2, mask_token=True)


def test_views_take_size_and_normalisation_of_the_weights(tmp_path: Path):
    encoder = saved(tmp_path / "e", replace(VIT, image=56, patch=14))
    views = crops(size=128, local=64, n_local=2, scale=(0.3, 1.0), local_scale=(0.1, 0.3), clean=256)
    encoder.preprocessing = replace(encoder.preprocessing, size=224)
    got = fitted(views, encoder)
    assert isinstance(got, MultiCrop)
    assert (got.global_1.size, got.local.size, got.clean) == (224, 112, 448), (
        "shares of 128 kept, in whole patches"
    )
    assert {(v.mean, v.std) for group in got.groups for v in group} == {((0.4, 0.5, 0.6), (0.3, 0.2, 0.1))}
    assert got.global_1.blur == views.global_1.blur and got.local.scale == views.local.scale
    small = fitted(views, encoder, size=98)
    assert isinstance(small, MultiCrop)
    assert (small.global_2.size, small.local.size) == (98, 56), "49 pixels are 3.5 patches: 4 of them"
    assert fitted(small, encoder, size=98) == small
    two = TwoViews(View(size=32), View(size=32))
    assert fitted(two, encoder) == replace(two, first=got_view(two.first), second=got_view(two.second))


def got_view(view: View) -> View:
    return replace(view, size=224, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))


def test_clips_get_as_many_frames_as_the_encoder(tmp_path: Path):
    config = VideoViT(frames=6, image=32, tubelet=2, patch=8, width=48, depth=2, heads=4)
    saved(tmp_path / "e", config).preprocessing = Preprocessing(32, frames=6)
    encoder = config.build()
    encoder.preprocessing = Preprocessing(32, 1.0, frames=6)
    save_encoder(tmp_path / "e", encoder)
    run, _ = begin(continued("videomae", tmp_path / "e"))
    assert run.method.views.frames == 6
    assert run.method.encoder == config


# what is refused


def test_init_and_start_from_are_two_things(tmp_path: Path):
    saved(tmp_path / "e", VIT)
    run = replace(continued("dino", tmp_path / "e"), start_from=str(tmp_path / "e"))
    with pytest.raises(ValueError, match=r"init=.*start_from=.*both say what to begin with"):
        start(replace(run, out=str(tmp_path / "run")), method="dino")
    assert not (tmp_path / "run").exists()
    with pytest.raises(
        ValueError, match=r"model\.onnx is an ONNX file, which can be judged and used, not trained"
    ):
        begin(continued("dino", tmp_path / "model.onnx"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapt": Adapt(lora_rank=4)}, r"adapt\.lora_rank=4 says how .* there is no init\. Give one"),
        ({"adapt": Adapt(size=8), "start_from": "r"}, r"adapt\.size=8 .*no init \(start_from continues"),
        ({"guard": Guard(act="rollback")}, r"guard\.act=rollback: .*begins with random ones\. Give some"),
        ({"guard": Guard(reference="x", min_cka=0.5)}, r"guard\.reference=x, guard\.min_cka=0\.5: the guard"),
        (
            {"adapt": Adapt(interpolation="bilinear", squash=True), "init": "e"},
            r"bilinear, adapt\.squash=True",
        ),
        ({"adapt": Adapt(fresh=("cls_token",)), "init": "e"}, r"adapt\.fresh=.*read off the weights .*Leave"),
    ],
)
def test_no_option_is_silent(changes: dict[str, Any], message: str, tmp_path: Path):
    asked = replace(preset("simclr:tiny")[2], **changes)
    with pytest.raises(ValueError, match=message):
        start(replace(asked, out=str(tmp_path / "run")), method="simclr")
    assert not (tmp_path / "run").exists()


def test_what_is_filled_in_is_not_what_was_asked(tmp_path: Path):
    """So that ``--from`` repeats a run whose run.json has it filled in."""
    saved(tmp_path / "e", replace(VIT, cls=False))
    run = continued("dinov2", tmp_path / "e", lora_rank=2)
    begun_with, _ = begin(run)
    assert begun_with.adapt.fresh and as_asked(begun_with).adapt == run.adapt
    check_options(as_asked(begun_with))
    with pytest.raises(ValueError, match=r"adapt\.fresh"):
        check_options(begun_with)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "mae",
            ResNet(18, width=4, stem="small"),
            r"mae trains a ViTLike, and init=.* is a ResNet\. Weights that fit: runs .*simclr",
        ),
        (
            "context_encoder",
            VIT,
            r"trains a ResNet or ConvNet, and .* is a ViT\. .*: runs with a ResNet; .*ConvNet",
        ),
        (
            "dino",
            VideoViT(frames=4, image=32, patch=8, width=48, depth=1, heads=4),
            r"encoder of images, and .* is a VideoViT\. .*trains clips, such as videomae",
        ),
        (
            "crate_mae",
            VIT,
            r"a CRATE, .* is a ViT\. Weights that fit: runs with a CRATE.*official files of CRATE",
        ),
        ("dinov3", VIT, r"dinov3 needs rotary positions.*position='learned'.*timm:vit_small_patch16_dinov3"),
    ],
)
def test_a_method_says_what_it_trains(name: str, config: Any, message: str, tmp_path: Path):
    saved(tmp_path / "e", config)
    with pytest.raises(ValueError, match=message):
        begin(continued(name, tmp_path / "e"))


@pytest.mark.parametrize(
    ("adapting", "message"),
    [
        ({"train_blocks": 4}, "adapt.train_blocks=4, and the encoder has 3"),
        ({"size": 30}, "An image of 30 x 30 pixels does not divide into patches of 8 x 8"),
        ({"lora_rank": 33}, "adapt.lora_rank=33 adds to linear layers, .* narrower than 33"),
    ],
)
def test_more_than_there_is(adapting: dict[str, Any], message: str, tmp_path: Path):
    saved(tmp_path / "e", VIT)
    with pytest.raises(ValueError, match=message):
        begun("dino", continued("dino", tmp_path / "e", **adapting))


def test_a_network_without_linear_layers_has_no_lora(tmp_path: Path):
    saved(tmp_path / "e", ResNet(18, width=4, stem="small"))
    with pytest.raises(ValueError, match=r"adapt.lora_rank=2 adds to linear layers, .* are none"):
        begun("dino", continued("dino", tmp_path / "e", lora_rank=2))


@pytest.mark.parametrize(
    "wrong", [{"lr_scale": 0.0}, {"freeze_epochs": -1.0}, {"layer_decay": 1.5}, {"layer_decay": 0.0}]
)
def test_values_that_cannot_be(wrong: dict[str, float]):
    with pytest.raises(ValueError, match=r"layer_decay=|negative"):
        Adapt(**wrong)  # pyright: ignore[reportArgumentType]


# what moves


def learning_rates(method: Method, run: Run, step: int) -> dict[str, float]:
    """By parameter, at a step of 100 in ten epochs, where the schedule itself says 1."""
    run = replace(run, optim=replace(run.optim, lr=Constant(1.0), lr_scaling="none"))
    (optimizer,) = build_optimizers(method, run.optim).values()
    set_schedules(optimizer, run.optim, moment(step), 16)
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        rates |= dict.fromkeys(group["names"], group["lr"])
    return rates


def naive(name: str, depth: int) -> float:
    """The learning rate of a parameter of a ViT, from its name."""
    if "mask_token" in name or "encoder." not in name:
        return 1.0
    if "encoder.norm." in name:
        return 0.2
    block = re.search(r"blocks\.(\d+)\.", name)
    return 0.2 * 0.5 ** (depth - int(block[1]) if block else depth + 1)


def test_heads_first_then_slower_from_layer_to_layer(tmp_path: Path):
    saved(tmp_path / "e", VIT)
    run = replace(
        continued("dinov2", tmp_path / "e", freeze_epochs=2.0, lr_scale=0.2, layer_decay=0.5), epochs=10
    )
    method, run = begun("dinov2", replace(run, optim=Optim()))
    trained = {name for name, p in method.named_parameters() if p.requires_grad}
    early, late = learning_rates(method, run, 19), learning_rates(method, run, 20)
    assert early.keys() == late.keys() == trained
    for name in trained:
        expected = naive(name, depth=3)
        assert early[name] == (expected if expected == 1 else 0), name
        assert late[name] == pytest.approx(expected), name
    assert sum(rate == 1 for rate in late.values()) > 5, "heads and the mask token"


def test_the_encoder_stands_still_for_at_most_a_quarter_of_the_run(tmp_path: Path):
    saved(tmp_path / "e", VIT)
    run = replace(continued("simclr", tmp_path / "e", freeze_epochs=9.0), epochs=10)
    method, run = begun("simclr", run)
    norm = "backbone.norm.weight"
    assert learning_rates(method, run, 24)[norm] == 0 < learning_rates(method, run, 25)[norm]


def test_multipliers_of_the_preset_stay_for_heads_only(tmp_path: Path):
    saved(tmp_path / "e", VIT)
    run = continued("dino", tmp_path / "e")
    of_preset = (
        ("student.head.*", Constant(0.5)),
        ("student.encoder.blocks.*", Constant(0.1)),
        ("*", Constant(0.7)),
    )
    method, got = begun("dino", replace(run, optim=Optim(multipliers=of_preset)))
    kept = [pattern for pattern, _ in got.optim.multipliers]
    assert "student.head.*" in kept and "student.encoder.blocks.*" not in kept and "*" not in kept
    assert set(learning_rates(method, got, 99).values()) >= {0.5, 0.1}
    method, slip = begun("dino", replace(run, optim=Optim(multipliers=(("stduent.*", Constant(0.5)),))))
    with pytest.raises(ValueError, match="stduent"):
        build_optimizers(method, slip.optim)


def changes(folder: Path, source: Encoder) -> dict[str, Tensor]:
    after = visrep.load_encoder(folder).state_dict()
    return {name: after[name] - x for name, x in source.state_dict().items()}


def test_only_the_last_blocks_move(tmp_path: Path):
    source = saved(tmp_path / "e", VIT)
    run = continued("simclr", tmp_path / "e", train_blocks=1)
    moved = {
        name
        for name, change in changes(
            start(replace(run, out=str(tmp_path / "run")), method="simclr"), source
        ).items()
        if change.any()
    }
    assert moved == {name for name, _ in source.named_parameters() if name.startswith(("blocks.2.", "norm."))}


def test_lora_moves_matrices_by_few_ranks_and_is_gone_at_the_end(tmp_path: Path):
    source = saved(tmp_path / "e", VIT)
    run = replace(
        continued("dino", tmp_path / "e", lora_rank=2, train_blocks=2), epochs=2, out=str(tmp_path / "run")
    )
    run = replace(run, optim=replace(run.optim, lr=Constant(0.01), weight_decay=Constant(0.0)))
    folder = start(replace(run, method=replace(run.method, teacher_decay=Constant(0.5))), method="dino")
    for name, change in changes(folder, source).items():
        linear = re.fullmatch(r"blocks\.[12]\..*\.(qkv|proj|fc1|fc2)\.weight", name)
        rank = int(torch.linalg.matrix_rank(change.double(), atol=1e-5)) if linear else 0
        assert change.any() == bool(linear), name
        assert 1 <= rank <= 2 if linear else rank == 0, name
    state = RunFolder(folder).load_checkpoint()["method"]
    assert not [name for name in state if "parametrizations" in name], "the finished checkpoint is plain too"
    again = replace(preset("dino:tiny")[2], start_from=str(folder), method=RunFolder(folder).run().method)
    start(replace(again, out=str(tmp_path / "next")), method="dino")


def test_a_merged_encoder_computes_the_same(tmp_path: Path):
    encoder = saved(tmp_path / "e", VIT)
    images = torch.randn(2, 3, 32, 32)
    before = encoder(images).pool()
    add_low_rank(encoder, 4, layers_of(encoder).blocks, seed=0)
    assert torch.equal(encoder(images).pool(), before), "nothing is added at the start"
    learned = [p for p in encoder.parameters() if p.requires_grad]
    assert {tuple(p.shape) for p in learned if 4 not in p.shape} == set()
    with torch.no_grad():
        for p in learned:
            p.add_(0.1 * torch.randn_like(p))
        changed = encoder(images).pool()
        plain = merged(encoder)
        torch.testing.assert_close(plain(images).pool(), changed)
        assert torch.equal(encoder(images).pool(), changed), "the encoder itself still learns"
        merge(encoder)
        torch.testing.assert_close(encoder(images).pool(), changed)
    assert plain.state_dict().keys() == encoder.state_dict().keys() == VIT.build().state_dict().keys()
    assert not torch.allclose(changed, before)
    assert merged(plain) is plain


@pytest.mark.parametrize(
    ("config", "blocks", "below", "above"),
    [
        (VIT, ["blocks.0", "blocks.1", "blocks.2"], "cls_token", "norm.weight"),
        # a table of positions that outweighs the blocks
        (
            ViT(image=518, patch=14, width=32, depth=2, heads=2),
            ["blocks.0", "blocks.1"],
            "position",
            "norm.weight",
        ),
        (ResNet(18, width=4), ["layer1", "layer2", "layer3", "layer4"], "conv1.weight", ""),
        (ConvNet(width=4), ["stages.0", "stages.1", "stages.2", "stages.3"], "", ""),
    ],
)
def test_layers_from_below(config: Any, blocks: list[str], below: str, above: str):
    layers = layers_of(config.build())
    assert list(layers.blocks) == blocks
    assert (below in layers.below) == bool(below) and (above in layers.above) == bool(above)
    assert not set(layers.below) & set(layers.above)


# the whole run


@pytest.mark.parametrize("adapting", [{}, {"lora_rank": 2}], ids=["all", "lora"])
def test_a_stopped_run_continues_without_the_source(
    adapting: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved(tmp_path / "e", VIT)
    run = replace(continued("dinov2", tmp_path / "e", **adapting), epochs=2)
    whole = start(replace(run, out=str(tmp_path / "whole")), method="dinov2", preset="tiny")

    def interrupted(log: TrainingLog, at: Any, *others: Any) -> bool:
        if at.step == 6:
            raise KeyboardInterrupt
        return add(log, at, *others)

    add = TrainingLog.add
    monkeypatch.setattr(TrainingLog, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start(replace(run, out=str(tmp_path / "broken")), method="dinov2", preset="tiny")
    monkeypatch.undo()
    about = RunFolder(tmp_path / "broken").about()
    assert about["run"]["init"] == str(tmp_path / "e") and about["run"]["adapt"]["fresh"] == ["mask_token"]
    assert RunFolder(tmp_path / "broken").load_checkpoint()["step"] == 4
    shutil.rmtree(tmp_path / "e")
    resume(tmp_path / "broken")
    expected, got = (RunFolder(f).load_checkpoint()["method"] for f in (whole, tmp_path / "broken"))
    assert expected.keys() == got.keys()
    for name, x in expected.items():
        assert torch.equal(x, got[name]), name


def test_the_same_from_python_and_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved(tmp_path / "e", VIT)
    options = {"precision": "32-true", "adapt.train_blocks": 1}
    one = visrep.pretrain("dino:tiny", init=str(tmp_path / "e"), out=str(tmp_path / "a"), overrides=options)
    flags = ["--init", str(tmp_path / "e"), "--out", str(tmp_path / "b"), "--precision", "32-true"]
    from visrep.cli.pretrain import pretrain

    pretrain(["dino:tiny", *flags, "--adapt.train-blocks", "1"])
    a, b = (RunFolder(tmp_path / name) for name in "ab")
    assert replace(a.run(), out="") == replace(b.run(), out="")
    first, second = (visrep.load_encoder(folder).state_dict() for folder in (one, tmp_path / "b"))
    assert all(torch.equal(x, second[name]) for name, x in first.items())
