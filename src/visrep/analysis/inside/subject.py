"""What `visrep explain` looks at: an encoder, images to show, more to count over, a probe where labels are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from visrep.analysis.inside.target import Head, own_direction, probe_head
from visrep.analysis.layers import opened
from visrep.data.canvas import CanvasSet
from visrep.data.source import Source
from visrep.data.split import stratified_split
from visrep.encoders.checks import NoFreshWeights
from visrep.evaluation.features import Features, evaluation_mode, extract
from visrep.evaluation.untrained import untrained_twin
from visrep.method import Encoder, Pooling, Tokens
from visrep.views import center

PROBED = 1000
"""labelled images: four fifths for the probe, the rest to read it in early layers"""
FEWEST = 10
"""labelled images for a probe"""


class Inapplicable(Exception):
    """A section means nothing for this encoder or data; the message says why."""


@dataclass(frozen=True, eq=False)
class Subject:
    """Made once and looked at by every section; what is costly is computed when it is first asked for."""

    encoder: Encoder
    source: Source
    shown: CanvasSet
    """the images to show, the first of which is looked at most closely"""
    keys: tuple[str, ...]
    """of these"""
    device: torch.device
    seed: int
    progress: bool

    @cached_property
    def inputs(self) -> Float[Tensor, "n c h w"]:
        """The images shown, as the encoder expects them."""
        return center(self.shown.get(self.shown.usable), self.encoder.preprocessing).to(self.device)

    @cached_property
    def pictures(self) -> UInt8[np.ndarray, "n h w 3"]:
        """The same with their own colours."""
        expects = self.encoder.preprocessing
        plain = replace(expects, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), frames=0)
        images = center(self.shown.get(self.shown.usable), plain).clamp(0, 1)
        return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()

    def tokens(self, *, attention: bool = False) -> Tokens:
        """Of the images shown."""
        with evaluation_mode(self.encoder), torch.no_grad():
            return self.encoder(self.inputs, attention=attention)

    def check_finite(self) -> None:
        """Raises ValueError when features of the images shown hold NaN or infinity."""
        tokens = self.tokens()
        parts = [part for part in (tokens.cls, tokens.patches.flatten(1)) if part is not None]
        bad = int((~torch.cat(parts, dim=1).isfinite().all(1)).sum())
        if bad:
            raise ValueError(
                f"the encoder gives NaN or infinite features for {bad} of the {len(self.keys)} images shown: its "
                "training diverged. Look into an earlier checkpoint, or train again with a lower optim.lr or with "
                "optim.clip."
            )

    @cached_property
    def labelled(self) -> Features | None:
        """Features of up to 1,000 labelled images; None where there are no labels, or all are alike."""
        if self.source.labels is None or len(self.source) < FEWEST:
            return None
        found = self.extracted(self.sample)
        assert found.labels is not None
        counts = torch.bincount(found.labels[found.labels >= 0])
        usable = found.labels.min() >= 0 and (counts > 0).sum() > 1 and counts[counts > 0].min() > 1
        return found if usable else None

    @cached_property
    def sample(self) -> CanvasSet:
        """Up to 1,000 images, evenly spaced."""
        return opened(self.source, self.encoder, PROBED, progress=self.progress)

    @cached_property
    def split(self) -> tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " b"]]:
        """Rows of `labelled` that the probe is fitted on, and the others."""
        assert self.labelled is not None and self.labelled.labels is not None
        return stratified_split(self.labelled.labels.numpy(), 0.2, self.seed)

    @cached_property
    def head(self) -> Head | None:
        """A linear probe of the last layer; None without labels."""
        if self.labelled is None or self.labelled.labels is None:
            return None
        (_, pooling), vectors = next(iter(self.labelled.vectors.items()))
        fitted = torch.from_numpy(self.split[0])
        names = self.source.classes or tuple(f"class {i}" for i in range(int(self.labelled.labels.max()) + 1))
        how: Pooling = "cls" if pooling == "cls" else "mean"
        return probe_head(vectors[fitted], self.labelled.labels[fitted], names, how, seed=self.seed)

    def target(self, place: int) -> tuple[Head, int]:
        """The output to explain for one of the images shown: its likeliest class, or its own features."""
        with evaluation_mode(self.encoder), torch.no_grad():
            if self.head is not None:
                logits = self.head.of(self.encoder, self.inputs[place : place + 1])
                return self.head, int(logits[0].argmax())
            tokens = self.encoder(self.inputs[place : place + 1])
            how: Pooling = "mean" if tokens.cls is None else "cls"
            return own_direction(tokens.pool(how)[0].cpu(), how), 0

    @cached_property
    def twin(self) -> Encoder | None:
        """The same network untrained, where it can be built anew."""
        try:
            everyone = self.shown.usable
            return untrained_twin(self.encoder, self.shown, everyone, seed=self.seed, device=self.device)
        except NoFreshWeights:
            return None

    def extracted(self, canvases: CanvasSet, encoder: Encoder | None = None) -> Features:
        """Features of the last layer, of this encoder or another."""
        who = self.encoder if encoder is None else encoder
        return extract(who, canvases, canvases.usable, device=self.device, progress=self.progress)

    def each(self) -> Iterator[tuple[int, str]]:
        """Place and key of every image shown."""
        yield from enumerate(self.keys)
