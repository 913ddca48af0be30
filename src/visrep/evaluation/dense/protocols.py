"""The dense protocols by name, with what each of them needs to know of images. A protocol is entered here and nowhere
else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from visrep.data.dense import DenseSource, Kind
from visrep.evaluation.dense.attention_masks import attention_masks, check_looks
from visrep.evaluation.dense.correspondence import correspondence
from visrep.evaluation.dense.depth import depth
from visrep.evaluation.dense.depth_dinov3 import depth_dinov3
from visrep.evaluation.dense.discovery import (
    discovery_lost,
    discovery_lost_native,
    discovery_tokencut,
    discovery_tokencut_native,
)
from visrep.evaluation.dense.exam import Exam
from visrep.evaluation.dense.hummingbird import hummingbird
from visrep.evaluation.dense.native import check_any_shape
from visrep.evaluation.dense.propagation_dino import propagation_dino
from visrep.evaluation.dense.segmentation import segmentation
from visrep.evaluation.dense.segmentation_dinov3 import segmentation_dinov3
from visrep.evaluation.dense.videos import propagation
from visrep.evaluation.results import Measure
from visrep.method import Encoder


def any_encoder(encoder: Encoder) -> None:
    """Nothing is asked of it."""


@dataclass(frozen=True)
class DenseProtocol:
    """How a protocol is run and on what."""

    run: Callable[[Exam], list[Measure]]
    """the first number stands for the protocol"""
    needs: frozenset[Kind]
    """all of these answers"""
    fits: bool
    """whether it learns from training images; else it is judged on all images where the data has no test part"""
    reads: Literal["tokens", "network"]
    """patch tokens of a layer, for which raw pixels can stand in; or the network itself, once"""
    check: Callable[[Encoder], None] = any_encoder
    """raises Inapplicable for an encoder that it cannot judge, before anything is computed"""


DENSE: dict[str, DenseProtocol] = {
    "segmentation": DenseProtocol(segmentation, frozenset({"classes"}), fits=True, reads="tokens"),
    "hummingbird": DenseProtocol(hummingbird, frozenset({"classes"}), fits=True, reads="tokens"),
    "depth": DenseProtocol(depth, frozenset({"depth"}), fits=True, reads="tokens"),
    "attention-masks": DenseProtocol(
        attention_masks, frozenset({"classes"}), fits=False, reads="network", check=check_looks
    ),
    "discovery-lost": DenseProtocol(discovery_lost, frozenset({"classes"}), fits=False, reads="network"),
    "discovery-tokencut": DenseProtocol(
        discovery_tokencut, frozenset({"classes"}), fits=False, reads="network"
    ),
    "propagation": DenseProtocol(propagation, frozenset({"instances", "video"}), fits=False, reads="tokens"),
    "correspondence": DenseProtocol(correspondence, frozenset(), fits=False, reads="network"),
    "segmentation-dinov3": DenseProtocol(
        segmentation_dinov3, frozenset({"classes"}), fits=True, reads="network"
    ),
    "depth-dinov3": DenseProtocol(depth_dinov3, frozenset({"depth"}), fits=True, reads="network"),
    "discovery-lost@native": DenseProtocol(
        discovery_lost_native, frozenset({"classes"}), fits=False, reads="network", check=check_any_shape
    ),
    "discovery-tokencut@native": DenseProtocol(
        discovery_tokencut_native, frozenset({"classes"}), fits=False, reads="network", check=check_any_shape
    ),
    "propagation-dino": DenseProtocol(
        propagation_dino,
        frozenset({"instances", "video"}),
        fits=False,
        reads="network",
        check=check_any_shape,
    ),
}
OWN_SHAPE = frozenset({"discovery-lost@native", "discovery-tokencut@native", "propagation-dino"})
"""see images at their own size or one that follows from it, whatever side is asked for"""
AS_PUBLISHED = OWN_SHAPE | {"segmentation-dinov3", "depth-dinov3"}
"""others of these with the published settings and shapes of images: asked for by name, no part of "all" """


def lacking(name: str, source: DenseSource) -> str:
    """What a protocol needs and the data does not have, in words; "" when nothing is missing."""
    needed = {
        "classes": "masks of classes",
        "instances": "masks of objects",
        "depth": "depth",
        "video": "videos",
    }
    return " and ".join(needed[kind] for kind in sorted(DENSE[name].needs - source.knows))
