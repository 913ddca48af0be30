"""A vision model of `transformers` as it is, behind the interface of our encoders."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from visrep.encoders.checks import check_images, check_layers, check_whole
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.hf_families import family
from visrep.encoders.wrapped import Wrapped
from visrep.method import Encoder, Preprocessing, Tokens


@dataclass(frozen=True)
class HfModel(Wrapped):
    """A vision model of `transformers`."""

    description: str
    """its configuration as JSON: the contents of ``config.json``"""

    def build(self) -> HfEncoder:
        """A network with fresh weights."""
        transformers = extra("transformers")
        values = json.loads(self.description)
        config = transformers.AutoConfig.for_model(**values)
        return HfEncoder(self, getattr(transformers, family(values["model_type"]).model)(config))


@final
class HfEncoder(Encoder):
    """See `HfModel`. Layers are blocks through the last norm, or stages as the model returns them."""

    def __init__(self, config: HfModel, model: nn.Module) -> None:
        super().__init__()
        self.config: HfModel = config
        self.model = model
        self.values: dict[str, Any] = json.loads(config.description)
        values = self.values
        self.family = family(values["model_type"])
        patch = values.get("patch_size", 4)
        self.patch = patch if isinstance(patch, int) else patch[0]
        self.frames: int = values.get("num_frames", values.get("frames_per_clip", 0))
        self.size = size_of(values)
        if self.family.maps:
            self.depth = len(values["depths"])
            self.stride = self.patch * 2 ** (self.depth - 1)
            sizes = values.get("hidden_sizes")
            self.width = sizes[-1] if sizes else values["embed_dim"] * 2 ** (self.depth - 1)
        else:
            self.depth, self.stride, self.width = (
                values["num_hidden_layers"],
                self.patch,
                values["hidden_size"],
            )
        self.preprocessing = Preprocessing(self.size, ratio=1.0, frames=self.frames)
        if values["model_type"] == "vit_mae":
            model.config.mask_ratio = 0.0  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        """Encode images; see `Encoder.forward`. Raises ValueError for keep, mask and attention.

        And for images of another size than the table of an AIMv2's positions.
        """
        check_whole(f"wrapped {self.family.model}", keep, mask, attention)
        check_layers(layers, self.depth)
        if not self.frames:
            check_images(images, self.values.get("num_channels", 3))
        out = self.model(**self._inputs(images), output_hidden_states=True)
        if self.family.maps:
            stages = [self._map(out, number) for number in range(1, self.depth + 1)]
        else:
            norm = dict(self.model.named_modules()).get(self.family.norm, nn.Identity())  # or it has none
            stages = [self._split(norm(x), images) for x in out.hidden_states[1 : self.depth + 1]]
        return replace(stages[-1], layers=tuple(stages[layer - 1] for layer in layers))

    def _inputs(self, images: Tensor) -> dict[str, Any]:
        kind = self.values["model_type"]
        if kind.startswith("siglip2"):  # patches and their grid instead of images
            b, _, height, width = images.shape
            grid, p = (height // self.patch, width // self.patch), self.patch
            cells = images.unfold(2, p, p).unfold(3, p, p)  # b c rows columns p p
            patches = cells.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)  # b n (p p c)
            return {
                "pixel_values": patches,
                "pixel_attention_mask": torch.ones(
                    b, math.prod(grid), dtype=torch.long, device=images.device
                ),
                "spatial_shapes": torch.tensor([grid] * b, device=images.device),
            }
        if kind.startswith("aimv2") and not self.values["is_native"]:
            check_table_size(images, self.size)
        more: dict[str, Any] = {"interpolate_pos_encoding": True} if self.family.resizes else {}
        if kind == "vjepa2":
            more["skip_predictor"] = True
        if kind == "vit_mae":  # it would drop patches at random and shuffle the others
            n = math.prod(side // self.patch for side in images.shape[-2:])
            more["noise"] = torch.arange(n, device=images.device).expand(len(images), -1)
        return {self.family.pixels: images, **more}

    def _split(self, x: Tensor, images: Tensor) -> Tokens:
        """All tokens "b n d", by kind."""
        grid = tuple(side // self.patch for side in images.shape[-2:])
        if self.frames:
            grid = (images.shape[1] // self.values["tubelet_size"], *grid)
        cls = int(self.family.cls)
        registers = self.values.get("num_register_tokens", 0)
        front, more, patches = x.split_with_sizes([cls, registers, x.shape[1] - cls - registers], dim=1)
        return Tokens(patches, grid, front[:, 0] if cls else None, more if registers else None)

    def _map(self, out: Any, number: int) -> Tokens:
        """A stage's map as tokens, row by row."""
        maps = out["reshaped_hidden_states"] if "reshaped_hidden_states" in out else out.hidden_states
        x = maps[len(maps) - 1 - self.depth + number]
        tokens = Tokens(x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]))
        last = out.last_hidden_state
        if number < self.depth:
            return tokens
        if last.ndim == 4:
            return replace(tokens, patches=last.flatten(2).transpose(1, 2))
        cls = last.shape[1] - tokens.patches.shape[1]  # DINOv3's ConvNeXt puts the mean of all patches first
        return replace(tokens, patches=last[:, cls:], cls=last[:, 0] if cls else None)


def size_of(values: dict[str, Any]) -> int:
    """Side of the images that a configuration of `transformers` is made for."""
    size = values.get("image_size", values.get("crop_size", 224))
    if "num_patches" in values:  # SigLIP 2, whose images may have any shape
        size = math.isqrt(values["num_patches"]) * values["patch_size"]
    return size if isinstance(size, int) else size[0]


def check_table_size(images: Tensor, size: int) -> None:
    """Raises ValueError for images of another size than a table of positions that is not resampled."""
    height, width = images.shape[-2:]
    if (height, width) != (size, size):
        raise ValueError(
            f"This AIMv2's positions are a table: it takes images of {size} x {size}, got {height} x {width}. "
            "Only its native models take other sizes."
        )
