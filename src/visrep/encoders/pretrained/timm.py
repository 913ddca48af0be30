"""Models of timm."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from visrep.encoders.pretrained.agreement import TOLERANCE, disagreement
from visrep.encoders.pretrained.checkpoint import read_checkpoint
from visrep.encoders.pretrained.convert_resnet import to_resnet
from visrep.encoders.pretrained.convert_vit import Untold, Weights, to_vit
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.timm_dinov3 import dinov3_names, is_dinov3
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder
from visrep.encoders.wrapped import Wrapped
from visrep.method import Encoder, Preprocessing

RANDOM = "random"
"""in place of a file of weights: none at all"""


@dataclass(frozen=True)
class TimmModel(Wrapped):
    """A model of timm, by its name there."""

    name: str

    def build(self) -> TimmEncoder:
        """A network with fresh weights."""
        return TimmEncoder(self, create(self.name, RANDOM))


def load(name: str) -> Encoder:
    """The encoder ``NAME`` with its public weights, ``NAME@FILE`` with weights from a file, ``NAME@random`` without.

    Ours where it can express it, else wrapped. Raises ImportError without the extra, ConnectionError when the weights
    cannot be downloaded, ValueError for names and files that do not fit.
    """
    name, _, weights = name.partition("@")
    return encoder_of(TimmModel(name), create(name, weights))


def create(name: str, weights: str) -> nn.Module:
    """timm's model without classifier, for images of any size where it can. See `load` for ``weights``."""
    timm = extra("timm")
    if not timm.is_model(name) and not name.startswith(("hf-hub:", "local-dir:")):
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=5)) or "see timm.list_models()"
        raise ValueError(f"timm has no model {name!r}. Similar: {near}.")
    options: dict[str, Any] = {"pretrained": not weights, "num_classes": 0}
    try:
        try:
            model = timm.create_model(name, dynamic_img_size=True, **options).eval()
        except TypeError:  # no vision transformer
            model = timm.create_model(name, **options).eval()
    except OSError as error:
        if name.startswith("local-dir:"):
            raise FileNotFoundError(f"timm:{name}: {_short(error)}") from error
        raise ConnectionError(
            f"the weights of timm:{name} cannot be had ({_short(error)}). Without a network, fetch model.safetensors "
            f"from https://huggingface.co/timm/{name}/tree/main and give timm:{name}@FILE."
        ) from error
    except RuntimeError as error:
        raise ValueError(f"timm:{name}: {_short(error)}") from error
    if weights not in ("", RANDOM):
        fill(model, Path(weights))
    return model


def fill(model: nn.Module, path: Path) -> None:
    """Take all weights from a file, which may have more, such as a classifier's.

    Raises FileNotFoundError, and ValueError, with the first weight that is missing or has another shape.
    """
    if not path.is_file():
        raise FileNotFoundError(f"No file {path} with weights for timm's {type(model).__name__}.")
    found = read_checkpoint(path)
    for name, x in model.state_dict().items():
        if name not in found or found[name].shape != x.shape:
            shape = tuple(found[name].shape) if name in found else "absent"
            raise ValueError(
                f"{path} does not fit timm's {type(model).__name__}: {name} should be {tuple(x.shape)} and is {shape}."
            )
    model.load_state_dict(found, strict=False)


def encoder_of(config: TimmModel, model: nn.Module) -> Encoder:
    """Ours with the weights of a timm model where ours can express it, else a wrapper around it."""
    wrapped = TimmEncoder(config, model).eval()
    wrapped.preprocessing = preprocessing(vars(model).get("pretrained_cfg") or {}, wrapped.preprocessing)
    ours = convert(model)
    if ours is None:
        return wrapped
    ours.preprocessing = wrapped.preprocessing
    return ours if disagreement(ours, wrapped) < TOLERANCE else wrapped


def convert(model: Any) -> Encoder | None:
    """Ours with the same weights, or None where ours differs in what it computes."""
    models = extra("timm").models
    try:
        if type(model) is models.resnet.ResNet:
            return to_resnet(model.state_dict())
        if type(model) is models.vision_transformer.VisionTransformer and _usual(model):
            untold = Untold(
                heads=model.blocks[0].attn.num_heads,
                norm_eps=model.norm.eps,
                rows_before=0 if model.no_embed_class else model.num_prefix_tokens,
            )
            return to_vit(_official_names(model), untold)
        if type(model) is models.eva.Eva and is_dinov3(model) and _usual(model):
            untold = Untold(heads=model.blocks[0].attn.num_heads, norm_eps=model.norm.eps)
            return to_vit(dinov3_names(_official_names(model)), untold)
    except ValueError:
        return None  # an unusual variant: wrapped
    return None


def preprocessing(said: dict[str, Any], otherwise: Preprocessing) -> Preprocessing:
    """What a ``pretrained_cfg`` says."""
    if not said:
        return otherwise
    return Preprocessing(
        size=min(said["input_size"][1:]),
        ratio=float(said.get("crop_pct") or 1.0),
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
    )


def _usual(model: Any) -> bool:
    """Whether norms and activations are ours; other differences show in the names of the weights."""
    layers = extra("timm").layers
    mlp = model.blocks[0].mlp
    gated = isinstance(mlp, (layers.GluMlp, layers.SwiGLU))
    usual = (
        isinstance(mlp.act, nn.SiLU)
        if gated
        else isinstance(mlp.act, nn.GELU) and mlp.act.approximate == "none"
    )
    return usual and isinstance(model.norm, nn.LayerNorm)


def _official_names(model: Any) -> Weights:
    """The weights by the names of `convert_vit`."""
    layers = extra("timm").layers
    mlp = model.blocks[0].mlp
    names = {"reg_token": "register_tokens"}
    if isinstance(mlp, layers.GluMlp):
        names |= {".mlp.fc1.": ".mlp.w12.", ".mlp.fc2.": ".mlp.w3."}
    elif isinstance(mlp, layers.SwiGLU):
        names |= {".mlp.fc1_g.": ".mlp.w1.", ".mlp.fc1_x.": ".mlp.w2.", ".mlp.fc2.": ".mlp.w3."}
    weights: Weights = {}
    for name, value in model.state_dict().items():
        for theirs, official in names.items():
            name = name.replace(theirs, official)
        weights[name] = value
    return weights


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
