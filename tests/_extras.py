"""Packages of extras in tests: a missing one skips the tests of its file and says which extra it is."""

from __future__ import annotations

import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from visrep.encoders.pretrained.extras import extra
from visrep.method import Encoder, Tokens


def needs(package: str) -> ModuleType:
    """The module, imported without its own warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return extra(package)
    except ImportError as error:
        pytest.skip(str(error), allow_module_level=True)


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """The model with nothing left at zero or one, so that every weight shows in the outputs."""
    rng = torch.Generator().manual_seed(0)
    for name, x in model.state_dict().items():
        if not x.is_floating_point():
            continue
        noise = 0.1 * torch.randn(x.shape, generator=rng)
        if name.endswith("running_var"):
            noise = noise.abs()
        x.copy_(noise + (x.ndim == 1 and name.endswith(("weight", "running_var", "gamma", "lambda1"))))
    return model.eval()


def every(tokens: Tokens) -> list[Tensor]:
    """All tokens of the last layer and of those asked for, a tensor "b n d" a layer."""
    return [joined(part) for part in (tokens, *tokens.layers)]


def joined(tokens: Tokens) -> Tensor:
    """All tokens in the usual order: cls, registers, patches."""
    front = [] if tokens.cls is None else [tokens.cls.unsqueeze(1)]
    front += [] if tokens.registers is None else [tokens.registers]
    return torch.cat([*front, tokens.patches], dim=1)


@torch.no_grad()
def largest_error(ours: Encoder, theirs: Encoder, *shape: int) -> float:
    """Greatest difference of any token of any layer of ours, on random images or clips."""
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    more = theirs.depth - ours.depth
    layers = tuple(range(1, ours.depth + 1))
    expected = every(theirs(images, layers=tuple(layer + more for layer in layers)))
    found = every(ours(images, layers=layers))
    assert [x.shape for x in found] == [x.shape for x in expected]
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
