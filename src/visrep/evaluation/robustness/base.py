"""What protocols of robustness have in common: an encoder, a probe fitted on images as they are, and changed images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from visrep.evaluation.features import Features, Parts, encode, evaluation_mode
from visrep.evaluation.fitting import Images
from visrep.evaluation.linear import linear
from visrep.evaluation.poolings import assemble, last_layers
from visrep.evaluation.results import Inapplicable, Measure, Setting, bootstrap, bootstrap_mean
from visrep.method import Encoder, Preprocessing
from visrep.progress import tracked
from visrep.views import center

MOST = 500
"""test images that are changed; all of them when there are fewer"""
LEAST = 20
FITTED = 5000
"""training images that probes are fitted on; all of them when there are fewer"""
BATCH = 128
Where = tuple[int, str]
"""layer and pooling"""
Found = dict[Where, list[Measure]]


@dataclass(frozen=True, eq=False)
class Subjects:
    """What such a protocol gets."""

    encoder: Encoder
    train: Features
    """of the images to fit on"""
    fitted: Images
    """these images"""
    judged: Features
    """of the images to judge, as they are"""
    test: Images
    """these images, to be changed"""
    device: torch.device
    seed: int = 0
    progress: bool = False

    @property
    def vectors(self) -> Parts:
        """Of the test images as they are, by layer and pooling: what is judged."""
        return self.judged.vectors

    @property
    def n_fitted(self) -> int:
        """Training images of its probes."""
        return min(FITTED, len(self.train))

    def chosen(self, protocol: str) -> Int64[Tensor, " m"]:
        """Which test images are changed, drawn by the seed. Raises Inapplicable for clips and for too few images."""
        if self.test.canvases.source.frames:
            raise Inapplicable(
                f"{protocol} changes images, and these are clips. Leave it out, or give it images."
            )
        if len(self.test) < LEAST:
            raise Inapplicable(
                f"{protocol} needs at least {LEAST} test images, there are {len(self.test)}. Give more, or leave it "
                "out."
            )
        return drawn(len(self.test), MOST, self.seed)

    def encoded(self, batches: Iterable[Float[Tensor, "b c h w"]], title: str, total: int) -> Parts:
        """Vectors of changed images, of the layers and poolings of ``vectors``."""
        layers = tuple({layer for layer, _ in self.vectors})
        poolings = tuple(dict.fromkeys(how for _, how in self.vectors))
        others = tuple(sorted({*layers, *last_layers(self.encoder.depth)} - {self.encoder.depth}))
        parts = encoded(self.encoder, batches, others, self.device, title, total, progress=self.progress)
        return assemble(parts, layers, poolings, self.encoder.depth)

    def answers(self, where: Where, *changed: Float[Tensor, "_ d"]) -> list[Int64[Tensor, " _"]]:
        """What a linear probe, fitted on training images as they are, says of each of these sets of vectors."""
        assert self.train.labels is not None
        return answers(self.train.vectors[where], self.train.labels, changed, self.seed)


def drawn(n: int, most: int, seed: int) -> Int64[Tensor, " m"]:
    """At most ``most`` of ``n`` positions, in random order."""
    return torch.from_numpy(np.random.default_rng(seed).permutation(n)[:most])


def encoded(
    encoder: Encoder,
    batches: Iterable[Float[Tensor, "b c h w"]],
    others: tuple[int, ...],
    device: torch.device,
    title: str,
    total: int,
    *,
    progress: bool,
) -> Parts:
    """cls and mean of the last layer and of ``others``; ``total`` is the number of batches, for the bar."""
    encoder.to(device)
    with evaluation_mode(encoder):
        steps = tracked(batches, title, total=total, shown=progress)
        found = [encode(encoder, pixels.to(device), others, ("auto", "mean"))[0] for pixels in steps]
    return {key: torch.cat([part[key] for part in found]) for key in found[0]}


def answers(
    x: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    judged: Iterable[Float[Tensor, "_ d"]],
    seed: int,
    *,
    most: int = FITTED,
) -> list[Int64[Tensor, " _"]]:
    """Predictions of one linear probe for several sets of vectors; fitted on at most ``most`` rows of ``x``."""
    rows = drawn(len(x), most, seed).sort().values
    sets = list(judged)
    (prediction,) = linear(x[rows], labels[rows], torch.cat(sets), seed=seed)
    return list(prediction.predicted.split([len(part) for part in sets]))


def squares(images: Images, expects: Preprocessing) -> UInt8[np.ndarray, "n h w 3"]:
    """The images as the encoder gets them, in 8 bits: their central squares, resized, with their own colours."""
    plain = replace(expects, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), frames=0)
    parts = [
        center(images.canvases.get(index.numpy()), plain).clamp(0, 1) for index in images.index.split(BATCH)
    ]
    return (torch.cat(parts) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def normalised(pixels: UInt8[np.ndarray, "b h w 3"], expects: Preprocessing) -> Float[Tensor, "b 3 h w"]:
    """8 bits to what the encoder expects."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (expects.mean, expects.std))
    return (images - mean) / std


def cosines(x: Float[Tensor, "n d"], y: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Of each vector with its partner."""
    return F.cosine_similarity(x.double(), y.double(), dim=-1)


def cosine_of_others(x: Float[Tensor, "n d"]) -> float:
    """Mean cosine of two different images: what "no relation" is, seldom 0."""
    n, total = len(x), F.normalize(x.double(), dim=-1).sum(0)
    return float((total.square().sum() - n) / (n * (n - 1)))


def invariance(cosine: Float[Tensor, "*n"], others: float) -> Float[Tensor, "*n"]:
    """1 where a change leaves a vector's direction, 0 where it is as far off as another image's (``others``)."""
    return (cosine - others) / max(1 - others, 1e-12)


def near_chance(protocol: str, right: Bool[Tensor, " n"], labels: Int64[Tensor, " n"]) -> str:
    """A caution where a probe is hardly better, on images as they are, than naming the most frequent class."""
    chance = float(labels.unique(return_counts=True)[1].max()) / len(labels)
    low, _ = bootstrap(right.numpy())
    found = float(right.double().mean())
    if low > chance:
        return ""
    return (
        f"{protocol}: on images as they are the probe is hardly better than chance ({100 * found:.0f} % "
        f"right, {100 * chance:.0f} % are of one class); the share of that which is kept says nothing."
    )


def share(
    protocol: str,
    metric: str,
    values: Float[Tensor, " n"] | Bool[Tensor, " n"],
    settings: Mapping[str, Setting],
    *,
    seed: int,
    n_train: int = 0,
    details: Mapping[str, float] | None = None,
) -> Measure:
    """The mean of one value an image, with its bootstrap interval over images. ``details`` are in percent."""
    each = values.double().numpy()
    low, high = bootstrap_mean(each, seed=seed)
    return Measure(
        protocol, metric, float(each.mean()), low, high, dict(settings), n_train=n_train, n_test=len(each),
        details=dict(details or {}),
    )  # fmt: skip
