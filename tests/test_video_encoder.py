"""The encoder of clips equals published ones; positions, visible-only encoding, errors; encoders of images on clips."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visrep.encoders import FrameAverage, ResNet, VideoViT, ViT, load_encoder, save_encoder
from visrep.encoders.video import Position, VideoTransformer, cut, paste
from visrep.method import Tokens
from visrep.nn.positions_video import rotary_3d, sincos_3d, sincos_sequence

GOLDEN = Path(__file__).parent / "golden"
SMALL = VideoViT(frames=4, image=32, patch=8, width=24, depth=2, heads=2)


def arrays(file: str) -> dict[str, Tensor]:
    """Numbers in 64 bits, whatever they are stored in."""
    with np.load(GOLDEN / file) as stored:
        values = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return {name: x.double() if x.is_floating_point() else x for name, x in values.items()}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def load(encoder: nn.Module, gold: dict[str, Tensor], names: dict[str, str], layers: str) -> None:
    """Weights of a transformer of the transformers package under our names; ``names`` are theirs by ours."""
    state = {}
    for ours, theirs in names.items():
        for kind in ("weight", "bias"):
            if "{}" not in ours:
                state[f"{ours}.{kind}"] = gold[f"w.{theirs}.{kind}"]
                continue
            for i in range(2):
                parts = [gold.get(f"w.{layers}.{i}.{part}.{kind}") for part in theirs.split()]
                # VideoMAE's keys have no bias: it would change nothing
                state[f"{ours.format(i)}.{kind}"] = torch.cat(
                    [torch.zeros(48).double() if part is None else part for part in parts]
                )
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"norm.weight", "norm.bias"}


@pytest.fixture
def videomae() -> tuple[VideoTransformer, dict[str, Tensor]]:
    gold = arrays("videomae_encoder.npz")
    encoder = VideoViT(frames=4, image=32, patch=8, width=48, depth=2, heads=4, mlp_ratio=2).build().double()
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "blocks.{}.attn.qkv": " ".join(f"attention.attention.{part}" for part in ("query", "key", "value")),
        "blocks.{}.attn.proj": "attention.output.dense",
        "blocks.{}.mlp.fc1": "intermediate.dense",
        "blocks.{}.mlp.fc2": "output.dense",
        "blocks.{}.norm1": "layernorm_before",
        "blocks.{}.norm2": "layernorm_after",
    }
    load(encoder, gold, names, "encoder.layer")
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12  # that of the model that made the numbers
    return encoder, gold


def plain_norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-12)


def test_videomae_encoder(videomae: tuple[VideoTransformer, dict[str, Tensor]]):
    encoder, gold = videomae
    tokens = encoder(gold["pixel_values_4x32x32"], layers=(1,))
    assert tokens.grid == (2, 4, 4)
    close(tokens.patches, plain_norm(gold["last_hidden_state_4x32x32"]))
    close(tokens.layers[0].patches, plain_norm(gold["hidden_state_1_4x32x32"]))


def test_videomae_encoder_sees_only_visible_patches(videomae: tuple[VideoTransformer, dict[str, Tensor]]):
    encoder, gold = videomae
    keep = (~gold["bool_masked_pos"]).nonzero()[:, 1][None]
    close(
        encoder(gold["pixel_values_4x32x32"], keep=keep).patches, plain_norm(gold["last_hidden_state_masked"])
    )


def test_vjepa2_encoder():
    gold = arrays("vjepa2.npz")
    encoder = VideoViT(
        frames=4, image=32, patch=8, width=48, depth=2, heads=4, mlp_ratio=2, position="rope"
    ).build()
    names = {
        "patch_embed.proj": "encoder.embeddings.patch_embeddings.proj",
        "blocks.{}.attn.qkv": "attention.query attention.key attention.value",
        "blocks.{}.attn.proj": "attention.proj",
        "blocks.{}.mlp.fc1": "mlp.fc1",
        "blocks.{}.mlp.fc2": "mlp.fc2",
        "blocks.{}.norm1": "norm1",
        "blocks.{}.norm2": "norm2",
        "norm": "encoder.layernorm",
    }
    encoder = encoder.double()
    load(encoder, gold, names, "encoder.layer")
    close(encoder(gold["pixel_values_4x32x32"]).patches, gold["last_hidden_state_4x32x32"])


@pytest.mark.parametrize("position", ["sequence", "sincos", "rope"])
def test_every_patch_knows_its_place(position: Position):
    """Keeping all patches in another order gives the same tokens in that order; attention maps fit."""
    encoder = VideoViT(frames=4, image=32, patch=8, width=24, depth=2, heads=2, position=position).build()
    clips = torch.randn(2, 4, 3, 32, 32)
    order = torch.stack([torch.randperm(32), torch.randperm(32)])
    whole, shuffled = encoder(clips, attention=True), encoder(clips, keep=order)
    torch.testing.assert_close(shuffled.patches, whole.patches.gather(1, order[..., None].expand(-1, -1, 24)))
    assert whole.attention is not None and whole.attention.shape == (2, 2, 2, 32, 32)
    torch.testing.assert_close(whole.attention.sum(-1), torch.ones(2, 2, 2, 32))
    still = encoder(clips[:, :1].expand(-1, 4, -1, -1, -1)).patches.unflatten(1, (2, 16))
    assert not torch.allclose(still[:, 0], still[:, 1]), "the same frames at two times look alike"


@pytest.mark.parametrize("position", ["sequence", "sincos", "rope"])
@pytest.mark.parametrize(("frames", "side"), [(8, 32), (4, 48), (2, 16)])
def test_other_sizes(position: Position, frames: int, side: int):
    encoder = VideoViT(frames=4, image=32, patch=8, width=24, depth=1, heads=2, position=position).build()
    tokens = encoder(torch.randn(2, frames, 3, side, side))
    assert tokens.grid == (frames // 2, side // 8, side // 8)
    assert tokens.patches.shape == (2, frames // 2 * (side // 8) ** 2, 24)


def test_tables_of_other_grids_meet_the_trained_one():
    """Twice as fine a grid has, between two patches, a patch on either side at a quarter of the way."""
    for table in (sincos_3d, sincos_sequence):
        assert torch.equal(table((2, 3, 4), 24), table((2, 3, 4), 24, trained=(2, 3, 4)))
    fine = sincos_3d((4, 1, 1), 12, trained=(2, 1, 1))[:, :4]
    times = torch.tensor([-0.25, 0.25, 0.75, 1.25])
    torch.testing.assert_close(fine[:, 0], times.sin())
    torch.testing.assert_close(fine[:, 3], (times / 100).cos())


def test_positions_written_out():
    """Of the patch at time 1, row 2, column 3 of a grid of 2 x 3 x 4."""
    place = (1 * 3 + 2) * 4 + 3
    expected = [f(angle) for angle in (place, place / 100) for f in (math.sin, math.cos)]
    torch.testing.assert_close(sincos_sequence((2, 3, 4), 4)[place], torch.tensor(expected))
    axes = sincos_3d((2, 3, 4), 12)[place].unflatten(0, (3, 4))
    for axis, coordinate in zip(axes, (1.0, 2.0, 3.0), strict=True):
        angles = torch.tensor([coordinate, coordinate / 100])
        torch.testing.assert_close(axis, torch.cat([angles.sin(), angles.cos()]))
    rotary = rotary_3d((2, 3, 4), 14)
    assert rotary.sin.shape == (24, 14) and not rotary.sin[:, 12:].any() and (rotary.cos[:, 12:] == 1).all()


def test_cutting_and_pasting():
    clips = torch.randn(2, 4, 3, 8, 12)
    patches = cut(clips, 2, 4)
    assert patches.shape == (2, 12, 3, 2, 4, 4)
    assert torch.equal(
        patches[1, 6 + 3 + 2], clips[1, 2:4, :, 4:8, 8:12].transpose(0, 1)
    )  # time 1, row 1, column 2
    assert torch.equal(paste(patches, (2, 2, 3)), clips)


@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_the_mask_token_stands_for_hidden_patches(position: Position):
    """What is hidden does not matter, its place does; also where only some patches are encoded."""
    encoder = replace(SMALL, position=position, mask_token=True).build()
    clips, mask = torch.randn(2, 4, 3, 32, 32), torch.rand(2, 32) < 0.5
    pixels = cut(clips, 2, 8)
    changed = paste(torch.where(mask[:, :, None, None, None, None], pixels + 1, pixels), (2, 4, 4))
    masked = encoder(clips, mask=mask).patches
    assert torch.equal(masked, encoder(changed, mask=mask).patches)
    assert not torch.allclose(masked, encoder(clips).patches)
    first, second, *_ = masked[0][mask[0]]
    assert not torch.allclose(first, second)
    order = torch.arange(32).flip(0).expand(2, -1)
    torch.testing.assert_close(encoder(clips, mask=mask, keep=order).patches, masked.flip(1))
    with pytest.raises(ValueError, match="2 images of 2 x 4 x 4 patches need"):
        encoder(clips, mask=mask[:, :16])


def test_saved_and_loaded(tmp_path: Path):
    encoder = SMALL.build().eval()
    save_encoder(tmp_path, encoder)
    loaded = load_encoder(tmp_path)
    assert loaded.preprocessing.frames == 4
    clips = torch.randn(1, 4, 3, 32, 32)
    assert torch.equal(loaded(clips).pool(), encoder(clips).pool())


def test_errors():
    encoder = SMALL.build()
    clips = torch.randn(2, 4, 3, 32, 32)
    with pytest.raises(ValueError, match="5 frames does not divide into patches of 2"):
        VideoViT(frames=5)
    with pytest.raises(ValueError, match="multiple"):
        VideoViT(width=50, heads=4)
    with pytest.raises(ValueError, match="at least 6 channels"):
        VideoViT(frames=2, image=8, patch=8, width=8, heads=2, position="rope").build()(
            clips[:, :2, :, :8, :8]
        )
    with pytest.raises(ValueError, match="mask token"):
        encoder(clips, mask=torch.zeros(2, 32, dtype=torch.bool))
    with pytest.raises(ValueError, match="layer 3"):
        encoder(clips, layers=(3,))


@pytest.mark.parametrize(
    "config", [ResNet(18, width=4, stem="small"), ViT(image=32, patch=8, width=24, depth=2, heads=2)]
)
def test_frame_average_is_blind_to_order(config: ResNet | ViT, tmp_path: Path):
    encoder = FrameAverage(config.build()).eval()
    clips = torch.randn(2, 4, 3, 32, 32)
    tokens: Tokens = encoder(clips, layers=(1,))
    frames = torch.stack([encoder.encoder(frame).pool() for frame in clips.unbind(1)])
    torch.testing.assert_close(tokens.pool(), frames.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder(clips.flip(1)).pool(), tokens.pool(), rtol=1e-4, atol=1e-5)
    assert tokens.grid[0] == 4 and tokens.patches.shape[1] == int(np.prod(tokens.grid))
    save_encoder(tmp_path, encoder)
    torch.testing.assert_close(load_encoder(tmp_path)(clips).pool(), tokens.pool())
    with pytest.raises(ValueError, match="one by one"):
        encoder(clips, attention=True)
