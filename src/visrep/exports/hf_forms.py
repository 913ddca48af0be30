"""Which class of `transformers` expresses a vision transformer of ours, and what it must be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visrep.encoders.vit import ViT

ANYTHING = "`--to onnx`, `torch-export`, `torchscript` and `safetensors` take any encoder"


@dataclass(frozen=True)
class Form:
    """A class of `transformers`."""

    model: str
    antialias: bool
    """when it resamples positions"""
    scales: bool
    """has LayerScale, always"""
    cls: bool = True

    def cannot(self, c: ViT) -> str:
        """What it lacks for an encoder, "" for nothing."""
        whole = isinstance(integer_ratio(c), int)
        lacks = {
            "a cls token": self.cls and not c.cls,
            "an encoder without cls token": not self.cls and c.cls,
            "rotary positions": c.position == "rope",
            "register tokens": bool(c.registers) and self.model != "Dinov2WithRegistersModel",
            "gated MLPs": c.mlp == "swiglu" and not self.scales,
            f"mlp_ratio={c.mlp_ratio:g}": self.scales and not whole,
        }
        return ", ".join(what for what, lacking in lacks.items() if lacking)

    def elsewhere(self, c: ViT) -> bool:
        """Whether it differs from ours at other sizes than that of the table of positions."""
        return c.position == "sincos" or c.position_offset > 0 or c.position_antialias != self.antialias


FORMS = (
    Form("ViTModel", antialias=False, scales=False),
    Form("Dinov2Model", antialias=False, scales=True),
    Form("Dinov2WithRegistersModel", antialias=True, scales=True),
    Form("IJepaModel", antialias=False, scales=False, cls=False),
)


def chosen(c: ViT) -> Form:
    """The class that is equal at every size, else at that of the preprocessing.

    Raises ValueError where there is none.
    """
    able = [form for form in FORMS if not form.cannot(c)]
    if not able:
        reasons = "; ".join(f"{form.model} lacks {form.cannot(c)}" for form in FORMS if form.cls == c.cls)
        raise ValueError(f"no class of transformers expresses this encoder: {reasons}. {ANYTHING}.")
    return min(able, key=lambda form: (form.elsewhere(c), form.scales != bool(c.layer_scale)))


def integer_ratio(c: ViT) -> int | None:
    """The mlp_ratio that DINOv2's classes need for the same hidden size, None where no whole number gives it."""
    hidden = int(c.width * c.mlp_ratio)
    if c.mlp == "gelu":
        return hidden // c.width if hidden % c.width == 0 else None
    inner = gated_size(hidden)
    return next((n for n in range(1, 33) if gated_size(n * c.width) == inner), None)


def gated_size(hidden: int) -> int:
    """Width within a gated MLP; see `visrep.nn.transformer.SwiGLU`."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def settings(c: ViT, model: str) -> dict[str, Any]:
    """The configuration of a class for an encoder that it can express."""
    common = {
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "image_size": c.image,
        "patch_size": c.patch,
        "num_channels": c.channels,
        "hidden_act": "gelu",
        "layer_norm_eps": c.norm_eps,
    }
    hidden = int(c.width * c.mlp_ratio)
    if model == "DINOv3ViTModel":
        gated = c.mlp == "swiglu"
        biases = dict.fromkeys(("query_bias", "key_bias", "value_bias"), c.qkv_bias)
        more = {"use_gated_mlp": gated, "num_register_tokens": c.registers, "rope_theta": 100.0}
        size = gated_size(hidden) if gated else hidden
        return {
            **common,
            **biases,
            **more,
            "hidden_act": "silu" if gated else "gelu",
            "intermediate_size": size,
        }
    common["qkv_bias"] = c.qkv_bias
    if model in ("ViTModel", "IJepaModel"):
        return {**common, "intermediate_size": hidden, "pooler_act": "linear"}
    common |= {"mlp_ratio": integer_ratio(c), "use_swiglu_ffn": c.mlp == "swiglu"}
    if model == "Dinov2Model":
        return {**common, "use_mask_token": c.mask_token}
    return {**common, "num_register_tokens": c.registers}
