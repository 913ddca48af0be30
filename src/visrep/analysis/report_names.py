"""Protocols and their results in words, as pages show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visrep.evaluation.results import TOP_1, variant

PROTOCOLS = {
    "knn": "kNN",
    "knn-loo": "kNN, leave one out",
    "linear": "linear probe",
    "linear-dino": "linear probe, DINO's",
    "linear-dinov2": "linear probe, DINOv2's",
    "linear-dinov2@paper": "linear probe, DINOv2's, chosen on test images",
    "linear-dino@paper": "linear probe, DINO's, best epoch on test images",
    "linear-mae": "linear probe, MAE's",
    "linear-mae@paper": "linear probe, MAE's, best epoch on test images",
    "logreg": "logistic regression, DINOv2's",
    "attentive": "attentive probe",
    "attentive-aim": "attentive probe, AIM's",
    "attentive-vjepa": "attentive probe, V-JEPA's",
    "attentive-vjepa2": "attentive probe, V-JEPA 2's",
    "attentive-vjepa2@paper": "attentive probe, V-JEPA 2's, chosen on test images",
    "attentive-efficient": "efficient probe",
    "attentive-efficient@paper": "efficient probe, best epoch on test images",
    "fewlabels": "few labels",
    "fewshot-ridge": "few-shot ridge regression, big_vision's",
    "episodes": "episodes of five classes",
    "clustering": "clustering",
    "retrieval": "retrieval from training images",
    "retrieval-within": "retrieval among test images",
    "copies": "copy detection",
    "corruptions": "corruptions",
    "shifts": "shifts, turns and scales",
    "backgrounds": "backgrounds and textures",
    "ood-layers": "layers out of distribution",
    "segmentation": "linear segmentation",
    "hummingbird": "in-context segmentation",
    "depth": "linear depth",
    "attention-masks": "attention as masks",
    "discovery-lost": "object discovery, LOST",
    "discovery-tokencut": "object discovery, TokenCut",
    "propagation": "video object propagation",
    "correspondence": "correspondence",
    "segmentation-dinov3": "linear segmentation as DINOv3",
    "depth-dinov3": "linear depth as DINOv3",
    "discovery-lost@native": "object discovery, LOST, own sizes",
    "discovery-tokencut@native": "object discovery, TokenCut, own sizes",
    "propagation-dino": "video object propagation as DINO",
    "finetune": "fine-tuned",
    "finetune-mae": "fine-tuned as MAE",
    "finetune-mae-large": "fine-tuned as MAE, large",
}


def title_of(name: str) -> str:
    """A protocol in words."""
    short, colon, labelled = name.partition(":")
    return PROTOCOLS.get(short, short) + (f", {labelled} labelled" if colon else "")


def protocol(result: Mapping[str, Any]) -> str:
    """What the table calls a result's protocol."""
    name = title_of(str(result["protocol"]))
    found = variant(result["settings"])
    name = f"{name} ({found[0]}={found[1]})" if found else name
    return name if result["metric"] == TOP_1 else f"{name}: {result['metric']}"
