"""Measuring the representation while it is trained: label-free signals, kNN when there are labels, a verdict."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from lightning_fabric import Fabric
from torch import Tensor

from visrep.analysis.health import diagnose
from visrep.analysis.measures.base import Sample
from visrep.analysis.measures.registry import ONLINE
from visrep.config import Run
from visrep.data import CanvasSet, open_source
from visrep.data.split import numbered_alike
from visrep.encoders import applied_to
from visrep.evaluation.features import Features, count_bad, evaluation_mode, extract
from visrep.evaluation.knn import knn
from visrep.functional import displayed
from visrep.method import At, Batch, Method, Preprocessing
from visrep.rundir import RunFolder
from visrep.views import draw


class NotFinite(RuntimeError):
    """The loss or the features became NaN or infinite; the last checkpoint is from before."""


@dataclass(frozen=True)
class Look:
    """What was seen of the encoder at one moment."""

    z: Tensor
    """ "n d": a vector for each image that is looked at"""
    asked: Tensor
    """ "m d": a vector for each query, where there are none ``z``"""
    right: Tensor | None
    """ "m": which queries their nearest neighbours among the images label rightly; None without labels"""
    bad: int
    """images with a NaN or an infinite number; there is no kNN then"""

    @property
    def knn(self) -> float:
        """Percent of the queries that are right; NaN without labels."""
        return math.nan if self.right is None else 100 * float(self.right.float().mean())


class Monitor:
    """Measures always the same images: a sample of the training data and, with labels or a guard, of ``run.val``.

    ``held_out``: images of the data that are not trained on; they are the queries, with labels or without.
    """

    def __init__(
        self,
        run: Run,
        canvases: CanvasSet,
        folder: RunFolder,
        fabric: Fabric,
        held_out: Int64[np.ndarray, " m"] | None = None,
    ) -> None:
        self.run, self.canvases, self.folder, self.fabric = run, canvases, folder, fabric
        queries = canvases.usable[:0] if held_out is None else held_out
        usable = np.setdiff1d(canvases.usable, queries)
        usable = np.random.default_rng(run.seed).permutation(usable)[: run.monitor_images]
        self.images, self.queries, self.query_canvases = usable, queries, canvases
        self.latest: Look | None = None
        """what `measure` saw last"""
        if len(queries) or not fabric.is_global_zero:
            return
        labelled = canvases.source.labels is not None
        if run.val and (labelled or run.guarded):  # a guard looks at them without labels too
            source = numbered_alike(open_source(run.val), canvases.source)
            self.query_canvases = CanvasSet(source, run.canvas, cache="memory", workers=run.workers)
            self.queries = self.query_canvases.usable[: run.monitor_images]
        elif labelled:
            # Each among all others. The encoder has seen them, though no label: good for watching, not for reporting.
            self.queries = usable

    def measure(self, method: Method, at: At, steps_per_epoch: int) -> str:
        """Measure, record, diagnose. Returns a line for the user."""
        if not self.fabric.is_global_zero:
            self.fabric.barrier()
            return ""
        look = self.latest = self.look(method)
        z = look.z
        monitors: dict[str, Any] = {"width": z.shape[1], "images": z.shape[0]}
        if look.bad:
            raise NotFinite(
                f"The encoder gives NaN or infinite features at step {at.step + 1} (epoch {at.epoch:.2f}), though the "
                "loss is still finite. The last checkpoint is from before. Lower optim.lr or set optim.clip to 1-3."
            )
        sample = Sample(z, views=self._two_views(method, at))
        monitors |= {measure.key: measure(sample) for measure in ONLINE}
        if not math.isnan(look.knn):
            monitors |= {"knn": look.knn, "queries": len(self.queries)}
        step = at.step + 1
        line = {"kind": "epoch", "step": step, "epoch": step / steps_per_epoch, "monitors": monitors}
        verdict = diagnose(self.folder.metrics("step"), [*self.folder.metrics("epoch"), line])
        self.folder.record({**line, "verdict": asdict(verdict)})
        self.fabric.barrier()
        votes = f"kNN {monitors['knn']:.1f} %, " if "knn" in monitors else ""
        return f"epoch {line['epoch']:.1f}: {votes}RankMe {monitors['rankme']:.0f} of {z.shape[1]}, {verdict.state}"

    def look(self, method: Method) -> Look:
        """Encode the images and let them vote. Rank 0 only; nothing is recorded."""
        images = self._extract(method, self.canvases, self.images)
        z, bad = self._vectors(images), count_bad(images)
        if not len(self.queries) or bad:
            return Look(z, z, None, bad)
        itself = self.queries is self.images
        queries = images if itself else self._extract(method, self.query_canvases, self.queries)
        asked, bad, right = self._vectors(queries), count_bad(queries), None
        if images.labels is not None and queries.labels is not None and not bad:
            voted = knn(z, images.labels, asked, ks=(20,), without_itself=itself)[0]
            right = voted.predicted == queries.labels
        return Look(z, asked, right, bad)

    def save_pictures(self, method: Method, at: At) -> None:
        """Keep what the model saw and, where it draws, what it drew, for the report."""
        canvases = self.canvases.get(self.canvases.usable[:8]).to(self.fabric.device)
        alone = replace(at, rank=0, world=1)
        batch = draw(self.run.method.views, canvases, alone)
        pictures = {"views": _beside(canvases.pixels, batch, self.run.method.views.preprocessing)}
        # One rank draws: a BatchNorm that is still training would wait for the others.
        with torch.no_grad(), evaluation_mode(method):
            pictures |= method.pictures(batch.without_labels(), alone)
        arrays = {name: _to_uint8(picture) for name, picture in pictures.items()}
        captions = np.array([*method.captions.items(), ("views", _views_caption(batch))])
        np.savez_compressed(
            self.folder.path / "pictures.npz", allow_pickle=False, captions=captions, **arrays
        )

    def _extract(self, method: Method, canvases: CanvasSet, indices: np.ndarray) -> Features:
        encoder = applied_to(method.encoder, canvases.source.frames)
        return extract(encoder, canvases, indices, device=self.fabric.device)

    def _vectors(self, features: Features) -> Tensor:
        """The last layer's, as `Tokens.pool` gives it."""
        return next(iter(features.vectors.values()))

    @torch.no_grad()
    def _two_views(self, method: Method, at: At) -> Tensor:
        """ "m 2 d": encodings of two training views of each of some images."""
        rng = torch.Generator(self.fabric.device).manual_seed(self.run.seed)
        alone = replace(at, rng=rng, rank=0, world=1)
        canvases = self.canvases.get(self.images[:256]).to(self.fabric.device)
        first, second = (draw(self.run.method.views, canvases, alone).crops[0][0] for _ in range(2))
        encoder = applied_to(method.encoder, self.canvases.source.frames)
        with evaluation_mode(encoder):
            z1, z2 = (encoder(crops).pool() for crops in (first, second))
        return torch.stack([z1.float(), z2.float()], dim=1)


def _beside(whole: Tensor, batch: Batch, preprocessing: Preprocessing) -> Tensor:
    """Images "b c s s" or clips "b t c s s" of bytes and their views, in columns: "b 1+v (t) c h w" in [0, 1].

    All have the size of the largest view. Where views are shorter than the clips, their last frame stays.
    """
    side = batch.crops[0].shape[-1]
    mean, std = preprocessing.mean, preprocessing.std
    groups = [displayed(crops, mean, std).transpose(0, 1) for crops in batch.crops]  # b v (t) c h w
    columns = [
        _resized(whole[:, None].float() / 255, side, "area"),
        *(_resized(x, side, "nearest") for x in groups),
    ]
    if whole.ndim == 5:
        t = whole.shape[1]
        columns = [x[:, :, torch.arange(t).clamp(max=x.shape[2] - 1)] for x in columns]
    return torch.cat(columns, dim=1)


def _resized(pictures: Tensor, side: int, how: str) -> Tensor:
    lead = pictures.shape[:-3]
    return torch.nn.functional.interpolate(pictures.flatten(0, -4), (side, side), mode=how).unflatten(0, lead)


def _views_caption(batch: Batch) -> str:
    """What the columns of the sample views show."""
    views = [f"{len(x)} of {x.shape[-1]} x {x.shape[-1]} pixels" for x in batch.crops]
    if batch.crops[0].ndim == 5:
        return f"Columns: the whole image; its views, {', '.join(views)}."
    frames = batch.crops[0].shape[2]
    return f"Columns: the whole clip; its views, {', '.join(views)} and {frames} frames, of which the last stays shown."


def _to_uint8(pictures: Tensor) -> np.ndarray:
    """ "rows columns (t) c h w" in [0, 1] to uint8 "rows columns (t) h w c"."""
    return (pictures.clamp(0, 1) * 255).round().byte().movedim(-3, -1).cpu().numpy()
