"""Clips from video files and folders of frames, the playground as video, views of clips, a run from end to end."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

import visrep
from conformance import images
from visrep.data import CanvasSet, Loader, Source, film, open_source, open_splits
from visrep.data.cache import fingerprint
from visrep.data.playground_video import MOTIONS, PlaygroundVideo
from visrep.data.scene import film as drawn
from visrep.data.source import Subset
from visrep.data.split import stratified_split
from visrep.data.video import Clips
from visrep.encoders import ViT
from visrep.evaluation.compare import compare_without_labels
from visrep.evaluation.effort import Effort
from visrep.evaluation.evaluate import evaluate
from visrep.evaluation.labels import labels_of
from visrep.evaluation.sides import labelled_sides
from visrep.method import At, Canvases, Preprocessing
from visrep.monitor import _beside, _views_caption
from visrep.views import MultiCrop, OneView, TwoViews, View, center, draw

av = pytest.importorskip("av")
PLAIN = View(size=16, scale=(0.3, 1.0), jitter=0.0, gray=0.0, blur=0.0)


def at(seed: int = 0) -> At:
    return At(0, 1, 1, torch.Generator().manual_seed(seed))


# --- video files


def write_video(
    path: Path,
    *,
    frames: int = 100,
    key_every: int = 10,
    kind: str | None = None,
    codec: str = "mpeg4",
    moments: list[int] | None = None,
) -> Path:
    """A video of 64 x 32 pixels, of which frame i shows i as eight stripes, black or white.

    ``kind`` is the container where the suffix does not say it; ``moments`` are when frames begin, in 25ths of a second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=25, options={"g": str(key_every)})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for i in range(frames):
            stripes = 255 * (i >> np.arange(8) & 1).astype(np.uint8)
            picture = np.tile(stripes.repeat(8)[None, :, None], (32, 1, 3))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if moments is not None:
                frame.pts, frame.time_base = moments[i], Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def clip(source: Source, index: int) -> np.ndarray:
    frames = source.read(index)
    assert isinstance(frames, list)
    return np.stack(frames)


def numbers(source: Source, index: int) -> list[int]:
    """Which frames of `write_video` are in a clip."""
    return told(clip(source, index))


def told(clip: np.ndarray) -> list[int]:
    """The numbers that frames of `write_video` show."""
    stripes = clip.mean((1, 3)).reshape(-1, 8, 8).mean(2) > 127
    return (stripes @ (1 << np.arange(8))).tolist()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("videos")
    for name in ("walk/a.mp4", "walk/b.avi", "run/10.mkv", "run/9.mp4"):
        write_video(root / name)
    return root


def test_a_folder_of_videos(videos: Path):
    source = open_source(videos)
    assert isinstance(source, Clips) and len(source) == 4 and source.frames == 16
    assert [source.key(i) for i in range(4)] == ["run/9.mp4", "run/10.mkv", "walk/a.mp4", "walk/b.avi"]
    assert source.classes == ("run", "walk") and source.labels is not None
    assert source.labels.tolist() == [0, 0, 1, 1]
    middle = list(range(35, 66, 2))  # 31 of 100 frames
    for i in range(4):
        assert numbers(source, i) == middle, source.key(i)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_which_frames_are_read(tmp_path: Path, suffix: str):
    write_video(tmp_path / f"a{suffix}", frames=60)
    source = open_source(f"{tmp_path}:frames=4,stride=5,clips=3")
    assert len(source) == 3 and source.key(2) == f"a{suffix}#2"
    assert [numbers(source, i) for i in range(3)] == [
        [7, 12, 17, 22],
        [22, 27, 32, 37],
        [37, 42, 47, 52],
    ]


@pytest.mark.parametrize(
    ("file", "kind", "codec", "frames"),
    [
        ("header.mp4", None, "mpeg4", 30),
        ("whole.mkv", None, "mpeg4", 30),  # the container's duration
        ("stream.mpg", "mpegts", "mpeg4", 30),  # the stream's
        ("short.mkv", None, "mpeg4", 9),
        ("wrong.mpg", None, "mpeg1video", 30),  # packets: it claims a fiftieth of a second
        ("raw.m4v", "m4v", "mpeg4", 30),  # packets: there is no container
    ],
)
def test_frames_are_counted_whatever_the_file_says(
    tmp_path: Path, file: str, kind: str | None, codec: str, frames: int
):
    path = write_video(tmp_path / file, kind=kind, codec=codec, frames=frames)
    totals: list[int] = []

    def choose(total: int) -> list[int]:
        totals.append(total)
        return [0, total // 2, total - 1]

    assert told(np.stack(film.read_film(path, choose))) == [0, frames // 2, frames - 1]
    assert totals == [frames]


def test_turned_videos_are_upright(tmp_path: Path):
    """A phone held upright writes what its sensor saw and, in the header of the track, a quarter turn clockwise."""
    whole = write_video(tmp_path / "a.mp4", frames=4).read_bytes()
    plain, turned = (b"".join(x.to_bytes(4, "big", signed=True) for x in matrix) for matrix in (
        (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    ))  # fmt: skip
    place = whole.index(plain, whole.index(b"tkhd"))
    (tmp_path / "b.mp4").write_bytes(whole[:place] + turned + whole[place + len(plain) :])
    lying, upright = (film.read_film(tmp_path / f"{name}.mp4", lambda total: [1])[0] for name in "ab")
    assert lying.shape == (32, 64, 3) and upright.shape == (64, 32, 3)
    assert (
        lying[:, :8].mean() > 127 > lying[:, 8:].mean()
    )  # frame 1: a stripe at the left, which comes to the top
    assert np.array_equal(upright, np.rot90(lying, -1))


@pytest.mark.parametrize(("suffix", "step"), [(".mp4", 2), (".mkv", 1)])
def test_frames_that_last_longer_stand_for_several_moments(tmp_path: Path, suffix: str, step: int):
    """Moments are equally far apart, by the mean rate (mp4 knows it, mkv does not): the first frame from each on."""
    moments = [*range(10), *range(12, 42, 3)]  # ten frames of a 25th of a second, ten three times as long
    path = write_video(tmp_path / f"a{suffix}", frames=20, moments=moments)
    found = told(np.stack(film.read_film(path, lambda total: list(range(total)))))
    assert len(found) == 40 // step
    for i, number in enumerate(found):
        allowed = {
            next((k for k, begins in enumerate(moments) if begins >= i * step - slack), 19)
            for slack in ((0.5, 1) if step == 2 else (0,))
        }  # half a step early counts as on time, or not: it is rounded
        assert number in allowed, (i, number, allowed)


def test_short_videos_repeat_their_last_frame(tmp_path: Path):
    write_video(tmp_path / "a.mp4", frames=5)
    assert numbers(open_source(f"{tmp_path}:frames=4,stride=2"), 0) == [0, 2, 4, 4]


def test_only_what_is_needed_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_video(tmp_path / "a.mp4", frames=100, key_every=10)
    decoded = 0
    pick = film._pick

    def counting(frames: Iterator[Any], *rest: Any) -> list[np.ndarray]:
        def counted() -> Iterator[Any]:
            nonlocal decoded
            for frame in frames:
                decoded += 1
                yield frame

        return pick(counted(), *rest)

    monkeypatch.setattr(film, "_pick", counting)
    source = open_source(f"{tmp_path}:frames=4,stride=1,clips=10")
    assert numbers(source, 9) == [91, 92, 93, 94]
    assert decoded <= 10 + 4


def test_corrupt_videos_are_counted_and_skipped(videos: Path, tmp_path: Path):
    for name in ("walk/a.mp4", "run/9.mp4"):
        write_video(tmp_path / name, frames=20)
    (tmp_path / "run" / "text.mp4").write_text("no video at all")
    (tmp_path / "run" / "empty.mp4").write_bytes(b"")
    whole = (videos / "walk" / "b.avi").read_bytes()
    (tmp_path / "run" / "cut.mp4").write_bytes((videos / "walk" / "a.mp4").read_bytes()[:2000])
    (tmp_path / "run" / "headless.avi").write_bytes(whole[: len(whole) // 40])
    canvases = CanvasSet(open_source(f"{tmp_path}:frames=4"), 8, workers=0)
    assert [canvases.source.key(int(i)) for i in canvases.usable] == ["run/9.mp4", "walk/a.mp4"]
    assert len(canvases.unreadable) == 4
    assert all(reason.startswith("run/") for reason in canvases.unreadable.values())
    batch = next(Loader(canvases, batch=2, seed=0, workers=0).stream(0, 1))
    assert batch.pixels.shape == (2, 4, 3, 8, 8)


def test_missing_pyav_is_told(videos: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without_av(name: str, *rest: Any) -> Any:
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(ImportError, match=r'pip install "visrep\[video\]"'):
        open_source(videos)


# --- folders of frames


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Two videos of 12 frames as pictures, of which frame i has the level 20 + 2 i."""
    for name in ("cat/first", "dog/second"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (24, 16), (20 + 2 * i,) * 3).save(folder / f"{i}.png")
    return tmp_path


def test_folders_of_frames(frames: Path):
    source = open_source(f"{frames}:frames=4,stride=3")
    assert len(source) == 2 and source.classes == ("cat", "dog")
    assert source.key(0) == "cat/first"
    canvases = CanvasSet(source, 8, workers=0)
    clips = canvases.get(np.array([1, 0]))
    assert clips.pixels.shape == (2, 4, 3, 8, 8) and clips.sizes.tolist() == [[16, 24], [16, 24]]
    assert clips.pixels[0].float().mean((1, 2, 3)).tolist() == [22, 28, 34, 40]  # frames 1, 4, 7 and 10
    assert open_source(frames).frames == 0, "without settings they are images"


def test_folders_of_frames_beside_a_video_file_are_told(frames: Path):
    """But not pictures of a video in its own folder."""
    assert not open_source(f"{frames}:frames=4").notes
    write_video(frames / "preview.mp4", frames=4)
    Image.new("RGB", (24, 16)).save(frames / "preview.png")
    source = open_source(f"{frames}:frames=4")
    (said,) = source.notes
    assert len(source) == 1 and "the images in 2 folders (cat/first, dog/second) were left out" in said
    assert "move the video files (1, the first is preview.mp4) to a folder of their own" in said


def test_videos_among_images_are_told(tmp_path: Path):
    """With their number, and with what reads them."""
    Image.new("RGB", (24, 16)).save(tmp_path / "photo.png")
    assert not open_source(tmp_path).notes
    for name in ("a.mp4", "b.MOV"):
        (tmp_path / name).touch()
    source = open_source(tmp_path)
    (said,) = source.notes
    assert len(source) == 1 and source.frames == 0
    assert said.startswith("2 videos, the first (a.mp4), were left out")
    assert f"'{tmp_path}:frames=16'" in said
    assert open_source(f"{tmp_path}:frames=16").frames == 16, "what the note says works"
    (tmp_path / "b.MOV").unlink()
    assert open_source(tmp_path).notes[0].startswith("1 video (a.mp4) was left out")


def test_videos_shorter_than_a_clip_are_told(frames: Path):
    """Of folders of frames, which are counted for nothing; of files that would be a pass over all of them."""
    assert not open_source(f"{frames}:frames=4,stride=3").notes
    (frames / "cat" / "still").mkdir()
    Image.new("RGB", (24, 16)).save(frames / "cat" / "still" / "0.png")
    (said,) = open_source(f"{frames}:frames=4,stride=3,clips=2").notes
    assert said.startswith("1 of 3 videos are shorter than the 10 frames") and "the shortest has 1." in said
    (said,) = open_source(f"{frames}:frames=5,stride=3").notes
    assert (
        said.startswith("3 of 3 videos are shorter than the 13 frames") and "Lower stride or frames" in said
    )
    assert not open_source(f"{frames}:frames=1").notes


def test_a_batch_of_too_many_clips(frames: Path):
    """Where clips are of videos, more of each are a way out; in the playground each is a video of its own."""
    canvases = CanvasSet(open_source(f"{frames}:frames=2,stride=1,clips=3"), 8, workers=0)
    with pytest.raises(
        ValueError, match=r"only 6 readable clips in .*batch to 4, or .* clips=8 behind the folder"
    ):
        Loader(canvases, batch=16, seed=0)
    drawn = CanvasSet(open_source("playground-video:n=2,size=16,frames=2"), 16, workers=0)
    with pytest.raises(ValueError, match=r"only 2 readable clips in playground\S*; lower --batch to 2\.$"):
        Loader(drawn, batch=4, seed=0)


def test_unlabelled_videos_are_told_how_to_get_labels(frames: Path):
    with pytest.raises(
        ValueError, match=r"no labels.* one sub-folder of videos, or of folders of frames, a class"
    ):
        labels_of(open_source(f"{frames / 'cat'}:frames=2"))


def test_a_clip_with_an_unreadable_frame_is_left_out(frames: Path):
    (frames / "cat" / "first" / "4.png").write_text("no picture")
    canvases = CanvasSet(open_source(f"{frames}:frames=4,stride=3"), 8, workers=0)
    assert canvases.usable.tolist() == [1] and "cat/first" in canvases.unreadable[0]


def test_splits_of_videos(frames: Path):
    for split in ("train", "test"):
        (frames / split / "run").mkdir(parents=True)
        write_video(frames / split / "run" / "a.mp4", frames=8)
        write_video(frames / split / "walk" / "a.mp4", frames=8)
    for name in ("cat", "dog"):
        for file in (frames / name).rglob("*.png"):
            file.unlink()
    train, test = open_splits(f"{frames}:frames=2")
    assert test is not None and train.frames == test.frames == 2
    assert train.classes == test.classes == ("run", "walk")


def test_clips_of_a_video_stay_together(tmp_path: Path):
    """Of each class a fifth of the videos is held out, with all of their clips, also of a part of the clips."""
    for kind in ("run", "walk"):
        for video in range(5):
            folder = tmp_path / kind / str(video)
            folder.mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (8, 8), (40 * video, 30 * i, 0)).save(folder / f"{i}.png")
    source = open_source(f"{tmp_path}:frames=2,stride=1,clips=3")
    assert source.groups is not None and source.groups.tolist() == np.arange(10).repeat(3).tolist()
    for seed in range(4):
        fitted, judged = labelled_sides(Subset(source, np.arange(30)[::-1]), None, seed=seed)
        videos = [{side.key(i).split("#")[0] for i in range(len(side))} for side in (fitted, judged)]
        assert len(fitted) == 24 and len(judged) == 6 and not videos[0] & videos[1]
        assert sorted(video.split("/")[0] for video in videos[1]) == ["run", "walk"]
    assert open_source(f"{tmp_path}:frames=2,clips=1").groups is None
    encoder = ViT(image=16, patch=8, width=24, depth=1, heads=2).build()
    judged = evaluate(encoder, source, protocols=("knn",), baselines=False)
    assert "judged on 6 of" in judged.split and "a fifth of each class's videos" in judged.split


def test_a_class_of_one_video_cannot_be_split():
    labels, groups = np.array([0, 0, 1, 1, 1]), np.array([7, 5, 2, 2, 2])
    with pytest.raises(ValueError, match="1 classes have a single video"):
        stratified_split(labels, 0.5, 0, groups)
    fitted, judged = stratified_split(np.zeros(5, dtype=np.int64), 0.5, 0, groups)
    assert sorted([*fitted, *judged]) == list(range(5))
    assert set(groups[fitted]).isdisjoint(groups[judged])


def test_caches_know_the_settings(frames: Path):
    specs = [f"{frames}:frames=4,stride={stride},clips={clips}" for stride, clips in ((1, 1), (2, 1), (1, 2))]
    marks = [fingerprint(open_source(spec, limit=2), 8) for spec in specs]
    assert len(set(marks)) == 3
    Image.new("RGB", (24, 16)).save(frames / "cat" / "first" / "5.png")
    assert fingerprint(open_source(specs[0], limit=2), 8) != marks[0]


def test_kept_clips_equal_decoded_ones(frames: Path, tmp_path: Path):
    source = open_source(f"{frames}:frames=4")
    kinds = [
        CanvasSet(source, 8, cache=cache, folder=tmp_path, workers=0) for cache in ("memory", "disk", "off")
    ]
    kinds.append(CanvasSet(source, 8, cache="disk", folder=tmp_path, workers=0))
    first, *others = (kind.get(np.arange(2)).pixels for kind in kinds)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (":frames=0", "must be at least 1"),
        (":frame=4", "cannot use 'frame'"),
        ("/none:frames=4", "no such file or folder"),
    ],
)
def test_wrong_settings(frames: Path, spec: str, message: str):
    with pytest.raises(ValueError, match=message):
        open_source(f"{frames}{spec}")


def test_folders_without_videos(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="no videos"):
        open_source(f"{tmp_path}:frames=4")
    with pytest.raises(ValueError, match="no images or videos"):
        open_source(tmp_path)


# --- the playground


def test_the_playground_is_a_function_of_its_seed():
    first, again = (open_source("playground-video:n=8,size=16,frames=4,seed=3") for _ in range(2))
    longer = PlaygroundVideo(n=32, size=16, frames=4, seed=3)
    other = PlaygroundVideo(n=8, size=16, frames=4, seed=4)
    for i in range(8):
        one = clip(first, i)
        assert one.shape == (4, 16, 16, 3) and one.dtype == np.uint8
        assert np.array_equal(one, clip(again, i)) and np.array_equal(one, clip(longer, i))
        assert not np.array_equal(one, clip(other, i))
    assert sorted(np.array(longer.labels)[8:16]) == list(range(8)) and first.classes == MOTIONS
    train, test = open_splits("playground-video:n=40,size=16,frames=4")
    assert test is not None and len(test) == 8
    assert not np.array_equal(clip(train, 0), clip(test, 0))


def test_clips_of_one_place_share_their_background_in_both_splits():
    settings = "playground-video:n=16,size=16,frames=2,backdrops=2"
    train, test = (open_source(f"{settings},split={split}") for split in ("train", "test"))
    assert isinstance(train, PlaygroundVideo) and isinstance(test, PlaygroundVideo)
    places = [[world.plans(i)[0].backdrop.palette for i in range(4)] for world in (train, test)]
    assert places[0] == places[1] and places[0][:2] == places[0][2:] and places[0][0] != places[0][1]
    assert train.plans(0)[0].main != test.plans(0)[0].main
    with pytest.raises(ValueError, match="backdrops=-1"):
        PlaygroundVideo(backdrops=-1)


def test_motions_come_in_pairs_that_are_each_other_backwards():
    world = PlaygroundVideo(n=4, size=24, frames=5)
    for i in range(4):
        for label in range(0, 8, 2):
            there, back = (np.stack(drawn(world.plans(i, label + k), 24)) for k in (0, 1))
            assert np.array_equal(there, back[::-1]) and not np.array_equal(there, back)


def test_motions_do_what_their_names_say():
    world = PlaygroundVideo(n=1)
    for label, name in enumerate(MOTIONS):
        plans = world.plans(0, label)
        (first, first_far), (last, last_far) = ((p.main, p.others[0]) for p in (plans[0], plans[-1]))
        moved, grown = last.x - first.x, last.size / first.size
        turned, apart = last.rotation - first.rotation, (last.x - last_far.x) - (first.x - first_far.x)
        sign = 1 if label % 2 else -1
        found = [sign * moved > 0.2, sign * turned > 0.8, sign * (grown - 1) > 0.3, sign * apart > 0.3]
        expected = [label // 2 == kind for kind in range(4)]
        expected[0] |= name.startswith("pass")  # passing is moving, to either side
        assert found == expected, name
        assert first.depth < first_far.depth


def test_one_frame_does_not_tell_the_motion():
    """Nor do all frames without their order tell which of a pair it is; with it, it is plain."""
    world = PlaygroundVideo(n=4000, frames=6)
    labels, rng = np.array(world.labels), np.random.default_rng(0)

    def facts(plan: Any) -> list[float]:
        near, far = plan.main, plan.others[0]
        return [
            near.x,
            near.y,
            near.size,
            np.sin(near.rotation),
            np.cos(near.rotation),
            far.x,
            far.y,
            far.size,
        ]

    clips = np.array([[facts(plan) for plan in world.plans(i)] for i in range(len(world))])  # n t f
    one = clips[np.arange(len(clips)), rng.integers(6, size=len(clips))]
    spread = clips.std(1)

    def accuracy(x: np.ndarray, labels: np.ndarray) -> float:
        x = np.concatenate([x, x**2], axis=1)
        probe = LogisticRegression(max_iter=300).fit(x[:3000], labels[:3000])
        return float((probe.predict(x[3000:]) == labels[3000:]).mean())

    assert accuracy(one, labels) < 0.125 + 0.035
    assert 0.3 < accuracy(np.concatenate([clips.mean(1), spread], axis=1), labels) < 0.5 + 0.05
    assert accuracy((clips[:, -1] - clips[:, 0]), labels) > 0.8


# --- views


def some_clips(n: int = 6, frames: int = 5, size: int = 24) -> Canvases:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (n, frames, 3, size, size), dtype=np.uint8))
    return Canvases(pixels, torch.tensor([[24.0, 32.0]]).repeat(n, 1), torch.arange(n))


def frame_of(canvases: Canvases, t: int) -> Canvases:
    return replace(canvases, pixels=canvases.pixels[:, t].contiguous())


@pytest.mark.parametrize("size", [16, 96])
def test_all_frames_get_the_crop_and_flip_of_one(size: int):
    """Also with the tiles of large views: frame by frame they are those of images with the same random numbers."""
    view = replace(PLAIN, size=size)
    source = some_clips(size=24 if size == 16 else 120)
    batch = draw(OneView(view, frames=5), source, at())
    assert batch.crops[0].shape == (1, 6, 5, 3, size, size) and batch.boxes[0].shape == (1, 6, 4)
    for t in range(5):
        alone = draw(OneView(view), frame_of(source, t), at())
        torch.testing.assert_close(batch.crops[0][:, :, t], alone.crops[0], atol=1e-5, rtol=0)


def test_all_frames_get_the_same_colours():
    still = some_clips()
    still = replace(still, pixels=still.pixels[:, :1].repeat(1, 5, 1, 1, 1))
    view = replace(PLAIN, jitter=1.0, hue=0.5, saturation=0.4, gray=0.3, solarize=0.3, blur=0.5)
    batch = draw(TwoViews(view, view, frames=5), still, at())
    crops = batch.crops[0]
    torch.testing.assert_close(crops, crops[:, :, :1].expand_as(crops), atol=1e-5, rtol=0)
    alone = draw(TwoViews(view, view), frame_of(still, 0), at())
    torch.testing.assert_close(crops[:, :, 2], alone.crops[0], atol=1e-4, rtol=0)  # contrast: the same mean


def test_views_begin_at_random_moments():
    source = some_clips(n=200, frames=5, size=8)
    source.pixels[:] = 10 * torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1)
    view = replace(PLAIN, size=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    crops = draw(TwoViews(view, view, frames=3), source, at()).crops[0]
    moments = (crops * 25.5).mean((3, 4, 5)).round().long()  # v b t
    first = moments[..., 0]
    assert torch.equal(moments, first.unsqueeze(-1) + torch.arange(3))
    assert all((first == k).sum() > 80 for k in range(3)) and first.max() == 2
    assert (first[0] != first[1]).any()


def test_center_takes_the_middle_frames():
    source = some_clips(frames=6)
    plain = Preprocessing(size=16, ratio=0.9)
    every = center(source, plain)
    assert every.shape == (6, 6, 3, 16, 16)
    for t in range(6):
        torch.testing.assert_close(every[:, t], center(frame_of(source, t), plain), atol=1e-5, rtol=0)
    torch.testing.assert_close(center(source, replace(plain, frames=2)), every[:, 2:4])


def test_clips_and_images_do_not_mix():
    with pytest.raises(ValueError, match="Clips of 4 frames are needed and the data holds images"):
        draw(OneView(PLAIN, frames=4), images(2), at())
    with pytest.raises(ValueError, match="The data holds clips and the method learns from images"):
        draw(OneView(PLAIN), some_clips(), at())
    with pytest.raises(ValueError, match="Clips of 8 frames are needed and those of the data have 5"):
        draw(OneView(PLAIN, frames=8), some_clips(), at())
    with pytest.raises(ValueError, match="the data holds images"):
        center(images(2), Preprocessing(size=16, frames=4))


# --- from end to end


def test_a_run_from_end_to_end(tmp_path: Path):
    """Training with fewer frames than the clips have, monitoring, judging with all baselines, embedding, a report."""
    data = "playground-video:n=96,size=32,frames=6"
    run = visrep.pretrain("videomae:tiny", data, str(tmp_path / "run"))
    with np.load(run / "pictures.npz") as pictures:
        views = pictures["views"]
        assert views.shape == (8, 2, 6, 32, 32, 3) and pictures["reconstructions"].shape == (
            3,
            3,
            4,
            32,
            32,
            3,
        )
        assert (views[:, 1, 3:] == views[:, 1, 3:4]).all() and (views[:, 1, 3] != views[:, 1, 2]).any()
    evaluation = visrep.evaluate(run, data, protocols=("knn", "linear", "attentive"))
    judged = {(result.encoder, result.protocol) for result in evaluation.results}
    assert {kind for kind, _ in judged} == {"trained", "untrained", "pixels"}
    assert ("trained", "attentive") in judged
    out = visrep.embed(run, data, tmp_path / "vectors.npz")
    with np.load(out) as embedded:
        assert embedded["vector"].shape == (96, 32)
    page = visrep.report(run).read_text()
    assert "Reconstructions" in page


def test_an_encoder_of_images_is_judged_on_clips():
    source = open_source("playground-video:n=48,size=16,frames=3")
    encoder = ViT(image=16, patch=8, width=24, depth=1, heads=2).build()
    evaluation = evaluate(encoder, source, protocols=("knn", "attentive"))
    assert {result.encoder for result in evaluation.results} == {"trained", "untrained", "pixels"}
    efforts = {"images": Effort("run", "stdim", "tiny", source.name, 16, 3, 1.0, 48, 1.0, "healthy", "")}
    comparison = compare_without_labels({"images": encoder}, efforts, source)
    assert [entry.scores["images"] for entry in comparison.entries] == [48, 48]


def test_sample_views_stand_beside_the_whole_clip():
    """The last frame of shorter views stays; images keep one column each, small views are enlarged."""
    canvases, plain = some_clips(size=16), replace(PLAIN, size=16)
    recipe = TwoViews(plain, plain, frames=3)
    batch = draw(recipe, canvases, at())
    drawn = _beside(canvases.pixels, batch, recipe.preprocessing)
    assert drawn.shape == (6, 3, 5, 3, 16, 16)
    torch.testing.assert_close(drawn[:, 0], canvases.pixels / 255)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (plain.mean, plain.std))
    views = (batch.crops[0] * std + mean).transpose(0, 1)[:, :, [0, 1, 2, 2, 2]]
    torch.testing.assert_close(drawn[:, 1:], views)
    assert "2 of 16 x 16 pixels and 3 frames" in _views_caption(batch)
    crops = MultiCrop(plain, plain, replace(plain, size=8), n_local=3)
    still = replace(canvases, pixels=canvases.pixels[:, 0])
    batch = draw(crops, still, at())
    drawn = _beside(still.pixels, batch, crops.preprocessing)
    assert drawn.shape == (6, 6, 3, 16, 16)
    assert torch.equal(drawn[:, 3:, :, ::2, ::2], drawn[:, 3:, :, 1::2, 1::2])
    assert "2 of 16 x 16 pixels, 3 of 8 x 8 pixels." in _views_caption(batch)


def test_a_preset_brings_its_own_data(tmp_path: Path):
    """From Python as from the command line."""
    run = visrep.pretrain("videomae:tiny", out=str(tmp_path / "run"), overrides={"epochs": 0.25})
    assert (
        json.loads((run / "run.json").read_text())["run"]["data"] == "playground-video:n=64,size=32,frames=4"
    )


def test_videos_as_data(videos: Path, tmp_path: Path):
    """A folder of video files, which no cache keeps, decoded by workers."""
    run = visrep.pretrain(
        "videomae:tiny",
        f"{videos}:frames=5,stride=2,clips=4",
        str(tmp_path / "run"),
        overrides={"cache": "off", "workers": 2},
    )
    assert (run / "encoder.safetensors").exists()
