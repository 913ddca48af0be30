"""Tokenizers: official quantisers, networks and losses, and a run folder that gives the same tokens again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Laplace, SigmoidTransform, TransformedDistribution, kl_divergence

from conformance import Case, doubled, moment, tiny_run, views
from test_golden import arrays, close
from visrep.encoders import ViT, load_encoder, save_encoder
from visrep.encoders.dalle import DalleNet
from visrep.encoders.frozen import Frozen, NoSuchRun, load_frozen, load_tokenizer
from visrep.encoders.tokenizer import CodebookTokenizer, LogitTokenizer, Tokenizer
from visrep.functional import displayed
from visrep.method import Batch, Preprocessing
from visrep.methods.tokenizers import dvae, peco_tokenizer, vqkd
from visrep.nn.dalle import PixelDecoder
from visrep.nn.kmeans import spherical_kmeans
from visrep.nn.quantizer import Codebook, CosineCodebook, EuclideanCodebook, perplexity
from visrep.nn.tokens import code_colours, token_map
from visrep.views import OneView, View


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the official BEiT networks under the names that they have here."""
    ours: dict[str, Tensor] = {}
    for name, value in weights.items():
        first, _, last = name.rpartition(".")
        if last == "q_bias":
            v = weights[f"{first}.v_bias"]
            ours[f"{first}.qkv.bias"] = torch.cat([value, torch.zeros_like(v), v])  # keys need no bias
        elif name == "pos_embed":
            ours["position"] = value[:, 1:]
        elif name == "cls_token":
            ours[name] = value.double() + weights["pos_embed"][:, :1]
        elif last != "v_bias":
            name = name.replace("gamma_", "ls").replace("fc_norm", "norm")
            name = f"{name}.gamma" if last.startswith("gamma_") else name
            ours[name] = value.flatten(1) if name == "patch_embed.proj.weight" else value
    return ours


def part(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): v for name, v in arrays.items() if name.startswith(prefix)}


def one_crop(crop: Tensor) -> Batch:
    none = torch.zeros(1, len(crop), 4)
    return Batch((crop[None],), (none,), (none[..., 0] > 0,), torch.arange(len(crop)))


@pytest.mark.parametrize(("name", "kind"), [("euclid", EuclideanCodebook), ("cosine", CosineCodebook)])
def test_codes_and_gradients_are_those_of_the_library(name: str, kind: type[Codebook]) -> None:
    gold = arrays("tokenizers.npz", f"{name}.")
    book = kind(32, 16)
    book.codes.copy_(gold["before_embed"][0])
    x = gold["x"].requires_grad_()
    q = book(x)
    assert torch.equal(q.index, gold["indices"])
    close(q.vectors, gold["quantized"], 1e-6)
    close(0.25 * q.commitment, gold["commit_loss"], 1e-6)
    if name == "euclid":  # the library's cosine version hands the gradient around the normalisation
        (q.vectors.square().mean() + 0.25 * q.commitment).backward()
        assert x.grad is not None
        close(x.grad, gold["grad_x_of_meansq_plus_loss"], 1e-6)


def test_euclidean_codes_follow_as_those_of_the_library() -> None:
    gold = arrays("tokenizers.npz", "euclid.")
    book = EuclideanCodebook(32, 16)
    for buffer, name in ((book.codes, "embed"), (book.sums, "embed_avg"), (book.size, "cluster_size")):
        buffer.copy_(gold[f"before_{name}"][0])
    book.follow(book.counted(book(gold["x"]), torch.zeros(2)), decay=gold["decay"].item(), revive=0.0)
    for buffer, name in ((book.codes, "embed"), (book.sums, "embed_avg"), (book.size, "cluster_size")):
        close(buffer, gold[f"after_{name}"][0], 1e-6)


def test_kmeans_is_that_of_beit_v2() -> None:
    gold = arrays("tokenizers.npz", "kmeans.")
    close(spherical_kmeans(gold["z"], gold["z"][gold["start"]])[0], gold["means"], 1e-12)


def test_vqkd_equals_the_official_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = arrays("tokenizers.npz", "vqkd.")
    save_encoder(tmp_path, ViT(image=32, patch=8, width=10, depth=1, heads=1).build())
    cfg = vqkd.Config(
        teacher=str(tmp_path),
        encoder=ViT(image=32, patch=8, width=16, depth=2, heads=2),
        views=OneView(View(size=32)),
        codes=12,
        code_width=8,
        decay=0.9,
        revive=0.0,
    )
    method = vqkd.VQKD(cfg).double()
    parts = {"encoder.": method.tokenizer.backbone, "decoder.": method.decoder}
    parts |= {"encode_task_layer.": method.tokenizer.project, "decode_task_layer.": method.tell}
    for prefix, module in parts.items():
        module.load_state_dict(renamed(part(gold, f"w.{prefix}")))
    codebook = method.tokenizer.codebook
    codebook.codes.copy_(gold["codes_before"])
    codebook.size.zero_()
    seen = replace(method.teacher.encoder(gold["imgs"].double()), patches=gold["target"])
    monkeypatch.setattr(method.teacher.encoder, "forward", lambda images: seen)

    losses = method.loss(one_crop(gold["imgs"].double()), moment())
    close(losses.terms["cosine"], gold["cosine"])
    close(losses.terms["commitment"], gold["commitment"])
    assert torch.equal(method.tokenizer.tokens(gold["imgs"].double()).flatten(), gold["index"])
    sum(losses.terms.values(), torch.zeros(())).backward()
    for name, expected in part(gold, "grad.").items():
        prefix, _, rest = name.partition(".")
        parameter = parts[f"{prefix}."].get_parameter(rest)
        assert parameter.grad is not None
        close(parameter.grad, expected.reshape(parameter.shape))

    method.after_step(moment(), losses.carry)
    close(codebook.codes, gold["codes_after"])
    close(codebook.size, gold["size_after"])


def test_convolutions_equal_those_of_dalle() -> None:
    gold = arrays("dalle.npz")

    def converted(kind: str) -> dict[str, Tensor]:
        ours: dict[str, Tensor] = {}
        for name, value in part(gold, f"{kind}.blocks.").items():
            *path, last = name.split(".")
            last = {"w": "weight", "b": "bias"}[last]
            if path[0].startswith("group"):
                block = [f"groups.{int(path[0][-1]) - 1}.{int(path[1][-1]) - 1}"]
                block += ["shortcut"] if path[2] == "id_path" else [f"branch.{2 * int(path[3][-1]) - 1}"]
                ours[".".join([*block, last])] = value
            else:
                outer = {"input": "embed", "output": "predict"}[path[0]]
                ours[f"{outer}.{last}"] = value
        return ours

    tokenizer = LogitTokenizer(DalleNet(width=4), 12).build().double()
    weights = converted("enc")
    tokenizer.project.load_state_dict(
        {"weight": weights.pop("predict.weight")[..., 0, 0], "bias": weights.pop("predict.bias")}
    )
    tokenizer.backbone.load_state_dict(weights)
    decoder = PixelDecoder(12, 6, width=4, groups=4, blocks=2).double()
    decoder.load_state_dict(converted("dec"))

    found = tokenizer(gold["imgs"].double())
    logits = tokenizer.latents(found.patches)
    pixels = decoder(logits.softmax(-1), found.grid)
    (pixels.square().mean() + logits.square().mean()).backward()
    assert found.grid == (2, 2)
    close(logits, gold["logits"].flatten(2).mT)
    close(pixels, gold["pixels"])
    first, last = tokenizer.backbone.get_parameter("embed.weight").grad, tokenizer.project.weight.grad
    assert first is not None and last is not None and decoder.embed.weight.grad is not None
    close(first, gold["grad.enc.blocks.input.w"])
    close(last, gold["grad.enc.blocks.output.conv.w"][..., 0, 0])
    close(decoder.embed.weight.grad, gold["grad.dec.blocks.input.w"])


def test_logit_laplace_is_a_density() -> None:
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64) * 0.8 + 0.1
    location, log_scale = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64).requires_grad_()
    theirs = TransformedDistribution(Laplace(location, log_scale.exp()), [SigmoidTransform()])
    ours, expected = dvae.logit_laplace(x, location, log_scale), -theirs.log_prob(x).mean()
    close(ours, expected)
    for mine, other in zip(
        torch.autograd.grad(ours, (location, log_scale)),
        torch.autograd.grad(expected, (location, log_scale)),
        strict=True,
    ):
        close(mine, other)


def test_kl_from_uniform() -> None:
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    q, uniform = Categorical(logits=logits), Categorical(logits=torch.zeros_like(logits))
    close(dvae.kl_from_uniform(logits), kl_divergence(q, uniform).mean())
    assert dvae.kl_from_uniform(torch.full((1, 2, 7), 3.0)).abs() < 1e-6


@pytest.mark.parametrize("reconstruction", ["logit_laplace", "l2"])
def test_both_ways_to_compare_images(reconstruction: dvae.Reconstruction) -> None:
    cfg = replace(Case("dvae").run.method, reconstruction=reconstruction)
    method = dvae.DVAE(cfg)
    assert method.decoder.predict.out_channels == (6 if reconstruction == "logit_laplace" else 3)
    batch = views(Case("dvae"))
    losses = method.loss(batch, moment())
    if reconstruction == "l2":
        pixels = displayed(batch.crops[0][0], cfg.views.view.mean, cfg.views.view.std)
        error = losses.monitor["unexplained_variance"] * pixels.var(correction=0)
        close(losses.terms["reconstruction"], error, 1e-5)
    object.__setattr__(cfg, "reconstruction", "l1")  # what a type checker would have refused
    with pytest.raises(ValueError, match="'logit_laplace', 'l2'"):
        dvae.DVAE(cfg)


def test_perceptual_loss_is_a_sum_of_means() -> None:
    shapes = ((2, 4, 6), (2, 9, 3))
    x, y = (tuple(torch.randn(shape) for shape in shapes) for _ in range(2))
    naive = sum(((a - b) ** 2).sum().item() / a.numel() for a, b in zip(x, y, strict=True))
    assert peco_tokenizer.perceptual_loss(x, y).item() == pytest.approx(naive, rel=1e-5)
    assert peco_tokenizer.perceptual_loss(x, x) == 0


def test_the_eye_teaches_the_decoder_and_learns_nothing() -> None:
    method = Case("peco_tokenizer").build()
    assert isinstance(method, peco_tokenizer.PeCoTokenizer)
    method.loss(views(Case("peco_tokenizer")), moment()).terms["features"].backward()
    assert method.decoder.predict.weight.grad is not None and method.decoder.predict.weight.grad.any()
    assert all(p.grad is None for p in method.eye.parameters())


@pytest.mark.parametrize("kind", [CosineCodebook, EuclideanCodebook])
def test_dead_codes_go_where_vectors_are(kind: type[Codebook]) -> None:
    book = kind(6, 4)
    book.codes.copy_(torch.cat([torch.eye(4), -torch.eye(4)[:2]]))
    book.size.copy_(torch.tensor([1.0, 1.0, 1.0, 1e-2, 1e-2, 1e-2]))
    if isinstance(book, EuclideanCodebook):
        book.sums.copy_(book.codes * book.size[:, None])
    q = book(F.normalize(torch.eye(4)[:3, None] + 0.1, dim=-1).expand(-1, 2, -1)[:2])  # 2 images of 2 patches
    carry = book.counted(q, torch.tensor([0.0, 0.99]))
    close(carry["code_samples"], torch.stack([q.before[0, 0], q.before[1, 1]]))
    book.follow(carry, decay=0.9, revive=0.1)
    close(book.codes[3:5], q.before[:, 0])  # two images bring two vectors
    close(book.codes[5], -torch.eye(4)[1], 1e-2)
    assert book.size[3] == book.size[4] > 10 * book.size[5]
    before = book.codes.clone()
    book.follow(book.counted(q, torch.zeros(2)), decay=1.0, revive=0.0)
    close(book.codes, before, 1e-4)  # without revival, at decay 1, nothing moves


@pytest.mark.parametrize("kind", [CosineCodebook, EuclideanCodebook])
def test_codes_begin_where_the_data_are_and_only_once(kind: type[Codebook]) -> None:
    z = 5 + torch.randn(4, 10, 3)
    first, second = kind(8, 3), kind(8, 3)
    for book in (first, second):
        book.begin([z], moment())
    assert torch.equal(first.codes, second.codes)
    nearest = torch.cdist(first.codes, first.place(z.flatten(0, 1))).min(1).values
    assert nearest.max() < 0.3
    first.begin([-z], moment())
    assert torch.equal(first.codes, second.codes)
    restored = kind(8, 3)
    restored.load_state_dict(first.state_dict())
    restored.begin([-z], moment())
    assert torch.equal(restored.codes, first.codes)
    many = kind(100, 3)
    many.begin([z], moment())  # fewer vectors than codes
    assert many.codes.isfinite().all()


def test_perplexity_counts_codes_in_use() -> None:
    assert perplexity(torch.tensor([5.0, 5.0, 5.0, 0.0])).item() == pytest.approx(3, rel=1e-5)
    assert perplexity(torch.tensor([7.0, 0.0])).item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("name", ["dvae", "vqkd", "peco_tokenizer"])
def test_a_run_folder_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    case = Case(name)
    method = case.build()
    tokenizer = method.encoder
    assert isinstance(tokenizer, Tokenizer)
    tokenizer.preprocessing = case.run.method.views.preprocessing
    save_encoder(tmp_path, tokenizer)
    x = views(case).crops[0][0]
    loaded = load_tokenizer(str(tmp_path), tokenizer.preprocessing, method=name)
    assert torch.equal(loaded.encoder.tokens(loaded.fit(x)), tokenizer.eval().tokens(x))
    assert loaded.encoder.codes == 32 and not any(key.startswith("decoder") for key in tokenizer.state_dict())


def test_a_frozen_encoder_sees_what_it_was_trained_on(tmp_path: Path) -> None:
    """Its own normalisation, its own number of patches, whatever the method's views are; and it stays as it is."""
    encoder = CodebookTokenizer(DalleNet(width=8, groups=3, blocks=1), 16, 4, "euclidean").build()
    encoder.preprocessing = Preprocessing(32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    frozen = Frozen(encoder, Preprocessing(32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))
    pixels = torch.rand(2, 3, 32, 32)

    def normalised(how: Preprocessing) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (how.mean, how.std))
        return (pixels - mean) / std

    own = normalised(encoder.preprocessing)
    given = normalised(Preprocessing(32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)))
    close(frozen.fit(given), own, 1e-5)
    close(frozen.fit(given, (8, 8)), own, 1e-5)
    assert frozen.fit(given, (4, 4)).shape[2:] == (16, 16)
    assert frozen.encoder(frozen.fit(given, (5, 7))).grid == (5, 7)

    method = nn.Sequential(frozen)
    assert not method.train().state_dict().keys() - {f"0.{key}" for key in frozen.state_dict()}
    assert not any(module.training for module in frozen.modules())
    assert not any(p.requires_grad for p in frozen.parameters())


def test_a_missing_run_says_how_to_make_one(tmp_path: Path) -> None:
    how = View(size=32)
    views = OneView(how).preprocessing
    with pytest.raises(
        ValueError, match=r"visrep pretrain dvae:small32 --data FOLDER --out runs/dvae-small32"
    ):
        load_tokenizer("", views, method="dvae")
    with pytest.raises(ValueError, match=r"dvae:imagenette128 --data FOLDER --out runs/dvae-imagenette128"):
        load_tokenizer("runs/dvae-imagenette128", views, method="dvae")
    with pytest.raises(ValueError, match=r"dvae:small32 .*--method.tokenizer my/names"):
        load_tokenizer("my/names", views, method="dvae")
    with pytest.raises(ValueError, match=r"--method.teacher"):
        load_frozen(str(tmp_path), views, field="teacher", methods=("dino", "mae"))
    with pytest.raises(ValueError, match=r"visrep pretrain mae:small32 --data FOLDER --out runs/mae-small32"):
        load_frozen("runs/mae-small32", views, field="teacher", methods=("dino", "mae"))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(NoSuchRun, match=r"dvae:small32 .*--out runs/dvae-small32`") as missing:
        load_tokenizer(str(tmp_path), views, method="dvae")
    assert "dvae:tiny --data FOLDER --out runs/dvae-tiny`" in str(missing.value.asked_by("tiny"))
    save_encoder(tmp_path, ViT(image=32, patch=8, width=16, depth=1, heads=2).build())
    with pytest.raises(ValueError, match="names no codes"):
        load_tokenizer(str(tmp_path), views, method="dvae")


def test_a_folder_with_something_in_it_is_never_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/dvae-small32", "runs/dvae-small32-2"):
        assert f"--out {name}`" in str(NoSuchRun("tokenizer", "runs/dvae-small32", ("dvae",)))
        (tmp_path / name).mkdir(parents=True)
        assert f"--out {name}`" in str(NoSuchRun("tokenizer", "runs/dvae-small32", ("dvae",))), "it is empty"
        (tmp_path / name / "run.json").touch()
    assert "--out runs/dvae-small32-3`" in str(NoSuchRun("tokenizer", "runs/dvae-small32", ("dvae",)))


def test_tokenizers_are_trained_by_the_engine() -> None:
    """What `tiny_run` made with the engine loads as any encoder does, with the views' normalisation."""
    encoder = load_encoder(tiny_run("vqkd"))
    assert isinstance(encoder, Tokenizer)
    assert encoder.preprocessing == Case("vqkd").run.method.views.preprocessing
    tokens = encoder.tokens(views(Case("vqkd")).crops[0][0])
    assert tokens.shape == (16, 16) and len(tokens.unique()) > 8


def test_token_maps_show_each_code_in_its_colour() -> None:
    vectors = torch.tensor([[0.0, 0.0], [0.0, 0.1], [9.0, 9.0]])
    colours = code_colours(vectors)
    assert colours.shape == (3, 3) and colours.min() >= 0 and colours.max() <= 1
    close(colours[:, 0].sort().values, torch.tensor([0.0, 0.5, 1.0]), 1e-6)  # ranks
    picture = token_map(torch.tensor([[0, 1, 2, 0]]), colours, (2, 2), torch.zeros(1, 3, 4, 4))
    close(picture[0, :, 0, 0], colours[0], 1e-6)
    close(picture[0, :, 1, 3], colours[1], 1e-6)
    close(picture[0, :, 3, 1], colours[2], 1e-6)


def test_accumulated_micro_batches_move_codes_as_one_batch() -> None:
    case = Case("vqkd")
    batch = doubled(views(case))
    books = []
    for parts in (1, 2):
        method = case.build().double()
        assert isinstance(method, vqkd.VQKD)
        size = len(batch) // parts
        carries = [
            method.loss(batch.rows(slice(i * size, (i + 1) * size)), moment()).carry for i in range(parts)
        ]
        carry = {name: torch.cat([c[name] for c in carries]) for name in carries[0]}
        method.tokenizer.codebook.follow(carry, decay=0.5, revive=0.0)
        books.append(method.tokenizer.codebook.codes)
    close(books[0], books[1])
