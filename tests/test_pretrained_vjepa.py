"""Official checkpoint files of V-JEPA and V-JEPA 2 become our encoders of clips."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import visrep
from _extras import needs, randomised
from visrep.encoders.pretrained import load_checkpoint
from visrep.encoders.pretrained.official_vjepa import ROTARY, SINES, is_rotary, table_grid, to_vjepa
from visrep.encoders.video import VideoTransformer, VideoViT
from visrep.nn.positions_video import sincos_3d

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "golden" / "vjepa_files.npz") as file:
        return dict(file)


def official(golden: dict[str, np.ndarray], name: str) -> Weights:
    start = f"{name}.w."
    return {
        key.removeprefix(start): torch.from_numpy(x).float()
        for key, x in golden.items()
        if key.startswith(start)
    }


def saved(folder: Path, weights: Weights) -> Path:
    """As the official code saves a training state: the encoder that learns, its average and the predictor."""
    other = {f"module.backbone.{name}": torch.zeros_like(x) for name, x in weights.items()}
    content = {
        "encoder": other,
        "predictor": {"module.backbone.predictor_embed.weight": torch.zeros(3, 3)},
        "target_encoder": {f"module.backbone.{name}": x for name, x in weights.items()},
        "opt": {},
        "epoch": 300,
    }
    torch.save(content, folder / "checkpoint.pth.tar")
    return folder / "checkpoint.pth.tar"


@pytest.mark.parametrize(
    ("name", "rotary", "position", "sizes"),
    [("v1", False, "sincos", ["4x32x32"]), ("v2", True, "rope", ["4x32x32", "6x24x40"])],
)
def test_stored_outputs(
    golden: dict[str, np.ndarray], tmp_path: Path, name: str, rotary: bool, position: str, sizes: list[str]
) -> None:
    encoder = load_checkpoint(saved(tmp_path, official(golden, name)), heads=2, rotary=rotary)
    assert isinstance(encoder, VideoTransformer) and encoder.config.position == position
    assert not encoder.training
    for size in sizes:
        clips = torch.from_numpy(golden[f"{name}.x_{size}"]).float()
        with torch.no_grad():
            tokens = encoder(clips, layers=(1, 2))
        for number, layer in enumerate(tokens.layers, start=1):
            expected = torch.from_numpy(golden[f"{name}.layer{number}_{size}"])
            torch.testing.assert_close(layer.patches, expected, rtol=1e-5, atol=1e-5)


def test_the_grid_is_read_off_the_table(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    encoder = load_checkpoint(saved(tmp_path, official(golden, "v1")), heads=2, rotary=False)
    assert encoder.config.frames == 4 and encoder.config.image == 32
    assert (encoder.preprocessing.frames, encoder.preprocessing.size) == (4, 32)
    for grid in ((1, 4, 4), (4, 2, 2), (2, 6, 6), (8, 3, 3)):
        assert table_grid(sincos_3d(grid, 24).unsqueeze(0)) == grid
    with pytest.raises(ValueError, match=r"table of 32 rows is not V-JEPA's: sines"):
        table_grid(torch.randn(1, 32, 24))


def test_transformers_has_the_same_model(tmp_path: Path) -> None:
    """The layout of official files, from transformers' own names, fused anew."""
    transformers = needs("transformers")
    values = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8}
    values |= {"crop_size": 32, "frames_per_clip": 4, "tubelet_size": 2, "mlp_ratio": 2}
    values |= {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    own = randomised(transformers.VJEPA2Model(transformers.VJEPA2Config(**values)))
    ours = load_checkpoint(saved(tmp_path, fused(own.state_dict())), heads=4)
    assert isinstance(ours, VideoTransformer) and ours.config.position == "rope"
    for frames in (4, 8):
        clips = torch.randn(2, frames, 3, 32, 32)
        with torch.no_grad():
            out: Any = own(clips, skip_predictor=True, output_hidden_states=True)
            norm: Any = dict(own.named_modules())["encoder.layernorm"]
            tokens = ours(clips, layers=(1, 2, 3))
            for layer, state in zip(tokens.layers, out.hidden_states[1:4], strict=True):
                torch.testing.assert_close(layer.patches, norm(state), rtol=1e-5, atol=2e-5)


def fused(weights: Weights) -> Weights:
    found: Weights = {}
    for name, x in weights.items():
        if not name.startswith("encoder."):
            continue
        name = name.removeprefix("encoder.")
        name = re.sub(r"^embeddings\.patch_embeddings\.", "patch_embed.", name)
        name = re.sub(r"^layer\.", "blocks.", name)
        name = re.sub(r"^layernorm\.", "norm.", name)
        if "attention.key" in name or "attention.value" in name:
            continue
        if "attention.query" in name:
            parts = [
                weights[f"encoder.{name}".replace("blocks.", "layer.").replace("query", part)]
                for part in ("query", "key", "value")
            ]
            name, x = name.replace("attention.query", "attn.qkv"), torch.cat(parts)
        found[name.replace("attention.", "attn.")] = x
    return found


def test_published_sizes_tell_which_of_the_two_it_is() -> None:
    assert is_rotary(None)
    for frames, side in ((16, 224), (16, 384)):
        rows = frames // 2 * (side // 16) ** 2
        assert rows in SINES and not is_rotary(torch.zeros(1, rows, 6))
    for rows, (frames, side) in ROTARY.items():
        assert rows == frames // 2 * (side // 16) ** 2 and is_rotary(torch.zeros(1, rows, 6))
    with pytest.raises(ValueError, match=r"table of 32 rows is none .* rotary=False.* rotary=True"):
        is_rotary(torch.zeros(1, 32, 6))


def test_published_files_without_a_word(tmp_path: Path) -> None:
    """Widths, patches and tables as published, one block deep: nothing needs to be said."""
    for position, rows, frames, side in (("sincos", 1568, 16, 224), ("rope", 18_432, 64, 384)):
        encoder = VideoViT(width=192, depth=1, heads=3, mlp_ratio=0.5, position=position).build()  # pyright: ignore
        table = sincos_3d((frames // 2, side // 16, side // 16), 192).unsqueeze(0)
        assert table.shape[1] == rows
        weights = dict(encoder.state_dict())
        weights["patch_embed.proj.weight"] = weights["patch_embed.proj.weight"].view(192, 3, 2, 16, 16)
        found = visrep.load_encoder(saved(tmp_path, weights | {"pos_embed": table}))
        assert found.config == VideoViT(
            frames=frames,
            image=side,
            width=192,
            depth=1,
            heads=3,
            mlp_ratio=0.5,
            position=position,  # pyright: ignore
        )
        kept = found.state_dict()
        assert all(torch.equal(kept[name], x) for name, x in encoder.state_dict().items())
        assert position == "rope" or torch.equal(found.position, table[0])  # pyright: ignore


def test_errors(golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    weights = official(golden, "v2")
    with pytest.raises(ValueError, match=r"q_bias has no place .* another encoder of clips.*hf:NAME"):
        to_vjepa(weights | {"blocks.0.attn.q_bias": torch.zeros(32)}, heads=2)
    with pytest.raises(ValueError, match=r"width of 32 with heads=unknown.*load_checkpoint\(path, heads"):
        to_vjepa(weights)
    with pytest.raises(ValueError, match=r"width of 32 with heads=5"):
        to_vjepa(weights, heads=5)
    without = {name: x for name, x in weights.items() if name != "pos_embed"}
    with pytest.raises(ValueError, match="no position table"):
        to_vjepa(without, heads=2, rotary=False)
    with pytest.raises(ValueError, match=r"checkpoint\.pth\.tar: .*none of the published V-JEPA"):
        load_checkpoint(saved(tmp_path, official(golden, "v1")), heads=2)
