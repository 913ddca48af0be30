"""Video object propagation as a protocol: J, F and their mean, as the semi-supervised task of DAVIS.

The masks of the first frame are carried to all later ones (see `propagation`). Each object of the first frame is
scored in the frames after it but the last, which DAVIS leaves out too; its mean over frames counts as one value,
whatever the length of the video. Masks are compared at their own size. Intervals are bootstrap over videos. Frames
are squashed to squares for the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from visrep.data.dense import nearest
from visrep.evaluation.dense.boundaries import boundary_f, jaccard
from visrep.evaluation.dense.exam import Exam
from visrep.evaluation.dense.examples import video_example
from visrep.evaluation.dense.intervals import interval
from visrep.evaluation.dense.native import Shape
from visrep.evaluation.dense.propagation import Propagation, carried, decided
from visrep.evaluation.examples import Example, spread
from visrep.evaluation.results import Inapplicable, Measure, Setting

SHORTEST = 3
"""frames of a video: the first is given and the last is left out"""
LISTED = 12
"""videos up to which each is listed by name"""
Masks = list[Int64[np.ndarray, "h w"]]
"""numbers of objects, 0 for none, frame by frame"""


@dataclass(frozen=True)
class Scores:
    """Means over frames, of each object."""

    j: list[float]
    f: list[float]

    @property
    def both(self) -> list[float]:
        return [(j + f) / 2 for j, f in zip(self.j, self.f, strict=True)]


@dataclass(frozen=True)
class Video:
    """Scores of one video."""

    name: str
    found: Scores
    still: Scores
    """of the first mask in all frames"""
    frames: int
    """that were judged"""
    size: Shape
    """of the first mask"""
    example: Example


@dataclass(frozen=True)
class Frames:
    """Patch features of the frames of a video, in order."""

    features: Iterator[Float[Tensor, "n d"]]
    grid: tuple[int, int]
    shape: Shape
    """of the frames that the encoder sees"""


Look = Callable[[Exam, Int64[np.ndarray, " t"]], Frames]
"""at the frames of these rows"""


def propagation(exam: Exam) -> list[Measure]:
    """J&F, J and F, with those of a first mask that never moves. Raises Inapplicable when there is no such video."""
    videos = judged(exam, squashed)
    return measures_of("propagation", exam, videos, {"image": exam.image})


def judged(exam: Exam, look: Look) -> list[Video]:
    """Videos that are long enough and show an object in their first frame."""
    videos: list[Video] = []
    for rows in in_videos(exam.test.groups):
        truth = _truth(exam, rows)
        if len(rows) >= SHORTEST and truth[0].any():
            parts = PurePath(exam.test.source.key(int(exam.test.index[rows[0]]))).parts
            masks = _propagated(look(exam, rows), truth, exam.device)
            found = scores(masks, truth)
            still = scores([truth[0]] * len(rows), truth)
            name = "/".join(parts[1:-1]) or parts[0]
            size = (truth[0].shape[0], truth[0].shape[1])
            videos.append(Video(name, found, still, len(rows) - 2, size, _example(exam, rows, truth, masks)))
    if not videos:
        raise Inapplicable(
            f"propagation needs videos of {SHORTEST} frames or more with an object in the first; there is none."
        )
    return videos


def squashed(exam: Exam, rows: Int64[np.ndarray, " t"]) -> Frames:
    """Their tokens, of squares."""
    tokens = exam.test.tokens[torch.from_numpy(rows)]
    features = (frame.flatten(0, 1).to(exam.device).float() for frame in tokens)
    return Frames(features, (tokens.shape[1], tokens.shape[2]), (exam.image, exam.image))


def scores(predicted: Masks, truth: Masks) -> Scores:
    """Of the objects of the first frame, over all frames but the first and the last."""
    j, f = [], []
    for number in np.unique(truth[0][truth[0] > 0]):
        pairs = [(a == number, b == number) for a, b in zip(predicted[1:-1], truth[1:-1], strict=True)]
        j.append(float(np.mean([jaccard(*pair) for pair in pairs])))
        f.append(float(np.mean([boundary_f(*pair) for pair in pairs])))
    return Scores(j, f)


def in_videos(groups: Int64[np.ndarray, " n"]) -> list[Int64[np.ndarray, " t"]]:
    """Rows of the frames of each video, in order."""
    return [np.flatnonzero(groups == group) for group in np.unique(groups)]


def _truth(exam: Exam, rows: Int64[np.ndarray, " t"]) -> Masks:
    found: Masks = []
    for index in exam.test.index[rows].tolist():
        instances = exam.test.source.answers(index).instances
        if instances is None:
            raise Inapplicable(f"{exam.test.source.name} has no masks of objects.")
        found.append(instances)
    return found


def _propagated(frames: Frames, truth: Masks, device: torch.device) -> Masks:
    """Masks of all frames, of which the first is the true one."""
    numbers = np.unique(np.append(truth[0], 0))  # 0 first: the background
    small = np.searchsorted(numbers, nearest(truth[0], frames.grid))
    first = F.one_hot(torch.from_numpy(small).flatten(), len(numbers)).float().to(device)
    masks = [truth[0]]
    for shares, true in zip(carried(frames.features, first, frames.grid), truth[1:], strict=True):
        chosen = decided(shares, frames.grid, frames.shape).cpu().numpy()
        masks.append(nearest(numbers[chosen], (true.shape[0], true.shape[1])))
    return masks


def _example(exam: Exam, rows: Int64[np.ndarray, " t"], truth: Masks, masks: Masks) -> Example:
    """The first frame and the last one that is scored."""
    return video_example(exam.test, int(rows[0]), int(rows[-2]), truth[0], truth[-2], masks[-2])


def measures_of(
    protocol: str, exam: Exam, videos: list[Video], settings: dict[str, Setting]
) -> list[Measure]:
    about: dict[str, Setting] = {**asdict(Propagation()), "videos": len(videos), **settings}
    caution = ""
    if len(videos) < LISTED:
        caution = f"{protocol}: {len(videos)} videos only, so its intervals say little about others"
    frames = sum(video.frames for video in videos)
    measures: list[Measure] = []
    for metric in METRICS:
        found = [METRICS[metric](video.found) for video in videos]
        values = np.concatenate(found)
        still = np.concatenate([METRICS[metric](video.still) for video in videos])
        details = {"the first mask, never moved": round(100 * float(still.mean()), 2)}
        if len(videos) <= LISTED:
            details |= {
                video.name: round(100 * float(np.mean(each)), 2)
                for video, each in zip(videos, found, strict=True)
            }
        groups = np.repeat(np.arange(len(videos)), [len(each) for each in found])
        low, high = interval(values, groups, seed=exam.seed)
        measures.append(
            Measure(
                protocol, metric, float(values.mean()), low, high, {**about}, caution, n_test=frames,
                details=details,
            )
        )  # fmt: skip
    first, *others = measures
    shown = [videos[number].example for number in spread(len(videos))]
    return [replace(first, examples=shown), *others]


METRICS: dict[str, Callable[[Scores], list[float]]] = {
    "J&F": lambda scores: scores.both,
    "J": lambda scores: scores.j,
    "F": lambda scores: scores.f,
}
"""the first stands for the protocol"""
