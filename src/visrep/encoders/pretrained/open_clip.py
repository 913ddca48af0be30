"""Image towers of open_clip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn

from visrep.encoders.checks import check_images, check_layers, check_whole
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.hub import reached
from visrep.encoders.pretrained.timm import RANDOM
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder
from visrep.encoders.pretrained.unreadable import check_beginning, of_torch
from visrep.encoders.wrapped import Wrapped
from visrep.method import Encoder, Preprocessing, Tokens


@dataclass(frozen=True)
class OpenClipModel(Wrapped):
    """An image tower of open_clip, by the name of the whole model there."""

    name: str

    def build(self) -> Encoder:
        """A network with fresh weights."""
        return wrap(self, extra("open_clip").create_model(self.name, load_weights=False).visual)


def load(name: str) -> Encoder:
    """The image tower ``NAME@TAG`` or ``NAME@FILE``; ``NAME@random`` has fresh weights.

    Raises ImportError without the extra, ConnectionError when the weights cannot be downloaded, ValueError for names
    and tags that there are not, for files that cannot be read or are of another model, and where neither is given.
    """
    open_clip = extra("open_clip")
    name, _, weights = name.partition("@")
    if name not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {name!r}. See open_clip.list_models().")
    config = OpenClipModel(name)
    if weights == RANDOM:
        return config.build()
    if not weights:
        raise ValueError(
            f"open_clip:{name} does not say which weights. Give open_clip:{name}@TAG, @FILE, or @{RANDOM} for none. "
            f"Tags of {name}: {_tags(name)}."
        )
    if Path(weights).is_file():
        return wrap(config, _filled(name, Path(weights)).visual)
    with reached() as silence:
        return wrap(config, _created(name, weights, silence).visual)


def _filled(name: str, file: Path) -> Any:
    """open_clip's whole model with the weights in a file. See `load` for what is raised."""
    check_beginning(file)
    try:
        return extra("open_clip").create_model(name, pretrained=str(file))
    except ImportError:
        raise  # of a package that the tower needs
    except Exception as error:  # a file of another kind is read as any opcodes, which fail in any way
        if "state_dict" not in str(error):
            raise of_torch(file, error) from error
        raise ValueError(
            f"{file} does not fit open_clip:{name}: {_beginning(error)} Give the model that these weights are of, with "
            "the same patches and size (open_clip.list_models()), or fetch the file again."
        ) from error


def _beginning(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _created(name: str, weights: str, silence: str) -> Any:
    """open_clip's whole model; ``silence``: why the hub does not answer. See `load` for what is raised."""
    try:
        return extra("open_clip").create_model(name, pretrained=weights)
    except (OSError, RuntimeError) as error:
        reason = _beginning(error)
        if isinstance(error, OSError) or "download" in reason:
            raise ConnectionError(
                f"the weights {weights} of open_clip:{name} cannot be had ({silence or reason}). Without a network, "
                f"fetch {_file_of(name, weights)} and give open_clip:{name}@FILE."
            ) from error
        raise ValueError(f"open_clip:{name}@{weights}: {reason} Tags of {name}: {_tags(name)}.") from error


def _tags(name: str) -> str:
    return ", ".join(extra("open_clip").list_pretrained_tags_by_model(name)) or "none"


def _file_of(name: str, tag: str) -> str:
    """Which file holds the weights, and where it is."""
    said = extra("open_clip").get_pretrained_cfg(name, tag)
    if not said.get("hf_hub"):
        return said.get("url") or "their file"
    repository, _, file = said["hf_hub"].rpartition("/")
    return f"{file or 'open_clip_model.safetensors'} from https://huggingface.co/{repository}/tree/main"


def wrap(config: OpenClipModel, visual: nn.Module) -> Encoder:
    """The tower behind the interface of our encoders, in evaluation mode; one of timm as `TimmEncoder`."""
    own: Any = visual
    encoder = (
        TimmEncoder(config, own.trunk)
        if "trunk" in dict(visual.named_children())
        else OpenClipEncoder(config, visual)
    )
    said = own.preprocess_cfg
    size = said["size"] if isinstance(said["size"], int) else min(said["size"])
    encoder.preprocessing = Preprocessing(
        size,
        ratio=1.0,
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
        interpolation="bilinear" if said.get("interpolation") == "bilinear" else "bicubic",
        squash=said.get("resize_mode") == "squash",
    )
    return encoder.eval()


@final
class OpenClipEncoder(Encoder):
    """A vision transformer or ResNet of open_clip. Layers are blocks through the last norm, or stages."""

    def __init__(self, config: OpenClipModel, visual: nn.Module) -> None:
        super().__init__()
        own: Any = visual
        self.config: OpenClipModel = config
        self.visual = visual
        self.tokens = "transformer" in dict(visual.named_children())
        if self.tokens:
            self.width, self.depth = own.transformer.width, own.transformer.layers
            self.stride = own.patch_size[0]
        else:
            self.width, self.depth, self.stride = own.attnpool.k_proj.in_features, 5, 32
        self.preprocessing = Preprocessing(224)

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
        check_whole(f"wrapped {type(self.visual).__name__}", keep, mask, attention)
        check_images(images, 3)
        check_layers(layers, self.depth)
        own: Any = self.visual
        indices = sorted({*layers, self.depth})
        out = own.forward_intermediates(
            images,
            indices=[layer - 1 for layer in indices],
            normalize_intermediates=True,
            intermediates_only=True,
            output_extra_tokens=True,
        )
        front = out.get("image_intermediates_prefix", [None] * len(indices))
        states = zip(indices, out["image_intermediates"], front, strict=True)
        found = {
            layer: Tokens(
                patches=x.flatten(2).transpose(1, 2),
                grid=(x.shape[2], x.shape[3]),
                cls=None if before is None else before[:, 0],
            )
            for layer, x, before in states
        }
        return replace(found[self.depth], layers=tuple(found[layer] for layer in layers))
