"""LatentMIM: the official model's loss and gradients, its gaps between patches, and plain loops."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance import Case, doubled, moment, views
from test_data2vec import one_view, stored
from test_golden import close
from visrep.encoders import ViT
from visrep.functional import patchify, unpatchify, without_gaps
from visrep.method import At
from visrep.methods.masked import latentmim
from visrep.schedules import Constant
from visrep.views import GappedView, View

CASE = Case("latentmim")
TINY = CASE.run.method


@dataclass(frozen=True)
class Dealt(At):
    """Hands out stored random numbers, one after the other."""

    numbers: list[Tensor] = field(kw_only=True)

    def rand(self, b: int, *shape: int) -> Tensor:
        dealt = self.numbers.pop(0)
        assert (b, *shape) == dealt.shape
        return dealt


def build(**changes: object) -> latentmim.LatentMIM:
    method = CASE.build(cfg=replace(TINY, **changes)).double()
    assert isinstance(method, latentmim.LatentMIM)
    return method


def converted(gold: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The official arrays by our names."""
    weights: dict[str, Tensor] = {}
    parts = {"encoder": "student.encoder", "target_encoder": "teacher.module.encoder", "decoder": "decoder"}
    places = {"linear0": "0", "norm0": "1", "linear1": "3", "norm1": "4", "linear2": "6", "norm2": "7"}
    for name, value in gold.items():
        if not name.startswith(prefix):
            continue
        part, _, name = name.removeprefix(prefix).partition(".")
        ours = parts[part] + "."
        if part == "decoder":
            for theirs, here in (
                ("self_attn", "attn"),
                ("norm2q", "norm2"),
                ("norm2kv", "norm_seen"),
                ("head", "predict"),
            ):
                name = name.replace(theirs, here)
            name = name.replace("q_proj", "q")
            if "kv_proj" in name:  # keys then values; a bias of keys adds the same to all scores
                keys, values = value.chunk(2)
                weights[ours + name.replace("kv_proj", "v")] = values
                if name.endswith("weight"):
                    weights[ours + name.replace("kv_proj", "k")] = keys
                continue
        elif name.startswith("head."):
            _, layer, kind = name.split(".")
            ours, name = ours.replace("encoder", "projector"), f"{places[layer]}.{kind}"
        elif name == "embed.proj.weight":  # pixels as row, column, channel there
            value = value.unflatten(1, (4, 4, 3)).permute(0, 3, 1, 2).flatten(1)
        weights[ours + name.replace("embed.proj", "patch_embed.proj")] = value
    return weights


def loaded(gold: dict[str, Tensor]) -> latentmim.LatentMIM:
    cfg = latentmim.Config(
        encoder=ViT(image=16, patch=4, width=24, depth=2, heads=3, position="sincos"),
        views=GappedView(View(size=24), image=16),
        mask_ratio=0.75,
        hidden=20,
        decoder_width=16,
        decoder_depth=2,
        decoder_heads=2,
        similarity=Constant(0.6),
    )
    method = latentmim.LatentMIM(cfg).double()
    method.load_state_dict(converted(gold, "w."))
    # Official positions are 4/3 apart on this grid, ours 1.
    for network in (method.student, method.teacher.module):
        position = network.encoder.position
        assert isinstance(position, Tensor)
        position.copy_(gold["position"])
    method.decoder.position.copy_(gold["decoder_position"])
    return method


def test_loss_and_gradients() -> None:
    gold = stored("latentmim.npz")
    method = loaded(gold)
    numbers = [(gold["offsets"] + 0.5) / 2, gold["noise"]]
    losses = method.loss(one_view(gold["images"]), Dealt(0, 100, 10, torch.Generator(), numbers=numbers))
    total = torch.stack(list(losses.terms.values())).sum()
    total.backward()
    close(total, gold["loss"])
    close(losses.terms["infonce"], gold["infonce"])
    for ours, theirs in (("prediction", "pred"), ("visible", "vis"), ("target", "trg")):
        close(losses.monitor[f"{ours}_similarity"], gold[f"avg_sim_{theirs}"])
    gradients = converted(gold, "g.")
    assert len(gradients) > 15
    for name, value in gradients.items():
        grad = method.get_parameter(name).grad
        assert grad is not None
        close(grad, value)


def test_gaps_are_cut_as_in_the_official_code() -> None:
    gold = stored("latentmim.npz")
    images = without_gaps(gold["images"], (gold["offsets"] + 0.5) / 2, 4)
    close(patchify(images, 4), gold["patches"], 0)


def test_cutting_equals_a_plain_loop() -> None:
    images, u = torch.randn(3, 2, 21, 14), torch.rand(3, 3, 2, 2)
    cut = without_gaps(images, u, 4)
    assert cut.shape == (3, 2, 12, 8)
    for b in range(3):
        for i in range(3):
            for j in range(2):
                top, left = (7 * k + int(u[b, i, j, axis] * 3) for axis, k in enumerate((i, j)))
                patch = images[b, :, top : top + 4, left : left + 4]
                assert torch.equal(cut[b, :, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4], patch)
    whole = torch.randn(2, 3, 8, 8)
    assert torch.equal(without_gaps(whole, torch.rand(2, 2, 2, 2), 4), whole)


def test_infonce_equals_a_plain_loop() -> None:
    z, y = torch.randn(2, 2, 5, 6, dtype=torch.float64)
    loss, accuracy = latentmim.patch_infonce(z, y, 0.3)
    total, right = 0.0, 0
    for b in range(2):
        scaled = (z[b] - z[b].mean(0)) / (z[b].std(0) + 1e-4)
        for i in range(5):
            scores = torch.stack([F.cosine_similarity(scaled[i], y[b, j], dim=0) for j in range(5)]) / 0.3
            total -= 2 * 0.3 * scores.log_softmax(0)[i] / 10
            right += int(scores.argmax() == i)
    close(loss, torch.as_tensor(total))
    assert accuracy == right / 10


def test_similarity_is_the_mean_over_all_pairs() -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    pairs = F.cosine_similarity(x[:, :, None], x[:, None], dim=-1)
    close(latentmim.similarity(x), pairs.mean((1, 2)))
    close(latentmim.similarity(x[:, :1].expand(-1, 4, -1)), torch.ones(3, dtype=torch.float64))


def test_the_teacher_sees_only_what_the_student_does_not() -> None:
    method, batch = build(), doubled(views(CASE))
    images, keep, hidden = method._draw(batch, moment())
    assert torch.equal(torch.cat([keep, hidden], 1).sort(1).values, torch.arange(16).expand(16, -1))
    patches = patchify(images, 8)
    changed = patches.scatter_add(1, keep.unsqueeze(-1).expand(-1, -1, 192), torch.ones_like(patches))
    other = unpatchify(changed, 8, (4, 4))
    close(method.teacher(other, hidden)[0], method.teacher(images, hidden)[0])
    assert not torch.allclose(method.student(other, keep)[0], method.student(images, keep)[0])


def test_encoders_later_see_images_without_gaps() -> None:
    views = latentmim.small32().method.views
    assert (views.size, views.preprocessing.size, views.preprocessing.ratio) == (40, 32, 1.0)
    views = latentmim.paper().method.views
    assert (views.size, views.preprocessing.size, views.preprocessing.ratio) == (280, 224, 0.875)


def test_bad_settings_say_what_to_change() -> None:
    for view, image in ((View(size=42), 32), (View(size=24), 32), (View(size=40), 30)):
        with pytest.raises(ValueError, match="multiple of 8"):
            build(views=GappedView(view, image=image))
    with pytest.raises(ValueError, match=r"mask_ratio=0\.0"):
        build(mask_ratio=0.0).loss(doubled(views(CASE)), moment())
    with pytest.raises(ValueError, match="heads=5"):
        build(decoder_heads=5)
