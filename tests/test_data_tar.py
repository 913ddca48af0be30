"""Tar shards in the layout of WebDataset."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visrep.data import open_source, open_splits
from visrep.data.decode import decode
from visrep.data.tar import Tar


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def write(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images in two training shards and one to judge on; image i has the colour i and the label i mod 3."""
    for shard, numbers in (("train-0000", range(5)), ("train-0001", range(5, 9)), ("val-0000", range(9, 12))):
        files = {}
        for i in numbers:
            files |= {
                f"a.b/{i:06d}.png": png(i),
                f"a.b/{i:06d}.cls": b"%d\n" % (i % 3),
                f"a.b/{i:06d}.json": b"{}",
            }
        write(tmp_path / f"{shard}.tar", files)
    (tmp_path / "classes.json").write_text(json.dumps(["red", "green", "blue"]))
    return tmp_path


def test_splits_labels_and_images_in_any_order(folder: Path) -> None:
    train, test = open_splits(folder)
    assert isinstance(train, Tar) and isinstance(test, Tar)
    assert (len(train), len(test)) == (9, 3)
    assert train.classes == test.classes == ("red", "green", "blue")
    assert train.labels is not None and train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    copy = pickle.loads(pickle.dumps(train))  # as a worker gets it
    for index in (7, 0, 4, 8):
        assert decode(copy.read(index), 4)[0][:, 0, 0].tolist() == [index] * 3
    assert train.key(5) == "train-0001.tar:a.b/000005"
    assert train.stamp(5) != train.stamp(0)


def test_the_pictures_are_those_that_tarfile_extracts(folder: Path) -> None:
    source = open_source(folder / "train-0000.tar")
    with tarfile.open(folder / "train-0000.tar") as tar:
        for index in range(len(source)):
            file = tar.extractfile(f"a.b/{index:06d}.png")
            assert file is not None and source.read(index) == file.read()


def test_samples_without_image_or_label(tmp_path: Path) -> None:
    shard = write(tmp_path / "x.tar", {"0.png": png(1), "0.cls": b"0", "1.cls": b"1", "2.JPG": png(2)})
    with pytest.warns(UserWarning, match=r"1 of 2 samples of .* have no \.cls file"):
        source = open_source(shard)
    assert len(source) == 2 and source.labels is None and source.classes is None


def test_errors(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"holds 'cat': a label is the number of a class"):
        open_source(write(tmp_path / "words.tar", {"0.png": png(1), "0.cls": b"cat"}))
    with pytest.raises(ValueError, match=r"no images in the shards"):
        open_source(write(tmp_path / "texts.tar", {"0.txt": b"a cat"}))
    packed = write(tmp_path / "packed.tar.gz", {"0.png": png(1)}, "w:gz").rename(tmp_path / "packed.tar")
    with pytest.raises(ValueError, match=r"uncompressed tar file.*Unpack compressed ones"):
        open_source(packed)
    (folder / "classes.json").write_text('["red"]')
    with pytest.raises(ValueError, match=r"a list of at least 3 names"):
        open_source(folder / "train-0000.tar")
    (folder / "other.parquet").touch()
    with pytest.raises(ValueError, match=r"shards of several kinds: \.parquet, \.tar"):
        open_source(folder)
