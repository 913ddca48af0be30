"""V-JEPA equals transformers' V-JEPA 2: predictor and targets; its masks are distributed as the official ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance import Case, moment, views
from visrep.encoders import VideoViT
from visrep.encoders.patches import take
from visrep.method import At
from visrep.methods.predictive.vjepa import CROP, VJEPA, Config, targets, tiny
from visrep.nn.transformer import Block
from visrep.views import OneView

GOLDEN = Path(__file__).parent / "golden"


def arrays(file: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / file) as stored:
        values = {name: torch.from_numpy(stored[name]) for name in stored.files}
    return {name: x.double() if x.is_floating_point() else x for name, x in values.items()}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def predictor_weights(gold: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of transformers, under our names."""
    found = {"mask_token": gold["w.predictor.embeddings.mask_tokens"]}
    for kind in ("weight", "bias"):
        for ours, theirs in (
            ("embed", "embeddings.predictor_embeddings"),
            ("norm", "layernorm"),
            ("project", "proj"),
        ):
            found[f"{ours}.{kind}"] = gold[f"w.predictor.{theirs}.{kind}"]
        for i in range(2):
            layer = f"w.predictor.layer.{i}"
            parts = [gold[f"{layer}.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            found[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
            found[f"blocks.{i}.attn.proj.{kind}"] = gold[f"{layer}.attention.proj.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"blocks.{i}.{part}.{kind}"] = gold[f"{layer}.{part}.{kind}"]
    return found


def test_predictor_and_targets():
    gold = arrays("vjepa2.npz")
    method = VJEPA(
        Config(
            encoder=VideoViT(frames=4, image=32, patch=8, width=48, depth=1, heads=4, position="rope"),
            views=OneView(replace(CROP, size=32), frames=4),
            block_scale=(0.15, 0.5),
            predictor_width=24,
            predictor_depth=2,
            predictor_heads=2,
        )
    )
    method.predictor.blocks = nn.ModuleList(Block(24, 2, mlp_ratio=2) for _ in range(2))
    method = method.double()
    method.predictor.load_state_dict(predictor_weights(gold))
    keep, asked = gold["context_mask_4x32x32"], gold["target_mask_4x32x32"]
    z = method._ask(gold["masked_hidden_state_4x32x32"], keep, asked, kind=1)
    close(z, gold["predictor_last_hidden_state_4x32x32"])
    h = gold["last_hidden_state_4x32x32"]
    close(take(h, asked), gold["predictor_target_hidden_state_4x32x32"])
    y = targets(h, asked)
    close(y.mean(-1), torch.zeros_like(y[..., 0]))
    close(
        y,
        (h - h.mean(-1, keepdim=True)).div((h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt())[
            :, asked[0]
        ],
    )


def test_loss_written_out():
    """The mean over kinds of masks of the absolute error, against the whole clip's tokens of the teacher."""
    case = Case("vjepa")
    method = case.build().double()
    assert isinstance(method, VJEPA)
    clips = views(case).crops[0][0].double()
    batch = replace(views(case), crops=(clips[None],))
    at = moment()
    masks = [method._mask(kind, 16, at) for kind in range(2)]
    h = method.teacher(clips).patches
    h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    errors = []
    for kind, (keep, asked) in enumerate(masks):
        z = method._predict(clips, keep, asked, kind)
        rows = torch.arange(16).unsqueeze(1)
        errors.append((z - h[rows, asked]).abs().mean())
    close(method.loss(batch, moment()).terms["l1"], (errors[0] + errors[1]) / 2)


def at_seed(seed: int) -> At:
    return At(0, 1, 1, torch.Generator().manual_seed(seed))


def ks(a: np.ndarray, b: np.ndarray) -> float:
    """Greatest difference between two empirical distributions."""
    every = np.union1d(a, b)
    return float(np.abs([(a <= x).mean() - (b <= x).mean() for x in every]).max())


def test_masks_are_distributed_as_the_official_ones():
    gold = arrays("vjepa_masks.npz")
    encoder = VideoViT(
        width=12, depth=1, heads=1, position="rope"
    )  # 16 frames of 224 px: a grid of 8 x 14 x 14
    method = VJEPA(
        Config(
            encoder=encoder,
            views=OneView(CROP, frames=16),
            predictor_width=12,
            predictor_depth=1,
            predictor_heads=1,
        )
    )
    for kind, name in enumerate(("short_8x0.15", "long_2x0.7")):
        masks = [method._mask(kind, 1, at_seed(seed)) for seed in range(400)]
        for part, which in ((0, "context"), (1, "target")):
            counts = np.array([mask[part].shape[1] for mask in masks])
            assert ks(counts, gold[f"{name}_n_{which}"].numpy()) < 0.115, which  # the 0.1 % quantile
        assert all(len(torch.cat(mask, dim=1).unique()) == 1568 for mask in masks[:50])


def test_all_clips_see_and_predict_equally_many_places_at_all_times():
    method = Case("vjepa").build()
    assert isinstance(method, VJEPA)
    for kind in range(2):
        keep, asked = method._mask(kind, 64, at_seed(kind))
        seen = torch.zeros(64, 32, dtype=torch.bool).scatter(1, keep, True)
        hidden = torch.zeros(64, 32, dtype=torch.bool).scatter(1, asked, True)
        assert not (seen & hidden).any()
        for mask, indices in ((seen, keep), (hidden, asked)):
            assert (mask.sum(1) == indices.shape[1]).all()
            assert torch.equal(mask[:, :16], mask[:, 16:])


def test_blocks_that_cover_all_still_leave_something():
    run = tiny()
    method = VJEPA(replace(run.method, n_blocks=(40,), block_scale=(0.6,), least_seen=0.13))
    keep, asked = method._mask(0, 32, at_seed(0))
    assert keep.shape == (32, 2 * 2) and asked.shape[1] <= 14 * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_blocks": (8,)}, "give one of each"),
        ({"n_blocks": (8, 0)}, "1 block or more"),
        ({"block_scale": (0.01, 0.5)}, "hides at least one, 0.0625"),
        ({"block_scale": (0.2, 1.0)}, "and not all"),
        ({"least_seen": 0.0}, "least_seen lies between"),
    ],
)
def test_wrong_settings(settings: dict[str, tuple[float, ...] | float], message: str):
    with pytest.raises(ValueError, match=message):
        VJEPA(replace(tiny().method, **settings))  # pyright: ignore[reportArgumentType]


def test_pictures_show_what_is_seen_and_what_is_asked_for_at_all_times():
    case, batch = Case("vjepa"), views(Case("vjepa"))
    method = case.build()
    assert isinstance(method, VJEPA)
    picture = method.pictures(batch, moment())["predicted blocks"]
    assert picture.shape == (3, 5, 4, 3, 32, 32)
    view = tiny().method.views.view
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (view.mean, view.std))
    shown = (batch.crops[0][0] * std + mean).clamp(0, 1)
    torch.testing.assert_close(picture[:, 0], shown[:3], atol=1e-6, rtol=0)
    at, h = moment(), method.teacher(batch.crops[0][0]).patches
    for kind in range(2):
        keep, asked = method._mask(kind, 16, at)
        y, z = targets(h, asked), method._predict(batch.crops[0][0], keep, asked, kind)
        like = (y * z).sum(-1) / (y.norm(dim=-1) * z.norm(dim=-1))
        for clip in range(3):
            seen, alike = torch.zeros(2, 32, 32), torch.zeros(2, 32, 32)  # a patch reaches over two frames
            for places, values, drawn in ((keep, torch.ones(keep.shape), seen), (asked, like, alike)):
                for place, value in zip(places[clip].tolist(), values[clip].tolist(), strict=True):
                    time, row, column = place // 16, place % 16 // 4 * 8, place % 4 * 8
                    drawn[time, row : row + 8, column : column + 8] = max(0, value)
            frames = torch.tensor([0, 0, 1, 1])
            expected = (
                shown[clip] * seen[frames].unsqueeze(1),
                alike[frames].unsqueeze(1).expand(-1, 3, -1, -1),
            )
            for column, wanted in enumerate(expected):
                found = picture[clip, 1 + 2 * kind + column]
                torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
