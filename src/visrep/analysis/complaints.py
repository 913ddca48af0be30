"""What else can be wrong with a run: findings that need more than its health, each with evidence and a remedy."""

from __future__ import annotations

import math
import re
from statistics import median

from safetensors import SafetensorError, safe_open

from visrep.analysis.health import COLLAPSED_SPREAD, FEW_PROTOTYPES, KNN_GAIN, Verdict
from visrep.analysis.narrow import COLLAPSED_DIRECTIONS
from visrep.analysis.record import RunRecord
from visrep.analysis.signs import Signs
from visrep.encoders.saved import WEIGHTS

CLUSTERS = 0.4
"""normalised entropy of the prototypes in use at which images share a handful: sound runs stay above 0.5"""
SOLVED = 0.95
"""share of right guesses in the pretext task at which nothing is left to learn"""
AT_ONCE = 0.25
"""share of the run by which a task that should be hard is solved at once"""
APART = 0.85
"""distance of two views of an image, as a share of that of two images, at which views share hardly anything: sound
runs end below 0.75"""
SAME = 0.02
"""the same share at which two views are one picture"""
WAITING = 0.5
"""share of the time spent waiting for images at which data loading sets the pace"""
TOO_HIGH = (
    "The learning rate is too high for this batch and encoder{}, or a number overflowed in low precision."
)
GENTLER = (
    "Set optim.lr to a third, lengthen its warm-up or set optim.clip to 1; with precision=16-mixed try bf16-mixed or "
    "32-true."
)


def failed(record: RunRecord, signs: Signs | None) -> Verdict | None:
    """A run that ended with an error; a number that is not finite is a divergence."""
    if record.about["status"] != "failed":
        return None
    message = str(record.about["message"])
    if not re.search(r"became (nan|-?inf)|NaN or infinite", message):
        return Verdict(
            "failed", f"The run ended with an error: {message}", "See the message.", "See the message."
        )
    before = f" Before that the loss went from {signs.start:.4g} to {signs.loss:.4g}." if signs else ""
    rate = f" (up to {signs.peak_lr:.3g} on record)" if signs and math.isfinite(signs.peak_lr) else ""
    return Verdict("diverging", f"{message}{before}", TOO_HIGH.format(rate), GENTLER)


def broken_weights(record: RunRecord) -> Verdict | None:
    """The encoder that was saved holds NaN or infinity, whatever the log says."""
    file, bad = record.path / WEIGHTS, []
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as weights:
            names = list(weights.keys())
            bad = [name for name in names if not weights.get_tensor(name).isfinite().all()]
    except SafetensorError:  # `load_encoder` says what is wrong with a damaged file
        return None
    if not bad:
        return None
    return Verdict(
        "diverging",
        f"{len(bad)} of {len(names)} tensors in {WEIGHTS} hold NaN or infinity, the first: {bad[0]}.",
        TOO_HIGH.format(""),
        GENTLER,
    )


def cluster_collapse(record: RunRecord, signs: Signs) -> Verdict | None:
    """All images share a handful of prototypes, though more than one."""
    if not FEW_PROTOTYPES <= signs.in_use < CLUSTERS or signs.knn_gain >= KNN_GAIN:
        return None
    k = record.about["run"]["method"].get("prototypes")
    count = f", as many as {k**signs.in_use:.0f} of {k} used evenly" if isinstance(k, int) else ""
    return Verdict(
        "cluster collapse",
        f"The entropy of the prototypes in use is {signs.in_use:.2f} of its maximum{count}.{_knn(signs)}",
        "Images crowd onto a few prototypes: what spreads them (centring, equal use, a high enough temperature of the "
        "teacher) is too weak or too slow.",
        "Lower method.center_momentum, raise method.tau_teacher, or lower method.prototypes to what the images can "
        "fill; for SwAV raise method.epsilon.",
    )


def leaking(record: RunRecord, signs: Signs) -> Verdict | None:
    """Among other images the right one is told at once, or the views are one picture, and the labels gain nothing."""
    shares = [
        (step["step"], float(step["monitor"]["pretext_accuracy"]))
        for step in record.steps
        if "pretext_accuracy" in step["monitor"]
    ]
    if not shares or len(record.epochs) < 2 or signs.knn_gain >= KNN_GAIN:
        return None
    early = [share for step, share in shares if step <= AT_ONCE * signs.step]
    at_once = len(early) > 1 and min(median(early[len(early) // 2 :]), median(s for _, s in shares)) >= SOLVED
    apart = view_distances(record)
    same = bool(apart) and median(apart) < SAME
    if not (at_once or same):
        return None
    facts = []
    if at_once:
        solved = next(step for step, share in shares if share >= SOLVED)
        facts.append(
            f"The right view is told from the others in {100 * median(early):.0f} % of cases within a quarter of the "
            f"run ({SOLVED:.0%} at step {solved} of {signs.step})."
        )
    if same:
        facts.append(f"Two views of an image are {100 * median(apart):.1f} % as far apart as two images.")
    return Verdict(
        "leaking",
        f"{' '.join(facts)}{_knn(signs)}",
        "Something gives the answer away without looking at what is in the image: BatchNorm statistics that query and "
        "key share, a queue that is never filled or holds the answer, views that are almost the same picture, or files "
        "that differ in a mark.",
        "Look at the sample views in the report; strengthen them (method.views: smaller scale, jitter, gray); with a "
        "queue and BatchNorm lower method.group, which shuffles statistics, and see that the queue is pushed to; lower "
        "method.tau if views and queue are sound.",
    )


def over_augmented(record: RunRecord, signs: Signs) -> Verdict | None:
    """Two views of one image are as far apart as two images: nothing is left that they share."""
    shares = view_distances(record)
    late = shares[len(shares) // 2 :]
    if not late or median(late) < APART or signs.knn_gain >= KNN_GAIN:
        return None
    if signs.spread and signs.spread[-1] < 5 * COLLAPSED_SPREAD:
        return None  # a collapse: with all images in one place any two are equally far apart
    if signs.rankme < COLLAPSED_DIRECTIONS:
        return None  # a collapse too: too strong views leave more
    return Verdict(
        "over-augmented",
        f"Two views of one image are {100 * median(late):.0f} % as far apart as two different images (sound runs: "
        f"below 75 %).{_knn(signs)}",
        "The views change more than an image differs from another, so there is nothing left to agree on.",
        "Weaken the views (method.views: larger least scale, less jitter, gray, blur, solarize); look at the sample "
        "views in the report: you should recognise the object in most.",
    )


def view_distances(record: RunRecord) -> list[float]:
    """Squared distance of two views of an image over that of two images, one a measured epoch.

    Vectors of length 1 that vary by std in each of d dimensions are 2 d std² apart in the mean square.
    """
    monitors = [epoch["monitors"] for epoch in record.epochs]
    known = [m for m in monitors if "alignment" in m and m.get("feature_std", 0) > 0]
    return [m["alignment"] / (2 * m["width"] * m["feature_std"] ** 2) for m in known]


def forgetting(record: RunRecord) -> Verdict | None:
    """A run that began with weights tells less apart than at its start, at the last measurement."""
    if not record.retention or not record.retention[-1]["lost"]:
        return None
    run, last = record.about["run"], record.retention[-1]
    began, act = run["init"] or run["start_from"], run["guard"]["act"]
    saved = "The encoder in the folder is the best there was. " if act == "rollback" else ""
    return Verdict(
        "forgetting",
        f"Epoch {last['epoch']:.3g}, beside {began} at the start: {last['lost']}.",
        "The encoder moves faster than its heads can tell it where to: too high a learning rate, heads that began with "
        "it, or a method whose task is too far from what the encoder knew.",
        f"{saved}Lower adapt.lr_scale, raise adapt.freeze_epochs, train less of it (adapt.train_blocks, "
        "adapt.lora_rank); with guard.act=rollback the best encoder is kept.",
    )


def starved(record: RunRecord, signs: Signs | None) -> Verdict | None:
    """Most of the time goes into waiting for images."""
    known = [step for step in record.steps if "data_wait" in step]
    later = known[1:] or known  # the first record holds the start of the workers
    if not later or median(step["data_wait"] for step in later) < WAITING:
        return None
    share = median(step["data_wait"] for step in later)
    rate = median(step["images_per_second"] for step in later)
    possible = f"; without waiting about {rate / (1 - share):,.0f}" if share < 0.99 else ""
    run = record.about["run"]
    return Verdict(
        "starved by data loading",
        f"{100 * share:.0f} % of the time of a step is spent waiting for images: {rate:,.0f} images/s{possible} "
        f"(cache={run['cache']}, workers={run['workers']}, canvas={run['canvas']}).",
        "Reading and decoding is slower than training: slow or remote files, large images, too few processes.",
        "Set cache=memory or, for much data, cache=disk, so that each image is decoded once; raise workers; lower "
        "canvas or store smaller images; move the data to a local disk.",
    )


def _knn(signs: Signs) -> str:
    if not signs.knn:
        return ""
    flat = (
        "" if signs.knn_gain >= KNN_GAIN else f", no gain beyond {max(KNN_GAIN, signs.knn_noise):.0f} points"
    )
    return f" kNN {signs.knn[0]:.1f} → {signs.knn[-1]:.1f} %{flat}."
