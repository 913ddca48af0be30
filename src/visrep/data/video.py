"""Clips of videos: of video files, or of folders that each hold the frames of one video."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from visrep.data.decode import Raw
from visrep.data.film import need_pyav, read_film
from visrep.data.folder import class_folders, is_image, natural, only_folder
from visrep.data.source import Source, stamp_of

SUFFIXES = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .ogv .3gp".split())


class Clips(Source):
    """``clips`` evenly spaced clips of each video below ``root``, of ``frames`` frames, every ``stride``-th one.

    A single clip is the middle of its video; the last frame of a short video is repeated. A clip is the same in each
    epoch, so that it can be kept decoded: for other moments each time let it be longer than the views of it (``frames``
    of a recipe), see docs/video.md. Labels are the top-level folders when every video lies in one, as in a folder of
    images. Clips of one video are alike: `stratified_split` keeps them together.
    """

    def __init__(
        self, root: Path, files: list[str], *, frames: int = 16, stride: int = 2, clips: int = 1
    ) -> None:
        """``files`` are paths relative to ``root``: videos, or where there are none the frames of videos.

        Raises ValueError for settings below 1 and when there are no videos, ImportError for files without PyAV.
        """
        if min(frames, stride, clips) < 1:
            raise ValueError(f"frames={frames}, stride={stride}, clips={clips}: each must be at least 1.")
        self.root, self.name = root, str(root)
        self.frames, self.stride, self.per_video = frames, stride, clips
        self.videos: dict[str, list[str]] = {file: [] for file in files if is_video(file)}
        """name to the files of its frames, of which a video file has none"""
        if self.videos:
            need_pyav()
            self.notes = left_out(root, files)
        else:
            self.videos = frame_folders(root, files)
            self.notes = too_short([len(frames) for frames in self.videos.values()], frames, stride)
        if not self.videos:
            raise ValueError(f"no videos in {root}: neither video files nor folders of frames.")
        self.names = list(self.videos)
        labels, self.classes = class_folders(self.names)
        self.labels = None if labels is None else labels.repeat(clips)
        self.groups = np.arange(len(self.names)).repeat(clips) if clips > 1 else None

    def __len__(self) -> int:
        return len(self.names) * self.per_video

    def only_folder(self) -> str:
        return only_folder(self.names)

    def read(self, index: int) -> list[Raw]:
        name, place = self._place(index)
        if self.videos[name]:
            return [path.read_bytes() for path in self._frames(name, place)]
        return list(read_film(self.root / name, lambda total: self.moments(total, place)))

    def undecoded(self, index: int) -> list[Raw]:
        """Of a video file all its bytes, and which of its frames are taken."""
        name, place = self._place(index)
        if self.videos[name]:
            return self.read(index)
        return [f"{self.frames}x{self.stride}@{place}".encode(), (self.root / name).read_bytes()]

    def key(self, index: int) -> str:
        """The video, and which of its clips when there are several."""
        video, clip = divmod(index, self.per_video)
        return self.names[video] + (f"#{clip}" if self.per_video > 1 else "")

    def stamp(self, index: int) -> str:
        """Changes with the settings and when the video is replaced: size and time of change of its files."""
        name, place = self._place(index)
        files = self._frames(name, place) if self.videos[name] else [self.root / name]
        try:
            changes = ":".join(map(stamp_of, files))
        except OSError:
            return "unreadable"
        return f"{self.frames}x{self.stride}@{place}:{changes}"

    def moments(self, total: int, place: float) -> list[int]:
        """Frames of a clip of a video of ``total`` frames; ``place`` from 0 to 1 says where in it the clip lies."""
        steps = range(0, self.frames * self.stride, self.stride)
        first = int(place * max(0, total - 1 - steps[-1]) + 0.5)
        return [min(first + step, total - 1) for step in steps]

    def _place(self, index: int) -> tuple[str, float]:
        """The name of the video of a clip, and its place in it."""
        video, clip = divmod(index, self.per_video)
        return self.names[video], (clip + 0.5) / self.per_video

    def _frames(self, name: str, place: float) -> list[Path]:
        files = self.videos[name]
        return [self.root / files[moment] for moment in self.moments(len(files), place)]


def is_video(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in SUFFIXES  # noqa: PTH122 - as in `is_image`


def frame_folders(root: Path, files: list[str]) -> dict[str, list[str]]:
    """The images among ``files`` by the folder that holds them, each folder a video."""
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for file in filter(is_image, files):
        folders[_folder(root, file)].append(file)
    return dict(folders)


def left_out(root: Path, files: list[str]) -> tuple[str, ...]:
    """A note where there are folders of images and, in others, video files, of which only these are read.

    Images in the folder of a video file are taken for pictures of it.
    """
    videos = [file for file in files if is_video(file)]
    folders = sorted(
        frame_folders(root, files).keys() - {_folder(root, video) for video in videos}, key=natural
    )
    if not folders:
        return ()
    shown = ", ".join(folders[:3]) + (", ..." if len(folders) > 3 else "")
    count = f"{len(folders)} folder{'s' if len(folders) > 1 else ''}"
    return (
        f"the images in {count} ({shown}) were left out: beside video files only these are read. If they are frames of "
        f"videos, move the video files ({len(videos)}, the first is {videos[0]}) to a folder of their own.",
    )


def videos_left_out(root: Path, files: list[str]) -> tuple[str, ...]:
    """A note where video files lie among images that are read as such, with what reads the videos."""
    videos = [file for file in files if is_video(file)]
    if not videos:
        return ()
    one = len(videos) == 1
    which = f"1 video ({videos[0]}) was" if one else f"{len(videos)} videos, the first ({videos[0]}), were"
    return (
        f"{which} left out: beside images only these are read. To train on clips of the videos, and on these alone, "
        f"give --data '{root}:frames=16' and a method of clips, such as vjepa.",
    )


def too_short(lengths: list[int], frames: int, stride: int) -> tuple[str, ...]:
    """A note where videos, of so many frames, are shorter than a clip reaches."""
    reach = (frames - 1) * stride + 1
    short = [length for length in lengths if length < reach]
    if not short:
        return ()
    return (
        f"{len(short)} of {len(lengths)} videos are shorter than the {reach} frames over which a clip reaches "
        f"(frames={frames}, stride={stride}), so their last frame is repeated; the shortest has {min(short)}. Lower "
        "stride or frames, or leave them out.",
    )


def _folder(root: Path, file: str) -> str:
    return file.rpartition("/")[0] or root.name
