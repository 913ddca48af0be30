"""Settings of protocols do not change without their version: both are pinned here, side by side."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from visrep.evaluation.finetune import RECIPES
from visrep.evaluation.protocols import ORDER
from visrep.evaluation.versions import version_of

MADE_OF = {
    "linear": "linear holdout",
    "linear-dinov2": "linear_dinov2 probe_training holdout",
    "linear-dino": "linear_dino probe_training",
    "linear-mae": "linear_mae probe_training",
    "logreg": "logreg",
    "attentive": "attentive holdout",
    "attentive-aim": "attentive_aim probe_training holdout",
    "attentive-vjepa": "attentive_vjepa probe_training",
    "attentive-vjepa2": "attentive_vjepa2 attentive_vjepa probe_training holdout",
    "attentive-efficient": "attentive_efficient probe_training",
    "knn": "knn",
    "knn-loo": "knn",
    "knn:": "knn knn_fewlabels",
    "fewlabels": "fewlabels",
    "fewshot-ridge": "fewshot_ridge fewlabels",
    "episodes": "episodes",
    "retrieval": "retrieval",
    "retrieval-within": "retrieval",
    "clustering": "clustering",
    "copies": "copies",
    "corruptions": "robustness.corruptions robustness.corrupting robustness.base linear",
    "shifts": "robustness.shifts robustness.moves robustness.base linear",
    "backgrounds": "robustness.backgrounds robustness.swaps robustness.base linear",
    "ood-layers": "robustness.ood_layers robustness.corrupting robustness.swaps robustness.base linear",
    "segmentation": "dense.segmentation dense.heads dense.patches",
    "hummingbird": "dense.hummingbird dense.patches",
    "depth": "dense.depth dense.heads dense.patches",
    "attention-masks": "dense.attention_masks dense.patches",
    "discovery-lost": "dense.lost dense.discovery dense.boxes dense.keys dense.patches",
    "discovery-tokencut": "dense.tokencut dense.discovery dense.boxes dense.keys dense.patches",
    "propagation": "dense.propagation dense.videos dense.objects dense.boundaries dense.patches",
    "correspondence": "dense.correspondence dense.patches",
    "segmentation-dinov3": "dense.segmentation_dinov3 dense.segmentation_views dense.frozen probe_training",
    "depth-dinov3": "dense.depth_dinov3 dense.depth_views dense.depth dense.frozen probe_training",
    "discovery-lost@native": "dense.lost dense.discovery dense.boxes dense.keys",
    "discovery-tokencut@native": "dense.tokencut dense.discovery dense.boxes dense.keys",
    "propagation-dino": "dense.propagation_dino dense.propagation dense.videos dense.objects dense.boundaries",
    **dict.fromkeys(RECIPES, "finetune fitting mixing"),
    **dict.fromkeys((f"{name}:" for name in RECIPES), "finetune fitting mixing draws"),
}
"""the files that hold the settings of a protocol; a colon stands for those with few labels"""
ONLY_PACE = {
    "CHUNK", "MAX_HEADS", "JUDGED", "LARGEST", "MICRO", "chunk", "device", "progress", "seed", "hummingbird.QUERIES",
    "AHEAD",
    "copies.BATCH", "base.BATCH", "patches.BATCH",
}  # fmt: skip
"""how much is done at a time, which changes no number"""
PINNED: dict[str, tuple[int, str]] = {
    "linear": (1, "6009e1089d52"),
    "linear-dinov2": (1, "fa45a017a459"),
    "linear-dino": (1, "16776085184a"),
    "linear-mae": (1, "c2ef252712fe"),
    "logreg": (1, "0a78270e0c72"),
    "attentive": (2, "f8460a7112ff"),
    "attentive-aim": (1, "ecdfe5710a04"),
    "attentive-vjepa": (1, "99f2ebc48806"),
    "attentive-vjepa2": (1, "7ddf71c032b9"),
    "attentive-efficient": (1, "1d5f20e041b7"),
    "knn": (1, "cd1657b47456"),
    "knn-loo": (1, "cd1657b47456"),
    "knn:": (1, "e3600faf0376"),
    "fewlabels": (1, "7c09269beeec"),
    "fewshot-ridge": (1, "2e96008852bf"),
    "episodes": (1, "b65aa87eab19"),
    "retrieval": (1, "f417f87bee56"),
    "retrieval-within": (1, "f417f87bee56"),
    "clustering": (1, "93fc812ace31"),
    "copies": (1, "7dbd598a54f9"),
    "corruptions": (1, "7c65c6c14aa9"),
    "shifts": (2, "bc7a20cc990f"),
    "backgrounds": (1, "bd900ef5bbe6"),
    "ood-layers": (1, "8c06923d1760"),
    "segmentation": (1, "5b2582c8687a"),
    "hummingbird": (1, "a9c6bce64b9f"),
    "depth": (2, "a887e3a04638"),
    "attention-masks": (1, "159346974373"),
    "discovery-lost": (1, "b494d577f5da"),
    "discovery-tokencut": (1, "f7f504077342"),
    "propagation": (1, "8ff7304ce701"),
    "correspondence": (1, "07c16db31f39"),
    "segmentation-dinov3": (1, "7ebc11913f19"),
    "depth-dinov3": (1, "9b2b9d297a22"),
    "discovery-lost@native": (1, "f6fda3aa4e59"),
    "discovery-tokencut@native": (1, "5677babca0eb"),
    "propagation-dino": (1, "89f78c3ce694"),
    "finetune": (1, "eaee4b8535aa"),
    "finetune-motion": (1, "b466710c96ed"),
    "finetune-mae": (2, "9dc4f626f102"),
    "finetune-mae-large": (2, "e98c2d5ae22b"),
    "finetune:": (2, "8d59ac647055"),
    "finetune-motion:": (1, "bc099e1d459c"),
    "finetune-mae:": (2, "328020bfca38"),
    "finetune-mae-large:": (2, "7c29b98d58c6"),
}
"""version and hash of the constants of each"""


def constants(module: ModuleType) -> dict[str, Any]:
    """Names in capitals that the file defines, and defaults of its functions and classes."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    found: dict[str, Any] = {}
    for node in tree.body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        names = [target.id for target in targets if isinstance(target, ast.Name) and target.id.isupper()]
        found |= {name: vars(module)[name] for name in names}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for name, one in inspect.signature(vars(module)[node.name]).parameters.items():
                if one.default is not one.empty and name not in ONLY_PACE:
                    found[f"{node.name}.{name}"] = one.default
    short = module.__name__.rpartition(".")[2]
    return {
        f"{short}.{name}": plain(value)
        for name, value in found.items()
        if not {name, f"{short}.{name}"} & ONLY_PACE and value is not RECIPES
    }


def plain(value: Any) -> str:
    """The same text wherever it is written."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{plain(key)}: {plain(one)}' for key, one in value.items())}}}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(plain, value)))}}}"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(plain, value))})"
    if is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}{plain({one.name: vars(value)[one.name] for one in fields(value)})}"
    if isinstance(value, float):
        return f"{value:.10g}"  # powers may differ in the last digit from machine to machine
    if value is None or isinstance(value, bool | int | str | bytes):
        return repr(value)
    return value.__qualname__ if inspect.isfunction(value) else type(value).__name__


def settings_of(protocol: str) -> dict[str, str]:
    found = {}
    for name in MADE_OF[protocol].split():
        found |= constants(import_module(f"visrep.evaluation.{name}"))
    if (recipe := protocol.removesuffix(":")) in RECIPES:
        recipes = {name for name, value in found.items() if value.startswith("Recipe")}
        found = {name: value for name, value in found.items() if name not in recipes}
        found["recipe"] = plain(RECIPES[recipe])
    return found


def mark_of(protocol: str) -> str:
    return hashlib.sha256(plain(dict(sorted(settings_of(protocol).items()))).encode()).hexdigest()[:12]


def test_every_protocol_is_pinned() -> None:
    assert {name.removesuffix("@paper") for name in ORDER} <= set(MADE_OF) == set(PINNED)


@pytest.mark.parametrize("protocol", MADE_OF)
def test_settings_change_with_their_version_only(protocol: str) -> None:
    found = version_of(f"{protocol}1" if protocol.endswith(":") else protocol), mark_of(protocol)
    assert PINNED.get(protocol) == found, (
        f"the settings of {protocol} are not those pinned for its version. Where its numbers change, raise the version "
        f"in evaluation/versions.py and re-pin; where they do not, re-pin: {protocol!r}: {found}. Its settings are: "
        f"{settings_of(protocol)}"
    )


def test_a_changed_constant_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: mark_of(name) for name in MADE_OF}
    monkeypatch.setattr("visrep.evaluation.probe_training.LEAST_STEPS", 1000)
    monkeypatch.setattr("visrep.evaluation.retrieval.CHUNK", 1)  # only pace
    monkeypatch.setitem(RECIPES, "finetune-mae", replace(RECIPES["finetune-mae"], batch=512))
    changed = {name for name in MADE_OF if mark_of(name) != before[name]}
    by_schedule = {name for name, files in MADE_OF.items() if "probe_training" in files}
    assert changed == by_schedule | {"finetune-mae", "finetune-mae:"}
