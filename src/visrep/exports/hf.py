"""A folder for `transformers`: ``AutoModel.from_pretrained`` reads it, and so does ``hf:FOLDER`` here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visrep.config import save_json
from visrep.encoders.pretrained.extras import extra
from visrep.encoders.pretrained.hf import BILINEAR
from visrep.encoders.pretrained.hf import load as load_hf
from visrep.encoders.pretrained.hf_names import HEADS, official_names, resnet_name
from visrep.encoders.pretrained.hf_wrapped import HfEncoder
from visrep.encoders.resnet import BLOCKS, ResidualNetwork
from visrep.encoders.vit import VisionTransformer, ViT
from visrep.exports.hf_forms import ANYTHING, chosen, settings
from visrep.exports.names import (
    at_own_size,
    elsewhere,
    official_weights,
    split,
    with_rows_before,
    without_layer_scale,
)
from visrep.exports.traced import quietly
from visrep.exports.written import Written
from visrep.method import Encoder, Preprocessing

SNIPPET = """\
import torch
from transformers import AutoModel

encoder = AutoModel.from_pretrained(".").eval()
with torch.no_grad():
    tokens = encoder(images{options}).last_hidden_state
features = {features}
"""
FEATURES = {
    **{
        name: "tokens[:, 0]"
        for name in ("ViTModel", "Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel")
    },
    "IJepaModel": "tokens.mean(1)",
    "ResNetModel": "tokens.mean((2, 3))",
}
"""of each class's last hidden state, as a user writes it"""
BICUBIC = 3
"""PIL's number of the filter"""
OTHERS = """\
import visrep

encoder = visrep.load_encoder("hf:.")
features = encoder(images).pool()
"""


def write(encoder: Encoder, folder: Path) -> Written:
    """``config.json``, ``model.safetensors`` and ``preprocessor_config.json``."""
    extra("transformers")
    if isinstance(encoder, VisionTransformer) and isinstance(encoder.config, ViT):
        model, notes = _of_vit(encoder, encoder.config)
    elif isinstance(encoder, ResidualNetwork):
        model, notes = _of_resnet(encoder), ()
    elif isinstance(encoder, HfEncoder):
        model, notes = encoder.model, ()
    else:
        raise ValueError(
            f"no class of transformers expresses a {type(encoder.config).__name__}; what can be written are ViTs, "
            f"ResNets of the ImageNet stem and models that came from transformers. {ANYTHING}."
        )
    with quietly(), without_bars():
        model.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    save_json(folder / "preprocessor_config.json", processor(encoder.preprocessing))
    kind = type(model).__name__
    return Written(f"transformers, {kind}", _snippet(kind), notes)


def load(folder: Path) -> Callable[[Tensor], Tensor]:
    """See `Target.load`."""
    transformers = extra("transformers")
    with quietly(), without_bars():
        model = transformers.AutoModel.from_pretrained(folder).eval()
        kind = type(model).__name__
        if kind in FEATURES:
            return lambda images: pooled(kind, model(images, **_options(kind)).last_hidden_state)
        encoder = load_hf(str(folder))
    return lambda images: encoder(images).pool()


@contextmanager
def without_bars() -> Iterator[None]:
    """Without the progress bars of `transformers`."""
    bars = extra("transformers.utils.logging")
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def processor(seen: Preprocessing) -> dict[str, Any]:
    """The contents of ``preprocessor_config.json``: shorter side or both resized, then the central square."""
    side = round(seen.size / seen.ratio)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side} if seen.squash else {"shortest_edge": side},
        "resample": BILINEAR if seen.interpolation == "bilinear" else BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": seen.size, "width": seen.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(seen.mean),
        "image_std": list(seen.std),
    }


def _of_vit(vit: VisionTransformer, c: ViT) -> tuple[Any, tuple[str, ...]]:
    rope = c.position == "rope"
    if rope and not c.cls:
        raise ValueError(f"DINOv3ViTModel, the class with rotary positions, needs a cls token. {ANYTHING}.")
    form = None if rope else chosen(c)
    name = "DINOv3ViTModel" if form is None else form.model
    differs = form is not None and form.elsewhere(c)
    written, weights = at_own_size(vit, c) if differs else (c, official_weights(vit))
    if form is not None and not form.scales:
        weights = without_layer_scale(weights)
    if form is not None and form.cls:
        weights = with_rows_before(weights, 1)
    model = _built(name, settings(written, name))
    with torch.no_grad():
        _fill(model, split(weights))
    notes = elsewhere(name, c, written) if differs else ()
    if c.mask_token and name in ("ViTModel", "IJepaModel"):
        notes += (f"The mask token, which features do not depend on, has no place in {name}.",)
    return model, notes


def _built(name: str, values: dict[str, Any]) -> Any:
    transformers = extra("transformers")
    config = getattr(transformers, name.removesuffix("Model") + "Config")(**values)
    return getattr(transformers, name)(config).eval()


def _fill(model: Any, weights: dict[str, Tensor]) -> None:
    """Give the model our weights, found by the names that `official_names` reads them by."""
    state = model.state_dict()
    own = [name for name in state if not name.startswith(HEADS)]
    for name, official in zip(own, official_names(state), strict=True):
        if official in weights:
            state[name].copy_(weights[official].reshape(state[name].shape))
        elif official.endswith(".gamma"):  # this class always has LayerScale
            state[name].fill_(1.0)
        elif "token" in official or official.endswith(".bias"):  # nor has ours these
            state[name].zero_()
        else:
            raise ValueError(f"transformers' {name} has no counterpart here.")
    if "pooler.dense.weight" in state:  # pooler_output is then the first token as it is
        state["pooler.dense.weight"].copy_(torch.eye(len(state["pooler.dense.weight"])))
        state["pooler.dense.bias"].zero_()


def _of_resnet(resnet: ResidualNetwork) -> Any:
    c = resnet.config
    if c.stem != "imagenet":
        raise ValueError(
            f"transformers' ResNetModel begins with a 7 x 7 convolution and pooling; stem={c.stem!r} has no place "
            f"in it. {ANYTHING}."
        )
    expansion = 4 if c.depth >= 50 else 1
    model = _built(
        "ResNetModel",
        {
            "num_channels": c.channels,
            "embedding_size": c.width,
            "hidden_sizes": [c.width * expansion * 2**stage for stage in range(4)],
            "depths": list(BLOCKS[c.depth]),
            "layer_type": "bottleneck" if c.depth >= 50 else "basic",
        },
    )
    ours = resnet.state_dict()
    with torch.no_grad():
        for name, x in model.state_dict().items():
            x.copy_(ours[resnet_name(name)])
    return model


def pooled(kind: str, tokens: Tensor) -> Tensor:
    """Features of a class's last hidden state; see `FEATURES`."""
    if kind == "ResNetModel":
        return tokens.mean((2, 3))
    return tokens.mean(1) if kind == "IJepaModel" else tokens[:, 0]


def _options(kind: str) -> dict[str, bool]:
    """What a class must be told to take images of any size."""
    return {"interpolate_pos_encoding": True} if kind in ("ViTModel", "IJepaModel") else {}


def _snippet(kind: str) -> str:
    if kind not in FEATURES:
        return OTHERS
    options = "".join(f", {name}={value}" for name, value in _options(kind).items())
    return SNIPPET.format(options=options, features=FEATURES[kind])
