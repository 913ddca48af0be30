"""Vision models of `transformers`, from the Hugging Face hub or from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from visrep.encoders.pretrained import timm
from visrep.encoders.pretrained.agreement import TOLERANCE, disagreement
from visrep.encoders.pretrained.convert_resnet import to_resnet
from visrep.encoders.pretrained.convert_vit import Untold, to_video, to_vit
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.hf_complete import check_complete, quiet
from visrep.encoders.pretrained.hf_families import family
from visrep.encoders.pretrained.hf_folder import folder_of
from visrep.encoders.pretrained.hf_imagegpt import imagegpt
from visrep.encoders.pretrained.hf_names import official_names, resnet_name
from visrep.encoders.pretrained.hf_wrapped import HfEncoder, HfModel, size_of
from visrep.encoders.pretrained.hub import reached
from visrep.encoders.pretrained.unreadable import first_line
from visrep.method import Encoder, Preprocessing

BILINEAR = 2
"""PIL's number of the filter"""
UNCROPPED = 384
"""side in pixels from which on ConvNeXt's image processor squashes"""


def load(name: str) -> Encoder:
    """The encoder ``name``: a repository on the hub, or a folder with ``config.json`` and ``model.safetensors``.

    Those of timm, such as Perception Encoder, are loaded by timm.
    Raises ImportError without the extra, FileNotFoundError for folders that lack a file, ConnectionError when it cannot
    be downloaded, ValueError for kinds of models that are not known and for weights that are missing or do not fit.
    """
    folder = folder_of(name)
    extra("transformers")
    if folder is not None:
        try:
            return _loaded(str(folder))
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"hf:{name} cannot be read ({first_line(error)}). Fetch its files again."
            ) from error
    with reached() as silence:
        try:
            return _loaded(name)
        except OSError as error:
            raise ConnectionError(
                f"hf:{name} cannot be loaded ({silence or first_line(error)}). Without a network, fetch config.json, "
                f"model.safetensors and preprocessor_config.json from https://huggingface.co/{name}/tree/main, put "
                "them into one folder and give hf:FOLDER."
            ) from error


def _loaded(place: str) -> Encoder:
    """What a folder or a repository holds. Raises OSError for what cannot be had, ValueError for what does not fit."""
    transformers = extra("transformers")
    config = transformers.AutoConfig.from_pretrained(place)
    if config.model_type == "timm_wrapper":
        return timm.load(f"{'local-dir' if Path(place).is_dir() else 'hf-hub'}:{place}")
    kind = family(config.model_type)
    config = vision_part(config)
    try:
        with quiet():
            model, info = getattr(transformers, kind.model).from_pretrained(
                place, config=config, dtype="float32", output_loading_info=True, ignore_mismatched_sizes=True
            )
    except RuntimeError as error:
        raise ValueError(f"hf:{place} has weights that do not fit its config.json: {error}") from error
    check_complete(place, kind, info)
    if config.model_type == "imagegpt":
        return imagegpt(model, said(place))
    return encoder_of(model, preprocessing(place, config))


def encoder_of(model: nn.Module, preprocessing: Preprocessing) -> Encoder:
    """Ours with the weights of a `transformers` model where ours can express it, else a wrapper around it."""
    description = json.dumps(model.config.to_dict(), sort_keys=True)  # pyright: ignore
    wrapped = HfEncoder(HfModel(description), model).eval()
    wrapped.preprocessing = preprocessing
    ours = convert(model, wrapped)
    if ours is None:
        return wrapped
    ours.preprocessing = preprocessing
    return ours if disagreement(ours, wrapped) < TOLERANCE else wrapped


def convert(model: nn.Module, wrapped: HfEncoder) -> Encoder | None:
    """Ours with the same weights, or None where ours differs in what it computes."""
    values, kind = wrapped.values, wrapped.family
    if kind.convert == "resnet":
        return _resnet(model)
    gated = values.get("use_gated_mlp", False)
    if not kind.convert or values["hidden_act"] != ("silu" if gated else "gelu"):
        return None
    untold = Untold(
        heads=values["num_attention_heads"],
        norm_eps=values["layer_norm_eps"],
        position_antialias=kind.antialias,
        rows_before=int(kind.cls),
    )
    weights = official_names(model.state_dict())
    try:
        if kind.convert == "vit":
            return to_vit(weights, untold)
        position = "rope" if values["model_type"] == "vjepa2" else "sequence"
        return to_video(weights, untold, wrapped.frames, wrapped.size, position)
    except ValueError:
        return None  # an unusual variant: wrapped


def _resnet(model: nn.Module) -> Encoder | None:
    try:
        return to_resnet({resnet_name(name): x for name, x in model.state_dict().items()})
    except ValueError:
        return None  # another depth: wrapped


def vision_part(config: Any) -> Any:
    """The configuration of the vision tower, of a model of images and text."""
    values = config.to_dict()
    return config.vision_config if "vision_config" in values else config


def preprocessing(name: str, config: Any) -> Preprocessing:
    """What ``preprocessor_config.json`` says, or ImageNet's usual values at the model's size without that file."""
    values = config.to_dict()
    wrapped_size, frames = size_of(values), values.get("num_frames", values.get("frames_per_clip", 0))
    found = said(name)
    return (
        read_preprocessing(found, wrapped_size, frames)
        if found
        else Preprocessing(wrapped_size, frames=frames)
    )


def said(name: str) -> dict[str, Any]:
    """The contents of ``preprocessor_config.json``, empty without that file."""
    base = extra("transformers.image_processing_base")
    try:
        return base.ImageProcessingMixin.get_image_processor_dict(name)[0]
    except (OSError, ValueError):
        return {}


def read_preprocessing(said: dict[str, Any], image: int, frames: int = 0) -> Preprocessing:
    """``said``: the contents of ``preprocessor_config.json``; ``image``: the size where it names none.

    Other filters than bilinear count as bicubic.
    """
    resized = shortest(said.get("size"))
    cropped = shortest(said.get("crop_size")) if said.get("do_center_crop", False) else 0
    size = cropped or resized or image
    normal = said.get("do_normalize", True)
    squash = is_squashed(said, resized, bool(cropped))
    uncropped = 1.0 if squash else float(said.get("crop_pct") or 1.0)
    return Preprocessing(
        size=size,
        ratio=min(1.0, size / resized) if cropped and resized else uncropped,
        mean=triple(said.get("image_mean", Preprocessing.mean)) if normal else (0.0, 0.0, 0.0),
        std=triple(said.get("image_std", Preprocessing.std)) if normal else (1.0, 1.0, 1.0),
        frames=frames,
        interpolation="bilinear" if said.get("resample") == BILINEAR else "bicubic",
        squash=squash,
    )


def is_squashed(said: dict[str, Any], resized: int, cropped: bool) -> bool:
    """Whether an image processor resizes both sides at once, and not the shorter one."""
    if not resized or not said.get("do_resize", True):
        return False
    kind = said.get("image_processor_type") or said.get("feature_extractor_type") or ""
    if kind.startswith("ConvNext"):
        return resized >= UNCROPPED
    return "height" in said["size"] if isinstance(said["size"], dict) else not cropped


def shortest(size: Any) -> int:
    """The shorter side that a size in any of the forms of `transformers` asks for, 0 for none."""
    if isinstance(size, dict):
        return int(min((v for k, v in size.items() if k in ("shortest_edge", "height", "width")), default=0))
    return int(size or 0)


def triple(values: Any) -> tuple[float, float, float]:
    """A value a channel; grey images repeat theirs."""
    values = tuple(float(v) for v in (values if isinstance(values, (list, tuple)) else [values]))
    return values if len(values) == 3 else (values[0],) * 3
