"""data2vec 2.0: the official model's losses and gradients, its masks, and one teacher pass for all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conformance import Case, doubled, moment, views
from test_data2vec import one_view, stored
from test_golden import close
from test_masking import alike
from visrep.encoders import ViT
from visrep.masking import squares
from visrep.methods.masked import data2vec2
from visrep.nn.convdecoder import ConvDecoder
from visrep.views import OneView, View

CASE = Case("data2vec2")
TINY = CASE.run.method


def build(**changes: object) -> data2vec2.Data2Vec2:
    method = CASE.build(cfg=replace(TINY, **changes)).double()
    assert isinstance(method, data2vec2.Data2Vec2)
    return method


def converted(gold: dict[str, Tensor], prefix: str, ours: str) -> dict[str, Tensor]:
    """The official arrays by our names: a block apart, two blocks, and a decoder of two convolutions."""
    image, weights = "modality_encoders.IMAGE.", {}
    for name, value in gold.items():
        if not name.startswith(prefix):
            continue
        name = name.removeprefix(prefix)
        if name.startswith(image + "decoder"):
            name = name.removeprefix(image + "decoder.")
            name = name.replace("proj", "predictor").replace("blocks.0.0", "decoder.convolutions.0")
            weights[name.replace("blocks.1.0", "decoder.convolutions.1")] = value
            continue
        name = name.replace(image + "extra_tokens", "cls_token").replace(
            image + "local_encoder", "patch_embed"
        )
        if name.startswith("blocks."):
            name = name.replace("blocks.1", "blocks.2").replace("blocks.0", "blocks.1")
        name = name.replace(image + "context_encoder.blocks.0", "blocks.0")
        weights[ours + name] = value.flatten(1) if name == "patch_embed.proj.weight" else value
    return weights


def test_losses_and_gradients_through_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = stored("data2vec2.npz")
    cfg = data2vec2.Config(
        encoder=ViT(image=16, patch=4, width=16, depth=3, heads=2, position="sincos"),
        views=OneView(View(size=16)),
        masks=3,
        noise=0.0,
        top=2,
        decoder_width=16,
        decoder_depth=2,
        w_cls=0.01 * 6,  # two images with three masks
    )
    method = data2vec2.Data2Vec2(cfg)
    method.decoder = ConvDecoder(16, width=16, depth=2, groups=4)
    method.double().load_state_dict(
        converted(gold, "w.student.", "backbone.") | converted(gold, "w.teacher.", "teacher.module.")
    )
    order = gold["mask"].argsort(dim=1, stable=True)
    monkeypatch.setattr(data2vec2.Data2Vec2, "_split", lambda *_: (order[:, :4], order[:, 4:]))

    losses = method.loss(one_view(gold["images"]), moment())
    torch.stack(list(losses.terms.values())).sum().backward()
    close(losses.terms["patches"], gold["loss_patches"])
    close(losses.terms["cls"], gold["loss_cls"])
    gradients = converted(gold, "g.student.", "backbone.")
    assert len(gradients) == 13
    for name, value in gradients.items():
        grad = method.get_parameter(name).grad
        assert grad is not None
        close(grad, value)


def test_targets_of_the_training_loop_of_data2vec() -> None:
    gold = stored("data2vec2.npz")
    y = data2vec2.targets(gold["oracle.layer_outputs"])
    close(y[gold["oracle.mask"] > 0], gold["oracle.target"], 1e-5)  # computed in 32 bits there


@pytest.mark.parametrize(
    ("name", "side", "patch", "ratio", "surplus"), [("paper", 3, 16, 0.8, 0.07), ("even", 2, 28, 0.75, 0.1)]
)
def test_masks_are_those_of_the_official_sampler(
    name: str, side: int, patch: int, ratio: float, surplus: float
) -> None:
    gold, n_images = stored("data2vec2.npz"), 1000
    vit = ViT(image=224, patch=patch, width=16, depth=2, heads=1, position="sincos")
    method = build(
        encoder=vit, masks=4, mask_ratio=ratio, side=side, surplus=surplus, decoder_width=16, decoder_depth=1
    )
    keep, hidden = method._split(torch.zeros(n_images, 3, 224, 224), moment())
    n = (224 // patch) ** 2
    assert [hidden.shape[1]] == gold[f"mask_{name}_count"].tolist()
    assert torch.equal(torch.cat([keep, hidden], 1).sort(1).values, torch.arange(n).expand(4 * n_images, -1))

    seen = torch.zeros(4 * n_images, n).scatter(1, keep, 1.0)
    share, theirs = 1 - seen.mean(0).double(), gold[f"mask_{name}_freq"]
    error = (theirs * (1 - theirs) * (1 / len(seen) + 1 / 3000)).sqrt()
    assert ((share - theirs).abs() < 4.5 * error).all()
    assert 0.5 < ((share - theirs) / error).square().mean() < 2.5  # neighbours go together, so chance is wide

    seen = seen.unflatten(1, (224 // patch, -1))
    below, right = seen[:, :-1] * seen[:, 1:], seen[:, :, :-1] * seen[:, :, 1:]
    alike(below.sum((1, 2)) + right.sum((1, 2)), gold[f"mask_{name}_pairs"].numpy())
    neighbours = torch.zeros_like(seen)
    neighbours[:, :-1] += below
    neighbours[:, 1:] += below
    neighbours[:, :, :-1] += right
    neighbours[:, :, 1:] += right
    alone = (seen > 0) & (neighbours == 0)
    alike(alone.sum((1, 2)), gold[f"mask_{name}_alone"].numpy())


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_squares_equal_a_plain_loop(side: int) -> None:
    noise, (rows, columns) = torch.rand(20, 3, generator=torch.Generator().manual_seed(side)), (5, 7)
    seen = squares(noise, (rows, columns), side).unflatten(1, (rows, columns))
    for i in range(20):
        wanted = torch.zeros(rows, columns, dtype=torch.bool)
        for place in (noise[i] * rows * columns).long().tolist():
            top, left = place // columns - side // 2, place % columns - side // 2
            wanted[max(0, top) : top + side, max(0, left) : left + side] = True
        assert torch.equal(seen[i], wanted)


def test_masks_share_one_teacher_pass_and_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = build(masks=3, noise=0.0, w_cls=0.3), doubled(views(CASE))
    images = batch.crops[0][0]
    keep, hidden = method._split(images, moment())
    seen_by_teacher: list[int] = []
    method.teacher.module.register_forward_pre_hook(lambda _, inputs: seen_by_teacher.append(len(inputs[0])))
    terms = method.loss(batch, moment()).terms
    assert seen_by_teacher == [len(images)]

    y, patches, cls = method._targets(images), [], []
    for i, (kept, asked) in enumerate(zip(keep, hidden, strict=True)):
        image = i // 3
        tokens = method.backbone(images[image : image + 1], keep=kept[None])
        full = torch.zeros(1, 16, 32, dtype=torch.float64)
        full[0, kept] = tokens.patches[0]
        z = method.predictor(method.decoder(full, (4, 4))[0, asked])
        patches.append((z - y[image, asked]).square().sum(-1).mean() / 32**0.5)
        assert tokens.cls is not None
        cls.append((tokens.cls[0] - y[image].mean(0)).square().sum() / 32**0.5)
    close(terms["patches"], torch.stack(patches).mean())
    close(terms["cls"], 0.3 * torch.stack(cls).mean())


def test_noise_stands_for_hidden_patches() -> None:
    batch = doubled(views(CASE))
    losses = [build(noise=noise).loss(batch, moment()).terms["patches"] for noise in (0.0, 0.01, 1.0)]
    assert 0 < (losses[1] - losses[0]).abs() < (losses[2] - losses[0]).abs()


def test_bad_settings_say_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"top=0 .* Use 1 to 2"):
        build(top=0)
    with pytest.raises(ValueError, match=r"w_cls=2\.56 needs a cls token"):
        build(encoder=replace(TINY.encoder, cls=False))
    with pytest.raises(ValueError, match="groups=16"):
        build(decoder_width=24)
    with pytest.raises(ValueError, match=r"mask_ratio=0\.99"):
        build(mask_ratio=0.99).loss(doubled(views(CASE)), moment())
