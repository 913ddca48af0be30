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
from visrep.encoders.pretrained.hub import reached
from visrep.encoders.pretrained.timm_dinov3 import dinov3_names, is_dinov3
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder
from visrep.encoders.wrapped import Wrapped
from visrep.method import Encoder, Preprocessing

RANDOM = "random"
"""in place of a file of weights: none at all"""
SIMILAR = 0.7
"""from which likeness of names on one may be meant (difflib's ratio)"""
OTHER_MODEL = " Give the model that these weights are of (timm.list_models()), or fetch the file again."


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
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=SIMILAR)
        raise ValueError(
            f"timm has no model {name!r}. "
            + (f"Similar: {', '.join(near)}." if near else "See timm.list_models('*PART*').")
        )
    if weights or name.startswith("local-dir:"):
        model = _created(name, pretrained=not weights)
    else:
        with reached() as silence:
            model = _created(name, pretrained=True, silence=silence)
    if weights not in ("", RANDOM):
        fill(model, Path(weights))
    return model


def _created(name: str, pretrained: bool, silence: str = "") -> nn.Module:
    """timm's model; ``silence``: why the hub does not answer. See `create` for what is raised."""
    timm = extra("timm")
    options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0}
    try:
        try:
            return timm.create_model(name, dynamic_img_size=True, **options).eval()
        except TypeError:  # no vision transformer
            return timm.create_model(name, **options).eval()
    except OSError as error:
        if name.startswith("local-dir:"):
            raise FileNotFoundError(f"timm:{name}: {_short(error)}") from error
        raise ConnectionError(
            f"the weights of timm:{name} cannot be had ({silence or _short(error)}). Without a network, "
            f"{_by_hand(name)}."
        ) from error
    except RuntimeError as error:
        raise ValueError(f"timm:{name}: {_short(error)}") from error


def _by_hand(name: str) -> str:
    """Which files to fetch from where, and what to give then."""
    if name.startswith("hf-hub:"):
        page = f"https://huggingface.co/{name.removeprefix('hf-hub:')}/tree/main"
        return f"fetch config.json and model.safetensors from {page} into one folder and give timm:local-dir:FOLDER"
    said: Any = extra("timm").models.get_pretrained_cfg(name)
    if said and said.hf_hub_id:
        file = said.hf_hub_filename or "model.safetensors"
        return (
            f"fetch {file} from https://huggingface.co/{said.hf_hub_id}/tree/main and give timm:{name}@FILE"
        )
    return f"fetch {said.url if said and said.url else 'its weights'} and give timm:{name}@FILE"


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
                + _other_patches(model.state_dict(), found)
            )
    model.load_state_dict(found, strict=False)


def _other_patches(own: Weights, found: Weights) -> str:
    """What to do where the weights are of other patches, of another size of images, or of another model."""
    kernel, table = "patch_embed.proj.weight", "pos_embed"
    if kernel not in own or kernel not in found:
        return OTHER_MODEL
    (wanted, there) = (" x ".join(map(str, weights[kernel].shape[-2:])) for weights in (own, found))
    if wanted != there:
        side = found[kernel].shape[-1]
        return (
            f" Its patches are {there} pixels, the model's {wanted}: take the model of these patches, one of "
            f"timm.list_models('*patch{side}*')."
        )
    if table in own and table in found and own[table].shape != found[table].shape:
        return (
            f" Its table of positions has {found[table].shape[1]} rows, the model's {own[table].shape[1]}: take the "
            "model of the size of images or the tokens that these weights are of; names end with the size."
        )
    return OTHER_MODEL


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
    """What a ``pretrained_cfg`` says. Other filters than bilinear count as bicubic, borders as none."""
    if not said:
        return otherwise
    return Preprocessing(
        size=min(said["input_size"][1:]),
        ratio=float(said.get("crop_pct") or 1.0),
        mean=tuple(said["mean"]),
        std=tuple(said["std"]),
        interpolation="bilinear" if said.get("interpolation") == "bilinear" else "bicubic",
        squash=said.get("crop_mode") == "squash",
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
