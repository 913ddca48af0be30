"""The retention guard: does the encoder still tell apart what it told apart at the start?

A run that begins with weights can unlearn them faster than it learns. At every measurement the encoder is compared with
itself at the start on the same images, which are not trained on (`held_out`): unbiased linear CKA of the features and,
where there are labels, kNN, whose change is told from chance image by image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64
from lightning_fabric import Fabric
from torch import Tensor, from_numpy

from visrep.analysis.similarity.cka import inner, unbiased_gram
from visrep.config import Guard, Run
from visrep.continuing.lora import merged
from visrep.data import CanvasSet, open_splits
from visrep.encoders import save_encoder
from visrep.method import At, Method
from visrep.monitor import Monitor
from visrep.rundir import RunFolder

START = "start.npz"
"""features and right answers of the encoder at the start, so that a resumed run needs neither it nor its source"""
FEWEST = 8
"""images of which a likeness can be told"""


@dataclass(frozen=True)
class Kept:
    """What is left of the encoder at the start, by set of images: the run's own (``data``), ``reference``."""

    cka: dict[str, float]
    knn: dict[str, tuple[float, float]]
    """at the start and now, in percent"""
    error: dict[str, float]
    """standard error of their difference, in points"""

    def lost(self, guard: Guard) -> str:
        """What fell below the thresholds, in words; nothing when all is well."""
        said = [
            f"kNN on {name} fell from {start:.1f} to {now:.1f} %, by more than {self.allowed(name, guard):.1f}"
            for name, (start, now) in self.knn.items()
            if start - now > self.allowed(name, guard)
        ]
        said += [
            f"CKA with the start is {cka:.2f} on {name} (guard.min_cka={guard.min_cka:g})"
            for name, cka in self.cka.items()
            if cka < guard.min_cka
        ]
        return "; ".join(said)

    def allowed(self, name: str, guard: Guard) -> float:
        """Points that kNN may fall: the guard's, or two standard errors where few images say less."""
        return max(guard.max_knn_drop, 2 * self.error[name])


def held_out(run: Run, usable: Int64[np.ndarray, " n"], groups: np.ndarray | None) -> Int64[np.ndarray, " m"]:
    """Of the ``usable`` images those that the guard looks at and the training must not see.

    There are none without a guard, or with images in ``val``.

    What is trained on is learned by heart a little, so that losses on it are smaller than on other images. Clips of a
    video, one of the ``groups`` of all images, stay together.
    """
    share = run.guard.held_out
    if not (run.guarded and share) or run.val:
        return usable[:0]
    most = min(max(FEWEST, round(share * len(usable))), run.monitor_images)
    group = usable if groups is None else groups[usable]
    order = np.random.default_rng([run.seed, len(usable)]).permutation(np.unique(group))
    if groups is None:
        return np.sort(order[:most])
    counts = np.cumsum([np.count_nonzero(group == g) for g in order])
    return usable[np.isin(group, order[: max(1, np.searchsorted(counts, most, side="right"))])]


class Retention:
    """Watches a run that begins with weights, as ``run.guard`` says; all others not at all."""

    def __init__(self, run: Run, monitor: Monitor, folder: RunFolder, fabric: Fabric) -> None:
        self.run, self.monitor, self.folder, self.fabric = run, monitor, folder, fabric
        self.guard = run.guard
        self.watches = run.guarded
        self.sets = {"data": monitor}
        if not (self.watches and fabric.is_global_zero):
            return
        if run.guard.reference:
            self.sets["reference"] = reference(run, folder, fabric)
        for name, images in self.sets.items():
            n = len(images.queries) or len(images.images)
            if n < FEWEST:
                raise ValueError(
                    f"guard.act={run.guard.act} compares features of {FEWEST} or more images and there are {n} of "
                    f"{name}. Give it more (monitor_images, data, val), or set guard.act=off."
                )

    def begin(self, method: Method) -> None:
        """Remember the encoder as it is before the first step."""
        if not (self.watches and self.fabric.is_global_zero):
            return
        arrays: dict[str, np.ndarray] = {}
        for name, images in self.sets.items():
            look = images.look(method)
            right = np.zeros(0, bool) if look.right is None else look.right.cpu().numpy()
            arrays |= {f"{name}_z": look.asked.cpu().numpy(), f"{name}_right": right}
        np.savez_compressed(self.folder.path / START, allow_pickle=False, **arrays)
        self._keep(method)

    def check(self, method: Method, at: At, steps_per_epoch: int) -> str:
        """Compare with the start, right after `Monitor.measure`: record it, act on it. Returns a line for the user.

        With ``rollback`` the run folder always holds the best encoder so far: that of the highest kNN on the run's own
        images or, without labels, the last that had lost nothing.
        """
        if not self.watches:
            return ""
        said = ""
        if self.fabric.is_global_zero:
            kept = self._compare(method)
            said = kept.lost(self.guard)
            step, best = at.step + 1, self._best()
            now = kept.knn["data"][1] if "data" in kept.knn else math.inf
            keeps = not said and now >= best
            if keeps:
                self._keep(method)
            line: dict[str, Any] = {"kind": "retention", "step": step, "epoch": step / steps_per_epoch}
            allowed = {name: kept.allowed(name, self.guard) for name in kept.knn}
            line |= {"cka": kept.cka, "knn": kept.knn, "allowed": allowed, "lost": said, "kept": keeps}
            self.folder.record(line)
        return self.fabric.broadcast(said)

    def ends(self, lost: str) -> bool:
        """Whether the run ends because of what `check` returned."""
        return bool(lost) and self.guard.act in ("stop", "rollback")

    def _compare(self, method: Method) -> Kept:
        with np.load(self.folder.path / START) as start:
            looks = {name: images.latest or images.look(method) for name, images in self.sets.items()}
            cka = {
                name: likeness(from_numpy(start[f"{name}_z"]), look.asked.cpu())
                for name, look in looks.items()
            }
            right = {
                name: (start[f"{name}_right"], look.right.cpu().numpy())
                for name, look in looks.items()
                if look.right is not None and start[f"{name}_right"].size
            }
        knn = {
            name: (100 * float(before.mean()), 100 * float(now.mean()))
            for name, (before, now) in right.items()
        }
        return Kept(cka, knn, {name: paired_error(before, now) for name, (before, now) in right.items()})

    def _best(self) -> float:
        """The highest kNN on the run's own images of a kept encoder, the start included."""
        with np.load(self.folder.path / START) as start:
            first = start["data_right"]
        lines = [line for line in self.folder.metrics("retention") if line["kept"] and "data" in line["knn"]]
        return max(
            [
                100 * float(first.mean()) if first.size else -math.inf,
                *(line["knn"]["data"][1] for line in lines),
            ]
        )

    def _keep(self, method: Method) -> None:
        if self.guard.act == "rollback":
            save_encoder(self.folder.path, merged(method.encoder))


def reference(run: Run, folder: RunFolder, fabric: Fabric) -> Monitor:
    """What looks at the images of ``guard.reference``, as the run's own are looked at."""
    source, _ = open_splits(run.guard.reference)
    canvases = CanvasSet(source, run.canvas, cache="memory", workers=run.workers)
    return Monitor(replace(run, val=""), canvases, folder, fabric)


def paired_error(before: np.ndarray, now: np.ndarray) -> float:
    """Standard error, in points, of the difference between two shares of right answers to the same questions.

    Only answers that changed count: of n, b lost and c won, sqrt((b + c - (b - c)^2 / n) / (n (n - 1))) (McNemar).
    """
    change = now.astype(float) - before.astype(float)
    return 100 * float(change.std(ddof=1)) / math.sqrt(len(change))


def likeness(start: Tensor, now: Tensor) -> float:
    """CKA of the features of the same images at two moments; 0 where one of them tells no image from another."""
    if min(float(z.std(0).max()) for z in (start, now)) == 0:
        return 0.0
    return inner(unbiased_gram(start), unbiased_gram(now))
