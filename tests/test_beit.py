"""BEiT, BEiT v2 and PeCo: the official networks and losses, and tokens that a trained tokenizer names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance import Case, doubled, moment, tiny_run, views
from test_golden import arrays, close
from test_tokenizers import one_crop, part, renamed
from visrep import api
from visrep.encoders import ViT, load_encoder, save_encoder
from visrep.encoders.dalle import DalleNet
from visrep.encoders.tokenizer import LogitTokenizer, Tokenizer
from visrep.method import Losses, Method
from visrep.methods.masked import beit, beitv2, peco
from visrep.nn.tokens import hidden_rectangles
from visrep.views import OneView, View

GOLD = arrays("beit.npz")
MASK = GOLD["mask"].bool()


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """The folder of a tokenizer with as many codes as the official network was made for."""
    save_encoder(tmp_path, LogitTokenizer(DalleNet(width=4, groups=4, blocks=1), 20).build())
    return str(tmp_path)


def official(
    module: ModuleType, method: type[Method], monkeypatch: pytest.MonkeyPatch, **changes: object
) -> Method:
    """One of the methods with the official network's weights, masks and tokens."""
    vit = ViT(image=32, patch=8, width=16, depth=3, heads=2, mask_token=True, layer_scale=0.1)
    built = method(module.Config(encoder=vit, views=OneView(View(size=32)), **changes)).double()
    names = {"lm_head": "head", "cls_pt_layers": "shallow"}
    weights = {}
    for name, value in renamed(part(GOLD, "w.")).items():
        first, dot, rest = name.partition(".")
        weights[names.get(first, f"backbone.{first}") + dot + rest] = value
    weights = {name: value for name, value in weights.items() if name in built.state_dict()}
    missing, unexpected = built.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("tokenizer.") for name in missing)
    monkeypatch.setattr(module, "hidden_rectangles", lambda *_: MASK)
    monkeypatch.setattr(method, "_tokens", lambda *_: GOLD["tokens"])
    return built


def check_gradients(method: Method, losses: Losses, version: str) -> None:
    sum(losses.terms.values(), torch.zeros(())).backward()
    names = {"lm_head": "head", "cls_pt_layers": "shallow"}
    for name, expected in part(GOLD, f"{version}.grad.").items():
        if name == "pos_embed":
            name, expected = "position", expected[:, 1:]
        first, dot, rest = name.replace("gamma_2", "ls2.gamma").partition(".")
        parameter = method.get_parameter(names.get(first, f"backbone.{first}") + dot + rest)
        assert parameter.grad is not None
        close(parameter.grad, expected.reshape(parameter.shape))


@pytest.mark.parametrize(("module", "method"), [(beit, beit.BEiT), (peco, peco.PeCo)])
def test_loss_and_gradients(
    module: ModuleType, method: type[Method], tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = official(module, method, monkeypatch, tokenizer=tokenizer)
    losses = built.loss(one_crop(GOLD["imgs"].double()), moment())
    close(losses.terms["tokens"], GOLD["v1.loss"])
    check_gradients(built, losses, "v1")


def test_losses_and_gradients_of_v2(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = official(beitv2, beitv2.BEiTv2, monkeypatch, tokenizer=tokenizer, early=2)
    losses = built.loss(one_crop(GOLD["imgs"].double()), moment())
    close(losses.terms["tokens"], GOLD["v2.loss"])
    close(losses.terms["tokens_through_cls"], GOLD["v2.loss_cls"])
    check_gradients(built, losses, "v2")


def test_the_loss_is_that_of_the_tokenizers_tokens() -> None:
    """Written out patch by patch, with the tokens that the run folder gives for the whole image."""
    case = Case("beit")
    method, batch = case.build(), views(case)
    assert isinstance(method, beit.BEiT)
    method.double()
    x = doubled(batch).crops[0][0]
    loss = method.loss(doubled(batch), moment()).terms["tokens"]

    teller = load_encoder(tiny_run("dvae"))
    assert isinstance(teller, Tokenizer)
    assert teller.preprocessing == case.run.method.views.preprocessing  # so that crops fit as they are
    tokens = teller.double().tokens(torch.nn.functional.interpolate(x, size=(32, 32)))
    hidden = hidden_rectangles(moment(), len(x), (4, 4), 0.5, 2)
    log_p = method.head(method.backbone(x, mask=hidden).patches).log_softmax(-1)
    costs = [
        -log_p[i, j, tokens[i, j]] for i in range(len(x)) for j in range(tokens.shape[1]) if hidden[i, j]
    ]
    close(loss, torch.stack(costs).mean(), 1e-6)


@pytest.mark.parametrize("name", ["beit", "beitv2", "peco"])
def test_the_tokenizer_is_state_but_not_trained_nor_exported(name: str) -> None:
    method = Case(name).build()
    saved = {key for key in method.state_dict() if key.startswith("tokenizer.")}
    assert saved and not any("tokenizer" in key for key in method.encoder.state_dict())
    trained = {id(p) for ps in method.turns().values() for p in ps}
    assert not any(id(p) in trained for p in method.get_submodule("tokenizer").parameters())
    other = Case(name).build(seed=1)
    with torch.no_grad():
        for p in other.get_submodule("tokenizer").parameters():
            p.mul_(2)
    other.load_state_dict(method.state_dict())  # a checkpoint brings the tokenizer that the run began with
    for key in saved:
        assert torch.equal(other.state_dict()[key], method.state_dict()[key])


@pytest.mark.parametrize("method", ["dvae", "vqkd", "peco_tokenizer"])
def test_any_tokenizer_fits(method: str) -> None:
    case = Case("beit")
    cfg = replace(case.run.method, tokenizer=tiny_run(method))
    assert case.build(cfg=cfg).loss(views(case), moment()).terms["tokens"].isfinite()


def test_a_run_needs_a_tokenizer_and_ends_with_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="visrep pretrain dvae:tiny --data FOLDER --out runs/dvae-tiny"):
        api.pretrain("beit:tiny", "playground:n=32,size=32", str(tmp_path / "none"))
    elsewhere = {"method.tokenizer": str(tmp_path / "elsewhere")}
    with pytest.raises(ValueError, match=r"visrep pretrain dvae:tiny --data FOLDER --out .*/elsewhere`"):
        api.pretrain("beit:tiny", "playground:n=32,size=32", str(tmp_path / "none"), overrides=elsewhere)
    assert not list(tmp_path.iterdir()), "no folder of a run that never began"
    folder = api.pretrain(
        "beit:tiny",
        "playground:n=32,size=32",
        str(tmp_path / "run"),
        overrides={"method.tokenizer": tiny_run("dvae"), "accelerator": "cpu"},
    )
    encoder = load_encoder(folder)
    assert encoder.config == Case("beit").run.method.encoder


def test_masks_hide_no_more_than_asked_for() -> None:
    mask = hidden_rectangles(moment(), 500, (14, 14), 0.383, 16)
    assert mask.sum(1).max() == 75 and mask.sum(1).float().mean() > 73.5
    with pytest.raises(ValueError, match="smallest_block"):
        hidden_rectangles(moment(), 2, (4, 4), 0.383, 16)


def test_ranks_that_hide_different_numbers_share_one_mean() -> None:
    logits, tokens = torch.randn(7, 5, dtype=torch.float64), torch.randint(5, (7,))
    expected = torch.tensor(3.5, dtype=torch.float64)  # two ranks hide 5 and 2
    halves = [beit.token_loss(logits[rows], tokens[rows], expected) for rows in (slice(5), slice(5, 7))]
    close((halves[0] + halves[1]) / 2, F.cross_entropy(logits, tokens))


def test_shallow_blocks_need_an_early_layer_and_cls() -> None:
    cfg = Case("beitv2").run.method
    for bad in (replace(cfg, early=2), replace(cfg, encoder=replace(cfg.encoder, cls=False))):
        with pytest.raises(ValueError, match="cls token"):
            beitv2.BEiTv2(bad)


def test_deep_blocks_start_small() -> None:
    def spread(method: Method, name: str) -> Tensor:
        return method.get_parameter(name).std()

    vit = ViT(image=32, patch=8, width=64, depth=8, heads=2, mask_token=True)
    method = beitv2.BEiTv2(replace(Case("beitv2").run.method, encoder=vit, early=6))
    plain = vit.build().blocks[0].get_parameter("mlp.fc2.weight").std()
    for name, layer in (("backbone.blocks.0", 1), ("backbone.blocks.7", 8), ("shallow.1", 8)):
        close(spread(method, f"{name}.mlp.fc2.weight"), plain / (2 * layer) ** 0.5, 0.05)


def test_pictures_show_tokens_and_what_is_predicted_of_them() -> None:
    case = Case("beit")
    picture = case.build().pictures(views(case), moment())["tokens"]
    assert picture.shape == (16, 4, 3, 32, 32)
    hidden = hidden_rectangles(moment(), 16, (4, 4), 0.5, 2)
    cells = hidden.view(16, 1, 4, 4).float()
    shown = ~F.interpolate(cells, size=(32, 32)).bool().expand(-1, 3, -1, -1)
    close(picture[:, 0][shown], picture[:, 1][shown], 0)  # what is seen
    close(picture[:, 2][shown], picture[:, 3][shown], 0)  # tokens of what is seen
    assert (picture[:, 2] != picture[:, 3]).any()
