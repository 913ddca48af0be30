"""The dense protocols that train nothing, from images to numbers: on data where the right answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from _stubs import Stub, patch_colours
from visrep.data.canvas import CanvasSet
from visrep.data.dense import Answers, DenseSource, DenseSubset, Kind
from visrep.data.dense_playground import DensePlayground, PlaygroundFrames
from visrep.encoders import ResNet, ViT
from visrep.evaluation.dense.attention_masks import attention_masks, masks_of
from visrep.evaluation.dense.boundaries import jaccard
from visrep.evaluation.dense.boxes import Box, around
from visrep.evaluation.dense.correspondence import correspondence
from visrep.evaluation.dense.discovery import discovery_lost, discovery_tokencut, is_right
from visrep.evaluation.dense.exam import DenseSide, Exam, Key
from visrep.evaluation.dense.patches import extract_patches, pixel_patches
from visrep.evaluation.dense.videos import in_videos, propagation, scores
from visrep.evaluation.results import Inapplicable, Measure
from visrep.method import Encoder

SIZE = 32
CPU = torch.device("cpu")


def colours() -> Encoder:
    """The mean colours of patches of 4 pixels: as good an encoder as the pictures below need."""
    return Stub(SIZE, patch_colours(4), width=3, stride=4)


class Squares(DenseSource):
    """A red square before blue that moves from frame to frame, four frames a video; every third video has no square."""

    name = "squares"
    names = ("background", "square")
    knows: frozenset[Kind] = frozenset({"classes", "instances", "video"})
    labels = classes = None

    def __init__(self, videos: int = 3) -> None:
        self.videos = videos
        self.groups = np.repeat(np.arange(videos), 4)

    def __len__(self) -> int:
        return 4 * self.videos

    def read(self, index: int) -> np.ndarray:
        noise = np.random.default_rng(index).integers(0, 9, (SIZE, SIZE, 3), dtype=np.uint8)
        colours = np.array([[10, 20, 200], [220, 10, 10]], dtype=np.uint8)
        return colours[self._square(index)] + noise

    def key(self, index: int) -> str:
        return f"frames/video {index // 4}/{index % 4}"

    def answers(self, index: int, shape: tuple[int, int] | None = None) -> Answers:
        found = Answers(self._square(index), self._square(index))
        return found if shape is None else found.resized(shape)

    def _square(self, index: int) -> np.ndarray:
        video, frame = divmod(index, 4)
        mask = np.zeros((SIZE, SIZE), dtype=np.int64)
        if video % 3 != 2:
            left = 4 + 4 * frame + 4 * video
            mask[8:20, left : left + 12] = 1
        return mask


def exam(network: Encoder | None, source: DenseSource, *, image: int = SIZE) -> Exam:
    canvases = CanvasSet(source, SIZE)
    if network is None:
        patches = pixel_patches(canvases, (8, 8))
    else:
        patches = extract_patches(network.eval(), canvases, layer=network.depth, size=image)
    side = DenseSide(Key(source, SIZE), canvases, patches)
    return Exam(side, side, network, 1 if network else 0, image, CPU, seed=0)


def tiny_vit(*, cls: bool = True) -> Encoder:
    torch.manual_seed(0)
    return ViT(image=SIZE, patch=4, width=24, depth=2, heads=3, cls=cls, registers=1).build().eval()


@pytest.mark.parametrize("protocol", [discovery_lost, discovery_tokencut])
def test_objects_of_another_colour_are_found(protocol: Any) -> None:
    (measure,) = protocol(exam(colours(), Squares()))
    assert measure.metric == "CorLoc" and measure.value == measure.low == measure.high == 1.0
    assert measure.n_test == 8  # the third video shows none
    assert measure.settings["features"] == "tokens"
    guesses = measure.details
    assert guesses == {"a box in the middle, half of the image": 0.0, "the whole image": 0.0}
    assert not measure.caution


@pytest.mark.parametrize("protocol", [discovery_lost, discovery_tokencut])
def test_discovery_says_when_a_guess_is_as_good(protocol: Any) -> None:
    """Objects that fill the image: guessing it whole is always right."""

    class Full(Squares):
        def answers(self, index: int, shape: tuple[int, int] | None = None) -> Answers:
            return Answers(None, np.ones((SIZE, SIZE), dtype=np.int64))

    (measure,) = protocol(exam(tiny_vit(), Full()))
    assert measure.settings["features"] == "keys"
    assert measure.details["the whole image"] == 100.0
    assert "finds no more objects than the whole image (100.0 %)" in measure.caution


@pytest.mark.parametrize("protocol", [discovery_lost, discovery_tokencut, attention_masks])
def test_images_without_objects(protocol: Any) -> None:
    empty = DenseSubset(Squares(), [8, 9, 10, 11])
    with pytest.raises(Inapplicable, match="none of the 4 images has one"):
        protocol(exam(tiny_vit(), empty))


def test_a_box_is_right_from_a_half_on() -> None:
    truth = [Box(0, 0, 0.1, 0.1), Box(0.5, 0.5, 1, 1)]
    assert is_right(Box(0.5, 0.5, 1, 0.75), truth)
    assert not is_right(Box(0.5, 0.5, 1, 0.74), truth)
    assert is_right(around(np.ones((2, 2), dtype=bool)), [Box(0, 0, 0.5, 1)])


def test_attention_masks_in_loops() -> None:
    network, source = tiny_vit(), Squares()
    with torch.no_grad():
        network.get_parameter("blocks.1.attn.qkv.weight").mul_(20)  # fresh weights look everywhere alike
    found = {measure.metric: measure for measure in attention_masks(exam(network, source))}
    given = exam(network, source)
    best, mean = [], []
    pixels = torch.cat(list(given.pixels(given.test)))
    with torch.no_grad():
        attention = network(pixels, attention=True).attention
    assert attention is not None
    for index in range(8):
        true = source.answers(index).instances == 1
        overlaps = []
        for head in attention[-1, index, :, 0, 2:]:
            cells = masks_of(head[None])[0].view(8, 8).numpy()
            overlaps.append(jaccard(np.kron(cells, np.ones((4, 4), dtype=bool)), true))
        best.append(max(overlaps))
        mean.append(np.mean(overlaps))
    assert found["Jaccard"].value == pytest.approx(np.mean(best))
    assert found["Jaccard, mean head"].value == pytest.approx(np.mean(mean))
    assert found["Jaccard"].details == {"the whole image": round(100 * 144 / 1024, 2)}


def test_attention_masks_apply_to_a_cls_token_only() -> None:
    with pytest.raises(Inapplicable, match="where the cls token looks, and this encoder has none"):
        attention_masks(exam(tiny_vit(cls=False), Squares()))
    with pytest.raises(Inapplicable, match=r"ResNet gives none\. It applies to a ViT"):
        attention_masks(exam(ResNet(depth=18, width=8, stem="small").build(), Squares()))


def measures(found: list[Measure]) -> dict[str, Measure]:
    return {measure.metric: measure for measure in found}


def test_a_moving_square_is_followed() -> None:
    """Colours tell the square from the rest, and it moves by whole patches: only the corners are rounded."""
    found = measures(propagation(exam(colours(), Squares())))
    assert list(found) == ["J&F", "J", "F"]
    assert found["J"].value > 0.85
    assert found["J&F"].value == pytest.approx((found["J"].value + found["F"].value) / 2)
    still = found["J"].details["the first mask, never moved"]
    shifted = np.mean([8 * 12 / (16 * 12), 4 * 12 / (20 * 12)])  # frames 2 and 3 of 4
    assert still == pytest.approx(100 * shifted, abs=0.01)
    assert found["J"].n_test == 4 and found["J"].settings["videos"] == 2
    assert {"video 0", "video 1"} < found["J"].details.keys()
    assert "2 videos only" in found["J"].caution


def test_raw_pixels_and_clips_of_the_playground() -> None:
    """Raw pixels take part; every object is scored, and its number stays through a clip."""
    source = PlaygroundFrames(n=2, size=SIZE, frames=4)
    found = measures(propagation(exam(None, source)))
    assert found["J"].n_test == 4
    assert 0.3 < found["J"].value <= 1
    truth = [source.answers(index).instances for index in range(4)]
    assert all(each is not None and set(np.unique(each)) == {0, 1, 2} for each in truth)


def test_scores_leave_out_the_first_and_the_last_frame() -> None:
    one, two = np.zeros((2, 6, 6), dtype=np.int64)
    one[1:4, 1:4] = 7
    one[5, 5] = 3
    two[1:4, 2:5] = 7
    found = scores([one, two, one, two], [one, one, one, one])
    # objects 3 and 7: found never and exactly, or moved by one pixel in the second of two frames
    assert found.j == pytest.approx([(0 + 1) / 2, (6 / 12 + 1) / 2])
    assert found.both == pytest.approx((np.array(found.j) + np.array(found.f)) / 2)
    assert [rows.tolist() for rows in in_videos(np.array([4, 4, 0, 0, 0]))] == [[2, 3, 4], [0, 1]]


def test_no_video_has_an_object() -> None:
    with pytest.raises(Inapplicable, match="videos of 3 frames or more with an object in the first"):
        propagation(exam(colours(), DenseSubset(Squares(), [0, 1, 8, 9, 10])))


def test_correspondence_on_the_playground() -> None:
    source = DensePlayground(n=40, size=SIZE, split="test")
    found = measures(correspondence(exam(colours(), DenseSubset(source, range(30)))))
    assert list(found) == [
        f"PCK@0.1 by {by}, {kind}" for kind in ("moved", "kin") for by in ("image", "point")
    ]
    moved, kin = found["PCK@0.1 by image, moved"], found["PCK@0.1 by image, kin"]
    # the same colours are somewhere in a moved object; in another object they are no help
    assert moved.value > 2 * kin.value
    assert moved.n_test == 30 and 300 < int(moved.settings["points"]) <= 30 * 72
    assert moved.value != found["PCK@0.1 by point, moved"].value
    assert moved.details.keys() == {"colours and places of patches", "the same place"}
    assert all(0 < share < 100 for share in moved.details.values())
    with pytest.raises(Inapplicable, match="squares does not have"):
        correspondence(exam(colours(), Squares()))
