"""Wrapped encoders say what their library's own blocks say: all layers, at two sizes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from _extras import joined, needs, randomised
from visrep.encoders.pretrained.hf import encoder_of
from visrep.encoders.pretrained.hf_families import FAMILIES
from visrep.encoders.pretrained.hf_wrapped import HfEncoder
from visrep.encoders.pretrained.open_clip import OpenClipEncoder, OpenClipModel, wrap
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder
from visrep.method import Preprocessing, Tokens

transformers = needs("transformers")
TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "intermediate_size": 112,
}
STAGES = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]}
PIXELS = {"interpolate_pos_encoding": True}
TRANSFORMERS: dict[str, tuple[dict[str, Any], str, str]] = {
    "beit": ({**TINY, "use_relative_position_bias": True}, "layers", ""),
    "beit, normed": (
        {**TINY, "use_shared_relative_position_bias": True, "use_mean_pooling": False},
        "layers",
        "layernorm",
    ),
    "data2vec-vision": ({**TINY, "use_shared_relative_position_bias": True}, "encoder.layer", ""),
    "clip_vision_model": (TINY, "encoder.layers", "post_layernorm"),
    "siglip_vision_model": (TINY, "encoder.layers", "post_layernorm"),
    "siglip2_vision_model": ({**TINY, "num_patches": 16}, "encoder.layers", "post_layernorm"),
    "aimv2_vision_model": (TINY, "encoder.layers", "rms_norm"),
    "aimv2_vision_model, native": ({**TINY, "is_native": True}, "encoder.layers", "rms_norm"),
    "videomae": ({**TINY, "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": True}, "encoder.layer", ""),
}
"""settings, blocks, and the last norm, if it has one"""
OF_ONE_SIZE = ("aimv2_vision_model", "videomae")
"""whose tables of positions transformers does not resample"""
MAPS: dict[str, tuple[dict[str, Any], str]] = {
    "convnext": (STAGES, "encoder.stages"),
    "convnextv2": (STAGES, "encoder.stages"),
    "dinov3_convnext": (STAGES, "model.stages"),
    "resnet": ({**STAGES, "embedding_size": 8, "layer_type": "basic"}, "encoder.stages"),
}


def of_transformers(kind: str, values: dict[str, Any]) -> tuple[Any, HfEncoder]:
    config = transformers.AutoConfig.for_model(kind, **values)
    own = randomised(getattr(transformers, FAMILIES[kind].model)(config))
    encoder = encoder_of(own, Preprocessing(64, frames=values.get("num_frames", 0)))
    assert isinstance(encoder, HfEncoder)
    return own, encoder


@torch.no_grad()
def heard(blocks: Iterable[nn.Module], own: nn.Module, **given: Any) -> tuple[list[Tensor], Any]:
    """What each block gives, by hooks, and what the model returns."""
    states: list[Tensor] = []

    def keep(_module: nn.Module, _given: Any, out: Any) -> None:
        states.append(out[0] if isinstance(out, tuple) else out)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    out = own(**given)
    for hook in hooks:
        hook.remove()
    return states, out


def module_at(own: nn.Module, path: str) -> nn.Module:
    """A part by its name; the empty name is no norm."""
    return dict(own.named_modules())[path] if path else nn.Identity()


def equal(tokens: Tokens, expected: Tensor) -> None:
    torch.testing.assert_close(joined(tokens), expected, rtol=0, atol=1e-5)


def images_of(*shape: int) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_blocks_of_transformers(name: str) -> None:
    kind = name.partition(",")[0]
    values, blocks, norm = TRANSFORMERS[name]
    own, encoder = of_transformers(kind, values)
    clips = (4,) if encoder.frames else ()
    for height, width in ((32, 32),) if name in OF_ONE_SIZE else ((32, 32), (48, 40)):
        images = images_of(*clips, 3, height, width)
        states, _ = heard(module_at(own, blocks).children(), own, **arguments(kind, images))
        tokens = encoder(images, layers=tuple(range(1, encoder.depth + 1)))
        assert tokens.grid[-2:] == (height // 8, width // 8) and len(states) == encoder.depth
        for layer, state in zip(tokens.layers, states, strict=True):
            equal(layer, module_at(own, norm)(state))
        equal(tokens, module_at(own, norm)(states[-1]))


def arguments(kind: str, images: Tensor) -> dict[str, Any]:
    """What the library itself wants of images."""
    if kind == "siglip2_vision_model":
        patches = needs("transformers.models.siglip2.image_processing_siglip2").convert_image_to_patches
        rows, columns = images.shape[2] // 8, images.shape[3] // 8
        return {
            "pixel_values": torch.stack([patches(image, 8) for image in images]),
            "pixel_attention_mask": torch.ones(len(images), rows * columns, dtype=torch.long),
            "spatial_shapes": torch.tensor([[rows, columns]] * len(images)),
        }
    return {"pixel_values": images, **(PIXELS if FAMILIES[kind].resizes else {})}


@torch.no_grad()
@pytest.mark.parametrize("kind", MAPS)
def test_stages_of_transformers(kind: str) -> None:
    own, encoder = of_transformers(kind, MAPS[kind][0])
    for height, width in ((64, 64), (96, 64)):
        images = images_of(3, height, width)
        states, out = heard(module_at(own, MAPS[kind][1]).children(), own, pixel_values=images)
        tokens = encoder(images, layers=(1, 2, 3, 4))
        for number, (layer, state) in enumerate(zip(tokens.layers, states, strict=True), start=1):
            assert (
                layer.grid == tuple(state.shape[2:]) == (height // (2 * 2**number), width // (2 * 2**number))
            )
            if number < 4:
                equal(layer, state.flatten(2).mT)
        last = out.last_hidden_state
        equal(tokens, last if last.ndim == 3 else last.flatten(2).mT)


@pytest.mark.parametrize("name", OF_ONE_SIZE)
def test_tables_of_one_size(name: str) -> None:
    _, encoder = of_transformers(name, TRANSFORMERS[name][0])
    clips = (4,) if encoder.frames else ()
    with pytest.raises(
        ValueError, match=r"AIMv2.* takes images of 32 x 32, got 48 x 40|Input image size \(48\*40\)"
    ):
        encoder(images_of(*clips, 3, 48, 40))


# open_clip

open_clip = needs("open_clip")
TOWERS: dict[str, dict[str, Any]] = {
    "values-vit": {"image_size": 32, "layers": 3, "width": 48, "head_width": 12, "patch_size": 8},
    "values-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "values-timm": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models small enough for a test, known to open_clip by name."""
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    folder = tmp_path_factory.mktemp("configs")
    for name, vision in TOWERS.items():
        (folder / f"{name}.json").write_text(
            json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text})
        )
    open_clip.add_model_config(folder)


@torch.no_grad()
@pytest.mark.usefixtures("towers")
@pytest.mark.parametrize("name", ["values-vit", "values-timm"])
def test_vision_transformers_of_open_clip(name: str) -> None:
    visual: Any = randomised(open_clip.create_model(name).visual)
    encoder = wrap(OpenClipModel(name), visual)
    size = encoder.preprocessing.size
    images = images_of(3, size, size)
    tokens = encoder(images, layers=tuple(range(1, encoder.depth + 1)))
    of_timm = isinstance(encoder, TimmEncoder)
    assert of_timm == (name == "values-timm")
    blocks, norm = (
        (visual.trunk.blocks, visual.trunk.norm)
        if of_timm
        else (visual.transformer.resblocks, visual.ln_post)
    )
    states, out = heard(blocks, visual, x=images)
    for layer, state in zip(tokens.layers, states, strict=True):
        equal(layer, norm(state))
    if not of_timm:
        assert tokens.cls is not None
        torch.testing.assert_close(tokens.cls @ visual.proj, out, rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.usefixtures("towers")
def test_residual_networks_of_open_clip() -> None:
    visual: Any = randomised(open_clip.create_model("values-resnet").visual)
    encoder = wrap(OpenClipModel("values-resnet"), visual)
    assert isinstance(encoder, OpenClipEncoder)
    stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
    for height, width in ((64, 64), (96, 64)):
        images = images_of(3, height, width)
        tokens = encoder(images, layers=(1, 2, 3, 4, 5))
        states, _ = heard(stages, nn.Sequential(*stages), input=visual.stem(images))
        for layer, state in zip(tokens.layers, [visual.stem(images), *states], strict=True):
            assert layer.grid == tuple(state.shape[2:])
            equal(layer, state.flatten(2).mT)
