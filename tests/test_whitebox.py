"""White-box encoders: the official modules' numbers, what blocks are derived from, and what every encoder can do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from _extras import joined
from conformance import Case, moment, views
from test_golden import GOLDEN, arrays, close
from visrep.api import with_encoder
from visrep.encoders import CRATE, NAMED, AoT, CRATEAlpha, ToST, ViT, ViTLike, load_encoder, save_encoder
from visrep.encoders.crate import ISTA, CRATEBlock, SubspaceAttention, subspace_rate
from visrep.encoders.crate_alpha import OvercompleteISTA
from visrep.encoders.pretrained.convert_crate import blocks, to_crate
from visrep.encoders.tost import TokenStatistics, membership_rate, variational_rate
from visrep.encoders.vit import VisionTransformer
from visrep.methods import method_class, preset
from visrep.nn.tokens import shrink_residuals
from visrep.nn.transformer import Block

SIZE: dict[str, Any] = {"image": 16, "patch": 4, "width": 24, "depth": 2, "heads": 3}
SMALL: dict[str, ViTLike] = {
    "crate": CRATE(**SIZE),
    "crate, plain patches": CRATE(**SIZE, patch_norms=False, position="sincos", registers=2, mask_token=True),
    "crate, rotary": CRATE(**{**SIZE, "heads": 2}, position="rope", cls=False),
    "crate-alpha": CRATEAlpha(**SIZE, registers=1, mask_token=True),
    "tost": ToST(**SIZE, mask_token=True),
    "aot": AoT(**SIZE, mask_token=True),
    "aot, mhsa": AoT(**SIZE, attention="mhsa", cls=False),
}


@pytest.fixture(params=list(SMALL))
def encoder(request: pytest.FixtureRequest) -> VisionTransformer:
    torch.manual_seed(0)
    return SMALL[request.param].build().double().eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def official(name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the official code gave, and its weights, in float64."""
    gold = arrays("whitebox.npz", f"{name}.")
    weights = {key[2:]: x.double() for key, x in gold.items() if key.startswith("w.")}
    return {key: x.double() for key, x in gold.items() if not key.startswith("w.")}, weights


def converted(weights: dict[str, Tensor], heads: int) -> VisionTransformer:
    """Ours with the official weights, none of them rounded."""
    torch.set_default_dtype(torch.float64)
    try:
        return to_crate(weights, heads)
    finally:
        torch.set_default_dtype(torch.float32)


def logits(encoder: VisionTransformer, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Of the official classifier on our cls token."""
    cls = encoder(images).cls
    assert cls is not None
    return F.linear(cls, weights["mlp_head.1.weight"], weights["mlp_head.1.bias"])


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


# The official code


def test_crate_equals_the_official_network() -> None:
    gold, weights = official("crate")
    crate = converted(weights, heads=3)
    images = gold["images"].requires_grad_()
    out = logits(crate, weights, images)
    close(out, gold["logits"])
    close(joined(crate(images, layers=(1,), layer_kind="raw").layers[0]), gold["block1"])
    out.square().mean().backward()
    close(gradient(images), gold["grad_images"])
    ours = dict(crate.named_parameters())
    for name, theirs in (
        ("blocks.0.attn.subspaces.weight", "transformer.layers.0.0.fn.qkv.weight"),
        ("blocks.0.ista.dictionary", "transformer.layers.0.1.fn.weight"),
        ("blocks.0.norm2.weight", "transformer.layers.0.1.norm.weight"),
        ("cls_token", "cls_token"),
        ("patch_embed.norm.bias", "to_patch_embedding.3.bias"),
    ):
        close(gradient(ours[name]), gold[f"grad.{theirs}"])


def test_a_single_head_is_not_projected_again() -> None:
    gold, weights = official("onehead")
    crate = converted(weights, heads=1)
    close(logits(crate, weights, gold["images"]), gold["logits"])


def test_crate_alpha_equals_the_official_network() -> None:
    gold, weights = official("alpha")
    alpha = converted(weights, heads=4)
    assert isinstance(alpha.norm, torch.nn.LayerNorm)
    alpha.norm.eps = 1e-5  # that of the port's head; the training code has 1e-6 everywhere
    images = gold["images"].requires_grad_()
    out = logits(alpha, weights, images)
    close(out, gold["logits"])
    close(joined(alpha(images, layers=(1,), layer_kind="mlp").layers[0]), gold["branch1"])
    out.square().mean().backward()
    close(gradient(images), gold["grad_images"])
    ours = dict(alpha.named_parameters())
    close(gradient(ours["blocks.0.attn.subspaces.weight"]), gold["grad.transformer.layers.0.0.fn.qkv.weight"])
    close(gradient(ours["blocks.0.ista.dictionary"]), gold["grad.transformer.layers.0.1.fn.D"])
    close(gradient(ours["blocks.1.ista.decoder"]), gold["grad.transformer.layers.1.1.fn.D1"])


def test_tost_equals_the_official_block() -> None:
    gold, weights = official("tost")
    block = ToST(image=16, patch=4, width=24, depth=1, heads=3, mlp_ratio=2.0).block(0.0).double()
    renamed = {"temp": "temperature", "qkv": "subspaces", "to_out.0": "proj"}
    ours = {}
    for name, x in weights.items():
        for old, new in renamed.items():
            name = name.replace(f"attn.{old}", f"attn.{new}")
        ours[name.replace("gamma1", "ls1.gamma").replace("gamma2", "ls2.gamma")] = x
    block.load_state_dict(ours)
    tokens = gold["tokens"].requires_grad_()
    close(block.attn(tokens), gold["attention"])
    out = block(tokens)
    close(out, gold["block"])
    out.square().mean().backward()
    close(gradient(tokens), gold["grad_tokens"])
    for name, theirs in (
        ("temperature", "temp"),
        ("subspaces.weight", "qkv.weight"),
        ("proj.weight", "to_out.0.weight"),
    ):
        close(gradient(block.attn.get_parameter(name)), gold[f"grad.attn.{theirs}"])


def test_aot_is_the_first_half_of_the_official_crate_block() -> None:
    gold, weights = official("crate")
    crate = converted(weights, heads=3)
    first = crate.blocks[0]
    assert isinstance(first, CRATEBlock)
    aot = AoT(**SIZE, norm_eps=1e-5).block(0.0).double()
    aot.load_state_dict({k: v for k, v in first.state_dict().items() if k.startswith(("norm1", "attn"))})
    close(first.ista(first.norm2(aot(joined(_entering(crate, gold["images"]))))), gold["block1"])


def _entering(encoder: VisionTransformer, images: Tensor):
    return encoder(images, layers=(0,), layer_kind="raw").layers[0]


def test_aot_with_mhsa_is_a_vit_whose_mlps_are_silent() -> None:
    torch.manual_seed(0)
    vit = ViT(**SIZE, norm_eps=1e-6).build().double()
    for block in vit.blocks:
        assert isinstance(block, Block)
        torch.nn.init.zeros_(block.mlp.get_parameter("fc2.weight"))
    aot = AoT(**SIZE, attention="mhsa").build().double()
    missing, unexpected = aot.load_state_dict(vit.state_dict(), strict=False)
    assert not missing and all(".mlp." in name or ".norm2." in name for name in unexpected)
    images = normal(2, 3, 16, 16)
    close(joined(aot(images)), joined(vit(images)))


@pytest.mark.parametrize("name", ["crate_tiny", "crate_small", "crate_base", "crate_large"])
def test_published_sizes(name: str) -> None:
    """The paper's table counts the classifier for 1000 classes too."""
    published = {"crate_tiny": 6.09, "crate_small": 13.12, "crate_base": 22.80, "crate_large": 77.64}
    with torch.device("meta"):
        encoder = NAMED[name].build()
    head = 1000 * (encoder.width + 1)
    assert round((sum(p.numel() for p in encoder.parameters()) + head) / 1e6, 2) == published[name]


def test_small_encoders_are_as_large_as_the_narrow_vit() -> None:
    def size(name: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in NAMED[name].build().parameters())

    for name in ("crate_small32", "crate_alpha_small32", "tost_small32", "aot_small32"):
        assert 0.95 < size(name) / size("vit_narrow") < 1.05


# What the blocks are derived from


def test_ista_is_a_proximal_gradient_step() -> None:
    """Down |y - D z|^2 / 2 from z = y, then the proximal map of eta lambda |z|_1 over z >= 0."""
    torch.manual_seed(0)
    ista = ISTA(12, step=0.1, sparsity=0.4).double()
    y = normal(2, 5, 12)
    z = y.clone().requires_grad_()
    (0.5 * (y - z @ ista.dictionary.T).square().sum()).backward()
    close(ista(y), (y - 0.1 * gradient(z) - 0.04).clamp(min=0))
    denser = ISTA(12, step=0.1, sparsity=0.0).double()
    denser.load_state_dict(ista.state_dict())
    assert (ista(y) == 0).sum() > (denser(y) == 0).sum()


def test_overcomplete_ista_is_two_proximal_gradient_steps_from_zero() -> None:
    torch.manual_seed(0)
    ista = OvercompleteISTA(8, 32, step=0.1, sparsity=0.4).double()
    y, z = normal(2, 5, 8), torch.zeros(2, 5, 32, dtype=torch.float64)
    for _ in range(2):
        z = z.detach().requires_grad_()
        (0.5 * (y - z @ ista.dictionary.T).square().sum()).backward()
        z = (z - 0.1 * gradient(z) - 0.04).clamp(min=0)
    close(ista.codes(y), z)
    close(ista(y), z @ ista.decoder.T)


def test_tssa_is_a_gradient_step_on_the_variational_rate() -> None:
    torch.manual_seed(0)
    tssa = TokenStatistics(12, 3).double()
    torch.nn.init.eye_(tssa.proj.weight)
    x = normal(2, 7, 12)
    u = tssa.coordinates(x).detach().requires_grad_()
    variational_rate(u, tssa.membership(u).detach()).sum().backward()
    down = -7 * gradient(u).transpose(1, 2).flatten(2)
    torch.testing.assert_close(tssa(x), down, rtol=1e-7, atol=1e-9)  # 1e-8 keeps empty subspaces from 0 / 0


def test_the_variational_rate_bounds_the_coding_rate() -> None:
    """Hadamard: coding dimensions one by one costs more, unless they are uncorrelated."""
    u, membership = normal(4, 2, 9, 5), normal(4, 2, 9, seed=2).softmax(1)
    expected = torch.zeros(4, dtype=torch.float64)
    for k in range(2):
        weight = membership[:, k] / membership[:, k].sum(-1, keepdim=True)
        moments = torch.einsum("bn,bni,bnj->bij", weight, u[:, k], u[:, k])
        share = membership[:, k].mean(-1)
        expected += share / 2 * torch.logdet(torch.eye(5, dtype=torch.float64) + moments)
    rate = membership_rate(u, membership)
    torch.testing.assert_close(rate, expected, rtol=1e-6, atol=1e-8)
    assert (variational_rate(u, membership) > rate + 0.01).all()
    apart = torch.linalg.qr(u).Q
    everyone = torch.ones_like(membership)
    torch.testing.assert_close(
        variational_rate(apart, everyone), membership_rate(apart, everyone), rtol=1e-6, atol=1e-8
    )


def test_tssa_token_by_token() -> None:
    torch.manual_seed(0)
    tssa = TokenStatistics(6, 2).double()
    tssa.temperature.data.copy_(torch.tensor([[0.5], [2.0]]))
    x = normal(1, 4, 6)
    w = F.linear(x[0], tssa.subspaces.weight, tssa.subspaces.bias).view(4, 2, 3)
    out = torch.zeros(4, 2, 3, dtype=torch.float64)
    membership = torch.zeros(4, 2, dtype=torch.float64)
    for j in range(4):
        scores = [
            tssa.temperature[k] * sum(w[j, k, i] ** 2 / w[:, k, i].square().sum() for i in range(3))
            for k in (0, 1)
        ]
        membership[j] = torch.cat(scores).softmax(0)
    for k in (0, 1):
        for i in range(3):
            moment = sum(membership[j, k] * w[j, k, i] ** 2 for j in range(4)) / (
                membership[:, k].sum() + 1e-8
            )
            out[:, k, i] = -membership[:, k] * w[:, k, i] / (1 + moment)
    close(tssa(x)[0], tssa.proj(out.flatten(1)))


def test_mssa_moves_tokens_together_within_subspaces() -> None:
    """With orthogonal subspaces and U' as output, one step lowers the coding rate of noisy clusters."""
    torch.manual_seed(0)
    mssa = SubspaceAttention(16, 2).double()
    mssa.subspaces.weight.data.copy_(torch.linalg.qr(normal(16, 16)).Q)
    mssa.proj.get_parameter("weight").data.copy_(mssa.subspaces.weight.T)
    torch.nn.init.zeros_(mssa.proj.get_parameter("bias"))
    x = F.layer_norm(normal(1, 4, 16).repeat_interleave(8, 1) + 0.3 * normal(1, 32, 16, seed=2), (16,))
    before, after = (subspace_rate(mssa.coordinates(z)) for z in (x, x + mssa(x)))
    assert after < before - 0.5


def test_tost_costs_as_much_a_token_however_many_there_are() -> None:
    def cost(layer: torch.nn.Module, n: int, maps: list[Tensor] | None = None) -> float:
        with FlopCounterMode(display=False) as counter:
            layer(torch.zeros(1, n, 24), None, maps)
        return counter.get_total_flops() / n

    tssa, mssa = TokenStatistics(24, 3), SubspaceAttention(24, 3)
    assert cost(tssa, 1024) == cost(tssa, 64)
    assert cost(mssa, 1024, []) > 10 * cost(mssa, 64, [])  # formed, as fused kernels are not counted


# What every encoder can do


def test_kept_patches_are_all_that_counts(encoder: VisionTransformer) -> None:
    images = normal(2, 3, 16, 16)
    keep = torch.tensor([[3, 9, 1, 14, 6], [0, 15, 2, 8, 7]])
    kept = encoder(images, keep=keep)
    changed = images.clone()
    seen = torch.zeros(2, 16).scatter(1, keep, 1.0).view(2, 1, 4, 4)
    changed[(F.interpolate(seen, scale_factor=4) == 0).expand_as(images)] = 7.0
    close(joined(encoder(changed, keep=keep)), joined(kept))
    order = torch.tensor([4, 2, 0, 1, 3])
    again = encoder(images, keep=keep[:, order])
    close(again.patches, kept.patches[:, order])
    if kept.cls is not None and again.cls is not None:
        close(again.cls, kept.cls)
    everything = torch.arange(16).expand(2, -1)
    close(joined(encoder(images, keep=everything)), joined(encoder(images)))


def test_hidden_patches_are_not_seen(encoder: VisionTransformer) -> None:
    images, mask = normal(2, 3, 16, 16), torch.arange(16).expand(2, -1) % 3 == 0
    if encoder.mask_token is None:
        with pytest.raises(ValueError, match="mask_token=True"):
            encoder(images, mask=mask)
        return
    changed = images.clone()
    changed[:, :, :4, :4] = 5.0  # patch 0, which is hidden
    close(joined(encoder(changed, mask=mask)), joined(encoder(images, mask=mask)))
    changed[:, :, :4, 4:8] = 5.0  # patch 1, which is not
    assert not torch.allclose(joined(encoder(changed, mask=mask)), joined(encoder(images, mask=mask)))


def test_layers_sizes_and_attention(encoder: VisionTransformer) -> None:
    images, config = normal(2, 3, 16, 16), encoder.config
    tokens = encoder(images, layers=(2, 1))
    close(joined(tokens.layers[0]), joined(tokens))
    front = int(config.cls) + config.registers
    larger = encoder(normal(2, 3, 24, 16))
    assert larger.grid == (6, 4) and joined(larger).shape == (2, 24 + front, 24)
    if not config.has_attention:
        with pytest.raises(ValueError, match="ToST compares no tokens"):
            encoder(images, attention=True)
        return
    looked = encoder(images, attention=True)
    assert looked.attention is not None
    assert looked.attention.shape == (2, 2, config.heads, 16 + front, 16 + front)
    close(looked.attention.sum(-1), torch.ones_like(looked.attention[..., 0]))
    close(joined(looked), joined(tokens))  # formed or fused, the same


def test_attention_of_crate_is_symmetric_before_the_softmax() -> None:
    torch.manual_seed(0)
    maps = SMALL["crate"].build().double()(normal(2, 3, 16, 16), attention=True).attention
    assert maps is not None
    scores = maps.log()
    scores = scores - scores.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)  # u_i u_j - u_i u_i
    skewed = scores - scores.mT
    norms = skewed[..., :1]  # u_j u_j - u_i u_i must be differences of one number a token
    close(skewed, norms - norms.mT)


def test_crate_gives_sparse_codes_and_alpha_residuals() -> None:
    torch.manual_seed(0)
    images = normal(2, 3, 16, 16)
    crate = SMALL["crate"].build().double()
    (codes,), (raw,) = (crate(images, layers=(1,), layer_kind=kind).layers for kind in ("mlp", "raw"))
    assert torch.equal(codes.patches, raw.patches) and (codes.patches >= 0).all()
    assert 0.2 < (codes.patches == 0).double().mean() < 0.9
    alpha = SMALL["crate-alpha"].build().double()
    assert (alpha(images, layers=(1,), layer_kind="raw").layers[0].patches < 0).any()


def test_save_and_load(encoder: VisionTransformer, tmp_path: Path) -> None:
    encoder = encoder.float()
    save_encoder(tmp_path, encoder)
    images = normal(2, 3, 16, 16).float()
    assert torch.equal(joined(load_encoder(tmp_path)(images)), joined(encoder(images)))
    assert load_encoder(tmp_path).config == encoder.config


def test_in_bfloat16(encoder: VisionTransformer) -> None:
    images = normal(2, 3, 16, 16).float()
    encoder = encoder.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = joined(encoder(images)).float()
    assert (rough - joined(encoder(images))).abs().mean() < 0.05


def test_drop_path_drops_branches_of_images_in_training() -> None:
    for config in (CRATE(**SIZE), CRATEAlpha(**SIZE), ToST(**SIZE), AoT(**SIZE)):
        torch.manual_seed(0)
        block = replace(config, drop_path=0.5).block(0.5).double()
        x = normal(64, 4, 24)
        out = block.train()(x)
        untouched = torch.zeros(64, dtype=torch.bool)
        rest = block.ista(block.norm2(x)) if isinstance(block, CRATEBlock) else x
        untouched = (out == rest).flatten(1).all(1)
        branches = 1 if isinstance(config, CRATE | AoT) else 2
        assert 0.1 < untouched.double().mean() < 0.9**branches
        assert not torch.equal(block.eval()(x), out)


METHODS = ("dino", "mocov3", "mae", "simmim", "ibot", "dinov2", "ijepa", "data2vec", "dbot", "latentmim")
PAIRS = [(method, name) for method in METHODS for name in ("crate_small32", "tost_small32")]
PAIRS += [(method, name) for method in ("dino", "mae") for name in ("crate_alpha_small32", "aot_small32")]


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_methods_train_them(method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``--encoder NAME`` alone; every weight of a block that the method trains gets a gradient."""
    smaller = replace(NAMED[name], width=32, depth=2, heads=2, patch=8)  # pyright: ignore[reportCallIssue]
    monkeypatch.setitem(NAMED, name, smaller)
    run = with_encoder(preset(f"{method}:tiny")[2], name)
    torch.manual_seed(0)
    model = method_class(Case(method).module)(run.method)
    assert model.encoder.config == run.method.encoder and type(run.method.encoder) is type(smaller)
    losses = model.loss(views(Case(method), n=4), moment())
    sum(losses.terms.values(), torch.zeros(())).backward()
    trained = [p.grad for n, p in model.named_parameters() if p.requires_grad and "blocks" in n]
    assert trained and all(x is not None for x in trained), f"{method} leaves weights of {name} alone"


def test_tokens_of_the_method_stay_with_another_encoder() -> None:
    run = with_encoder(preset("simmim:small32")[2], "crate_small32")
    assert run.method.encoder == replace(NAMED["crate_small32"], cls=False, mask_token=True)  # pyright: ignore
    run = with_encoder(preset("dinov2:tiny")[2], "tost_tiny")
    assert run.method.encoder.registers == preset("dinov2:tiny")[2].method.encoder.registers > 0


def test_residual_branches_shrink_where_there_are_any() -> None:
    for config, names in (
        (SMALL["tost"], ("attn.proj.weight", "mlp.fc2.weight")),
        (SMALL["crate-alpha"], ("attn.proj.weight", "ista.decoder")),
        (SMALL["crate"], ("attn.proj.weight",)),
    ):
        torch.manual_seed(0)
        network = config.build()
        before = {name: x.clone() for name, x in network.named_parameters()}
        shrink_residuals(network.blocks)
        changed = {n: before[n] / x for n, x in network.named_parameters() if not torch.equal(before[n], x)}
        assert set(changed) == {f"blocks.{i}.{name}" for i in (0, 1) for name in names}
        for name, ratio in changed.items():
            torch.testing.assert_close(
                ratio, torch.full_like(ratio, math.sqrt(2 if "blocks.0" in name else 4))
            )


# Official files, and what is refused


def test_an_official_file_is_recognised(tmp_path: Path) -> None:
    gold, weights = official("crate")
    nested = {"epoch": 3, "state_dict": {f"module.{name}": x.float() for name, x in weights.items()}}
    torch.save(nested, tmp_path / "crate.pth")
    with pytest.raises(ValueError, match=r"width of 24.*heads"):
        load_encoder(tmp_path / "crate.pth")
    padded = _widened(weights)
    torch.save(
        {"state_dict": {f"module.{name}": x.float() for name, x in padded.items()}}, tmp_path / "c.pth"
    )
    encoder = load_encoder(tmp_path / "c.pth")
    assert isinstance(encoder.config, CRATE) and encoder.config.heads == 3 and encoder.width == 192
    with pytest.raises(ValueError, match=r"fn\.other has no place"):
        blocks({"transformer.layers.0.1.fn.other": gold["images"]})
    del weights["mlp_head.0.bias"]
    with pytest.raises(KeyError):
        to_crate(weights, heads=3)


def _widened(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights repeated 8 times along every axis of the width: of a published width."""
    wide = {}
    for name, x in weights.items():
        for axis, n in enumerate(x.shape):
            x = x.repeat_interleave(8, axis) if n == 24 else x
        wide[name] = x
    return wide


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CRATE(step=0.0), "step > 0"),
        (lambda: CRATEAlpha(sparsity=-1.0), "sparsity >= 0"),
        (lambda: CRATEAlpha(overcomplete=0), "leaves no words"),
        (lambda: ToST(position="rope"), "ToST has none"),
        (lambda: CRATE(width=100, heads=6), "multiple of 6"),
        (lambda: CRATE(image=30, patch=4), "does not divide"),
    ],
)
def test_what_is_refused(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_golden_files_are_small() -> None:
    assert (GOLDEN / "whitebox.npz").stat().st_size < 300_000
    assert np.load(GOLDEN / "whitebox.npz")["crate.images"].dtype == np.float32
