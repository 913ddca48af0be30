"""ImageGPT, Perception Encoder, Swin and ConvNeXt: wrapped models say what their own libraries say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import visrep
from _extras import joined, needs, randomised
from visrep.encoders import save_encoder
from visrep.encoders.pretrained.hf import encoder_of as encoder_of_transformers
from visrep.encoders.pretrained.hf_imagegpt import ImageGPTEncoder, imagegpt
from visrep.encoders.pretrained.hf_wrapped import HfEncoder
from visrep.encoders.pretrained.timm import TimmModel, encoder_of
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder
from visrep.method import Preprocessing

timm = needs("timm")
transformers = needs("transformers")

PALETTE = (torch.randint(-8, 9, (12, 3), generator=torch.Generator().manual_seed(3)) / 8).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ImageGPT as transformers saves it: 6 x 6 pixels of 12 colours and the start of a sequence."""
    config = transformers.ImageGPTConfig(vocab_size=13, n_positions=36, n_embd=24, n_layer=3, n_head=2)
    folder = tmp_path_factory.mktemp("imagegpt")
    randomised(transformers.ImageGPTModel(config)).save_pretrained(folder)  # pyright: ignore
    processor = {"image_processor_type": "ImageGPTImageProcessor", "clusters": PALETTE, "size": 6}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def test_imagegpt_sees_the_colours_that_its_processor_makes(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    encoder = visrep.load_encoder(f"hf:{folder}")
    assert isinstance(encoder, ImageGPTEncoder)
    assert encoder.preprocessing == Preprocessing(6, 1.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    nearest = [
        [int(np.argmin(((p / 127.5 - 1 - np.array(PALETTE)) ** 2).sum(1))) for p in image.reshape(-1, 3)]
        for image in pixels
    ]
    assert encoder.colours(images).tolist() == nearest
    processor = transformers.AutoImageProcessor.from_pretrained(folder, size={"height": 6, "width": 6})
    theirs = processor(list(pixels), return_tensors="pt", do_resize=False)["input_ids"]
    assert theirs.tolist() == nearest


def test_imagegpt_has_the_tokens_of_transformers(folder: Path) -> None:
    encoder, own = visrep.load_encoder(f"hf:{folder}"), transformers.ImageGPTModel.from_pretrained(folder)
    assert isinstance(encoder, ImageGPTEncoder)
    images = torch.rand(2, 3, 6, 6) * 2 - 1
    states: list[Tensor] = []
    for block in own.h:
        block.register_forward_hook(lambda _module, _given, out: states.append(out[0]))
    with torch.no_grad():
        tokens = encoder(images, layers=(1, 2, 3))
        out = own.eval()(encoder.colours(images))
    assert torch.equal(tokens.patches, out.last_hidden_state) and tokens.grid == (6, 6)
    for layer, state in zip(tokens.layers, states, strict=True):
        scale = state.square().mean(-1, keepdim=True).add(1e-5).sqrt()
        torch.testing.assert_close(layer.patches, state / scale * own.ln_f.weight, rtol=1e-5, atol=1e-5)
    changed = images.clone()
    changed[:, :, 3:] = -changed[:, :, 3:].flip(3)
    later = encoder(changed).patches
    assert torch.allclose(later[:, :18], tokens.patches[:, :18], atol=1e-6)  # pixels know those before them
    assert not torch.allclose(later[:, 18:], tokens.patches[:, 18:], atol=1e-2)


def test_imagegpt_is_saved_and_built_anew(folder: Path, tmp_path: Path) -> None:
    encoder, images = visrep.load_encoder(f"hf:{folder}"), torch.rand(2, 3, 6, 6) * 2 - 1
    save_encoder(tmp_path, encoder)
    back = visrep.load_encoder(tmp_path)
    assert torch.equal(back(images).patches, encoder(images).patches)
    twin = encoder.config.build().eval()
    assert not torch.equal(twin(images).pool(), encoder(images).pool())
    twin(images).pool().sum().backward()


def test_imagegpt_errors(folder: Path) -> None:
    own = transformers.ImageGPTModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"colours of its palette.*Fetch that file"):
        imagegpt(own, {})
    with pytest.raises(ValueError, match=r"knows 13 colours and preprocessor_config\.json has 36"):
        imagegpt(own, {"clusters": PALETTE * 3})
    encoder = imagegpt(own, {"clusters": PALETTE})
    with pytest.raises(ValueError, match="images of 6 x 6, got 8 x 6"):
        encoder(torch.zeros(1, 3, 8, 6))
    with pytest.raises(ValueError, match="cannot do mask="):
        encoder(torch.zeros(1, 3, 6, 6), mask=torch.zeros(1, 36, dtype=torch.bool))


# Hierarchical models of transformers

WINDOWS = {"image_size": 64, "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [2, 2, 2], "window_size": 4}
HF: dict[str, dict[str, Any]] = {
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "convnext": {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]},
}


@pytest.mark.parametrize("kind", HF)
def test_stages_of_transformers_at_two_sizes(kind: str) -> None:
    config = transformers.AutoConfig.for_model(kind, **HF[kind])
    own: Any = randomised(transformers.AutoModel.from_config(config))
    encoder = encoder_of_transformers(own, Preprocessing(64))
    assert isinstance(encoder, HfEncoder)
    for height, width in ((64, 64), (96, 64)):
        images = torch.randn(2, 3, height, width)
        more = {"interpolate_pos_encoding": True} if "swin" in kind else {}
        with torch.no_grad():
            tokens = encoder(images, layers=tuple(range(1, encoder.depth + 1)))
            out = own(images, output_hidden_states=True, **more)
        last = out.last_hidden_state
        expected = last if last.ndim == 3 else last.flatten(2).mT
        torch.testing.assert_close(tokens.patches, expected, rtol=1e-5, atol=1e-5)
        maps = out.reshaped_hidden_states if "swin" in kind else out.hidden_states[1:]
        sides = (
            (8, 16, 16) if "swin" in kind else (4, 8, 16, 32)
        )  # Swin's stages end with the merging after them
        assert [layer.grid for layer in tokens.layers] == [(height // side, width // side) for side in sides]
        for layer, x in zip(tokens.layers[:-1], maps[-encoder.depth : -1], strict=True):
            torch.testing.assert_close(layer.patches, x.flatten(2).mT, rtol=1e-5, atol=1e-5)


# Models of timm


STAGES = {"embed_dim": 16, "depths": (1, 2, 1), "num_heads": (1, 2, 2), "window_size": 4}
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_tiny_patch4_window7_224", {**STAGES, "img_size": 64, "dynamic_img_size": True}),
    "swinv2": ("swinv2_tiny_window8_256", {**STAGES, "img_size": 64, "dynamic_img_size": True}),
    "convnext": ("convnext_tiny", {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}),
    "perception encoder": (
        "vit_pe_core_tiny_patch16_384",
        {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 2, "dynamic_img_size": True},
    ),
    "perception encoder, spatial": (
        "vit_pe_spatial_tiny_patch16_512",
        {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 2, "dynamic_img_size": True},
    ),
}


def blocks(own: Any) -> nn.Sequential:
    """What a layer is, in each of them."""
    parts = dict(own.named_children())
    return parts.get("layers") or parts.get("stages") or parts["blocks"]


def features_and_layers(own: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the model returns, and what each layer does."""
    states: list[Tensor] = []

    def keep(_module: nn.Module, _given: Any, out: Any) -> None:
        states.append(out)

    hooks = [block.register_forward_hook(keep) for block in blocks(own)]
    expected = own.forward_features(images)
    for hook in hooks:
        hook.remove()
    return expected, states


@pytest.mark.parametrize("name", TIMM)
def test_wrapped_models_of_timm_at_two_sizes(name: str) -> None:
    model, options = TIMM[name]
    own: Any = randomised(timm.create_model(model, num_classes=0, **options))
    encoder = encoder_of(TimmModel(model), own)
    assert isinstance(encoder, TimmEncoder)
    for height, width in ((64, 64), (96, 64)):
        images = torch.randn(2, 3, height, width)
        with torch.no_grad():
            expected, states = features_and_layers(own, images)
            tokens = encoder(images, layers=tuple(range(1, encoder.depth + 1)))
        assert len(states) == encoder.depth
        torch.testing.assert_close(joined(tokens), as_tokens(expected, name), rtol=1e-5, atol=1e-5)
        for layer, state in zip(tokens.layers[:-1], states, strict=False):
            state = own.norm(state) if "perception" in name else state
            torch.testing.assert_close(joined(layer), as_tokens(state, name), rtol=1e-5, atol=1e-5)


def as_tokens(x: Tensor, name: str) -> Tensor:
    if x.ndim == 3:
        return x
    return x.flatten(1, 2) if "swin" in name else x.flatten(2).transpose(1, 2)


def test_models_of_timm_in_a_folder_of_the_hub(tmp_path: Path) -> None:
    """Perception Encoder is on the hub as timm saves it, which transformers calls timm_wrapper."""
    own = randomised(timm.create_model("test_vit", num_classes=10))
    timm.models.save_for_hf(own, tmp_path)
    images = torch.randn(1, 3, 160, 160)
    encoder = visrep.load_encoder(f"hf:{tmp_path}")
    with torch.no_grad():
        expected = own.forward_features(images)  # pyright: ignore[reportCallIssue]
        torch.testing.assert_close(joined(encoder(images)), expected, rtol=1e-5, atol=1e-5)
