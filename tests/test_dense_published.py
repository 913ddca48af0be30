"""Dense protocols as published: against the published code, torch's modules, torchvision, and loops of our own."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _stubs import Stub, patch_colours
from _torchvision import functional
from visrep.data.canvas import CanvasSet
from visrep.data.dense import IGNORE, Answers, DenseSource, Kind
from visrep.evaluation.dense import depth_dinov3, frozen, propagation_dino, segmentation_dinov3
from visrep.evaluation.dense.boxes import Box, around
from visrep.evaluation.dense.depth import RMSE, depth_of
from visrep.evaluation.dense.depth_views import coloured, random_view, turned
from visrep.evaluation.dense.discovery import in_image, native
from visrep.evaluation.dense.exam import DenseSide, Exam, Key
from visrep.evaluation.dense.frozen import Dropout, linear_head, train_head, views
from visrep.evaluation.dense.keys import standardised
from visrep.evaluation.dense.lost import lost
from visrep.evaluation.dense.native import check_any_shape, check_patches, padded, resized, resized_answers
from visrep.evaluation.dense.patches import extract_patches
from visrep.evaluation.dense.protocols import AS_PUBLISHED, DENSE
from visrep.evaluation.dense.segmentation_views import distorted, random_crop, saturated, with_short_side
from visrep.evaluation.dense.segmentation_views import random_view as segmentation_view
from visrep.evaluation.dense.segmentation_views import turned as hue_turned
from visrep.evaluation.results import Inapplicable
from visrep.method import Encoder, Preprocessing, Tokens

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parent / "golden" / "dense_dinov3.npz"
"""see golden/README_dense_dinov3.md"""
PLAIN = Preprocessing(size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


class Halves(DenseSource):
    """Images of 22 x 34 pixels, frames of one video: red, and blue from a column on, which moves; blue is nearer."""

    name = "halves"
    names = ("red", "blue")
    knows: frozenset[Kind] = frozenset({"classes", "instances", "depth", "video"})
    labels = classes = None
    shape = (22, 34)

    def __init__(self, n: int = 4) -> None:
        self.n, self.groups = n, np.zeros(n, dtype=np.int64)

    def __len__(self) -> int:
        return self.n

    def read(self, index: int) -> np.ndarray:
        colours = np.array([[200, 30, 10], [10, 40, 210]], dtype=np.uint8)
        return colours[self._blue(index)]

    def key(self, index: int) -> str:
        return f"frames/video/{index}"

    def answers(self, index: int, shape: tuple[int, int] | None = None) -> Answers:
        blue = self._blue(index)
        found = Answers(blue, blue, (1.0 - 0.5 * blue).astype(np.float32))
        return found if shape is None else found.resized(shape)

    def _blue(self, index: int) -> np.ndarray:
        blue = np.zeros(self.shape, dtype=np.int64)
        blue[:, 16 + 2 * index :] = 1
        return blue


def exam(network: Encoder, source: DenseSource, asked: int = 0) -> Exam:
    canvases = CanvasSet(source, 16, workers=0)
    patches = extract_patches(network.eval(), canvases, layer=network.depth, size=16)
    side = DenseSide(Key(source, 16), canvases, patches)
    return Exam(side, side, network, network.depth, 16, CPU, seed=0, asked=asked)


def colours(stride: int = 2) -> Encoder:
    return Stub(16, patch_colours(stride), width=3, stride=stride)


def test_the_pace_is_the_published_one(golden: dict[str, Any]) -> None:
    for name, pace, training in (
        ("segmentation", segmentation_dinov3.pace, segmentation_dinov3.TRAINING),
        ("depth", depth_dinov3.pace, depth_dinov3.TRAINING),
    ):
        wanted = golden[f"{name}.pace"]
        found = [pace(int(step), training.iterations) for step in golden["steps"]]
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-15, err_msg=name)


def test_steps_shrink_with_small_sets_only() -> None:
    one, other = segmentation_dinov3.TRAINING, depth_dinov3.TRAINING
    assert [one.steps(n) for n in (80, 2_000, 20_210, 10**6)] == [2_000, 3_959, 40_000, 40_000]
    assert [other.steps(n) for n in (80, 24_231)] == [2_000, 38_400]


def test_the_window_slides_as_published(golden: dict[str, Any]) -> None:
    for number in range(2):
        image = torch.from_numpy(golden[f"slide.image.{number}"])[0]
        shape = (image.shape[1], image.shape[2])
        windows = segmentation_dinov3.windows_of(shape, 16)
        crops = torch.stack([image[:, y : y + 16, x : x + 16] for y, x in windows])
        maps = F.avg_pool2d(crops, 4) * torch.tensor([1.0, -2.0, 0.5])[:, None, None]
        scores = segmentation_dinov3.joined(maps, windows, 16, shape)
        torch.testing.assert_close(scores[None], torch.from_numpy(golden[f"slide.scores.{number}"]))
        found = segmentation_dinov3.most_likely(scores, (2 * shape[0] + 3, shape[1] + 7))
        assert (found.numpy() == golden[f"slide.classes.{number}"]).all()
    assert segmentation_dinov3.window_step(512) == 341


def test_sizes_follow_the_patches() -> None:
    strides = (16, 14, 8, 4, 32)
    encoders = [Stub(16, patch_colours(stride), width=3, stride=stride) for stride in strides]
    assert [segmentation_dinov3.crop_size(e, 0) for e in encoders] == [512, 448, 256, 128, 512]
    assert segmentation_dinov3.crop_size(encoders[0], 256) == 256
    assert [depth_dinov3.short_side(e, 0) for e in encoders] == [480, 420, 240, 120, 480]
    assert depth_dinov3.crop_of(480) == (416, 544) and depth_dinov3.crop_of(420) == (364, 476)
    assert depth_dinov3.shown_shape((480, 640), 480) == (480, 640)  # NYU's images are not resized
    assert depth_dinov3.shown_shape((64, 64), 480) == (544, 544)
    assert depth_dinov3.shown_shape((1600, 1200), 480) == (725, 544)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_colours_and_turns_are_torchvisions() -> None:
    image = torch.randint(256, (3, 40, 50), generator=rng())
    whole = image.float()
    for factor in (0.5, 1.4):
        wanted = functional.adjust_saturation(image.byte(), factor).float()
        assert (saturated(whole, factor) - wanted).abs().max() <= 1
    for turn in (-0.5, -0.13, 0.41):
        wanted = functional.adjust_hue(image.byte(), turn).float()
        away = (hue_turned(whole, turn) - wanted).abs()
        assert away.max() <= 1 and away.mean() < 0.02
    bilinear, nearest = (functional.InterpolationMode(how) for how in ("bilinear", "nearest"))
    for angle in (-2.5, 1.7):
        wanted = functional.rotate(whole / 255, angle, bilinear, fill=[0.0])
        torch.testing.assert_close(turned(whole / 255, angle), wanted, atol=2e-4, rtol=0)
        wanted = functional.rotate(whole[:1], angle, nearest, fill=[0.0])
        assert (turned(whole[:1], angle, "nearest") != wanted).float().mean() < 2e-3
    shape = with_short_side(image.shape[1:], 23)
    assert shape == (23, int(23 * 50 / 40 + 0.5))
    small = functional.resize(image[:1], list(shape), nearest)[0]
    assert torch.equal(resized_answers(image[0].numpy(), shape), small)
    pixels = image.byte().permute(1, 2, 0).numpy()
    wanted = functional.resize(functional.to_pil_image(image.byte()), list(shape), bilinear)
    assert (resized(pixels, shape) == np.asarray(wanted)).all()


def test_other_colours_by_hand() -> None:
    image = torch.rand(3, 2, 2, generator=rng(), dtype=torch.float64)
    found = coloured(image, 0.95, 1.2, [0.9, 1.0, 1.1])
    for channel, factor in enumerate((0.9, 1.0, 1.1)):
        for y in range(2):
            for x in range(2):
                value = min(255, (255 * float(image[channel, y, x])) ** 0.95 * 1.2 * factor) / 255
                assert float(found[channel, y, x]) == pytest.approx(value, abs=1e-7)


def test_views_of_classes() -> None:
    """Image and classes stay together; what is outside is 0 and asked of nobody; crops are not of one class."""
    source = Halves()
    assert source.read(0).shape == (22, 34, 3)
    seen: list[float] = []
    mixed = 0
    for seed in range(40):
        pixels, classes = segmentation_view(source.read(0), source._blue(0), 24, PLAIN, rng(seed))
        assert pixels.shape == (3, 24, 24) and classes.shape == (24, 24)
        outside = classes == IGNORE
        assert (pixels[:, outside] == 0).all() and (outside.any() == (outside[-1, 0] | outside[0, -1]))
        inside = ~outside
        mixed += 0.25 < float((classes[inside] == 1).float().mean()) < 0.75
        seen.append(float(inside.float().mean()))
    assert min(seen) < 0.5 and max(seen) == 1
    assert mixed >= 34  # ten tries do not always suffice
    plain = torch.full((3, 6, 6), 100.0)
    changed = torch.stack([distorted(plain, rng(seed)) for seed in range(60)])
    assert (changed == changed.round()).all() and changed.min() >= 0 and changed.max() <= 255
    assert 0.05 < (changed == 100).all((1, 2, 3)).float().mean() < 0.5
    filled = torch.zeros(40, 40, dtype=torch.int64)
    filled[:, 20:] = 1
    places = [random_crop(filled, 10, rng(seed)) for seed in range(20)]
    assert {0 <= y <= 30 for y, _ in places} == {True}
    assert sum(12 < x < 18 for _, x in places) >= 13  # 3 of 20 without trying again; others are of one class


def test_views_of_depth() -> None:
    image, depth = torch.rand(3, 30, 40, generator=rng()), torch.ones(30, 40)
    depth[:, 20:] = 2
    mean = 0.0
    for seed in range(30):
        pixels, found = random_view(image, depth, (29, 38), PLAIN, rng(seed))
        assert pixels.shape == (3, 29, 38) and set(found.unique().tolist()) <= {0.0, 1.0, 2.0}
        mean += float((found == 0).float().mean()) / 30
    assert 0 < mean < 0.03


def test_batches_are_passes_without_a_rest() -> None:
    drawn = views(
        37, lambda row, rng: (torch.full((3, 1, 1), float(row)), torch.rand(1, 1, generator=rng)), rng()
    )
    found = [next(drawn) for _ in range(4)]
    rows = [batch[:, 0, 0, 0].tolist() for batch, _ in found]
    assert len(set(rows[0] + rows[1])) == 32 == len(set(rows[2] + rows[3])) and rows[0] != rows[2]
    again = views(
        37, lambda row, rng: (torch.full((3, 1, 1), float(row)), torch.rand(1, 1, generator=rng)), rng()
    )
    assert all(torch.equal(*pair) for mine in found for pair in zip(mine, next(again), strict=True))
    assert torch.cat([answers for _, answers in found]).unique().numel() == 64
    assert next(views(5, lambda row, rng: (torch.zeros(3, 1, 1), torch.zeros(1, 1)), rng()))[0].shape[0] == 5


@pytest.mark.parametrize("kind", ["segmentation", "depth"])
def test_training_written_out(kind: str) -> None:
    """BatchNorm, convolution, bilinear enlargement, AdamW and clipping of torch, on the same views."""
    network = colours().eval()
    given = exam(network, Halves(5))
    shape, k = (24, 32), 4

    def draw(row: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        pixels = torch.rand(3, *shape, generator=rng)
        if kind == "depth":
            return pixels, torch.rand(shape, generator=rng).sub_(0.1).clamp_(min=0)
        return pixels, torch.where(pixels[0] > 0.9, IGNORE, (pixels[1] * k).long())

    training = replace(
        depth_dinov3.TRAINING if kind == "depth" else segmentation_dinov3.TRAINING,
        pace=lambda step, steps: (0.05 / (step + 1), 0.5 + 0.1 * step),
        clip=0.05 if kind == "depth" else math.inf,
    )

    def loss(maps: Tensor, answers: Tensor, step: int) -> Tensor:
        if kind == "segmentation":
            return segmentation_dinov3.cross_entropy(maps, answers, step)
        large = depth_dinov3.enlarged_depth(maps, 2.0, shape)
        return depth_dinov3.scale_invariant_loss(large[answers > 0], answers[answers > 0], step + 99)

    head = linear_head(3, k, seed=1)
    train_head(head, given, draw, loss, training, steps=3)

    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, k, 1)
    conv.weight.data = 0.01 * torch.randn(k, 3, 1, 1, generator=rng(1))
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    parameters = [*norm.parameters(), *conv.parameters()]
    optimiser = torch.optim.AdamW(parameters, betas=(0.5, training.beta2), weight_decay=training.weight_decay)
    batches = views(5, draw, rng(0))
    for step in range(3):
        pixels, answers = next(batches)
        maps = conv(norm(F.avg_pool2d(pixels, 2)))
        if kind == "segmentation":
            large = F.interpolate(maps, shape, mode="bilinear")
            value = F.cross_entropy(large, answers, ignore_index=IGNORE, reduction="none").mean()
        else:
            found = F.interpolate(depth_of(maps.movedim(1, -1), 2.0)[:, None], shape, mode="bilinear")[:, 0]
            values = []
            for rows in ([0, 1], [2, 3], [4]):
                asked = answers[rows] > 0
                g = (found[rows][asked] + 1e-3).log() - (answers[rows][asked] + 1e-3).log()
                values.append((0.15 * g.mean() ** 2 + (g.var() if step else 0)) ** 0.5)
            value = torch.stack(values).mean()
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, training.clip)
        optimiser.param_groups[0].update(lr=0.05 / (step + 1), betas=(0.5 + 0.1 * step, training.beta2))
        optimiser.step()
    for mine, wanted in zip(head.parameters(), parameters, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=0)


def test_dropout_drops_channels() -> None:
    dropout = Dropout(0.25, seed=0)
    maps = torch.ones(200, 40, 2, 3)
    found = dropout(maps)
    assert found.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (found.flatten(2).amax(2) == found.flatten(2).amin(2)).all()
    assert float((found == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert dropout.eval()(maps) is maps


def test_classes_are_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """From images to numbers: where a colour tells the class, it is told at the images' own size."""
    monkeypatch.setattr(frozen, "LEAST_STEPS", 12)
    fast = replace(segmentation_dinov3.TRAINING, pace=lambda step, steps: (0.3, 0.9), images=10**6)
    monkeypatch.setattr(segmentation_dinov3, "TRAINING", fast)
    (found,) = DENSE["segmentation-dinov3"].run(exam(colours(), Halves(), asked=16))
    assert found.value > 0.9 and found.protocol == "segmentation-dinov3" and len(found.examples) == 4
    wanted = {"grid": "8 x 8", "steps": 12, "batch": 4, "image": 16, "window_step": 10, "lr": 1e-3}
    assert found.settings.items() > wanted.items()


def test_depth_from_images_to_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of an image and its mirror image at the grid, enlarged; errors image by image."""
    monkeypatch.setattr(frozen, "LEAST_STEPS", 2)
    monkeypatch.setattr(depth_dinov3, "TRAINING", replace(depth_dinov3.TRAINING, images=10**6))
    source, network = Halves(), colours()
    given = exam(network, source, asked=16)
    found = {measure.metric: measure for measure in DENSE["depth-dinov3"].run(given)}
    assert found[RMSE].protocol == "depth-dinov3" and found[RMSE].n_test == 4
    assert (
        found[RMSE].settings.items() > {"crop": "13 x 18", "grid": "7 x 9", "image": 16, "steps": 2}.items()
    )
    head, errors = depth_dinov3.fit(given, 16, 1.0), []
    for row in range(4):
        pixels = torch.tensor(resized(source.read(row), (16, 25))).permute(2, 0, 1)[None] / 255
        pixels = functional.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        parts = []
        for mirrored in (False, True):
            seen = F.pad(pixels.flip(-1) if mirrored else pixels, (0, 1))  # 26 columns
            outputs = head(F.avg_pool2d(seen, 2)).relu() + 0.1
            depth = (outputs * torch.linspace(1e-3, 1, 256)[:, None, None]).sum(1) / outputs.sum(1)
            parts.append(depth.flip(-1) if mirrored else depth)
        large = F.interpolate((parts[0] + parts[1])[None] / 2, (22, 34), mode="bilinear")[0, 0]
        errors.append(
            float((large.detach() - torch.from_numpy(1 - 0.5 * source._blue(row))).square().mean().sqrt())
        )
    assert found[RMSE].value == pytest.approx(np.mean(errors), abs=1e-5)


def test_padding() -> None:
    x = torch.ones(1, 5, 7)
    assert padded(x, 4, centre=False).shape == (1, 8, 8) and padded(x, 4, centre=False)[0, :5, :7].all()
    assert padded(x, 4, centre=True)[0, 1:6, :7].all() and padded(x, 4, centre=True).sum() == 35


def test_frames_keep_their_shape() -> None:
    """As `read_frame` of DINO where frames are large enough; the whole protocol on frames that patches fit exactly."""
    for h, w in ((480, 854), (1080, 1920), (900, 700), (480, 480)):
        ratio = max(h, w) / min(h, w)
        long = int((480 * ratio) // 64 * 64)
        assert propagation_dino.native_shape((h, w), 16) == ((long, 480) if h > w else (480, long))
    assert propagation_dino.native_shape((240, 426), 16) == (240, 384)
    assert propagation_dino.native_shape((240, 426), 14) == (238, 420)
    source = Halves(5)
    given = exam(colours(), source)
    frames = propagation_dino.native(given, np.arange(5))
    assert (frames.grid, frames.shape) == ((11, 32), (22, 64))  # no frame is narrower than 64
    found = {measure.metric: measure for measure in propagation_dino.propagation_dino(given)}
    assert found["J"].value > 0.8 and found["J"].settings["image"] == "22 x 64"
    assert found["J"].settings["grid"] == "2-pixel" and found["J"].protocol == "propagation-dino"


def test_objects_in_images_of_their_own_size() -> None:
    source = Halves()
    network = colours(4).eval()
    given = exam(network, source)
    for row, features, grid, size in native("discovery-lost@native", given, [0, 2]):
        image = torch.zeros(3, 24, 36)  # up to the next multiples of 4
        image[:, :22, :34] = torch.from_numpy(source.read(row)).permute(2, 0, 1) / 255
        mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
        image[:, :22, :34] = (image[:, :22, :34] - mean[:, None, None]) / std[:, None, None]
        wanted = standardised(F.avg_pool2d(image, 4).flatten(1).T[None])[0]
        torch.testing.assert_close(features, wanted, atol=1e-5, rtol=1e-5)
        assert grid == (6, 9) and size == pytest.approx((24 / 22, 36 / 34))
    region = np.zeros((6, 9), dtype=bool)
    region[2:6, 4:9] = True  # in pixels: rows 8 to 24, columns 16 to 36, of which the image ends at 22 and 34
    assert in_image(around(region), (24 / 22, 36 / 34)) == pytest.approx(Box(8 / 22, 16 / 34, 1, 1))
    (measure,) = DENSE["discovery-lost@native"].run(given)
    hits = []
    for row, features, grid, _ in native("discovery-lost@native", given, [0, 1, 2, 3]):
        rows, columns = np.nonzero(lost(features, grid).region)
        bottom, right = min(22, 4 * int(rows.max()) + 4), min(34, 4 * int(columns.max()) + 4)
        mine = np.zeros((22, 34), dtype=bool)
        mine[4 * rows.min() : bottom, 4 * columns.min() : right] = True
        true = source._blue(row) > 0
        hits.append((mine & true).sum() / (mine | true).sum() >= 0.5)
    assert measure.value == np.mean(hits) > 0 and measure.settings["image"] == "own size"
    assert measure.settings["grid"] == "4-pixel" and measure.protocol == "discovery-lost@native"


class OneSize(Stub):
    """Takes 16 x 16 pixels alone."""

    def forward(self, images: Tensor, **how: Any) -> Tokens:
        if images.shape[2:] != (16, 16):
            raise ValueError(f"images are 16 x 16, not {images.shape[3]} x {images.shape[2]}.")
        return super().forward(images, **how)


def test_what_does_not_fit_is_said() -> None:
    fixed = OneSize(16, patch_colours(2), width=3, stride=2)
    assert all(DENSE[name].check is check_any_shape for name in AS_PUBLISHED if "dinov3" not in name)
    with pytest.raises(
        Inapplicable, match=r"own shape .* 16 x 20 pixels, .* images are 16 x 16, not 20 x 16.* Use"
    ):
        check_any_shape(fixed)
    with pytest.raises(
        Inapplicable, match=r"segmentation-dinov3 shows .* 64 x 64 .*--size 16 makes crops of its own"
    ):
        segmentation_dinov3.segmentation_dinov3(exam(fixed, Halves()))
    with pytest.raises(
        Inapplicable, match=r"depth-dinov3 shows images of 52 x 68 .* Use depth, which squashes"
    ):
        depth_dinov3.depth_dinov3(exam(fixed, Halves()))
    with pytest.raises(
        Inapplicable, match=r"a\.jpg, of 3000 x 4000 pixels here, has 47,000 of 16 pixels.*16,384"
    ):
        check_patches("discovery-lost@native", "a.jpg", (3000, 4000), 16)
