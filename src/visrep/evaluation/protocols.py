"""The protocols by name, and what each of them reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from visrep.evaluation.attentive import attentive
from visrep.evaluation.attentive_aim import attentive_aim
from visrep.evaluation.attentive_efficient import attentive_efficient, attentive_efficient_as_published
from visrep.evaluation.attentive_vjepa import attentive_vjepa
from visrep.evaluation.attentive_vjepa2 import attentive_vjepa2, attentive_vjepa2_as_published
from visrep.evaluation.clustering import clustering
from visrep.evaluation.dense.protocols import DENSE
from visrep.evaluation.episodes import episodes
from visrep.evaluation.features import Parts
from visrep.evaluation.fewlabels import fewlabels
from visrep.evaluation.fewshot_ridge import fewshot_ridge
from visrep.evaluation.finetune import RECIPES, parse
from visrep.evaluation.knn import knn, knn_leave_one_out
from visrep.evaluation.knn_fewlabels import FewLabelled
from visrep.evaluation.linear import linear
from visrep.evaluation.linear_dino import linear_dino, linear_dino_as_published
from visrep.evaluation.linear_dinov2 import linear_dinov2, linear_dinov2_as_published
from visrep.evaluation.linear_mae import linear_mae, linear_mae_as_published
from visrep.evaluation.logreg import logreg
from visrep.evaluation.results import Measure, Prediction
from visrep.evaluation.retrieval import retrieval, retrieval_within
from visrep.evaluation.robustness.registry import ROBUST


class Probe(Protocol):
    """Training features with labels and test features in, predictions out."""

    def __call__(self, train: Tensor, labels: Tensor, test: Tensor, /, *, seed: int) -> list[Prediction]: ...


class PaperProbe(Protocol):
    """As `Probe`, and looks at the test labels, as an ``@paper`` does."""

    def __call__(
        self, train: Tensor, labels: Tensor, test: Tensor, answers: Tensor, /, *, seed: int
    ) -> list[Prediction]: ...


class LayersProbe(Protocol):
    """As `Probe`, of cls and mean of several layers. Only an ``@paper`` looks at the test labels."""

    def __call__(
        self, train: Parts, labels: Tensor, test: Parts, answers: Tensor, /, *, seed: int
    ) -> list[Prediction]: ...


class Measuring(Protocol):
    """Features of both sides with labels in, numbers out; nothing is chosen."""

    def __call__(
        self, train: Tensor, labels: Tensor, test: Tensor, answers: Tensor, /, *, seed: int
    ) -> list[Measure]: ...


ON_VECTORS: dict[str, Probe] = {
    "knn": knn,
    "knn-loo": knn_leave_one_out,
    "linear": linear,
    "linear-mae": linear_mae,
    "fewlabels": fewlabels,
    "logreg": logreg,
    "fewshot-ridge": fewshot_ridge,
}
"""read one vector an image, of any layer and pooling"""
ON_VECTORS_AS_PUBLISHED: dict[str, PaperProbe] = {"linear-mae@paper": linear_mae_as_published}
"""the same, with settings chosen on the test images"""
MEASURED: dict[str, Measuring] = {
    "episodes": episodes,
    "clustering": clustering,
    "retrieval": retrieval,
    "retrieval-within": retrieval_within,
}
"""the same, and give other numbers than an accuracy over test images"""
ON_LAYERS: dict[str, LayersProbe] = {
    "linear-dino": linear_dino,
    "linear-dino@paper": linear_dino_as_published,
    "linear-dinov2": linear_dinov2,
    "linear-dinov2@paper": linear_dinov2_as_published,
}
"""put the last four layers together by themselves"""
ON_TOKENS: dict[str, Probe] = {
    "attentive": attentive,
    "attentive-vjepa": attentive_vjepa,
    "attentive-vjepa2": attentive_vjepa2,
    "attentive-efficient": attentive_efficient,
}
"""read the patch tokens of one layer"""
ON_MEAN_TOKENS: dict[str, Probe] = {"attentive-aim": attentive_aim}
"""read the mean of the patch tokens of the last layers, whichever were asked for"""
ON_TOKENS_AS_PUBLISHED: dict[str, PaperProbe] = {
    "attentive-vjepa2@paper": attentive_vjepa2_as_published,
    "attentive-efficient@paper": attentive_efficient_as_published,
}
"""the same, with settings chosen on the test images"""
LONG = frozenset({"attentive-aim", "attentive-vjepa2"})
"""take an hour or more of a processor for ten thousand images, so that "all" does not stand for them"""
NEAR_TWINS = frozenset({"logreg", "fewshot-ridge"})
"""`linear` and `fewlabels` with exactly the published settings: asked for by name, no part of "all" """
KNOWN_AS = {
    "aim": ("attentive-aim",),
    "dino": ("linear-dino", "knn"),
    "dinov2": ("linear-dinov2", "logreg", "knn"),
    "efficient": ("attentive-efficient",),
    "k-nn": ("knn",),
    "kmeans": ("clustering",),
    "mae": ("linear-mae", "finetune-mae"),
    "ridge": ("fewshot-ridge",),
    "vjepa": ("attentive-vjepa",),
    "vjepa2": ("attentive-vjepa2",),
}
"""other names, and the protocols that are meant by them; with a single one it is taken for its name (`full_names`)"""
COPIES = "copies"
"""encodes changed images"""
FITS_NOTHING = frozenset({"knn", "knn-loo", *MEASURED, COPIES})
"""neither fit nor choose anything on training images"""
ALL = "all"
"""every protocol that leaves the encoder as it is, chooses nothing on the test images and takes no hours, where it
applies"""

ORDER = (
    "linear", "linear-dinov2", "linear-dino", "linear-mae", "logreg", "attentive", "attentive-aim", "attentive-vjepa",
    "attentive-vjepa2", "attentive-efficient", "knn", "fewlabels", "fewshot-ridge", "knn-loo", "episodes", "retrieval",
    "retrieval-within", "clustering", COPIES, *ROBUST, *DENSE, "linear-dinov2@paper", "linear-dino@paper",
    *ON_VECTORS_AS_PUBLISHED, *ON_TOKENS_AS_PUBLISHED, *RECIPES,
)  # fmt: skip
"""the first of these that was asked for puts a leaderboard in order"""


def full_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """``names`` with other names of a protocol replaced by its own, each once: vjepa2@paper, attentive-vjepa2@paper.

    Where several protocols could be meant nothing is replaced, and `check_protocols` asks back.
    """
    return tuple(dict.fromkeys(map(_full_name, names)))


def _full_name(name: str) -> str:
    called = re.split("[@:]", name, maxsplit=1)[0]
    meant = KNOWN_AS.get(called.lower(), ())
    return meant[0] + name[len(called) :] if len(meant) == 1 else name


def without_all(names: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """``names`` with "all" replaced by what it stands for, and whether what does not apply is to be left out.

    Dense protocols are another matter: see `visrep.evaluation.evaluate.by_kind`.
    """
    if ALL not in names:
        return names, False
    left = {*RECIPES, *DENSE, *LONG, *NEAR_TWINS}
    every = [name for name in ORDER if name not in left and "@" not in name]
    return tuple(dict.fromkeys([*every, *(name for name in names if name != ALL)])), True


def check_protocols(names: tuple[str, ...]) -> None:
    """Raises ValueError, with the protocols there are, when one does not exist or none is asked for."""
    on_tokens = [*ON_TOKENS, *ON_MEAN_TOKENS, *ON_TOKENS_AS_PUBLISHED]
    on_vectors = [*ON_VECTORS, *ON_VECTORS_AS_PUBLISHED]
    available = ", ".join([*on_vectors, *ON_LAYERS, *on_tokens, *MEASURED, COPIES, *ROBUST, *DENSE, *RECIPES])
    if not names:
        raise ValueError(f"no protocol was asked for. Use some of: {available}.")
    for name in names:
        if tunes(name):
            parse(name)
        elif few_labelled(name):
            FewLabelled.named(name)
        elif name not in ORDER:
            meant = " or ".join(KNOWN_AS.get(name.lower(), ()))
            hint = f" Did you mean {meant}?" if meant else ""
            raise ValueError(f"there is no protocol {name!r}.{hint} Use some of: {available}.")


def least_images(names: tuple[str, ...]) -> int:
    """Training images that every class must have: 2 where something is fitted or held out to choose by, else 1."""
    return 2 if any(name not in FITS_NOTHING and not few_labelled(name) for name in names) else 1


def place(name: str) -> int:
    """Of a protocol among all, the most telling first."""
    return ORDER.index(name.partition(":")[0])


def tunes(name: str) -> bool:
    """Whether a protocol trains the encoder."""
    return name.partition(":")[0] in RECIPES


def needs_images(name: str) -> bool:
    """Whether features of the images as they are do not suffice."""
    return tunes(name) or name == COPIES or name in ROBUST


def reads_tokens(name: str) -> bool:
    """Whether a protocol reads patch tokens of one layer."""
    return name in ON_TOKENS or name in ON_TOKENS_AS_PUBLISHED


def reads_mean_tokens(name: str) -> bool:
    """Whether a protocol reads the mean of the patch tokens of several layers."""
    return name in ON_MEAN_TOKENS


def reads_vectors(name: str) -> bool:
    """Whether a protocol reads one vector an image, which raw pixels are too."""
    return name in ON_VECTORS or name in ON_VECTORS_AS_PUBLISHED or name in MEASURED or few_labelled(name)


def few_labelled(name: str) -> bool:
    """Whether a protocol is kNN among few labelled images, such as ``knn:5``."""
    return name.startswith("knn:")


def vector_probe(name: str) -> Callable[..., list[Prediction]]:
    """The `Probe` of this name, also of kNN among few labels. Raises ValueError for what is no amount of labels."""
    return FewLabelled.named(name) if few_labelled(name) else ON_VECTORS[name]
