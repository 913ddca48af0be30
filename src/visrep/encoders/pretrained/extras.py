"""Packages of extras, and what they need to be imported."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

PACKAGES = {
    "timm": "timm",
    "transformers": "hf",
    "huggingface_hub": "hf",
    "open_clip": "open_clip",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "imagecorruptions": "corruptions",
    "mteb": "mteb",
    "datasets": "mteb",
}
"""the extra that installs each"""
OPERATORS = (
    "torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
"""the compiled operators that torchvision's Python code mentions when it is imported"""


def extra(package: str) -> ModuleType:
    """The module of an optional package. Raises ImportError that names the extra to install."""
    tolerate_torchvision()
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'this needs {package}: pip install "visrep[{PACKAGES[package.partition(".")[0]]}]" ({error})'
        ) from error


def tolerate_torchvision() -> None:
    """Make a torchvision that was built for another torch importable; timm and transformers import all of it.

    They use its Python code only. Where the compiled part does not load, the names of its two operators are declared:
    whoever called one of them would get torch's error that it has no kernel.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return  # not installed: timm says so itself, transformers can do without
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for operator in OPERATORS:
            name, _, arguments = operator.partition("(")
            torch.library.define(name, "(" + arguments)
