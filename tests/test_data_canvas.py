"""Canvases and their loader: the same images whatever the cache and the workers, and no file stops a run."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from visrep.data import CanvasSet, Loader, Source, Subset, canvas_size, open_source
from visrep.data.cache import fingerprint
from visrep.method import Canvases

Cache = Literal["memory", "disk", "off"]
N, BAD = 300, (7, 8, 299)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 files in two classes, all different, 3 of them broken."""
    tmp_path = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(N):
        path = tmp_path / "images" / ("a" if i < 150 else "b") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = png(rng.integers(0, 256, (6 + i % 5, 9, 3), dtype=np.uint8))
        path.write_bytes(raw[:60] if i in BAD else raw)
    return tmp_path / "images"


@pytest.fixture
def source(folder: Path) -> Source:
    return open_source(folder)


def same(a: Canvases, b: Canvases) -> bool:
    return all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(Canvases))


class Deadly(Source):
    """Its image 200 ends the process that reads it."""

    name, labels, classes = "deadly", None, None

    def __len__(self) -> int:
        return 400

    def read(self, index: int) -> np.ndarray:
        if index == 200:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full((4, 4, 3), index % 256, dtype=np.uint8)

    def key(self, index: int) -> str:
        return str(index)


# canvases


def test_canvases_hold_what_the_source_holds(source: Source) -> None:
    canvases = CanvasSet(source, 8)
    batch = canvases.get(np.array([200, 3, 3]))
    assert batch.pixels.shape == (3, 3, 8, 8) and batch.pixels.dtype == torch.uint8
    assert batch.sizes.tolist() == [[6, 9], [9, 9], [9, 9]] and batch.sizes.dtype == torch.float32
    assert batch.index.tolist() == [200, 3, 3]
    assert batch.labels is not None and batch.labels.tolist() == [1, 0, 0]
    assert len(canvases) == N and canvases.cached


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_listed_and_left_out(
    source: Source, tmp_path: Path, cache: Cache, workers: int
) -> None:
    canvases = CanvasSet(source, 8, cache=cache, workers=workers, folder=tmp_path)
    assert set(canvases.unreadable) == set(BAD)
    assert canvases.unreadable[7].startswith("a/007.png: ")
    assert len(canvases.usable) == N - 3 and not set(BAD) & set(canvases.usable.tolist())


def test_an_unreadable_image_is_replaced_by_the_next(source: Source) -> None:
    for cache in ("memory", "off"):
        canvases = CanvasSet(source, 8, cache=cache)
        batch = canvases.get(np.array([6, 7, 8, 299]))
        assert batch.index.tolist() == [6, 9, 9, 0]
        assert same(batch, canvases.get(np.array([6, 9, 9, 0])))
        assert set(canvases.unreadable) == set(BAD)


def test_nothing_readable(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"broken")
    source = open_source(tmp_path)
    with pytest.raises(
        ValueError, match=r"none of the 5 images can be read[\s\S]*0\.png: not an image[\s\S]*2\.png"
    ):
        CanvasSet(source, 8)
    streamed = CanvasSet(source, 8, cache="off")
    for _ in range(2):  # the second time they are known already
        with pytest.raises(ValueError, match=r"none of the 5 images[\s\S]*not an image"):
            streamed.get(np.array([1]))


def test_files_that_vanish_are_unreadable(folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder, tmp_path / "copy"))
    (folder / "a" / "link.png").symlink_to(folder / "nowhere.png")
    source = open_source(folder)
    (folder / "a" / "000.png").unlink()
    unreadable = CanvasSet(source, 8).unreadable
    assert unreadable[0] == "a/000.png: No such file or directory"
    assert "a/link.png: No such file or directory" in unreadable.values()


def test_auto_keeps_small_sets_only(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CanvasSet(source, 8, cache="auto").cached
    monkeypatch.setattr("visrep.data.canvas.AUTO_BYTES", N * 3 * 8 * 8 - 1)
    streamed = CanvasSet(source, 8, cache="auto")
    assert not streamed.cached and len(streamed.usable) == N and not streamed.unreadable


def test_preparing_is_quiet_away_from_a_terminal(source: Source, capfd: pytest.CaptureFixture[str]) -> None:
    CanvasSet(source, 8, progress=True, workers=2)
    assert capfd.readouterr() == ("", "")


def test_canvas_size() -> None:
    def images(*shapes: tuple[int, int]) -> Source:
        return open_source([png(np.zeros(shape, np.uint8)) for shape in shapes])

    assert canvas_size(images((10, 20)), 32) == 32, "never below a view"
    assert canvas_size(images((32, 40), (50, 10), (500, 500)), 32) == 56, "the usual longer side, in eights"
    assert canvas_size(images((4000, 3000)), 33) == 72, "up to two views"
    assert canvas_size(images((8, 8)), 20) == 24
    assert canvas_size(open_source([b"broken"]), 32) == 32


# the cache on disk


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def test_disk_cache_is_found_again(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "cache"
    first = CanvasSet(source, 8, cache="disk", folder=place)
    assert [f.suffix for f in files(place)] == [".json", ".npy"]

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("visrep.data.workers.decode", never)
    again = CanvasSet(source, 8, cache="disk", folder=place)
    rows = np.arange(N)
    assert same(first.get(rows), again.get(rows)) and again.unreadable == first.unreadable
    with pytest.raises(AssertionError, match="decoded again"):
        CanvasSet(source, 16, cache="disk", folder=place, workers=0)


def test_default_place(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    CanvasSet(source, 8, cache="disk")
    assert len(files(tmp_path / "xdg/visrep/canvases")) == 2


def cut_array(array: Path, notes: Path) -> None:
    array.write_bytes(array.read_bytes()[:1000])


def cut_notes(array: Path, notes: Path) -> None:
    notes.write_text(notes.read_text()[:100])


def foreign_notes(array: Path, notes: Path) -> None:
    notes.write_text("[1, 2]")


def other_source(array: Path, notes: Path) -> None:
    content = json.loads(notes.read_text())
    notes.write_text(json.dumps({**content, "fingerprint": "another", "sizes": [[1, 1]] * N}))


def no_notes(array: Path, notes: Path) -> None:
    """What a run killed between the two leaves."""
    notes.unlink()


def no_array(array: Path, notes: Path) -> None:
    array.unlink()


@pytest.mark.parametrize("damage", [cut_array, cut_notes, foreign_notes, other_source, no_notes, no_array])
def test_damaged_disk_cache_is_made_anew(
    source: Source, tmp_path: Path, damage: Callable[[Path, Path], None]
) -> None:
    place = tmp_path / "cache"
    rows = np.arange(N)
    wanted = CanvasSet(source, 8, cache="off").get(rows)
    CanvasSet(source, 8, cache="disk", folder=place)
    notes, array = files(place)
    damage(array, notes)
    assert same(CanvasSet(source, 8, cache="disk", folder=place).get(rows), wanted)
    assert len(files(place)) == 2, "nothing left over"


def test_interrupted_preparation_leaves_nothing_that_counts(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="decoding processes"):
        CanvasSet(Deadly(), 8, cache="disk", folder=tmp_path, workers=2)
    assert files(tmp_path) == []


def test_full_disk(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"300 canvases of 8 px needs 0\.0 GiB"):
        CanvasSet(source, 8, cache="disk", folder=tmp_path)


def test_fingerprint_follows_content(folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder, tmp_path / "copy"))

    def mark(**limits: int) -> str:
        return fingerprint(open_source(folder, **limits), 8)

    first = mark()
    assert mark() == first and fingerprint(open_source(folder), 16) != first and mark(limit=299) != first
    subset = Subset(open_source(folder), np.arange(N))
    assert fingerprint(subset, 8) == first
    assert fingerprint(Subset(subset, np.arange(N)[::-1]), 8) != first
    path = folder / "a/001.png"
    raw = path.read_bytes()
    time.sleep(0.01)
    path.write_bytes(raw)
    assert mark() != first, "one file written anew"
    images = np.zeros((200, 4, 4, 3), np.uint8)
    before = fingerprint(open_source(images), 8)
    images[102, 2, 2, 2] = 1
    assert fingerprint(open_source(images), 8) != before, "one pixel of one image"
    worlds = [fingerprint(open_source(f"playground:n=70,size={size}"), 8) for size in (16, 24)]
    assert worlds[0] != worlds[1], "a source without record of change is read"


# the loader


@pytest.fixture
def whole() -> CanvasSet:
    """100 readable images."""
    images = np.random.default_rng(1).integers(0, 256, (100, 5, 7, 3), dtype=np.uint8)
    return CanvasSet(open_source([(image, i % 3) for i, image in enumerate(images)]), 8)


def test_order_is_a_function_of_seed_and_step(whole: CanvasSet) -> None:
    loader = Loader(whole, batch=30, seed=0)
    assert loader.steps_per_epoch == 3
    steps = [loader.indices(step) for step in range(9)]
    for step in (8, 0, 4, 4):  # in any order, as often as one likes
        np.testing.assert_array_equal(Loader(whole, batch=30, seed=0).indices(step), steps[step])
        np.testing.assert_array_equal(loader.indices(step), steps[step])
    epochs = [np.concatenate(steps[e : e + 3]) for e in (0, 3, 6)]
    assert all(len(np.unique(epoch)) == 90 for epoch in epochs), "each image at most once an epoch"
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(Loader(whole, batch=30, seed=1).indices(0), steps[0])


def test_only_usable_images_are_drawn(source: Source) -> None:
    loader = Loader(CanvasSet(source, 8), batch=27, seed=0)
    epoch = np.concatenate([loader.indices(step) for step in range(loader.steps_per_epoch)])
    assert loader.steps_per_epoch == 11 and set(epoch.tolist()) == set(range(N)) - set(BAD)


def test_resuming_is_starting_at_a_step(whole: CanvasSet) -> None:
    loader = Loader(whole, batch=30, seed=0)
    unbroken = list(loader.stream(0, 8))
    resumed = list(Loader(whole, batch=30, seed=0).stream(5, 8))
    assert len(unbroken) == 8 and len(resumed) == 3
    assert all(same(a, b) for a, b in zip(unbroken[5:], resumed, strict=True))
    assert list(loader.stream(3, 3)) == []


def test_same_batches_whatever_cache_and_workers(whole: CanvasSet, tmp_path: Path) -> None:
    wanted = list(Loader(whole, batch=32, seed=0).stream(1, 6))
    variants: list[tuple[Cache, int]] = [("disk", 0), ("off", 0), ("off", 1), ("off", 3)]
    for cache, workers in variants:
        canvases = CanvasSet(whole.source, 8, cache=cache, folder=tmp_path)
        found = list(Loader(canvases, batch=32, seed=0, workers=workers).stream(1, 6))
        assert len(found) == 5 and all(same(a, b) for a, b in zip(wanted, found, strict=True)), (
            cache,
            workers,
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_replaces_and_reports_unreadable_images(source: Source, workers: int) -> None:
    canvases = CanvasSet(source, 8, cache="off")
    loader = Loader(canvases, batch=60, seed=0, workers=workers)
    seen = torch.cat([batch.index for batch in loader.stream(0, loader.steps_per_epoch)])
    asked = np.concatenate([loader.indices(step) for step in range(loader.steps_per_epoch)])
    replaced = np.where(np.isin(asked, (7, 8)), 9, np.where(asked == 299, 0, asked))
    np.testing.assert_array_equal(seen.numpy(), replaced)
    assert set(canvases.unreadable) == set(BAD)


def test_ranks_share_a_step(whole: CanvasSet) -> None:
    alone = next(Loader(whole, batch=32, seed=0).stream(2, 3))
    parts = [next(Loader(whole, batch=32, seed=0, rank=rank, world=4).stream(2, 3)) for rank in range(4)]
    assert [len(part) for part in parts] == [8] * 4
    assert torch.equal(torch.cat([part.index for part in parts]), alone.index)
    assert torch.equal(torch.cat([part.pixels for part in parts]), alone.pixels)


def test_a_batch_must_fit(whole: CanvasSet) -> None:
    few = CanvasSet(Subset(whole.source, np.arange(40)), 8)
    with pytest.raises(
        ValueError, match="batch=256 but only 40 readable images in sequence; lower --batch to 32"
    ):
        Loader(few, batch=256, seed=0)
    with pytest.raises(ValueError, match="lower --batch to 39"):
        Loader(few, batch=48, seed=0, world=3)
    with pytest.raises(ValueError, match=r"batch=10 does not divide among 4 ranks\. Set --batch to 8"):
        Loader(few, batch=10, seed=0, world=4)
    with pytest.raises(ValueError, match="use fewer ranks than 64"):
        Loader(few, batch=64, seed=0, world=64)


# processes


def test_parquet_is_read_in_worker_processes(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 3), dtype=np.uint8)
    pq.write_table(
        pa.table({"image": [png(image) for image in images]}), tmp_path / "x.parquet", row_group_size=50
    )
    source = open_source(tmp_path / "x.parquet")
    source.read(0)  # so that a row group is at hand before the processes start
    pixels = CanvasSet(source, 4, workers=2).get(np.arange(400)).pixels
    np.testing.assert_array_equal(pixels.permute(0, 2, 3, 1), images)


def test_a_dying_worker_is_reported_not_waited_for() -> None:
    loader = Loader(CanvasSet(Deadly(), 8, cache="off"), batch=50, seed=0, workers=2)
    with pytest.raises(RuntimeError, match="one of 2 decoding processes was ended"):
        list(loader.stream(0, 8))


def test_leaving_a_stream_early_ends_its_workers(whole: CanvasSet) -> None:
    canvases = CanvasSet(whole.source, 8, cache="off")
    stream = Loader(canvases, batch=10, seed=0, workers=2).stream(0, 1000)
    next(stream)
    assert children(os.getpid())
    stream.close()  # pyright: ignore[reportAttributeAccessIssue] - a generator
    assert not children(os.getpid())


def children(pid: int) -> list[int]:
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_workers_end_with_a_killed_parent() -> None:
    script = (
        "from visrep.data import *; import sys, time\n"
        "canvases = CanvasSet(open_source('playground:n=100,size=16'), 16, cache='off')\n"
        "stream = Loader(canvases, batch=10, seed=0, workers=2).stream(0, 1000)\n"
        "next(stream); print('going', flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "going\n"
    workers = children(parent.pid)
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    states = [
        Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in workers if Path(f"/proc/{pid}").exists()
    ]
    assert all(state == "Z" for state in states), "at most waiting to be collected"
