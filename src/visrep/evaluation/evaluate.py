"""Judge an encoder: every protocol on the same images, beside its untrained twin and raw pixels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from visrep.data.canvas import canvas_size
from visrep.data.dense import DenseSource
from visrep.data.source import Source
from visrep.encoders import applied_to
from visrep.evaluation.dense.judging import judge_dense
from visrep.evaluation.dense.protocols import AS_PUBLISHED, DENSE
from visrep.evaluation.dense.sitting import ReadOut
from visrep.evaluation.examples import Strip
from visrep.evaluation.feature_cache import FeatureStore, Side
from visrep.evaluation.fingerprint import fingerprint, judged_by
from visrep.evaluation.labels import without_test_images
from visrep.evaluation.minutes import Journal, Minutes
from visrep.evaluation.options import check_read
from visrep.evaluation.poolings import LAST_4, check_poolings, last_layers
from visrep.evaluation.protocols import (
    ALL,
    ON_LAYERS,
    check_protocols,
    full_names,
    least_images,
    reads_tokens,
    reads_vectors,
    without_all,
)
from visrep.evaluation.results import Inapplicable, Result
from visrep.evaluation.robustness.registry import EVERY_LAYER
from visrep.evaluation.sides import TEST_SHARE, labelled_sides
from visrep.evaluation.sitting import Asked, Sitting
from visrep.method import Encoder

FEW = 200
"""test images below which intervals are too wide for most questions"""
SMALL = 2**30
"""bytes of the last four layers, up to which they are kept without being asked for"""


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one encoder on one data set."""

    results: list[Result]
    split: str
    """in words: which images were fitted on and which judged"""
    fingerprint: dict[str, Any]
    """what two evaluations must share to be compared"""
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """about this call, not about the numbers: which features were reused"""
    pictures: dict[str, list[Strip]] = field(default_factory=dict, compare=False)
    """by dense protocol, what was said of some of the judged images"""
    made: list[dict[str, Any]] = field(default_factory=list)
    """by which calls: encoder and command as given, protocols, machine, seconds (see `evaluation.making.made_by`)"""
    unjudged: dict[str, str] = field(default_factory=dict)
    """protocols that were asked for by name and gave no number, with the reason"""

    def to_json(self) -> dict[str, Any]:
        """JSON values, as evaluation.json holds them."""
        values = asdict(replace(self, pictures={}))
        of_this_call = ("notes", "pictures", "unjudged")
        return {name: value for name, value in values.items() if name not in of_this_call}


def evaluate(
    encoder: Encoder,
    train: Source,
    test: Source | None = None,
    *,
    protocols: tuple[str, ...] = ("knn", "linear"),
    layers: tuple[int, ...] | Literal["all"] = (),
    poolings: tuple[str, ...] = ("auto",),
    baselines: bool = True,
    limit: int = 0,
    test_limit: int = 0,
    size: int = 0,
    read_out: ReadOut = "tokens",
    keep: Path | None = None,
    journal: Journal | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Judge an encoder on labelled images, frozen or fine-tuned; no setting is chosen on the test images.

    Without ``test`` a stratified fifth of ``train`` is held out, of clips a fifth of their videos. ``limit`` and
    ``test_limit`` keep so many images, the first of every class. ``protocols`` of ("all",) are those that leave the
    encoder as it is, where they apply to this data; other names of one protocol stand for it (`KNOWN_AS`). The last
    layer is always judged, ``layers`` adds others.
    ``baselines`` adds the untrained twin (see `untrained_twin`) in every protocol and raw pixels (32 x 32, normalised)
    in those that read one vector an image. An encoder of images sees clips frame by frame (see `FrameAverage`).
    Features are kept in the folder ``keep`` and read from there the next time (see `FeatureStore`).
    A ``journal`` keeps each judgement at once, and gives back those of a call that did not come to its end.
    ``seed`` draws splits, twin, probes and resamples.

    Dense protocols want images with masks or depth, a `DenseSource`, and need no labels. They see whole images as
    squares of ``size`` pixels, 0 for twice the encoder's own size where it takes that, those `AS_PUBLISHED` in other
    shapes (docs/protocols.md); their raw pixels are the colours and the place of each patch. A ``read_out`` of
    pyramid gives probes maps of several resolutions side by side (see `Pyramid`) instead of the patches of one layer.

    A protocol that turns out not to apply is left out: `Evaluation.unjudged` names those that were asked for by name.
    Raises Inapplicable where none applies, and ValueError for an unknown protocol, an option that no protocol reads,
    labels or masks that cannot be used, or features that are not finite.
    """
    protocols = full_names(protocols)
    images, dense = by_kind(protocols, train)
    check_protocols((*images, *dense))
    check_poolings(poolings)
    given = {"layers": layers != (), "poolings": poolings != ("auto",), "size": size > 0}
    ignored = check_read((*images, *dense), **given, pyramid=read_out == "pyramid")
    journal = journal or Journal(None)
    how: dict[str, Any] = {
        "layers": layers,
        "baselines": baselines,
        "limits": (limit, test_limit),
        "keep": keep,
        "journal": journal,
        "device": torch.device(device),
        "seed": seed,
        "progress": progress,
    }
    labelled = _by_labels(encoder, train, test, images, poolings, **how) if images else None
    masked = None
    if dense:
        held_out = None if test is None else _dense(test)
        lenient = ALL in protocols
        masked = _by_masks(encoder, _dense(train), held_out, dense, size, read_out, lenient=lenient, **how)
    found = _beside(labelled, masked) if labelled and masked else labelled or masked
    assert found is not None  # `check_protocols` wants a protocol
    if not found.results:
        raise Inapplicable(_why_none(found.unjudged))
    unjudged = {name: reason for name, reason in found.unjudged.items() if name in protocols}
    notes = [*found.notes, *journal.notes, *([] if ALL in protocols else ignored)]
    return replace(found, notes=notes, unjudged=unjudged)


def by_kind(protocols: tuple[str, ...], train: Source) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those that judge by labels of images and those that judge by masks; "all" replaced by what it stands for here.

    That is every dense protocol on images with masks but those `AS_PUBLISHED`, and the others where images have labels.
    """
    named = tuple(name for name in protocols if name not in DENSE)
    asked = tuple(name for name in protocols if name in DENSE)
    if ALL not in protocols or not isinstance(train, DenseSource):
        return without_all(named)[0], asked
    others = tuple(name for name in named if name != ALL)
    every = tuple(name for name in DENSE if name not in AS_PUBLISHED or name in asked)
    return without_all(named)[0] if train.labels is not None else others, every


def _by_labels(
    encoder: Encoder,
    train: Source,
    test: Source | None,
    protocols: tuple[str, ...],
    poolings: tuple[str, ...],
    *,
    layers: tuple[int, ...] | Literal["all"],
    baselines: bool,
    limits: tuple[int, int],
    keep: Path | None,
    journal: Journal,
    device: torch.device,
    seed: int,
    progress: bool,
) -> Evaluation:
    fifth = "a fifth of each class" if train.groups is None else "a fifth of each class's videos"
    origin = f"{train.name}: {fifth}, seed {seed}" if test is None else test.name
    least = least_images(protocols)
    train, test = labelled_sides(train, test, limit=limits[0], test_limit=limits[1], least=least, seed=seed)
    size = canvas_size(train, encoder.preprocessing.size)
    sides = Side(train, size, progress), Side(test, size, progress)
    encoder = applied_to(encoder, train.frames)
    asked = _asked(encoder, protocols, layers, poolings, generous=keep is not None, n=len(train) + len(test))
    mark = fingerprint(encoder, train, test, [], seed=seed)
    minutes = Minutes(journal, mark)
    sitting = Sitting(sides, protocols, asked, FeatureStore(keep), device, seed, progress, minutes)
    counts = sitting.judge_encoder(encoder)
    if baselines and minutes.results:
        sitting.judge_twin(encoder)
        if any(reads_vectors(name) for name in protocols):
            sitting.judge_pixels()
    split = f"fitted on {counts[0]} images of {train.name}, judged on {counts[1]} of {origin}"
    of_data = dict.fromkeys((*train.notes, *test.notes))
    warnings = [*sitting.warnings(), *of_data, *without_test_images(train, test), *_few(counts[1])]
    found = minutes.results
    notes = list(dict.fromkeys(sitting.store.notes))
    return Evaluation(found, split, judged_by(mark, found), warnings, notes, unjudged=minutes.unjudged)


def _by_masks(
    encoder: Encoder,
    train: DenseSource,
    test: DenseSource | None,
    protocols: tuple[str, ...],
    size: int,
    read_out: ReadOut,
    **how: Any,
) -> Evaluation:
    found = judge_dense(
        encoder, train, test, protocols, size=size, read_out=read_out, share=TEST_SHARE, **how
    )
    warnings = [*found.warnings, *_few(min((result.n_test for result in found.results), default=FEW))]
    return Evaluation(
        found.results, found.split, found.mark, warnings, found.notes, found.pictures, unjudged=found.unjudged
    )


def _beside(labelled: Evaluation, masked: Evaluation) -> Evaluation:
    """One sheet of both, of the same images."""
    mark = labelled.fingerprint
    protocols = {**mark["protocols"], **masked.fingerprint["protocols"]}
    return Evaluation(
        [*labelled.results, *masked.results],
        f"{labelled.split}; {masked.split}",
        {**mark, "protocols": dict(sorted(protocols.items()))},
        list(dict.fromkeys([*labelled.warnings, *masked.warnings])),
        list(dict.fromkeys([*labelled.notes, *masked.notes])),
        masked.pictures,
        unjudged={**labelled.unjudged, **masked.unjudged},
    )


def _why_none(unjudged: dict[str, str]) -> str:
    """Each reason once: the first may be of a protocol that nobody had in mind."""
    reasons = list(dict.fromkeys(unjudged.values()))
    return reasons[0] if len(reasons) == 1 else "\n- ".join(["no protocol can be judged.", *reasons])


def _dense(source: Source) -> DenseSource:
    """Raises ValueError for images without masks."""
    if not isinstance(source, DenseSource):
        raise ValueError(
            f"dense protocols judge by masks or depth, and {source.name} has none. Give a folder with images/ and "
            "masks/, or 'playground', or a DenseSource."
        )
    return source


def _few(n: int) -> list[str]:
    """A warning, where there is reason for one."""
    said = f"only {n} test images: intervals are wide. Use {FEW} or more to see small differences."
    return [said] if n < FEW else []


def _asked(
    encoder: Encoder,
    protocols: tuple[str, ...],
    layers: tuple[int, ...] | Literal["all"],
    poolings: tuple[str, ...],
    *,
    generous: bool,
    n: int,
) -> Asked:
    """``generous``: with the last four layers of ``n`` images in any case, so that later protocols find them."""
    depth = encoder.depth
    wanted = tuple(range(1, depth + 1)) if layers == "all" else tuple(layers)
    if wrong := [layer for layer in wanted if not 1 <= layer <= depth]:
        raise ValueError(f"layer {wrong[0]} was asked for; this encoder has layers 1 to {depth}.")
    extracted = {*wanted, depth}
    small = 8 * encoder.width * torch.float32.itemsize * n <= SMALL
    if LAST_4 in poolings or any(name in ON_LAYERS for name in protocols) or (generous and small):
        extracted |= {*last_layers(depth)}
    if any(name in EVERY_LAYER for name in protocols):
        extracted |= {*range(1, depth + 1)}
    tokens = any(map(reads_tokens, protocols))
    return Asked(depth, wanted, poolings, tuple(sorted(extracted)), tokens)
