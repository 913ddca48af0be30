"""One encoder before the dense protocols, beside its untrained twin and the colours of patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import torch

from visrep.config import to_json
from visrep.encoders.checks import NoFreshWeights
from visrep.evaluation.dense.exam import DenseSide, Exam
from visrep.evaluation.dense.intervals import few_videos
from visrep.evaluation.dense.patches import Patches, extract_patches, pixel_patches
from visrep.evaluation.dense.protocols import DENSE
from visrep.evaluation.dense.roles import Base, Roles
from visrep.evaluation.examples import Example, Strip, strips
from visrep.evaluation.feature_cache import FeatureStore
from visrep.evaluation.features import Features
from visrep.evaluation.fingerprint import digest_of
from visrep.evaluation.minutes import Judgement, Minutes
from visrep.evaluation.results import Inapplicable, Judged, Measure
from visrep.evaluation.timing import CLOCK, PASS
from visrep.evaluation.untrained import untrained_twin
from visrep.method import Encoder
from visrep.progress import tracked

Encode = Callable[[Base, int], Patches]
"""the patches of all images of a base, of one layer"""
ReadOut = Literal["tokens", "pyramid"]
"""patches of one layer, or of maps of several resolutions side by side (`visrep.encoders.pyramid`)"""


@dataclass(frozen=True)
class DenseSitting:
    """An evaluation by dense protocols while it is made."""

    roles: Roles
    protocols: tuple[str, ...]
    image: int
    """side in pixels of the squares that encoders see"""
    asked: int
    """the side that was asked for, 0 for none"""
    read_out: ReadOut
    """what the encoder gives of each patch"""
    layers: tuple[int, ...]
    """the last one first"""
    store: FeatureStore
    device: torch.device
    seed: int
    progress: bool
    minutes: Minutes
    """what was judged so far"""
    examples: dict[str, dict[str, list[Example]]] = field(default_factory=dict)
    """of the last layer, by protocol and who was judged"""

    def judge_encoder(self, encoder: Encoder) -> None:
        """Raises ValueError for patches that are not finite."""
        kept = self.store.folder is not None
        identity = {**_described(encoder), "weights": digest_of(encoder)} if kept else {}
        self._judge("trained", self._encoding("trained", identity, lambda: encoder), lambda: encoder)

    def judge_twin(self, encoder: Encoder) -> None:
        """The untrained twin, which is built only when its patches are not known. Cautions where there is none."""
        fits = any(DENSE[name].fits for name in self.protocols)
        role = self.roles.fitted if fits else self.roles.whole
        side = role.base.side

        @cache
        def twin() -> Encoder:
            return untrained_twin(encoder, side.canvases, role.rows, seed=self.seed, device=self.device)

        calibrated = f"{side.mark} {role.rows.tolist()}" if self.store.folder is not None else ""
        made = {"untrained": self.seed, "calibrated on": calibrated, "torch": torch.__version__}
        try:
            self._judge("untrained", self._encoding("untrained", {**_described(encoder), **made}, twin), twin)
        except NoFreshWeights as reason:
            self.minutes.note("untrained", str(reason))

    def judge_pixels(self, grid: tuple[int, int]) -> None:
        """Colours and places of patches on a grid, in the protocols that read tokens."""

        def encode(base: Base, layer: int) -> Patches:
            return pixel_patches(base.side.canvases, grid)

        self._judge("pixels", encode, None)

    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the last layer's patches, after the encoder was judged by tokens."""
        found = next((r for r in self.minutes.results if DENSE[r.protocol].reads == "tokens"), None)
        if found is None:
            return None
        rows, columns = str(found.settings["grid"]).split(" x ")
        return int(rows), int(columns)

    def warnings(self) -> list[str]:
        """Cautions with those that they are about, what was left out of the data, and what could not be read."""
        said = self.minutes.warnings()
        said += [self._few_videos(fits) for fits in (True, False)]
        for base in self.roles.bases:
            said += base.key.source.notes
            found = list(base.side.unreadable.values())
            if found:
                said.append(
                    f"{len(found)} of {len(base.side.source)} images could not be read and were left out, the first: "
                    f"{found[0]}"
                )
        return list(filter(None, said))

    def pictures(self) -> dict[str, list[Strip]]:
        """By protocol, some of the judged images with all that was said of them."""
        return {name: strips(self.examples[name]) for name in self.protocols if name in self.examples}

    def _few_videos(self, fits: bool) -> str:
        """A caution about the protocols that fit, or about the others; "" for enough videos, and for images."""
        role = self.roles.judged if fits else self.roles.whole
        groups = role.source.groups
        # a protocol of videos counts those that it can use
        names = [
            name for name in self.protocols if DENSE[name].fits == fits and "video" not in DENSE[name].needs
        ]
        if groups is None or not names:
            return ""
        return few_videos(names, len(np.unique(groups)))

    def _encoding(self, who: str, identity: Mapping[str, Any], network: Callable[[], Encoder]) -> Encode:
        """From disk, or by a pass of the network."""

        def encode(base: Base, layer: int) -> Patches:
            @CLOCK.timed(PASS)
            def passed(layers: tuple[int, ...], tokens: bool) -> Features:
                found = extract_patches(
                    network(),
                    base.side.canvases,
                    layer=layer,
                    size=self.image,
                    device=self.device,
                    progress=self.progress,
                )
                grid = torch.tensor([found.tokens.shape[1:3]], dtype=torch.float32)
                return Features({}, None, found.index, found.tokens.flatten(1, 2), {(layer, "grid"): grid})

            named = {**identity, "patches of": layer, "squashed to": self.image}
            found = self.store.get(who, named, base.side, (layer,), True, passed)
            assert found.tokens is not None
            rows, columns = map(int, found.parts[layer, "grid"][0])
            return Patches(found.tokens.unflatten(1, (rows, columns)), found.index)

        return encode

    def _judge(self, who: Judged, encode: Encode, network: Callable[[], Encoder] | None) -> None:
        encode = _remembering(encode)
        begun = len(self.minutes.results)
        jobs = self._jobs(network is not None)
        for name, layer in tracked(jobs, f"dense protocols, {who}", shown=self.progress):
            judge = partial(self._judgement, name, who, encode, network, layer)
            found = self.minutes.once(who, name, layer, judge)
            if found is not None and layer in (0, self.layers[0]):
                self.examples.setdefault(name, {})[who] = found.examples
        by_protocol = sorted(self.minutes.results[begun:], key=lambda r: self.protocols.index(r.protocol))
        self.minutes.results[begun:] = by_protocol

    def _jobs(self, network: bool) -> list[tuple[str, int]]:
        """Protocols with layers, layer by layer; pixels are layer 0, and what reads the network itself runs once."""
        return [
            (name, layer)
            for layer in (self.layers if network else (0,))
            for name in self.protocols
            if DENSE[name].reads == "tokens" or (network and layer == self.layers[0])
        ]

    def _judgement(
        self, name: str, who: Judged, encode: Encode, network: Callable[[], Encoder] | None, layer: int
    ) -> Judgement:
        with CLOCK.timed(name):
            measures = self._run(name, who, encode, network, layer)
        return Judgement(
            [measure.result(who, layer, self.read_out) for measure in measures],
            list(dict.fromkeys(measure.caution for measure in measures if measure.caution)),
            [example for measure in measures for example in measure.examples],
        )

    def _run(
        self, name: str, who: Judged, encode: Encode, network: Callable[[], Encoder] | None, layer: int
    ) -> list[Measure]:
        protocol, roles = DENSE[name], self.roles
        judged = roles.judged if protocol.fits else roles.whole
        test = judged.side(_finite(who, encode(judged.base, layer)))
        train = test.at(torch.zeros(0, dtype=torch.int64))
        if protocol.fits:
            train = roles.fitted.side(_finite(who, encode(roles.fitted.base, layer)))
            _check_enough(name, train, test)
        ready = network().to(self.device).eval() if network and protocol.reads == "network" else None
        how = (self.image, self.device, self.seed, self.progress, self.asked, roles.crossed and protocol.fits)
        exam = Exam(train, test, ready, layer, *how)
        grid = "{} x {}".format(*test.tokens.shape[1:3])
        return [
            replace(measure, settings={"grid": grid, **measure.settings}) for measure in protocol.run(exam)
        ]


def _remembering(encode: Encode) -> Encode:
    """The patches of one layer at a time, made once."""
    known: dict[tuple[int, int], Patches] = {}

    def once(base: Base, layer: int) -> Patches:
        key = id(base), layer
        if key not in known:
            for other in [other for other in known if other[1] != layer]:
                del known[other]
            known[key] = encode(base, layer)
        return known[key]

    return once


def _finite(who: str, patches: Patches) -> Patches:
    bad = int((~patches.tokens.isfinite().flatten(1).all(-1)).sum())
    if bad:
        raise ValueError(
            f"the {who} encoder gives NaN or infinite patches for {bad} of {len(patches.index)} images: its training "
            "diverged, or they are beyond 65,504, where the half precision ends in which patches are kept. Judge an "
            "earlier checkpoint, or train again with a lower optim.lr or with optim.clip."
        )
    return patches


def _check_enough(name: str, train: DenseSide, test: DenseSide) -> None:
    if not len(train) or not len(test):
        raise Inapplicable(
            f"{name} fits on some images and judges others, and {train.source.name} has a single image or video with "
            "masks. Give more, or test images beside it (--test)."
        )


def _described(encoder: Encoder) -> dict[str, Any]:
    return {"config": to_json(encoder.config), "preprocessing": to_json(encoder.preprocessing)}
