"""The dense protocols that learn or remember: metrics, losses and searches against independent implementations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visrep.data.canvas import CanvasSet
from visrep.data.dense import IGNORE, Answers, DenseSource, Kind
from visrep.encoders import ResNet, ViT
from visrep.encoders.pretrained.extras import tolerate_torchvision
from visrep.evaluation.dense import depth as linear_depth
from visrep.evaluation.dense import heads
from visrep.evaluation.dense.depth import ABS_REL, DELTA_1, RMSE, depth_of, errors_of, scale_invariant_loss
from visrep.evaluation.dense.exam import DenseSide, Exam, Key
from visrep.evaluation.dense.heads import LinearHeads, Schedule, at_pixels, enlarged, hold_out, train_heads
from visrep.evaluation.dense.hummingbird import hummingbird, look_up, rareness, remember, shares_of
from visrep.evaluation.dense.miou import Counts
from visrep.evaluation.dense.patches import Patches, extract_patches, grid_tokens, input_size, pixel_patches
from visrep.evaluation.dense.segmentation import SCHEDULE, cross_entropy, segmentation
from visrep.evaluation.examples import Example
from visrep.evaluation.results import Inapplicable
from visrep.method import Encoder, Preprocessing, Tokens

CPU = torch.device("cpu")
SIZE, GRID, K = 16, 4, 3


class Tiles(DenseSource):
    """Grey images of tiles of 4 pixels, each of one of three classes, which its brightness tells."""

    name = "tiles"
    names = ("dark", "grey", "light")
    knows: frozenset[Kind] = frozenset({"classes", "depth"})
    labels = classes = None

    def __init__(self, n: int, seed: int = 0) -> None:
        self.tiles = np.random.default_rng(seed).integers(0, K, (n, GRID, GRID))

    def __len__(self) -> int:
        return len(self.tiles)

    def read(self, index: int) -> np.ndarray:
        level = (40 + 80 * self.tiles[index]).astype(np.uint8)
        return np.repeat(np.repeat(level, 4, 0), 4, 1)

    def key(self, index: int) -> str:
        return str(index)

    def answers(self, index: int, shape: tuple[int, int] | None = None) -> Answers:
        classes = np.repeat(np.repeat(self.tiles[index], 4, 0), 4, 1)
        classes[:2, :2] = IGNORE
        found = Answers(classes, depth=(0.2 + 0.3 * np.minimum(classes, 2)).astype(np.float32))
        return found if shape is None else found.resized(shape)


def side(n: int, seed: int = 0, noise: float = 0.3) -> DenseSide:
    """Tokens that tell the tiles' classes with some noise, in 5 dimensions of different sizes."""
    source = Tiles(n, seed)
    rng = torch.Generator().manual_seed(seed)
    directions = torch.randn(K, 5, generator=torch.Generator().manual_seed(9))
    tokens = directions[torch.from_numpy(source.tiles)]
    tokens = (tokens + noise * torch.randn(tokens.shape, generator=rng)) * torch.tensor([1.0, 5, 0.2, 2, 1])
    patches = Patches(tokens.half(), torch.arange(n))
    return DenseSide(Key(source, SIZE), CanvasSet(source, SIZE, workers=0), patches)


def exam(train: DenseSide, test: DenseSide) -> Exam:
    return Exam(train, test, None, 1, SIZE, CPU, seed=0)


def masks(n: int, seed: int, k: int = 6) -> Tensor:
    return torch.randint(k, (n, 9, 7), generator=torch.Generator().manual_seed(seed))


def test_miou_is_torchmetrics() -> None:
    tolerate_torchvision()
    from torchmetrics.classification import MulticlassJaccardIndex

    predicted, true = masks(8, 1), masks(8, 2)
    true[predicted == 4] = 1  # class 4 is predicted and never true
    predicted[predicted == 5] = 0
    true[true == 5] = 2  # class 5 is nowhere
    true[:, :2] = IGNORE
    counts = Counts.of(predicted, true, 6)
    each = MulticlassJaccardIndex(6, ignore_index=IGNORE, average="none")(predicted, true)
    torch.testing.assert_close(each, counts.iou().nan_to_num().float(), atol=1e-6, rtol=0)
    mean = MulticlassJaccardIndex(6, ignore_index=IGNORE, average="macro")(predicted, true)
    torch.testing.assert_close(mean, counts.iou().nanmean().float(), atol=1e-6, rtol=0)
    assert counts.iou().isnan().tolist() == [False] * 5 + [True]
    joined = Counts.joined([Counts.of(predicted[:3], true[:3], 6), Counts.of(predicted[3:], true[3:], 6)])
    assert all(torch.equal(x, y) for x, y in zip(vars(joined).values(), vars(counts).values(), strict=True))


def test_miou_is_of_the_set_and_not_the_mean_over_images() -> None:
    true = torch.tensor([[[0, 0, 0, 1]], [[1, 1, 1, 1]]])
    predicted = torch.tensor([[[0, 0, 0, 0]], [[1, 1, 1, 1]]])
    assert Counts.of(predicted, true, 2).iou().tolist() == [3 / 4, 4 / 5]


def test_protocols_that_fit_resample_videos() -> None:
    """Six frames of each video are alike, so that one frame of each has the same interval as all of them."""
    train, few = side(20), side(12, seed=5)
    many = few.at(torch.arange(12).repeat_interleave(6))
    for run, metric in ((segmentation, "mIoU"), (hummingbird, "mIoU"), (linear_depth.depth, RMSE)):
        (one,) = [m for m in run(exam(train, few)) if m.metric == metric]
        (all_,) = [m for m in run(exam(train, many)) if m.metric == metric]
        assert (all_.low, all_.high) == pytest.approx((one.low, one.high), abs=1e-6)
        assert all_.high - all_.low > 0.005


def test_each_of_few_videos_is_judged_by_the_others() -> None:
    """One matrix of all folds; the judged video is in no memory, which an exact copy of it would show."""
    videos = side(12, noise=2)
    videos.source.groups = np.repeat([3, 5, 8], [2, 4, 6])
    (found,) = hummingbird(replace(exam(videos, videos), crossed=True))
    parts = []
    for rows in torch.arange(12).split([2, 4, 6]):
        others = videos.at(torch.from_numpy(np.setdiff1d(np.arange(12), rows)))
        keys, values = remember(others, seed=0, device=CPU)
        votes = look_up(videos.at(rows).tokens.float().flatten(0, 2), keys, values)
        maps = enlarged(votes.unflatten(0, (len(rows), GRID, GRID)).permute(0, 3, 1, 2), SIZE)
        parts.append(Counts.of(maps.argmax(1), videos.at(rows).classes, K))
    assert found.value == pytest.approx(float(Counts.joined(parts).iou().mean()), abs=1e-9)
    assert (found.low, found.high) == Counts.joined(parts).interval(np.repeat([0, 1, 2], [2, 4, 6]))
    assert (found.n_train, found.n_test, found.settings["folds"]) == (6, 12, 3)
    assert found.value < hummingbird(exam(videos, videos))[0].value


def test_the_measure_names_classes() -> None:
    counts = Counts.of(masks(4, 5, 3), masks(4, 6, 3), 3)
    found = counts.measure("segmentation", {"lr": 0.1}, ("a", "b", "c"), groups=np.arange(4), n_train=9)
    assert found.low <= found.value <= found.high and (found.n_train, found.n_test) == (9, 4)
    assert list(found.details) == ["IoU of a", "IoU of b", "IoU of c"]
    assert np.mean(list(found.details.values())) == pytest.approx(100 * found.value, abs=0.01)
    assert found.settings["classes"] == 3


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_pixels_drawn_are_those_of_the_enlarged_map(grid: tuple[int, int]) -> None:
    maps = torch.randn(2, 6, *grid, generator=torch.Generator().manual_seed(0))
    place = torch.arange(11 * 11).expand(2, -1)
    whole = enlarged(maps, 11).flatten(2).transpose(1, 2)
    torch.testing.assert_close(at_pixels(maps, place, 11), whole, atol=1e-5, rtol=0)


def test_the_schedule_is_the_published_one() -> None:
    assert SCHEDULE.steps(20_210) == pytest.approx(40_000, rel=0.02)
    assert linear_depth.SCHEDULE.steps(24_231) == pytest.approx(38_400, rel=0.02)
    assert SCHEDULE.steps(100) == heads.LEAST_STEPS
    share = [Schedule(passes=1, warmup=0.25, weight_decay=0).share(step, 8) for step in range(8)]
    falls = [(1 + math.cos(math.pi * t / 6)) / 2 for t in range(6)]
    assert share == pytest.approx([0.5, 1.0, *falls])


def test_heads_trained_at_once_are_those_trained_alone() -> None:
    train = side(20)
    schedule = Schedule(passes=1, warmup=0.1, weight_decay=0.1)

    def trained(*rates: float) -> LinearHeads:
        made = LinearHeads(5, K, len(rates), seed=3)
        train_heads(made, train, train.classes, cross_entropy, schedule, rates, steps=12, device=CPU, seed=1)
        return made

    both, one, other = trained(1e-2, 1e-1), trained(1e-2), trained(1e-1)
    for mine, alone in zip(both.parts(), (*one.parts(), *other.parts()), strict=True):
        for x, y in zip(mine, alone, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one.weights[0], other.weights[0], atol=1e-2)
    assert not both.training


def test_training_is_batchnorm_and_a_convolution_by_adamw() -> None:
    """One step on all pixels, written out: the pixels that are drawn weigh as often as they are drawn."""
    train = side(8)
    made = LinearHeads(5, K, 1, seed=3)
    layer = nn.Conv2d(5, K, 1)
    layer.weight.data, layer.bias = (
        made.weights[0].data[:, :, None, None].clone(),
        nn.Parameter(torch.zeros(K)),
    )
    optimiser = torch.optim.AdamW(layer.parameters(), 1e-2, (0.9, 0.999), weight_decay=0.1)
    schedule = Schedule(passes=1, warmup=0.0, weight_decay=0.1)
    train_heads(made, train, train.classes, cross_entropy, schedule, (1e-2,), steps=1, device=CPU, seed=1)

    rng = torch.Generator().manual_seed(1)
    rows = torch.randperm(8, generator=rng)
    place = torch.randint(SIZE * SIZE, (8, heads.PIXELS), generator=rng)
    tokens = train.tokens[rows].float().permute(0, 3, 1, 2)
    mean, var = tokens.mean((0, 2, 3), keepdim=True), tokens.var((0, 2, 3), keepdim=True, unbiased=False)
    logits = F.interpolate(layer((tokens - mean) / (var + 1e-5).sqrt()), (SIZE, SIZE), mode="bilinear")
    classes = train.classes[rows].long()
    each = F.cross_entropy(logits, classes, ignore_index=IGNORE, reduction="none").flatten(1).gather(1, place)
    asked = (classes.flatten(1).gather(1, place) != IGNORE).sum()
    (each.sum() / asked).backward()
    optimiser.step()
    torch.testing.assert_close(made.weights[0], layer.weight[:, :, 0, 0], atol=1e-5, rtol=0)
    assert made.norm.running_mean is not None
    torch.testing.assert_close(made.norm.running_mean, 0.1 * mean.flatten(), atol=1e-5, rtol=1e-4)


def test_depth_is_trained_by_the_published_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    """All 12 steps of 7 images written out, AdamW too: betas 0.9 and 0.99, weight decay 1e-4, a third to warm up."""
    monkeypatch.setattr(heads, "LEAST_STEPS", 12)
    train, rate, furthest = side(7), 1e-2, 0.8
    made = linear_depth.fit(exam(train, train), train, (rate,), furthest)

    start = LinearHeads(5, 256, 1, seed=0)
    parts = [start.weights[0].detach().clone(), torch.zeros(256)]
    first, second = ([torch.zeros_like(x) for x in parts] for _ in range(2))
    rng = torch.Generator().manual_seed(0)
    for step in range(12):
        rows = torch.randperm(7, generator=rng)
        place = torch.randint(SIZE * SIZE, (7, heads.PIXELS), generator=rng)
        tokens = train.tokens[rows].float()
        mean, var = tokens.mean((0, 1, 2)), tokens.var((0, 1, 2), unbiased=False)
        parts = [x.requires_grad_() for x in parts]
        outputs = (tokens - mean) / (var + 1e-5).sqrt() @ parts[0].T + parts[1]
        shares = outputs.clamp(min=0) + 0.1
        found = (shares * torch.linspace(1e-3, furthest, 256)).sum(-1) / shares.sum(-1)
        found = F.interpolate(found[:, None], (SIZE, SIZE), mode="bilinear").flatten(1).gather(1, place)
        g = (found + 1e-3).log() - (train.depth[rows].flatten(1).gather(1, place) + 1e-3).log()
        slopes = torch.autograd.grad((0.15 * g.mean() ** 2).sqrt(), parts)
        assert sum(float(x.square().sum()) for x in slopes) < 35**2
        share = (step + 1) / 4 if step < 4 else (1 + math.cos(math.pi * (step - 4) / 8)) / 2
        lr = rate * share
        with torch.no_grad():
            for number, slope in enumerate(slopes):
                first[number] = 0.9 * first[number] + 0.1 * slope
                second[number] = 0.99 * second[number] + 0.01 * slope**2
                m, v = first[number] / (1 - 0.9 ** (step + 1)), second[number] / (1 - 0.99 ** (step + 1))
                parts[number] = parts[number] * (1 - lr * 1e-4) - lr * m / (v.sqrt() + 1e-8)
    torch.testing.assert_close(made.weights[0], parts[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(made.biases[0], parts[1], atol=2e-4, rtol=0)
    assert float((parts[0] - start.weights[0]).detach().abs().max()) > 0.02


def test_what_is_held_out_is_apart() -> None:
    whole = side(20)
    fitted, held = hold_out(whole, 0)
    assert len(held) == 4 and sorted([*fitted.index.tolist(), *held.index.tolist()]) == list(range(20))
    whole.source.groups = np.repeat(np.arange(5), 4)
    fitted, held = hold_out(whole, 0)
    assert len(held) == 4 and not set(fitted.groups) & set(held.groups)
    whole.source.groups = np.zeros(20, dtype=np.int64)
    assert [len(part) for part in hold_out(whole, 0)] == [20, 20]


def test_linear_segmentation_finds_what_tokens_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LEAST_STEPS", 150)
    train = side(24, noise=0.05)
    (found,) = segmentation(exam(train, side(8, seed=1, noise=0.05)))
    (blind,) = segmentation(exam(train, side(8, seed=1, noise=50.0)))
    # a map of 4 x 4, enlarged bilinearly, cannot draw the edges of 16 x 16, but gets most pixels right
    assert found.value > 0.7 and blind.value < 0.4
    assert found.settings["lr"] in heads.RATES and found.metric == "mIoU" and found.n_train == 24
    assert same_colours(found.examples) > 0.7 > 0.5 > same_colours(blind.examples)


def same_colours(examples: list[Example]) -> float:
    """Share of pixels in which the answer that was found looks like the true one."""
    assert len(examples) == 4
    return float(np.mean([(each.found == each.known["true classes"]).all(-1) for each in examples]))


def test_one_class_is_nothing_to_tell_apart() -> None:
    train = side(6)
    train.source.tiles[:] = 1  # pyright: ignore[reportAttributeAccessIssue] - a source of this file
    for protocol in (segmentation, hummingbird):
        with pytest.raises(Inapplicable, match="only 'grey' is marked"):
            protocol(exam(train, train))


def naive_look_up(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, k: int) -> np.ndarray:
    """Every cosine by itself."""
    found = []
    for query in queries:
        cosine = [query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in keys]
        best = sorted(range(len(keys)), key=lambda i: -cosine[i])[:k]
        weights = [math.exp(cosine[i] / 0.02) for i in best]
        found.append(sum(w * values[i] for w, i in zip(weights, best, strict=True)) / sum(weights))
    return np.array(found)


def test_hummingbird_is_a_loop_over_all_patches() -> None:
    """The whole protocol in numpy: memory, search, weights, enlarging, mIoU."""
    train, test = side(6, noise=0.8), side(3, seed=5, noise=0.8)
    keys, values = [], []
    for tokens, classes in zip(train.tokens.float().numpy(), train.classes.numpy(), strict=True):
        for y in range(GRID):
            for x in range(GRID):
                cell = classes[4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                marked = cell[cell != IGNORE]
                keys.append(tokens[y, x])
                values.append([(marked == k).mean() for k in range(K)])
    queries = test.tokens.float().numpy().reshape(-1, 5)
    found = naive_look_up(queries, np.array(keys), np.array(values), 30).reshape(3, GRID, GRID, K)
    scores = F.interpolate(torch.from_numpy(found).permute(0, 3, 1, 2), (SIZE, SIZE), mode="bilinear")
    predicted, true = scores.argmax(1).numpy(), test.classes.numpy()
    iou = []
    for k in range(K):
        here, there = (predicted == k) & (true != IGNORE), true == k
        iou.append((here & there).sum() / (here | there).sum())
    (mine,) = hummingbird(exam(train, test))
    assert mine.value == pytest.approx(np.mean(iou), abs=1e-6)
    assert mine.settings["memory"] == 6 * GRID * GRID and mine.settings["neighbours"] == 30


def test_look_up_is_the_loop_in_numpy() -> None:
    rng = np.random.default_rng(0)
    queries, keys, values = rng.normal(size=(7, 5)), rng.normal(size=(50, 5)), rng.random((50, K))
    mine = look_up(
        torch.from_numpy(queries), F.normalize(torch.from_numpy(keys), dim=-1), torch.from_numpy(values)
    )
    np.testing.assert_allclose(mine.numpy(), naive_look_up(queries, keys, values, 30), atol=1e-9)
    few = look_up(
        torch.from_numpy(queries), F.normalize(torch.from_numpy(keys[:4]), dim=-1), torch.eye(4).double()
    )
    torch.testing.assert_close(few.sum(-1), torch.ones(7).double())


def test_shares_count_marked_pixels_only() -> None:
    classes = torch.tensor(
        [[[0, 0, 1, 1], [0, 2, 1, 255], [255, 255, 2, 0], [255, 255, 2, 0]]], dtype=torch.uint8
    )
    expected = [[3 / 4, 0, 1 / 4], [0, 1, 0], [0, 0, 0], [1 / 2, 0, 1 / 2]]
    torch.testing.assert_close(shares_of(classes, (2, 2), 3)[0], torch.tensor(expected))


def test_a_small_memory_prefers_what_is_rare_in_its_image() -> None:
    train = side(10)
    tiles = train.source.tiles  # pyright: ignore[reportAttributeAccessIssue] - a source of this file
    tiles[:] = 0
    tiles[:, 3, 3] = 2
    keys, values = remember(train, seed=0, device=CPU, limit=40)
    assert keys.shape == (40, 5) and torch.allclose(keys.norm(dim=-1), torch.ones(40))
    assert int((values[:, 2] == 1).sum()) == 10  # the one light tile of each image, though it is 1 of 16
    score = rareness(values.view(10, 4, K))
    assert score[values.view(10, 4, K)[..., 2] == 1].max() < score[values.view(10, 4, K)[..., 0] == 1].min()


def test_the_loss_of_depth_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    found, true = rng.uniform(0.1, 1, (4, 50)), rng.uniform(0.1, 1, (4, 50))
    g = np.log(found + 1e-3) - np.log(true + 1e-3)
    loss = scale_invariant_loss(torch.from_numpy(found), torch.from_numpy(true))
    assert float(loss) == pytest.approx(math.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2), abs=1e-9)
    early = scale_invariant_loss(torch.from_numpy(found), torch.from_numpy(true), 99)
    assert float(early) == pytest.approx(math.sqrt(0.15) * abs(g.mean()), abs=1e-9)
    exact = torch.full((2, 3), 0.5, requires_grad=True)
    scale_invariant_loss(exact, torch.full((2, 3), 0.5)).backward()
    assert exact.grad is not None and exact.grad.isfinite().all()


def test_depth_is_the_mean_of_bins() -> None:
    outputs = torch.tensor([[-3.0, 0.4, 0.0], [0.0, 0.0, 0.0]])
    bins, weights = np.array([0.001, 1.0005, 2.0]), np.array([0.1, 0.5, 0.1])
    assert depth_of(outputs, 2.0).tolist() == pytest.approx([weights @ bins / 0.7, bins.mean()], abs=1e-6)


def test_depth_errors_by_hand() -> None:
    found = torch.tensor([[[0.5, 0.5]], [[1.0, 0.2]]])
    true = torch.tensor([[[0.5, 1.0]], [[0.8, 0.2]]])
    errors = errors_of(found, true)
    assert errors[RMSE].tolist() == pytest.approx([math.sqrt(0.125), math.sqrt(0.02)])
    assert errors[ABS_REL].tolist() == pytest.approx([0.25, 0.125])
    assert errors[DELTA_1].tolist() == [0.5, 0.5]  # a factor of exactly 1.25 is too much


def test_linear_depth_finds_what_tokens_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "LEAST_STEPS", 200)
    monkeypatch.setattr(linear_depth, "SCALE_ONLY", 10)
    train = side(24, noise=0.05)
    rmse, relative, close = linear_depth.depth(exam(train, side(8, seed=1, noise=0.05)))
    blind = linear_depth.depth(exam(train, side(8, seed=1, noise=50.0)))
    assert [m.metric for m in (rmse, relative, close)] == [RMSE, ABS_REL, DELTA_1]
    # a map of 4 x 4, enlarged bilinearly, cannot draw the edges of 16 x 16
    assert rmse.value < 0.26 and blind[0].value > 0.3 and rmse.low <= rmse.value <= rmse.high
    assert relative.value < 0.4 < blind[1].value and close.value > blind[2].value
    for each, blindly in zip(rmse.examples, blind[0].examples, strict=True):
        true, found, guessed = (
            x.mean(-1).ravel() for x in (each.known["true depth"], each.found, blindly.found)
        )
        assert np.corrcoef(true, found)[0, 1] > max(0.6, np.corrcoef(true, guessed)[0, 1])
    assert len(rmse.examples) == 4 and not relative.examples


def vit(registers: int = 0) -> Encoder:
    torch.manual_seed(0)
    encoder = ViT(image=16, patch=4, width=24, depth=2, heads=2, registers=registers).build().eval()
    encoder.preprocessing = Preprocessing(16, ratio=1.0)
    return encoder


@pytest.mark.parametrize("registers", [0, 2])
def test_a_token_stands_at_its_patch(registers: int) -> None:
    encoder = vit(registers=registers)
    plain = torch.zeros(1, 3, 16, 24)
    marked = plain.clone()
    marked[:, :, 4:8, 16:20] = 3.0  # row 1, column 4 of 4 x 6 patches
    for layer in (1, 2):
        moved = (grid_tokens(encoder, marked, layer) - grid_tokens(encoder, plain, layer)).norm(dim=-1)[0]
        assert moved.shape == (4, 6) and divmod(int(moved.argmax()), 6) == (1, 4)


def test_patches_are_the_encoders_whole_image() -> None:
    source, encoder = Tiles(5), vit()
    canvases = CanvasSet(source, SIZE, workers=0)
    found = extract_patches(encoder, canvases, layer=1, size=SIZE)
    grey = torch.from_numpy(np.stack([source.read(i) for i in range(5)])).float() / 255
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in (encoder.preprocessing.mean, encoder.preprocessing.std)
    )
    with torch.no_grad():
        out = encoder((grey[:, None].expand(-1, 3, -1, -1) - mean) / std, layers=(1,)).layers[0]
    torch.testing.assert_close(found.tokens.flatten(1, 2).float(), out.patches, atol=0.02, rtol=0)
    assert found.index.tolist() == list(range(5))


def test_a_wide_image_is_seen_whole() -> None:
    class Wide(Tiles):
        def read(self, index: int) -> np.ndarray:
            image = np.zeros((8, 32), np.uint8)
            image[:, 28:] = 255  # outside the central square
            return image

    found = pixel_patches(CanvasSet(Wide(1), SIZE, workers=0), (4, 4)).tokens[0]
    assert (found[:, 3, :48] > found[:, 0, :48].max() + 1).float().mean() > 0.4


def test_a_convolutional_network_gives_its_map() -> None:
    torch.manual_seed(0)
    encoder = ResNet(depth=18, width=8, stem="small").build().eval()
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert grid_tokens(encoder, pixels, 4).shape == (2, 4, 6, 64)
        assert grid_tokens(encoder, pixels, 2).shape == (2, 16, 24, 16)


def test_pixels_say_colours_and_place() -> None:
    found = pixel_patches(CanvasSet(Tiles(3), SIZE, workers=0), (GRID, GRID))
    assert found.tokens.shape == (3, GRID, GRID, 3 * 16 + 2)
    place = found.tokens[0, ..., -2:].float()
    torch.testing.assert_close(place[0, 0], torch.tensor([-1.0, -1.0]))
    torch.testing.assert_close(place[3, 1], torch.tensor([1.0, -1 / 3]), atol=1e-3, rtol=0)
    brightness = found.tokens[..., :48].float().mean(-1)  # a tile is a patch
    tiles = torch.from_numpy(Tiles(3).tiles)
    assert brightness[tiles == 0].max() < brightness[tiles == 1].min()
    assert brightness[tiles == 1].max() < brightness[tiles == 2].min()


class OfOneSize(Encoder):
    """An encoder that takes 16 x 16 pixels only."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.depth, self.stride, self.config = 3, 1, 4, None
        self.preprocessing = Preprocessing(16, ratio=1.0)

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        if images.shape[-1] != 16:
            raise ValueError("it was made for 16 x 16.")
        return Tokens(F.avg_pool2d(images, 4).flatten(2).transpose(1, 2), (4, 4))


def test_the_size_is_twice_the_encoders_where_it_takes_that() -> None:
    assert input_size(vit(), 0) == 32 and input_size(vit(), 24) == 24
    assert input_size(OfOneSize(), 0) == 16
    with pytest.raises(ValueError, match=r"does not take images of size 30: .* multiple of its patches"):
        input_size(vit(), 30)
    with pytest.raises(ValueError, match="does not take images of size 32: it was made for 16 x 16"):
        input_size(OfOneSize(), 32)
