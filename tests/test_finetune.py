"""Fine-tuning: mixing and layer-wise rates against other code, training against a loop written out, honest choices."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from visrep.data import CanvasSet, Source, open_source
from visrep.encoders import FrameAverage, ResNet, ViT
from visrep.evaluation import finetune as protocol
from visrep.evaluation.evaluate import evaluate
from visrep.evaluation.features import extract
from visrep.evaluation.finetune import MAE_BASE, MAE_LARGE, RECIPES, SMALL, finetune, parse
from visrep.evaluation.fitting import (
    Classifier,
    Fit,
    Images,
    Recipe,
    layer_of,
    parameter_groups,
    shuffled,
    trainable,
)
from visrep.evaluation.holdout import hold_out
from visrep.evaluation.mixing import Mixing, draw_box, mix
from visrep.evaluation.protocols import check_protocols
from visrep.evaluation.table import render
from visrep.evaluation.untrained import untrained_twin
from visrep.method import At, Encoder, Preprocessing
from visrep.views import Erasing, OneView, RandAugment, View, center, draw, erase, rand_augment

SIZE = 16
PLAIN = View(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, gray=0.0, blur=0.0)
FAST = Recipe(
    tries=((3e-3, 0.9),),
    epochs=4,
    warmup=0.1,
    batch=20,
    view=PLAIN,
    mixing=Mixing(probability=0.0),
    drop_path=0.0,
)
CPU = torch.device("cpu")


def images(n: int, k: int = 3, seed: int = 0) -> Source:
    """Noise whose brightness tells the class; the labels are 0, 2, 4, ..."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    level = (60 + 70 * labels)[:, None, None, None]
    pixels = np.clip(level + rng.normal(0, 30, (n, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    return open_source([(image, 2 * int(label)) for image, label in zip(pixels, labels, strict=True)])


def some(n: int, k: int = 3, seed: int = 0) -> Images:
    source = images(n, k, seed)
    assert source.labels is not None
    return Images(CanvasSet(source, SIZE), torch.arange(n), torch.from_numpy(source.labels))


def vit() -> Encoder:
    torch.manual_seed(0)
    encoder = ViT(image=SIZE, patch=8, width=24, depth=3, heads=2).build().eval()
    encoder.preprocessing = Preprocessing(SIZE, ratio=1.0)
    return encoder


def resnet() -> Encoder:
    torch.manual_seed(0)
    encoder = ResNet(depth=18, width=4, stem="small").build().eval()
    encoder.preprocessing = Preprocessing(SIZE, ratio=1.0)
    return encoder


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "golden" / "finetune.npz") as arrays:
        return dict(arrays)


# mixing


def test_mixing_is_timms(golden: dict[str, np.ndarray]) -> None:
    """The same random numbers give timm's images and targets."""
    x, y = torch.from_numpy(golden["x"]), torch.from_numpy(golden["y"])
    for seed, (images, targets) in enumerate(zip(golden["mixed"], golden["targets"], strict=True)):
        mixed, soft = mix(x, y, 5, Mixing(probability=0.8), np.random.default_rng(seed))
        np.testing.assert_allclose(mixed, images, atol=1e-6, rtol=0)
        np.testing.assert_allclose(soft, targets, atol=1e-6, rtol=0)


def test_mixing_by_hand() -> None:
    """Each pixel is its own or its partner's, and the labels say how many are."""
    x = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    y = torch.arange(4)
    for seed in range(30):
        mixed, targets = mix(x, y, 4, Mixing(smoothing=0.0), np.random.default_rng(seed))
        own = targets[torch.arange(4), y]
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3)), own * y + (1 - own) * y.flip(0))
    same, targets = mix(x, y, 4, Mixing(probability=0.0, smoothing=0.2), np.random.default_rng(0))
    assert same is x
    torch.testing.assert_close(targets[0], torch.tensor([0.85, 0.05, 0.05, 0.05]))
    clips = torch.randn(4, 2, 3, 8, 8)
    assert mix(clips, y, 4, Mixing(), np.random.default_rng(0))[0].shape == clips.shape


def test_boxes_have_their_share() -> None:
    boxes = [draw_box(32, 48, 0.25, np.random.default_rng(seed)) for seed in range(200)]
    inside = [box for box in boxes if box[0] > 0 and box[1] < 32 and box[2] > 0 and box[3] < 48]
    assert inside and {(bottom - top, right - left) for top, bottom, left, right in inside} == {(16, 24)}
    top, bottom, left, right = draw_box(32, 48, 0.0, np.random.default_rng(0))
    assert top == bottom and left == right


# layer-wise learning rates


def test_layers_are_maes() -> None:
    """Tokens, positions and patch embedding below the first block; norm and classifier above the last."""
    network = Classifier(vit(), 3)
    for name, _ in network.named_parameters():
        part = name.removeprefix("encoder.")
        if part in ("cls_token", "position") or part.startswith("patch_embed"):
            expected = 0
        elif part.startswith("blocks"):
            expected = int(part.split(".")[1]) + 1
        else:
            expected = 4
        assert layer_of(name, 3) == expected, name


def test_layers_of_a_resnet() -> None:
    names = [
        "encoder.conv1.weight",
        "encoder.bn1.bias",
        "encoder.layer1.0.conv1.weight",
        "encoder.layer4.1.bn2.bias",
    ]
    assert [layer_of(name, 4) for name in [*names, "head.weight"]] == [0, 0, 1, 4, 5]


def test_groups_have_timms_rates(golden: dict[str, np.ndarray]) -> None:
    expected = dict(zip(golden["names"].tolist(), golden["rates"].tolist(), strict=True))
    network = Classifier(vit(), 3)
    groups = parameter_groups(network, 0.05, 0.65)
    found = {id(p): [group["scale"], group["weight_decay"]] for group in groups for p in group["params"]}
    ours = {name.removeprefix("encoder."): found[id(p)] for name, p in network.named_parameters()}
    ours["pos_embed"] = ours.pop("position")
    assert ours.keys() == expected.keys()
    for name in (
        "norm.weight",
        "norm.bias",
    ):  # timm has it in the last block, MAE's lr_decay.py with the classifier
        assert expected.pop(name) == pytest.approx([0.65, 0.0]) and ours.pop(name) == [1.0, 0.0]
    for name, rates in expected.items():
        assert ours[name] == pytest.approx(rates), name


def test_unknown_layers_learn_alike() -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    network = Classifier(vit(), 3)
    network.encoder = Plain()  # pyright: ignore[reportAttributeAccessIssue]
    network.encoder.depth = 2
    assert {group["scale"] for group in parameter_groups(network, 0.05, 0.5)} == {1.0}


# training


def loop(encoder: Encoder, train: Images, recipe: Recipe, lr: float, decay: float, seed: int) -> Classifier:
    """`Fit` written out for a ViT, with one optimiser a parameter."""
    torch.manual_seed(seed)
    network = Classifier(trainable(encoder, recipe), 3).train()
    optimisers = {}
    for name, parameter in network.named_parameters():
        kept = parameter.ndim == 1 or name in ("encoder.cls_token", "encoder.position")
        optimisers[name] = torch.optim.AdamW([parameter], weight_decay=0.0 if kept else 0.05)
    n, total = len(train), round(recipe.epochs * len(train) / recipe.batch)
    warm, step = round(recipe.warmup * total), 0
    for epoch in range(math.ceil(total * recipe.batch / n)):
        order = np.random.default_rng([seed, epoch]).permutation(train.index.numpy())
        for at in range(0, n // recipe.batch * recipe.batch, recipe.batch):
            rows = order[at : at + recipe.batch]
            if step < warm:
                rate = lr * step / max(1, warm - 1)
            else:
                rate = 1e-6 + (lr - 1e-6) * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2
            logits = network(center(train.canvases.get(rows), encoder.preprocessing))
            loss = F.cross_entropy(logits, train.labels[rows] // 2, label_smoothing=recipe.mixing.smoothing)
            network.zero_grad()
            loss.backward()
            for name, optimiser in optimisers.items():
                optimiser.param_groups[0]["lr"] = rate * decay ** (4 - layer_of(name, 3))
                optimiser.step()
            step += 1
            if step == total:
                break
    return network


def test_training_is_a_plain_loop() -> None:
    train, encoder = some(60), vit()
    recipe = replace(FAST, warmup=0.25)
    fit = Fit(encoder, torch.tensor([0, 2, 4]), recipe, CPU, 5, False, "")
    found, expected = (
        fit(train, 1e-3, 0.7, "").state_dict(),
        loop(encoder, train, recipe, 1e-3, 0.7, 5).state_dict(),
    )
    start = encoder.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=name)
    assert not torch.allclose(found["encoder.cls_token"], start["cls_token"], atol=1e-4)


def test_parts_of_a_batch_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    train, fit = some(40), Fit(vit(), torch.tensor([0, 2, 4]), FAST, CPU, 0, False, "")
    whole = fit(train, 1e-3, 0.7, "").state_dict()
    monkeypatch.setattr("visrep.evaluation.fitting.MICRO", 7)
    for name, value in fit(train, 1e-3, 0.7, "").state_dict().items():
        torch.testing.assert_close(value, whole[name], atol=2e-5, rtol=1e-4, msg=name)


def test_batches_are_permutations() -> None:
    batches = list(shuffled(np.arange(100, 110), 3, 6, seed=0))
    assert [len(batch) for batch in batches] == [3] * 6
    first, second = np.concatenate(batches[:3]), np.concatenate(batches[3:])
    assert len(set(first)) == len(set(second)) == 9 and not np.array_equal(first, second)


@pytest.mark.parametrize("make", [vit, resnet])
def test_it_learns_and_leaves_the_encoder_alone(make: Callable[[], Encoder]) -> None:
    encoder = make()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    test = some(30, seed=1)
    found = finetune("finetune", encoder, some(60), test, device=CPU, recipe=replace(FAST, epochs=15))
    assert (found.predicted == test.labels).float().mean() > 0.9
    assert torch.equal(torch.get_rng_state(), state) and not encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert found.n_train == 60
    assert found.settings == {"lr": 3e-3, "layer_decay": 0.9, "steps": 45, "batch": 20, "draws": 1}


def test_a_twin_is_trained_with_usual_batchnorm() -> None:
    """Calibrating leaves averages without end, which must not stay for training."""
    source = some(40)
    twin = untrained_twin(resnet(), source.canvases, np.arange(40), seed=0, device=CPU)
    copy = trainable(twin, SMALL)
    norms = [m for m in copy.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all(norm.momentum == 0.1 for norm in norms)
    copied = copy.state_dict()
    assert all(torch.equal(value, copied[name]) for name, value in twin.state_dict().items())


# honest choices


def test_the_best_on_held_out_images_is_taken() -> None:
    useless, good = (0.0, 1.0), (3e-3, 0.9)
    fit = Fit(vit(), torch.tensor([0, 2, 4]), replace(FAST, epochs=8), CPU, 0, False, "")
    for tries in itertools.permutations((useless, good)):
        assert fit.choose(some(60), tries) == good
    assert fit.choose(some(60), (useless,)) == useless


def test_choices_see_only_the_labels_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten labels of a class no other training image is touched, neither in choosing nor in fitting."""
    train, test = some(150), some(30, seed=1)
    seen: list[set[int]] = []
    get = CanvasSet.get

    def spy(self: CanvasSet, indices: np.ndarray) -> object:
        if self is train.canvases:
            seen.append(set(indices.tolist()))
        return get(self, indices)

    monkeypatch.setattr(CanvasSet, "get", spy)
    choose, asked = Fit.choose, list[int]()

    def counted(self: Fit, images: Images, tries: tuple[tuple[float, float], ...]) -> tuple[float, float]:
        asked.append(len(tries))
        return choose(self, images, tries)

    monkeypatch.setattr(Fit, "choose", counted)
    recipe = replace(FAST, tries=((1e-3, 0.9), (3e-3, 0.9)), epochs=1)
    found = finetune("finetune:10", vit(), train, test, device=CPU, recipe=recipe)
    assert asked == [2, 1, 1], "the first draw chooses for all"
    assert found.predicted.shape == (3, 30) and found.n_train == 30
    drawn = [protocol.draw_labelled(train.labels, protocol.amount("10"), seed=0, draw=i) for i in range(3)]
    allowed = [set(rows.tolist()) for rows in drawn]
    assert seen and all(any(batch <= rows for rows in allowed) for batch in seen)
    assert set().union(*seen) <= set().union(*allowed)


def test_held_out_images_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    get = CanvasSet.get

    def spy(self: CanvasSet, indices: np.ndarray) -> object:
        seen.append(sorted(indices.tolist()))
        return get(self, indices)

    monkeypatch.setattr(CanvasSet, "get", spy)
    train = some(60)
    fitted, held_out = (sorted(rows.tolist()) for rows in hold_out(train.labels, 0))
    recipe = replace(FAST, batch=1000, epochs=2)  # every batch is all that is trained on
    Fit(vit(), torch.tensor([0, 2, 4]), recipe, CPU, 0, False, "").choose(train, ((1e-3, 0.9), (3e-3, 0.9)))
    assert seen == [fitted, fitted, held_out] * 2


def test_one_label_of_a_class_cannot_choose() -> None:
    recipe = replace(FAST, tries=((1e-3, 0.9), (3e-3, 0.9)), epochs=2)
    found = finetune("finetune:1", vit(), some(30), some(12, seed=1), device=CPU, recipe=recipe)
    assert "settings were not chosen" in found.caution and found.settings["lr"] == 1e-3 and found.n_train == 3


def test_test_labels_are_never_read() -> None:
    test = some(30, seed=1)
    wrong = replace(test, labels=test.labels.roll(1))
    recipe = replace(FAST, tries=((1e-3, 0.9), (3e-3, 0.9)), epochs=2)
    one, other = (finetune("finetune", vit(), some(60), t, device=CPU, recipe=recipe) for t in (test, wrong))
    assert one.settings == other.settings and torch.equal(one.predicted, other.predicted)


def test_maes_settings() -> None:
    """FINETUNE.md: batch 1024; B: blr 5e-4, decay .65, 100 epochs; L: blr 1e-3, decay .75, 50 epochs, drop path .2."""
    assert MAE_BASE.tries == ((5e-4 * 1024 / 256, 0.65),) and (MAE_BASE.epochs, MAE_BASE.batch) == (100, 1024)
    assert MAE_LARGE.tries == ((1e-3 * 1024 / 256, 0.75),) and (MAE_LARGE.epochs, MAE_LARGE.batch) == (
        50,
        1024,
    )
    assert (MAE_BASE.warmup * 100, MAE_LARGE.warmup * 50) == pytest.approx((5, 5))
    for recipe, drop_path in ((MAE_BASE, 0.1), (MAE_LARGE, 0.2)):
        assert (recipe.drop_path, recipe.weight_decay) == (drop_path, 0.05)
        assert recipe.mixing == Mixing(mixup=0.8, cutmix=1.0, probability=1.0, smoothing=0.1)
        assert recipe.view == View(
            scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, jitter=0.0, gray=0.0, blur=0.0
        )
        assert recipe.view.interpolation == "bicubic"
        assert recipe.augment == RandAugment(magnitude=9, spread=0.5, count=2, probability=0.5)
        assert recipe.erasing == Erasing(probability=0.25, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3))
    assert MAE_BASE.steps(1_281_167) == 125_114
    assert SMALL.steps(100) == 200 and SMALL.steps(12_800) == 2000


def test_maes_form() -> None:
    """The last norm goes, a new one follows the mean; what was a fixed table of positions is trained."""
    torch.manual_seed(0)
    encoder = ViT(image=SIZE, patch=8, width=24, depth=3, heads=2, position="sincos").build().eval()
    assert encoder.position is not None and isinstance(encoder.norm, torch.nn.LayerNorm)
    torch.nn.init.normal_(encoder.norm.weight)
    x = torch.randn(4, 3, SIZE, SIZE)
    raw = encoder(x, layers=(3,), layer_kind="raw").layers[0].patches
    copy = trainable(encoder, replace(MAE_BASE, drop_path=0.0))
    network = Classifier(copy, 5, MAE_BASE.norm)
    torch.nn.init.normal_(network.head.weight)
    expected = F.layer_norm(raw.mean(1), (24,), eps=1e-6) @ network.head.weight.T
    torch.testing.assert_close(network(x), expected)
    names = {name for name, _ in network.named_parameters()}
    assert {"encoder.position", "norm.weight", "norm.bias"} <= names and "encoder.norm.weight" not in names
    assert (layer_of("norm.weight", 3), layer_of("encoder.position", 3)) == (4, 0)
    assert isinstance(trainable(encoder, SMALL).state_dict().get("norm.weight"), torch.Tensor)
    assert "position" not in dict(trainable(encoder, SMALL).named_parameters())
    Classifier(trainable(resnet(), MAE_BASE), 5, MAE_BASE.norm)(x)


def test_views_are_augmented_then_normalised_then_erased() -> None:
    train, encoder = some(40), vit()
    recipe = replace(MAE_BASE, view=PLAIN)
    canvases = train.canvases.get(train.index.numpy())
    rng = [torch.Generator().manual_seed(1) for _ in range(2)]
    fit = Fit(encoder, torch.tensor([0, 2, 4]), recipe, CPU, 0, False, "")
    found = fit._views(canvases, 0, At(0, 1, 1, rng[0]))
    there = At(0, 1, 1, rng[1])
    expects = encoder.preprocessing
    assert recipe.augment and recipe.erasing
    draw(OneView(replace(PLAIN, size=SIZE)), canvases, there)  # draws as many numbers
    mean, std = (torch.tensor(x)[:, None, None] for x in (expects.mean, expects.std))
    x = rand_augment(canvases.pixels, recipe.augment, (124, 116, 104), there)
    expected = erase((x / 255 - mean) / std, recipe.erasing, there)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    plain = Fit(encoder, torch.tensor([0, 2, 4]), FAST, CPU, 0, False, "")._views(
        canvases, 0, At(0, 1, 1, rng[0])
    )
    torch.testing.assert_close(plain, (canvases.pixels / 255 - mean) / std, atol=1e-4, rtol=1e-4)


def test_unknown_protocols_and_amounts() -> None:
    for name, message in (
        ("finetune:ten", "is no amount of labels"),
        ("fine", "no protocol 'fine'"),
        ("linear:10%", "no protocol 'linear:10%'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_protocols((name,))
    check_protocols(("finetune", "finetune:10%", "finetune-mae:5", "fewlabels", "knn-loo"))
    with pytest.raises(ValueError, match="at least 2 classes"):
        finetune("finetune", vit(), some(10, k=1), some(4), device=CPU)


# in an evaluation


def test_in_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "finetune", replace(FAST, epochs=2))
    asked = ("knn-loo", "fewlabels", "attentive", "finetune", "finetune:10%")
    evaluation = evaluate(vit(), images(60), images(30, seed=1), protocols=asked)
    found = {(r.protocol, r.encoder): r for r in evaluation.results}
    for name in ("finetune", "finetune:10%"):
        assert (name, "pixels") not in found
        for who in ("trained", "untrained"):
            result = found[name, who]
            assert (result.layer, result.pooling, result.n_test) == (3, "mean", 30)
            assert result.n_train == (60 if name == "finetune" else 6)
            assert 0 <= result.ci_low <= result.value <= result.ci_high <= 100
    assert "sd_over_draws" in found["finetune:10%", "trained"].settings
    assert found["knn-loo", "pixels"].n_test == 60 and found["knn-loo", "pixels"].n_train == 59
    few = [r for r in evaluation.results if r.protocol == "fewlabels" and r.encoder == "pixels"]
    assert [r.settings["n"] for r in few] == [1, 5, 10] and few[-1].value > 70
    console = Console(file=io.StringIO(), width=100)
    console.print(render(evaluation))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for result in evaluation.results:
        assert f"{result.value:.1f} ({result.ci_low:.1f}-{result.ci_high:.1f})" in shown
    assert "fewlabels, n=5" in shown and "finetune:10%" in shown


def test_clips_are_fine_tuned_too() -> None:
    source = open_source("playground-video:n=24,size=16,frames=2")
    assert source.labels is not None
    encoder = FrameAverage(vit())
    clips = CanvasSet(source, SIZE)
    kept = extract(encoder, clips, np.arange(24))
    labelled = Images.of(clips, kept)
    found = finetune("finetune", encoder, labelled, labelled, device=CPU, recipe=FAST)
    assert found.predicted.shape == (24,)


def test_motions_are_not_mirrored() -> None:
    """A clip that moves left stays one that moves left."""
    recipe, _ = parse("finetune-motion")
    assert recipe.view.flip == 0 and recipe.mixing.probability == 0
    assert RECIPES["finetune"].view.flip > 0
