"""Context Encoder: gradients and networks as in the official train.lua, holes, turns, several ranks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance import Case, doubled, moment, optimizers, take_step, views
from test_golden import close
from visrep.config import Optim
from visrep.functional import displayed
from visrep.method import Tokens
from visrep.methods.masked import context_encoder
from visrep.nn.dcgan import Discriminator, Painter
from visrep.optim import build_optimizers
from visrep.rundir import RunFolder
from visrep.schedules import Constant
from visrep.views import OneView

CASE = Case("context_encoder")
TINY = CASE.run.method
BLOCKS = replace(TINY, blocks=4)
JUDGES = replace(moment(), turn="discriminator")


def build(cfg: context_encoder.Config = TINY) -> context_encoder.ContextEncoder:
    torch.manual_seed(0)
    return context_encoder.ContextEncoder(cfg).double()


def heard(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What goes into and comes out of a module, call by call; its results keep their gradient."""
    calls: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | Tokens) -> None:
        output = output if isinstance(output, Tensor) else output.patches
        if output.requires_grad:
            output.retain_grad()
        calls.append((inputs[0], output))

    module.register_forward_hook(note)
    return calls


def weight(convolution: nn.Module) -> Tensor:
    assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d) and convolution.bias is None
    return convolution.weight


def with_statistics(x: Tensor, norm: nn.Module) -> Tensor:
    """nn.SpatialBatchNormalization while training."""
    assert isinstance(norm, nn.BatchNorm2d)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def official_discriminator(net: Discriminator, x: Tensor) -> Tensor:
    """netD of train.lua for centres of 64 px: four halvings, BatchNorm but in the first, one number."""
    c1, _, c2, n2, _, c3, n3, _, c4, n4, _, last = net.layers
    for convolution, norm in ((c1, None), (c2, n2), (c3, n3), (c4, n4)):
        x = F.conv2d(x, weight(convolution), stride=2, padding=1)
        x = F.leaky_relu(x if norm is None else with_statistics(x, norm), 0.2)
    return F.conv2d(x, weight(last))


def test_discriminator_is_the_official_one() -> None:
    torch.manual_seed(0)
    net, x = Discriminator(side=64, width=64).double(), torch.randn(2, 3, 64, 64).double()
    out = official_discriminator(net, x)
    assert out.shape == (2, 1, 1, 1)
    close(net(x), out.flatten())
    *_, third, norm, _, last = net.layers
    assert weight(last).shape == (1, 512, 4, 4)
    assert weight(third).std().item() == pytest.approx(0.02, rel=0.05)
    assert isinstance(norm, nn.BatchNorm2d) and norm.bias.eq(0).all()
    assert norm.weight.mean().item() == pytest.approx(1, abs=0.01) and norm.weight.std() > 0.01


def test_painter_is_the_official_decoder_after_the_channelwise_layer() -> None:
    """netG of train.lua from 4 x 4 cells on; before that, cells are mixed channel by channel, as loops say."""
    torch.manual_seed(0)
    net, x = Painter(6, grid=4, side=64, width=64).double(), torch.randn(2, 16, 6).double()
    mixed = torch.zeros_like(x)
    for b in range(2):
        for channel in range(6):
            for i in range(16):
                mixed[b, i, channel] = sum(x[b, j, channel] * net.mix[channel, j, i] for j in range(16))
    y = (mixed @ net.embed.weight.T).transpose(1, 2).reshape(2, 512, 4, 4)
    n0, _, c1, n1, _, c2, n2, _, c3, n3, _, c4, _ = net.layers
    y = with_statistics(y, n0).relu()
    for convolution, norm in ((c1, n1), (c2, n2), (c3, n3)):
        y = with_statistics(F.conv_transpose2d(y, weight(convolution), stride=2, padding=1), norm).relu()
    y = F.conv_transpose2d(y, weight(c4), stride=2, padding=1).tanh()
    close(net(x), y)
    assert [weight(c).shape[1] for c in (c1, c2, c3, c4)] == [256, 128, 64, 3]


def test_gradient_is_that_of_the_official_code() -> None:
    """fGx of train.lua with overlapPred > 0 and 0 < wtl2 < 1, from what the generator sees to its gradient."""
    method, batch, at = build(), doubled(views(CASE)), moment()
    assert method.discriminator is not None
    saw, painted, judged = heard(method.backbone), heard(method.painter), heard(method.discriminator)
    losses = method.loss(batch, at)
    torch.stack(list(losses.terms.values())).sum().backward()
    images, wtl2, overlap = batch.crops[0][0], 1 - TINY.w_adversarial, TINY.overlap

    context = images.clone()  # fineSize = 32: rows 8 to 24 are the centre
    context[:, :, 8 + overlap : 24 - overlap, 8 + overlap : 24 - overlap] = 0  # the mean colour
    close(saw[0][0], context)

    center = 2 * displayed(images, TINY.views.view.mean, TINY.views.view.std)[:, :, 8:24, 8:24] - 1
    fake = painted[0][1].detach().requires_grad_()
    close(judged[0][0], fake)
    output = method.discriminator(fake).sigmoid()
    (df_dg,) = torch.autograd.grad(-output.log().mean(), fake)
    df_dg_l2 = 2 * (fake.detach() - center) / center.numel()
    weights = torch.full_like(center, 10 * wtl2)
    weights[:, :, overlap : 16 - overlap, overlap : 16 - overlap] = wtl2
    expected = df_dg * (1 - wtl2) + weights * df_dg_l2
    assert painted[0][1].grad is not None
    close(painted[0][1].grad, expected)
    close(losses.terms["adversarial"], -(1 - wtl2) * output.log().mean())
    close(losses.terms["l2"], (weights * (fake - center).square()).mean())


@pytest.mark.parametrize("cfg", [TINY, BLOCKS])
def test_the_discriminators_turn(cfg: context_encoder.Config) -> None:
    """fDx: - log D of real pictures, - log (1 - D) of painted ones, and nothing for the painter to learn."""
    method, batch = build(cfg), doubled(views(CASE))
    assert method.discriminator is not None
    judged = heard(method.discriminator)
    losses = method.loss(batch, JUDGES)
    (term,) = losses.terms.values()
    term.backward()
    (real, on_real), (fake, on_fake) = judged
    close(term, -on_real.sigmoid().log().mean() - (1 - on_fake.sigmoid()).log().mean())
    side = 32 if cfg.blocks else 16
    pixels = 2 * displayed(batch.crops[0][0], cfg.views.view.mean, cfg.views.view.std) - 1
    margin = (32 - side) // 2
    close(real, pixels[:, :, margin : margin + side, margin : margin + side])
    assert all(p.grad is not None for p in method.discriminator.parameters())
    assert all(p.grad is None for m in (method.backbone, method.painter) for p in m.parameters())
    close(losses.monitor["real_found"], (on_real > 0).float().mean())
    close(losses.monitor["painted_found"], (on_fake < 0).float().mean())
    if cfg.blocks:  # what is neither hole nor edge is real in both
        same = (real == fake).all(1).double().mean()
        assert 0.2 < same < 0.9


def test_a_turn_moves_its_own_parameters_at_its_own_rate() -> None:
    method, run = build().float(), CASE.run
    turns = optimizers(run, method)
    assert list(turns) == ["discriminator", "main"]
    take_step(run, method, turns, views(CASE), moment())
    (judge,), (painter,) = ({g["lr"] for g in turns[turn].param_groups} for turn in turns)
    assert painter == pytest.approx(10 * judge)
    owned = [{id(p) for p in parameters} for parameters in method.turns().values()]
    assert not owned[0] & owned[1] and len(owned[0] | owned[1]) == len(list(method.parameters()))

    before = [p.detach().clone() for p in method.painter.parameters()]
    take_step(run, method, {"discriminator": turns["discriminator"]}, views(CASE), moment())
    assert all(torch.equal(a, b) for a, b in zip(before, method.painter.parameters(), strict=True))


def test_multipliers_may_be_meant_for_another_turn_but_for_some() -> None:
    with pytest.raises(ValueError, match="judge"):
        build_optimizers(build(), Optim(multipliers=(("judge.*", Constant(0.1)),)))


@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_the_edge_is_what_lies_near_the_hole(overlap: int) -> None:
    generator = torch.Generator().manual_seed(overlap)
    hole = torch.rand(3, 1, 9, 9, generator=generator) < 0.06
    painted, image = torch.randn(2, 3, 2, 9, 9, generator=generator).double()
    edge = context_encoder.border(hole, overlap)
    means = []
    for b in range(3):
        inside = [(y, x) for y in range(9) for x in range(9) if hole[b, 0, y, x]]
        errors = []
        for y in range(9):
            for x in range(9):
                distance = min(max(abs(y - v), abs(x - u)) for v, u in inside)
                assert edge[b, 0, y, x] == (0 < distance <= overlap)
                if distance <= overlap:
                    weight = 10 if distance else 1
                    errors += (weight * (painted[b, :, y, x] - image[b, :, y, x]).square()).tolist()
        means.append(sum(errors) / len(errors))
    close(
        context_encoder.painting_loss(painted, image, hole, edge),
        torch.tensor(sum(means) / 3, dtype=torch.float64),
    )


@pytest.mark.parametrize(("blocks", "side"), [(1, 16), (4, 8), (8, 5)])
def test_squares_hide_up_to_a_quarter_and_leave_the_rest_as_it_is(blocks: int, side: int) -> None:
    method, batch = build(replace(BLOCKS, blocks=blocks)), doubled(views(CASE))
    assert method.hole == side
    images, saw = batch.crops[0][0], heard(method.backbone)
    method.loss(batch, moment())
    seen = saw[0][0]
    hidden = (seen == 0).all(1)
    shares = hidden.double().mean((1, 2))
    assert (shares > 0.03).all() and (shares <= 0.25).all() and len(shares.unique()) > 2
    close(seen, torch.where(hidden[:, None], 0.0, images))
    holes = method._hole(images, moment())[:, 0]
    assert torch.equal(holes, hidden)
    again = method._hole(images, replace(moment(), rng=torch.Generator().manual_seed(9)))[:, 0]
    assert not torch.equal(holes, again)


def test_without_a_discriminator_only_the_error_counts() -> None:
    method = build(replace(TINY, w_adversarial=0.0))
    assert list(method.turns()) == ["main"] and method.discriminator is None
    assert len(method.turns()["main"]) == len(list(method.parameters()))
    losses = method.loss(doubled(views(CASE)), moment())
    assert list(losses.terms) == ["l2"]


def test_pictures_paint_only_the_hole() -> None:
    method, batch = build(), doubled(views(CASE))
    (picture,) = method.pictures(batch, moment()).values()
    image, seen, filled = picture.unbind(1)
    hole = torch.zeros(32, 32, dtype=torch.bool)
    hole[10:22, 10:22] = True
    close(image, displayed(batch.crops[0][0], TINY.views.view.mean, TINY.views.view.std))
    assert torch.equal(filled[..., ~hole], image[..., ~hole])
    assert (seen[..., hole] == seen[0, :, 16, 16].view(1, 3, 1)).all()
    assert not torch.equal(filled[..., hole], image[..., hole])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"overlap": 8}, "overlap of 0 to 7"),
        ({"blocks": -1}, "0 to 256 blocks"),
        ({"blocks": 257}, "0 to 256 blocks"),
        ({"w_adversarial": 1.0}, "less than 1"),
        ({"views": OneView(replace(context_encoder.PLAIN, size=33))}, "stride, 8"),
        ({"views": OneView(replace(context_encoder.PLAIN, size=8)), "overlap": 0}, "even side of 8"),
    ],
)
def test_bad_settings(changed: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(replace(TINY, **changed))


def test_a_painter_doubles() -> None:
    with pytest.raises(ValueError, match="4 x 4 cells cannot be doubled until they are 24 x 24"):
        Painter(8, grid=4, side=24, width=8)


def test_turns_train_on_two_ranks_as_on_one(tmp_path: Path) -> None:
    """With the engine's distributed wrapper, which knows nothing of turns."""
    script = """
import sys
from dataclasses import replace
from visrep import starting
from visrep.methods import preset
run = preset("context_encoder:tiny")[2]
run = replace(run, out=sys.argv[1], devices=int(sys.argv[2]), accelerator="cpu", monitor_images=40)
run = replace(run, precision="32-true")
starting.start(run, method="context_encoder", preset="tiny")
"""
    file = tmp_path / "train.py"
    file.write_text(script)
    for devices in (1, 2):
        command = [sys.executable, str(file), str(tmp_path / str(devices)), str(devices)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    one, two = (RunFolder(tmp_path / devices).metrics("step") for devices in "12")
    for a, b in zip(one, two, strict=True):
        assert a["terms"] == pytest.approx(b["terms"], rel=2e-3)
    assert one[0]["terms"] == pytest.approx(two[0]["terms"], rel=1e-5)
    assert one[0]["terms"].keys() == {"discriminator", "l2", "adversarial"}
