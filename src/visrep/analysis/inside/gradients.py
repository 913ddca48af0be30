"""Which pixels a number depends on: gradient saliency (arXiv:1312.6034) and FullGrad (arXiv:1905.00780).

FullGrad splits an output of a piecewise linear network without remainder:

    f(x) = <grad_x f, x> + sum over biases b of <grad_b f, b>

where a convolution's or linear layer's bias acts at every place of its output, and BatchNorm's is
beta - mean * gamma / deviation. Only this makes the map complete; networks with GELU, LayerNorm or softmax are not
piecewise linear, and `full_gradients` says by how much the two sides differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from visrep.analysis.inside.target import Head
from visrep.evaluation.features import evaluation_mode
from visrep.method import Encoder

COMPLETE = 1e-5
"""largest gap, as a share of the terms, of what counts as complete: rounding in 32 bits"""


def saliency(
    encoder: Encoder, head: Head, image: Float[Tensor, "c h w"], output: int
) -> Float[Tensor, "h w"]:
    """Largest absolute derivative of one output by a pixel's channels."""
    with evaluation_mode(encoder), torch.enable_grad():
        x = image[None].detach().requires_grad_()
        (gradient,) = torch.autograd.grad(head.of(encoder, x)[0, output], x)
    return gradient[0].abs().amax(0)


@dataclass(frozen=True, eq=False)
class FullGradients:
    """The terms of one output; their sum is the output where the network is piecewise linear."""

    output: float
    pixels: Float[Tensor, "c h w"]
    """gradient times input"""
    biases: list[Tensor]
    """ "k rows columns" of every layer with a bias: gradient times bias at each place; of tokens, one row of them"""
    constant: float
    """the head's own bias"""

    @property
    def sum(self) -> float:
        return float(self.pixels.sum() + sum(term.sum() for term in self.biases)) + self.constant

    @property
    def gap(self) -> float:
        """How far the sum is from the output, as a share of the terms' size."""
        size = self.pixels.abs().sum() + sum(term.abs().sum() for term in self.biases) + abs(self.constant)
        return abs(self.sum - self.output) / max(float(size), 1e-12)

    @property
    def complete(self) -> bool:
        return self.gap < COMPLETE

    def map(self) -> Float[Tensor, "h w"]:
        """One picture: absolute values, each channel scaled to [0, 1], at the image's size, added up; as published."""
        size = self.pixels.shape[1:]
        total = _scaled(self.pixels[None].abs().sum(1, keepdim=True))
        for term in self.biases:
            if min(term.shape[1:]) > 1:  # a layer without places says nothing about places
                large = F.interpolate(
                    _scaled(term.abs()[None]), size=size, mode="bilinear", align_corners=False
                )
                total = total + large.sum(1, keepdim=True)
        return total[0, 0]


def full_gradients(encoder: Encoder, head: Head, image: Float[Tensor, "c h w"], output: int) -> FullGradients:
    """The terms of one output of an image."""
    with evaluation_mode(encoder), torch.enable_grad(), _watched(encoder) as watched:
        x = image[None].detach().requires_grad_()
        value = head.of(encoder, x)[0, output]
        inputs = [x, *(added for added, _ in watched)]
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
    terms = []
    for gradient, (_, bias) in zip(gradients[1:], watched, strict=True):
        if gradient is None:  # a layer that the output does not depend on
            continue
        places = gradient[0] if gradient.ndim == 4 else gradient.reshape(-1, gradient.shape[-1]).T[:, None]
        terms.append((places * bias[:, None, None]).detach())
    return FullGradients(
        float(value.detach()), (gradients[0][0] * image).detach(), terms, float(head.bias[output])
    )


@contextmanager
def _watched(encoder: Encoder) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """For every layer with a bias, in order of use: zeros added to its output, whose gradient is the bias's, and it."""
    watched: list[tuple[Tensor, Tensor]] = []

    def hook(bias: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def adding(module: nn.Module, entering: tuple[Tensor, ...], out: Tensor) -> Tensor:
            added = torch.zeros_like(out, requires_grad=True)
            watched.append((added, bias))
            return out + added

        return adding

    hooks = []
    for module in encoder.modules():
        bias = _bias(module)
        if bias is not None:
            hooks.append(module.register_forward_hook(hook(bias.detach())))
    try:
        yield watched
    finally:
        for handle in hooks:
            handle.remove()


def _bias(module: nn.Module) -> Tensor | None:
    """What a layer adds, a number a channel; None where it adds nothing."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return module.bias
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
        assert module.running_var is not None
        deviation = (module.running_var + module.eps).sqrt()
        return module.bias - module.running_mean * module.weight / deviation
    return None


def _scaled(x: Float[Tensor, "1 k h w"]) -> Float[Tensor, "1 k h w"]:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - low) / (high - low).clamp_min(1e-12)
