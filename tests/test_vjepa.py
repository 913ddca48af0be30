"""V-JEPA: transformers' predictor and targets, both official losses and gradients, official masks in distribution."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance import Case, moment, views
from visrep.encoders import VideoViT
from visrep.encoders.patches import take
from visrep.encoders.pretrained.official_vjepa import to_vjepa
from visrep.encoders.video import Position
from visrep.method import At
from visrep.methods.predictive.vjepa import CROP, VJEPA, Config, cooldown, paper, targets, tiny
from visrep.nn.positions_video import sincos_3d
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


def drawn(gold: dict[str, np.ndarray], part: str, seed: int) -> dict[str, Tensor]:
    """The weights of the official networks, which were drawn one by one in the order of their names."""
    weights = {}
    for i, (name, shape) in enumerate(zip(gold[f"{part}_names"], gold[f"{part}_shapes"], strict=True)):
        values = 0.3 * np.random.RandomState(seed + i).randn(*map(int, shape.split()))
        weights[str(name)] = torch.from_numpy(values).float().double()
    return weights


def our_name(part: str, name: str) -> str:
    if part == "encoder":
        return f"backbone.{name}"
    name = name.replace("mask_tokens.0", "mask_token").removeprefix("predictor_")
    return "predictor." + re.sub("^proj", "project", name)


@pytest.mark.parametrize(
    ("file", "position"), [("vjepa_loss.npz", "rope"), ("vjepa_loss_sines.npz", "sincos")]
)
def test_loss_and_gradients_are_the_official_ones(
    file: str, position: Position, monkeypatch: pytest.MonkeyPatch
):
    """All gradients by their lengths, some number by number; V-JEPA 2's kinds of masks share a mask token."""
    with np.load(GOLDEN / file) as stored:
        gold = dict(stored)
    shared = position == "rope"
    encoder = VideoViT(frames=4, image=32, patch=8, width=36, depth=2, heads=3, position=position)
    method = VJEPA(
        Config(
            encoder=encoder,
            views=OneView(replace(CROP, size=32), frames=4),
            block_scale=(0.15, 0.5),
            predictor_width=24,
            predictor_depth=2,
            predictor_heads=2,
        )
    ).double()
    for network, seed in ((method.backbone, 0), (method.teacher.module, 200)):
        theirs = to_vjepa(
            drawn(gold, "encoder", seed) | {"pos_embed": sincos_3d((2, 4, 4), 36)[None]}, 3, shared
        )
        network.load_state_dict(theirs.state_dict())
    weights = {our_name("predictor", name): x for name, x in drawn(gold, "predictor", 100).items()}
    token, other = weights.pop("predictor.mask_token"), weights.pop("predictor.mask_tokens.1")
    weights["predictor.mask_token"] = torch.stack([token, token if shared else other])
    method.predictor.load_state_dict({name.removeprefix("predictor."): x for name, x in weights.items()})

    masks = [
        [torch.from_numpy(gold[f"{which}{kind}"]).long() for which in ("seen", "asked")] for kind in (0, 1)
    ]
    monkeypatch.setattr(VJEPA, "_mask", lambda self, kind, b, at: masks[kind])
    clips = torch.from_numpy(np.random.RandomState(1000).randn(3, 3, 4, 32, 32)).transpose(1, 2)
    loss = method.loss(replace(views(Case("vjepa")), crops=(clips[None],)), moment()).terms["l1"]
    loss.backward()
    close(loss, torch.from_numpy(gold["loss"]))

    whole = 0
    for part in ("encoder", "predictor"):
        for name, length in zip(gold[f"{part}_names"], gold[f"{part}_gradient_norms"], strict=True):
            if name == "mask_tokens.1" and shared:
                assert length == 0  # never reached
                continue
            grad = method.get_parameter(our_name(part, name.replace("tokens.1", "tokens.0"))).grad
            assert grad is not None and length > 1e-4
            if name.startswith("mask_tokens"):
                grad = grad.sum(0) if shared else grad[int(name[-1])]
            torch.testing.assert_close(grad.norm().item(), float(length), rtol=1e-9, atol=0)
            if f"grad.{part}.{name}" in gold:
                theirs = torch.from_numpy(gold[f"grad.{part}.{name}"])
                torch.testing.assert_close(grad.view_as(theirs), theirs, rtol=1e-9, atol=1e-12)
                whole += 1
    assert whole == sum(key.startswith("grad.") for key in gold) > 7


def test_all_kinds_of_masks_share_one_teacher_pass(monkeypatch: pytest.MonkeyPatch):
    case = Case("vjepa")
    method = case.build()
    assert isinstance(method, VJEPA) and len(method.cfg.n_blocks) == 2
    passes = {"teacher": 0, "student": 0}

    def count(name: str, network: nn.Module) -> None:
        network.register_forward_pre_hook(lambda *_: passes.update({name: passes[name] + 1}))

    count("teacher", method.teacher.module)
    count("student", method.backbone)
    method.loss(views(case), moment())
    assert passes == {"teacher": 1, "student": 2}


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


def at_14x14(n_blocks: tuple[int, ...], scales: tuple[float, ...]) -> VJEPA:
    """Masks of 16 frames of 224 px, a grid of 8 x 14 x 14, of which one place or more is seen, as officially."""
    return VJEPA(
        Config(
            encoder=VideoViT(width=12, depth=1, heads=1, position="rope"),
            views=OneView(CROP, frames=16),
            n_blocks=n_blocks,
            block_scale=scales,
            least_seen=0.004,
            predictor_width=12,
            predictor_depth=1,
            predictor_heads=1,
        )
    )


def hidden_places(method: VJEPA, kind: int, n: int) -> Tensor:
    """Which places of the grid n masks of one clip hide, "n 14 14"."""
    hidden = torch.zeros(n, 196, dtype=torch.bool)
    for i in range(n):
        asked = method._mask(kind, 1, at_seed(i))[1][0]
        hidden[i, asked[asked < 196]] = True  # of the first time; the others are alike
    return hidden.unflatten(1, (14, 14))


@pytest.mark.parametrize(("kind", "name"), [(0, "short_8x0.15"), (1, "long_2x0.7")])
def test_masks_hide_each_place_as_often_as_the_official_ones(kind: int, name: str):
    gold, n = arrays("vjepa_masks.npz"), 2000
    hidden = hidden_places(at_14x14((8, 2), (0.15, 0.7)), kind, n)
    # Where blocks cover all, the official code draws again and ours shows one place.
    hidden = hidden[hidden.sum((1, 2)) < 195]
    assert len(hidden) > 0.96 * n
    ours = hidden.double().mean(0)
    theirs = gold[f"{name}_hidden_count"] / n
    error = (theirs * (1 - theirs) * 2 / n).sqrt()
    assert ((ours - theirs).abs() <= 4.5 * error).all()
    # Small against what the places differ by, so that even chances would not pass.
    assert theirs.max() - theirs.min() > 20 * error.max()


@pytest.mark.parametrize(("kind", "name"), [(0, "short_8x0.15"), (1, "long_2x0.7")])
def test_blocks_have_the_official_shapes_as_often(kind: int, name: str):
    gold, n = arrays("vjepa_masks.npz"), 2000
    hidden = hidden_places(at_14x14((1, 1), (0.15, 0.7)), kind, n)
    heights, widths = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(heights * widths, hidden.sum((1, 2)))  # each a whole rectangle
    theirs = dict(
        zip(map(tuple, gold[f"{name}_block_hw"].tolist()), gold[f"{name}_block_count"], strict=True)
    )
    assert sum(theirs.values()) == n
    ours = Counter(zip(heights.tolist(), widths.tolist(), strict=True))
    for shape in theirs.keys() | ours.keys():
        a, b = ours[shape] / n, int(theirs.get(shape, 0)) / n
        assert abs(a - b) <= 4.5 * ((a + b) / n) ** 0.5, shape


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


def test_the_cooldown_goes_on_with_longer_clips_and_a_rate_that_falls_along_a_line():
    """Of the official cooldown-256px-64f: 64 frames, 5.25e-4 to 1e-6, no warm-up; positions are not weights."""
    run = cooldown()
    for total in (12_000, 600):  # the rate spans the run
        rates = [run.optim.lr(At(step, total, 300, torch.Generator())) for step in (0, total // 2, total)]
        assert rates == pytest.approx([5.25e-4, (5.25e-4 + 1e-6) / 2, 1e-6])
    assert run.method.encoder == replace(paper().method.encoder, frames=64) and run.method.views.frames == 64
    short = VJEPA(tiny().method)
    long = replace(
        tiny().method, encoder=replace(tiny().method.encoder, frames=8), views=OneView(CROP, frames=8)
    )
    longer = VJEPA(replace(long, views=replace(long.views, view=replace(CROP, size=32))))
    longer.load_state_dict(short.state_dict())
    clips = torch.rand(1, 8, 3, 32, 32)
    assert longer.encoder(clips).patches.shape[1] == 2 * short.encoder(clips[:, :4]).patches.shape[1]


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
