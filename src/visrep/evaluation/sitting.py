"""One encoder before its judges: its features, those of its untrained twin and raw pixels, through all protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from visrep.config import to_json
from visrep.encoders.checks import NoFreshWeights
from visrep.evaluation.attentive_aim import LAYERS
from visrep.evaluation.feature_cache import FeatureStore, Side
from visrep.evaluation.features import Features, extract, pixel_features
from visrep.evaluation.fingerprint import digest_of
from visrep.evaluation.fitting import Images
from visrep.evaluation.judging import check_finite, judge, judge_copies, judge_tuned
from visrep.evaluation.labels import check_classes
from visrep.evaluation.minutes import Judgement, Minutes
from visrep.evaluation.poolings import assemble, last_layers
from visrep.evaluation.protocols import (
    COPIES,
    least_images,
    needs_images,
    reads_mean_tokens,
    reads_tokens,
    tunes,
)
from visrep.evaluation.results import Inapplicable, Judged, Result
from visrep.evaluation.robustness.base import Subjects
from visrep.evaluation.robustness.registry import judge_robust
from visrep.evaluation.timing import CLOCK, PASS
from visrep.evaluation.untrained import untrained_twin
from visrep.method import Encoder


@dataclass(frozen=True)
class Asked:
    """Which features the protocols read."""

    depth: int
    layers: tuple[int, ...]
    """to judge besides the last one"""
    poolings: tuple[str, ...]
    extracted: tuple[int, ...]
    """layers that the encoder is asked for: also those that protocols put together"""
    tokens: bool


@dataclass(frozen=True)
class Sitting:
    """An evaluation while it is made."""

    sides: tuple[Side, Side]
    """images to fit on and to judge"""
    protocols: tuple[str, ...]
    asked: Asked
    store: FeatureStore
    device: torch.device
    seed: int
    progress: bool
    minutes: Minutes
    """what was judged so far"""

    def judge_encoder(self, encoder: Encoder) -> list[int]:
        """How many images could be read on each side. Raises ValueError when a class has none left."""
        kept = self.store.folder is not None
        identity = {**_described(encoder), "weights": digest_of(encoder)} if kept else {}
        features = self._features("trained", identity, lambda: encoder)
        if features[0].labels is not None:  # again: unreadable images may have emptied a class
            check_classes(self.sides[0].source, features[0].labels.numpy(), least_images(self.protocols))
        counts = [len(part) for part in features]
        self._judge("trained", features, lambda: encoder)
        del features  # tokens of one layer are in memory at a time
        self._judge_tokens("trained", identity, lambda: encoder)
        return counts

    def judge_twin(self, encoder: Encoder) -> None:
        """The untrained twin, which is built only when its features are not known. Cautions where there is none."""
        train = self.sides[0]

        @cache
        def twin() -> Encoder:
            everyone = np.arange(len(train.source))
            return untrained_twin(encoder, train.canvases, everyone, seed=self.seed, device=self.device)

        calibrated = train.mark if self.store.folder is not None else ""
        made = {"untrained": self.seed, "calibrated on": calibrated, "torch": torch.__version__}
        identity = {**_described(encoder), **made}
        try:
            self._judge("untrained", self._features("untrained", identity, twin), twin)
            self._judge_tokens("untrained", identity, twin)
        except NoFreshWeights as reason:
            self.minutes.note("untrained", str(reason))

    def judge_pixels(self) -> None:
        """Raw pixels, in the protocols that read one vector an image."""

        def of(side: Side) -> Features:
            def passed(layers: tuple[int, ...], tokens: bool) -> Features:
                found = pixel_features(side.canvases, np.arange(len(side.source)))
                return replace(found, parts=found.vectors)

            found = self.store.get("pixels", {"pixels": 32}, side, (0,), False, passed)
            return replace(found, vectors=found.parts)

        self._judge("pixels", [of(side) for side in self.sides], None)

    def warnings(self) -> list[str]:
        """Cautions with those that they are about, and how many images could not be read."""
        said = self.minutes.warnings()
        found = [reason for side in self.sides for reason in side.unreadable.values()]
        if found:
            n = sum(len(side.source) for side in self.sides)
            said.append(
                f"{len(found)} of {n} images could not be read and were left out, the first: {found[0]}"
            )
        return said

    def _features(
        self, who: str, identity: Mapping[str, Any], network: Callable[[], Encoder]
    ) -> list[Features]:
        """On both sides, from disk or by a pass of the network."""
        asked = self.asked

        def of(side: Side) -> Features:
            def passed(layers: tuple[int, ...], tokens: bool) -> Features:
                return self._passed(network(), side, layers, tokens)

            found = self.store.get(who, identity, side, asked.extracted, asked.tokens, passed)
            return replace(found, vectors=assemble(found.parts, asked.layers, asked.poolings, asked.depth))

        return [of(side) for side in self.sides]

    def _token_features(
        self, who: str, identity: Mapping[str, Any], network: Callable[[], Encoder], layers: tuple[int, ...]
    ) -> list[Features]:
        """Patch tokens of a layer other than the last, or the mean over several, and vectors of the last of them.

        On both sides. Raises Inapplicable where these layers have no mean.
        """
        mark = layers[0] if len(layers) == 1 else layers

        def of(side: Side) -> Features:
            def passed(asked: tuple[int, ...], tokens: bool) -> Features:
                return self._passed(network(), side, asked, tokens, layers)

            found = self.store.get(who, {**identity, "tokens of": mark}, side, layers, True, passed)
            last = {key: part for key, part in found.parts.items() if key[0] == layers[-1]}
            return replace(found, vectors=last)

        return [of(side) for side in self.sides]

    @CLOCK.timed(PASS)
    def _passed(
        self,
        encoder: Encoder,
        side: Side,
        layers: tuple[int, ...],
        tokens: bool,
        tokens_of: tuple[int, ...] = (),
    ) -> Features:
        """A pass over the images of one side."""
        found = extract(
            encoder,
            side.canvases,
            np.arange(len(side.source)),
            layers=layers,
            poolings=("auto", "mean"),
            tokens=tokens,
            tokens_of=tokens_of,
            device=self.device,
            progress=self.progress,
        )
        return replace(found, parts=found.vectors)

    def _judge(self, who: Judged, features: list[Features], network: Callable[[], Encoder] | None) -> None:
        """Through the protocols, but those that read several layers' tokens; without a network, those of features."""
        train, test = features
        check_finite(who, train, test)
        protocols = [name for name in self.protocols if not reads_mean_tokens(name)]
        for name in protocols:
            if not needs_images(name):
                self._once(who, name, lambda name=name: judge(who, train, test, (name,), **self._how))
        if network is None or not any(map(needs_images, protocols)):
            return
        fitted, judged = (
            Images.of(side.canvases, part) for side, part in zip(self.sides, features, strict=True)
        )
        subjects = Subjects(network(), train, fitted, test, judged, **self._how)
        for name in filter(needs_images, protocols):
            self._once(who, name, lambda name=name: self._judge_images(who, name, subjects))

    def _judge_images(self, who: Judged, name: str, subjects: Subjects) -> tuple[list[Result], list[str]]:
        """Of a protocol that encodes other images than those that there are, or trains the encoder."""
        encoder, fitted, judged = subjects.encoder, subjects.fitted, subjects.test
        if tunes(name):
            return judge_tuned(who, encoder, fitted, judged, name, **self._how)
        if name == COPIES:
            return judge_copies(who, encoder, judged, subjects.vectors, **self._how), []
        return judge_robust(who, subjects, name)

    def _judge_tokens(self, who: Judged, identity: Mapping[str, Any], network: Callable[[], Encoder]) -> None:
        """The other layers that were asked for, and the mean of the last ones, in the protocols that read tokens."""
        of_layers = tuple(filter(reads_tokens, self.protocols))
        of_mean = tuple(filter(reads_mean_tokens, self.protocols))
        for layer in sorted({*self.asked.layers} - {self.asked.depth}) if of_layers else ():
            self._judge_layers(who, identity, network, (layer,), of_layers)
        if of_mean:
            averaged = last_layers(self.asked.depth, LAYERS)
            self._judge_layers(who, identity, network, averaged, of_mean)

    def _judge_layers(
        self,
        who: Judged,
        identity: Mapping[str, Any],
        network: Callable[[], Encoder],
        layers: tuple[int, ...],
        protocols: tuple[str, ...],
    ) -> None:
        """The tokens of a layer, or their mean over several, which are in memory only here.

        They are made when a protocol asks for them; where there is no such mean it does not apply.
        """

        @cache
        def sides() -> tuple[Features, Features]:
            train, test = self._token_features(who, identity, network, layers)
            check_finite(who, train, test)
            return train, test

        def job(name: str) -> tuple[list[Result], list[str]]:
            try:
                train, test = sides()
            except Inapplicable as reason:
                raise Inapplicable(
                    f"{name} cannot read this encoder: {reason} Use attentive, which reads the last layer alone."
                ) from reason
            return judge(who, train, test, (name,), **self._how)

        for name in protocols:
            self._once(who, name, lambda name=name: job(name), layers)

    @property
    def _how(self) -> dict[str, Any]:
        return {"device": self.device, "seed": self.seed, "progress": self.progress}

    def _once(
        self,
        who: Judged,
        name: str,
        job: Callable[[], tuple[list[Result], list[str]]],
        layers: tuple[int, ...] = (),
    ) -> None:
        """``layers``: whose tokens are read, other than the last one's alone."""
        place = {"layers": self.asked.layers, "poolings": self.asked.poolings, "tokens of": layers}
        self.minutes.once(who, name, place, lambda: Judgement(*job()))


def _described(encoder: Encoder) -> dict[str, Any]:
    return {"config": to_json(encoder.config), "preprocessing": to_json(encoder.preprocessing)}
