"""Beginning with the weights of an encoder: the network a run then trains, on which views, and where the weights go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args, get_type_hints

from visrep.config import Run
from visrep.continuing.views import fitted
from visrep.encoders import ViTLike, Wrapped, load_encoder
from visrep.encoders.frozen import Frozen
from visrep.encoders.patches import patch_grid
from visrep.method import Encoder, Method

PARAMETERS = {"cls": "cls_token", "mask_token": "mask_token"}
"""tokens that a method may need and an encoder lack: field of the configuration, parameter of the network"""
CONVERTED = (
    "runs of this library's encoders; official files of DINO, iBOT, DINOv2, DINOv3, MAE, MoCo v3, I-JEPA and CRATE; "
    "hf: ViT, ViT-MAE, DINOv2, DINOv3 ViT, I-JEPA; timm: ViT, DINOv3 ViT"
)
"""sources that become a vision transformer of ours, which can hide and leave out patches: see docs/encoders.md"""


def begin(run: Run) -> tuple[Run, Encoder]:
    """The run with the encoder that ``run.init`` names in place of its own, on views made for it; and that encoder.

    Raises ValueError where the method cannot train it, and what `load_encoder` raises.
    """
    if run.start_from:
        raise ValueError(
            f"init={run.init} and start_from={run.start_from} both say what to begin with. Give init for an encoder "
            "with fresh heads, start_from for everything that an earlier run of this method had."
        )
    encoder = load_encoder(run.init)
    check_kind(run, encoder)
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
    kinds = " or ".join(kind.__name__ for kind in get_args(wanted) or (wanted,))
    found = type(encoder.config).__name__
    hint = (
        f" {name} hides or leaves out patches inside the encoder, which a wrapped network of another library cannot. "
        f"Converted into ours are: {CONVERTED}. Or train this one with a method that sees whole images, such as "
        "simclr, dino or distill."
        if isinstance(encoder.config, Wrapped)
        else " Choose other weights, or a method that trains this kind: dino and simclr train any encoder of images."
    )
    raise ValueError(f"{name} trains a {kinds}, and init={run.init} is a {found}.{hint}")


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
