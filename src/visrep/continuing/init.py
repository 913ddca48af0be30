"""Beginning with the weights of an encoder: the network a run then trains, on which views, and where the weights go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args, get_type_hints

from visrep.config import Run
from visrep.continuing.views import fitted
from visrep.encoders import (
    CRATE,
    ConvNet,
    EncoderConfig,
    ResNet,
    Swin,
    VideoViT,
    ViT,
    ViTLike,
    Wrapped,
    load_encoder,
)
from visrep.encoders.frozen import Frozen
from visrep.encoders.patches import patch_grid
from visrep.encoders.pretrained.onnx import is_onnx
from visrep.method import Encoder, Method
from visrep.nn.positions import Warp

PARAMETERS = {"cls": "cls_token", "mask_token": "mask_token"}
"""tokens that a method may need and an encoder lack: field of the configuration, parameter of the network"""
CONVERTED = (
    "runs of this library's encoders; official files of DINO, iBOT, DINOv2, DINOv3, MAE, MoCo v3, I-JEPA and CRATE; "
    "hf: ViT, ViT-MAE, DINOv2, DINOv3 ViT, I-JEPA; timm: ViT, DINOv3 ViT"
)
"""sources that become a vision transformer of ours, which can hide and leave out patches: see docs/encoders.md"""
RESNETS = "runs with a ResNet; ResNet-18, -34 and -50 from official files, hf: and timm:"
FITTING: dict[type, str] = {
    ViTLike: CONVERTED,
    ViT: CONVERTED,
    CRATE: "runs with a CRATE, also of crate_mae; official files of CRATE and CRATE-MAE",
    VideoViT: "runs with a VideoViT; official files of V-JEPA and V-JEPA 2; hf: V-JEPA 2, VideoMAE with a last norm",
    ResNet: RESNETS,
    ConvNet: "runs with a ConvNet",
    Swin: "runs with a Swin",
}
"""sources of weights, by the kind of encoder that a method trains"""
ROTARY = (
    "timm:vit_small_patch16_dinov3 and the other DINOv3 ViTs of timm:, hf: and official files; runs of dinov3"
)
"""sources of vision transformers with rotary positions"""


def begin(run: Run) -> tuple[Run, Encoder]:
    """The run with the encoder that ``run.init`` names in place of its own, on views made for it; and that encoder.

    Raises ValueError where the method cannot train it, and what `load_encoder` raises.
    """
    if run.start_from:
        raise ValueError(
            f"init={run.init} and start_from={run.start_from} both say what to begin with. Give init for an encoder "
            "with fresh heads, start_from for everything that an earlier run of this method had."
        )
    if is_onnx(run.init):
        raise ValueError(
            f"init={run.init} is an ONNX file, which can be judged and used, not trained. Give the run that it was "
            "exported from, or the same model by hf:NAME or timm:NAME."
        )
    encoder = load_encoder(run.init)
    check_kind(run, encoder)
    check_positions(run, encoder.config)
    config, fresh = completed(encoder.config, run.method.encoder)
    views = fitted(run.method.views, encoder, run.adapt.size)
    if isinstance(config, ViTLike):
        patch_grid(
            views.preprocessing.size, views.preprocessing.size, config.patch
        )  # says what does not divide
    method, seen = replace(run.method, encoder=config, views=views), encoder.preprocessing
    adapted = replace(run.adapt, fresh=fresh, interpolation=seen.interpolation, squash=seen.squash)
    return replace(run, method=method, adapt=adapted), encoder


def check_kind(run: Run, encoder: Encoder) -> None:
    """Raises ValueError where the method's configuration has no place for an encoder of this kind."""
    name = type(run.method).__module__.rpartition(".")[2]
    wanted = get_type_hints(type(run.method)).get("encoder")
    if wanted is None:
        raise ValueError(
            f"{name} has no field encoder, so that init={run.init} has no place to go. Leave it out."
        )
    if isinstance(encoder.config, wanted):
        return
    kinds = get_args(wanted) or (wanted,)
    named = "encoder of images" if Wrapped in kinds else " or ".join(kind.__name__ for kind in kinds)
    found = type(encoder.config).__name__
    raise ValueError(
        f"{name} trains a {named}, and init={run.init} is a {found}. {_others(name, kinds, encoder.config)}"
    )


def _others(name: str, kinds: tuple[type, ...], config: Any) -> str:
    """Which weights the method would take, and which methods would take these."""
    fitting = "; ".join(FITTING[kind] for kind in kinds if kind in FITTING) or f"runs of {name}"
    if Wrapped in kinds:
        fitting = "all of encoders of images"
    if isinstance(config, Wrapped) and ViTLike in kinds:
        return (
            f"{name} hides or leaves out patches inside the encoder, which a wrapped network of another library "
            f"cannot. Converted into ours are: {fitting}. Or train this one with a method that sees whole images, such "
            "as simclr, dino or distill."
        )
    if isinstance(config, VideoViT):
        more = " Or choose a method that trains clips, such as videomae or vjepa."
    elif isinstance(config, get_args(EncoderConfig)):
        more = " Or choose a method that trains any encoder of images, such as dino or simclr."
    else:
        more = ""
    return f"Weights that fit: {fitting}.{more}"


def check_positions(run: Run, config: Any) -> None:
    """Raises ValueError where the method turns rotary positions and the weights have others."""
    turning = any(isinstance(value, Warp) for value in vars(run.method).values())
    if turning and isinstance(config, ViTLike) and config.position != "rope":
        raise ValueError(
            f"{type(run.method).__module__.rpartition('.')[2]} needs rotary positions, which it turns, and "
            f"init={run.init} has position={config.position!r}. Weights that fit: {ROTARY}."
        )


def completed(config: Any, wanted: Any) -> tuple[Any, tuple[str, ...]]:
    """The weights' configuration with what is the method's to choose; the parameters that this adds.

    Drop path is the method's. Cls and mask tokens are added where the method has them and the weights do not.
    """
    there, asked = vars(config), vars(wanted)
    lacking = [name for name in PARAMETERS if there.get(name) is False and asked.get(name, False)]
    changed: dict[str, Any] = dict.fromkeys(lacking, True)
    if "drop_path" in there and "drop_path" in asked:
        changed["drop_path"] = asked["drop_path"]
    return replace(config, **changed), tuple(PARAMETERS[name] for name in lacking)


def carriers(method: Method, config: Any) -> list[tuple[str, Encoder]]:
    """The encoders of a method that begin with the weights, by name: the one it trains, and teachers that follow it."""
    frozen = tuple(f"{name}." for name, part in method.named_modules() if isinstance(part, Frozen))
    return [
        (name, part)
        for name, part in method.named_modules()
        if isinstance(part, Encoder) and part.config == config and not name.startswith(frozen)
    ]


def take_encoder(method: Method, run: Run, weights: Encoder) -> None:
    """Put the weights into every encoder of the method that begins with them. Tokens that they lack stay as drawn.

    Raises ValueError when the method builds no encoder like that.
    """
    found = carriers(method, run.method.encoder)
    if not found:
        raise ValueError(
            f"{type(method).__name__} changes its encoder before building it, so that the weights of init={run.init} "
            "have no place in it. Choose another method."
        )
    for _, encoder in found:
        drawn = encoder.state_dict()
        encoder.load_state_dict({**{name: drawn[name] for name in run.adapt.fresh}, **weights.state_dict()})
