"""Video object propagation as DINO evaluates it (arXiv:2104.14294): `propagation`, of frames that keep their shape.

Frames have 480 pixels along the shorter side, or their own where it is less, and along the longer one as many as the
shape wants, down to a multiple of 64; they are resized without antialiasing, as published.

Deviations: smaller frames are not enlarged; the encoder's own mean and deviation of colours; sides are cut down to
whole patches where 480 or 64 pixels are no multiple of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from visrep.evaluation.dense.exam import Exam
from visrep.evaluation.dense.native import Shape, as_wanted, check_patches, image_of, patch_maps, planes
from visrep.evaluation.dense.videos import Frames, judged, measures_of
from visrep.evaluation.results import Measure

NAME = "propagation-dino"
SHORT = 480
"""pixels of the shorter side of frames"""
MULTIPLE = 64
"""what the longer one is a multiple of"""


def propagation_dino(exam: Exam) -> list[Measure]:
    """As `visrep.evaluation.dense.videos.propagation`. Raises Inapplicable also for frames of too many patches."""
    videos = judged(exam, native)
    assert exam.network is not None, "frames are seen by the network"
    seen = sorted({native_shape(video.size, exam.network.stride) for video in videos})
    said = ", ".join(f"{h} x {w}" for h, w in seen)
    return measures_of(NAME, exam, videos, {"image": said, "grid": f"{exam.network.stride}-pixel"})


def native(exam: Exam, rows: Int64[np.ndarray, " t"]) -> Frames:
    """All of the shape that the first one takes. Raises Inapplicable for too many patches."""
    network = exam.network
    assert network is not None, "frames are seen by the network"
    first = image_of(exam.test, int(rows[0]))
    shape = native_shape((first.shape[0], first.shape[1]), network.stride)
    check_patches(NAME, exam.test.source.key(int(exam.test.index[rows[0]])), shape, network.stride)

    def features() -> Iterator[Float[Tensor, "n d"]]:
        for row in rows.tolist():
            pixels = planes(image_of(exam.test, row)).to(exam.device)[None]
            pixels = F.interpolate(pixels, shape, mode="bilinear", align_corners=False).round() / 255
            yield patch_maps(network, as_wanted(pixels, network.preprocessing), exam.layer)[0].flatten(1).T

    return Frames(features(), (shape[0] // network.stride, shape[1] // network.stride), shape)


def native_shape(shape: Shape, stride: int) -> Shape:
    """Height and width of a frame that keeps its shape, for patches of ``stride`` pixels."""
    short = min(SHORT, *shape)
    multiple = MULTIPLE if MULTIPLE % stride == 0 else stride
    long = max(multiple, int(short * max(shape) / min(shape)) // multiple * multiple)
    short = max(stride, short // stride * stride)
    return (long, short) if shape[0] > shape[1] else (short, long)
