"""No option of an evaluation is ignored without a word."""

from __future__ import annotations

from typing import Any

import pytest

from visrep.data.dense_playground import DensePlayground
from visrep.data.playground import Playground
from visrep.encoders import ViT
from visrep.evaluation.evaluate import evaluate
from visrep.evaluation.options import check_read
from visrep.evaluation.protocols import ORDER


@pytest.mark.parametrize(
    ("protocols", "given", "message"),
    [
        (
            ("correspondence", "discovery-tokencut"),
            {"layers": (2,)},
            r"layers .*correspondence, discovery-tok.*knn",
        ),
        (
            ("hummingbird",),
            {"poolings": ("last-4",)},
            "poolings was asked for, and hummingbird would ignore it",
        ),
        (
            ("finetune", "linear-dino"),
            {"layers": "all"},
            "layers was asked for, and finetune, linear-dino would",
        ),
        (("knn",), {"size": 99}, "size was asked for, and knn would ignore it.*segmentation"),
        (("knn",), {"read_out": "pyramid"}, "read_out='pyramid' was asked for, and knn"),
    ],
)
def test_what_nobody_reads_is_refused(
    protocols: tuple[str, ...], given: dict[str, Any], message: str
) -> None:
    encoder = ViT(image=16, patch=4, width=16, depth=2, heads=2).build()
    source = Playground(10, size=16) if "knn" in protocols else DensePlayground(4, size=16)
    with pytest.raises(ValueError, match=message):
        evaluate(encoder, source, protocols=protocols, **given)


def test_who_does_not_read_it_is_named() -> None:
    given = {"layers": True, "poolings": True, "size": True, "pyramid": False}
    assert check_read(("knn", "attentive", "segmentation", "correspondence"), **given) == [
        "layers is not read by: correspondence.",
        "poolings is not read by: attentive, segmentation, correspondence.",
    ]
    assert check_read(ORDER[:1], layers=False, poolings=False, size=False, pyramid=False) == []
