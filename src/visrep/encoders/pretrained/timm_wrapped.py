"""A model of timm as it is, behind the interface of our encoders."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from visrep.encoders.checks import check_images, check_layers, check_whole
from visrep.method import Encoder, Preprocessing, Tokens


@final
class TimmEncoder(Encoder):
    """A model of timm. Layers are its blocks or stages; the last is what the model itself returns."""

    def __init__(self, config: Any, model: nn.Module) -> None:
        super().__init__()
        own: Any = model
        if "forward_intermediates" not in dir(own):
            raise ValueError(
                f"timm's {type(own).__name__} has no forward_intermediates, which is needed here."
            )
        self.config = config
        # as convolutional networks want it on CPUs and tensor cores; the few 4-D weights of others do not mind
        for weight in (parameter for parameter in model.parameters() if parameter.ndim == 4):
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        self.model = model
        self.width, self.depth = own.num_features, len(own.feature_info)
        self.stride = own.feature_info[-1]["reduction"]
        self.preprocessing = Preprocessing(224)
        self.has_cls = any(name == "cls_token" for name, _ in model.named_parameters())
        known = inspect.signature(own.forward_intermediates).parameters
        self.options = {"return_prefix_tokens": True} if "return_prefix_tokens" in known else {}

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode images; see `Encoder.forward`. Raises ValueError for keep, mask and attention."""
        check_whole(f"wrapped {type(self.model).__name__}", keep, mask, attention)
        check_images(images, 3)
        check_layers(layers, self.depth)
        indices = sorted({*layers, self.depth})
        own: Any = self.model
        last, states = own.forward_intermediates(
            images.contiguous(memory_format=torch.channels_last),
            indices=[layer - 1 for layer in indices],
            norm=True,
            output_fmt="NCHW",
            **self.options,
        )
        found = {layer: self._tokens(state) for layer, state in zip(indices, states, strict=True)}
        found[self.depth] = self._last(last, found[self.depth])
        return replace(found[self.depth], layers=tuple(found[layer] for layer in layers))

    def _tokens(self, state: Tensor | tuple[Tensor, Tensor]) -> Tokens:
        """A map "b d rows columns", perhaps with the tokens before those of the patches."""
        x, front = state if isinstance(state, tuple) else (state, None)
        tokens = Tokens(x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))
        return tokens if front is None else self._with_front(tokens, front)

    def _last(self, x: Tensor, like: Tokens) -> Tokens:
        """What the model returned, a map of either layout or tokens, for the same grid."""
        n = like.patches.shape[1]
        if x.ndim == 3:
            tokens = replace(like, patches=x[:, x.shape[1] - n :])
            return self._with_front(tokens, x[:, : x.shape[1] - n])
        if tuple(x.shape[1:3]) == like.grid and x.shape[-1] == self.width:
            return replace(like, patches=x.flatten(1, 2))
        return Tokens(x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))

    def _with_front(self, tokens: Tokens, front: Tensor) -> Tokens:
        registers = front[:, int(self.has_cls) :]
        return replace(
            tokens,
            cls=front[:, 0] if self.has_cls else None,
            registers=registers if registers.shape[1] else None,
        )
