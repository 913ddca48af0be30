"""Looking inside: rollout, FullGrad, saliency, inversion, dissection, lens and Gestalt figures against plain loops."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from _extras import randomised
from visrep.analysis.inside.attention import last_attention_map, patch_likeness, rollout, rollout_map
from visrep.analysis.inside.concepts import Concepts, concepts
from visrep.analysis.inside.dissection import SHARE, dissect, top_threshold, turned
from visrep.analysis.inside.gestalt import TESTS, right_about
from visrep.analysis.inside.gradients import full_gradients, saliency
from visrep.analysis.inside.inversion import alpha_norm, from_bytes, invert, to_bytes, total_variation
from visrep.analysis.inside.lens import class_lens, identifiability
from visrep.analysis.inside.target import Head, own_direction, probe_head
from visrep.data.dense_playground import DensePlayground
from visrep.encoders import ResNet, ViT
from visrep.evaluation.linear import linear
from visrep.method import Encoder, Preprocessing, Tokens


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vit(depth: int = 3, *, cls: bool = True, registers: int = 0) -> Encoder:
    torch.manual_seed(0)
    config = ViT(image=16, patch=4, width=24, depth=depth, heads=2, cls=cls, registers=registers)
    encoder = config.build().eval()
    encoder.preprocessing = Preprocessing(16, ratio=1.0)
    return encoder


def resnet() -> Encoder:
    torch.manual_seed(0)
    encoder = ResNet(depth=18, width=4, stem="small").build()
    randomised(encoder)
    encoder.preprocessing = Preprocessing(16, ratio=1.0)
    return encoder


def head(d: int, k: int) -> Head:
    return Head(drawn(d, k, seed=1), drawn(k, seed=2), "mean", tuple(f"class {i}" for i in range(k)))


# --- attention


def test_rollout_is_a_loop_over_paths() -> None:
    """Abnar and Zuidema's definition, entry by entry: shares along all paths through the blocks."""
    attention = drawn(3, 2, 4, 5, 5).softmax(-1)
    found = rollout(attention)
    for image in range(2):
        matrices = []
        for block in attention[:, image]:
            rows = []
            for i in range(5):
                row = [
                    float(sum(block[h, i, j] for h in range(4)) / 4) * 0.5 + 0.5 * (i == j) for j in range(5)
                ]
                rows.append([value / sum(row) for value in row])
            matrices.append(rows)
        for i in range(5):
            for j in range(5):
                expected = sum(
                    matrices[2][i][a] * matrices[1][a][b] * matrices[0][b][j]
                    for a in range(5)
                    for b in range(5)
                )
                assert float(found[image, i, j]) == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(rollout(torch.eye(5).expand(3, 2, 4, 5, 5)), torch.eye(5).expand(2, 5, 5))


def test_maps_are_of_the_patches_in_the_pooled_row() -> None:
    encoder = vit(registers=2)
    with torch.no_grad():
        tokens = encoder(drawn(2, 3, 16, 16), attention=True)
        bare = vit(cls=False)(drawn(2, 3, 16, 16), attention=True)
    assert tokens.attention is not None and bare.attention is not None
    expected = rollout(tokens.attention)[:, 0, 3:].reshape(2, 4, 4)
    torch.testing.assert_close(rollout_map(tokens), expected)
    torch.testing.assert_close(
        last_attention_map(tokens), tokens.attention[-1].mean(1)[:, 0, 3:].reshape(2, 4, 4)
    )
    torch.testing.assert_close(rollout_map(bare).sum((1, 2)), torch.ones(2))
    torch.testing.assert_close(last_attention_map(bare).flatten(1), bare.attention[-1].mean((1, 2)))
    with pytest.raises(ValueError, match="attention=True"):
        rollout_map(replace(tokens, attention=None))


def test_likeness_is_a_cosine() -> None:
    patches = drawn(2, 12, 6)
    found = patch_likeness(patches, (3, 4), 1, 2)
    assert float(found[0, 1, 2]) == pytest.approx(1.0)
    expected = torch.cosine_similarity(patches[1, 9], patches[0, 6], dim=0)
    torch.testing.assert_close(found[1, 2, 1], expected)
    with pytest.raises(ValueError, match="3 rows and 4 columns"):
        patch_likeness(patches, (3, 4), 3, 0)


# --- causes


def test_the_head_is_the_linear_protocol() -> None:
    labels = torch.arange(120) % 3 + 4
    x = drawn(120, 5) * torch.tensor([1.0, 5.0, 0.1, 1.0, 1.0]) + 2
    x[:, :3] += torch.nn.functional.one_hot(labels - 4, 3) * torch.tensor([2.0, 8.0, 0.2])
    x[:, 4] = 7.0  # never varies
    made = probe_head(x, labels, tuple("abcdefg"), "mean", seed=0)
    assert made.names == ("e", "f", "g")
    c = float(linear(x, labels, x[:1], seed=0)[0].settings["C"])
    scaled = ((x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-3)).double()
    oracle = LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(scaled.numpy(), labels.numpy())
    found = made.logits(x).softmax(-1).numpy()
    np.testing.assert_allclose(found, oracle.predict_proba(scaled.numpy()), atol=1e-4)


def test_full_gradients_add_up_to_the_output() -> None:
    encoder, read = resnet().double(), head(32, 3)
    image = drawn(3, 16, 16).double()
    found = full_gradients(encoder, read, image, 1)
    with torch.no_grad():
        expected = float(read.of(encoder, image[None])[0, 1])
    assert found.output == pytest.approx(expected)
    assert found.sum == pytest.approx(expected, abs=1e-9)
    assert found.complete and abs(expected) > 0.1
    assert float(sum(term.abs().sum() for term in found.biases)) > 0.1  # biases matter
    assert found.map().shape == (16, 16) and found.map().min() >= 0
    assert not any(module._forward_hooks for module in encoder.modules())


class Tiny(Encoder):
    """One layer with a bias, and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.depth, self.stride, self.config = 4, 1, 1, None
        self.preprocessing = Preprocessing(4, 1.0)
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        mask: Tensor | None = None,
        layers: tuple[int, ...] = (),
        attention: bool = False,
    ) -> Tokens:
        x = self.conv(images).relu()
        return Tokens(x.flatten(2).mT, (x.shape[2], x.shape[3]))


def test_full_gradients_of_one_layer_by_hand() -> None:
    torch.manual_seed(0)
    encoder, read, image = Tiny(), head(4, 2), drawn(3, 4, 4)
    found = full_gradients(encoder, read, image, 0)
    weight, bias = encoder.conv.weight[:, :, 0, 0], encoder.conv.bias
    assert bias is not None
    before = torch.einsum("dc,chw->dhw", weight, image) + bias[:, None, None]
    down = (before > 0) * read.weight[:, 0, None, None] / 16
    (term,) = found.biases
    torch.testing.assert_close(term, (down * bias[:, None, None]).detach())
    torch.testing.assert_close(found.pixels, torch.einsum("dhw,dc->chw", down, weight).detach() * image)
    gradient = torch.einsum("dhw,dc->chw", down, weight).detach()
    torch.testing.assert_close(saliency(encoder, read, image, 0), gradient.abs().amax(0))


def test_full_gradients_say_when_they_are_not_complete() -> None:
    found = full_gradients(vit(), head(24, 2), drawn(3, 16, 16), 0)
    assert not found.complete and found.gap > 1e-3


def test_saliency_is_captums() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captum = pytest.importorskip("captum.attr")
    encoder, read, image = resnet(), head(32, 3), drawn(3, 16, 16)
    expected = captum.Saliency(lambda x: read.of(encoder, x)).attribute(
        image[None].requires_grad_(), target=2
    )
    torch.testing.assert_close(saliency(encoder, read, image.detach(), 2), expected[0].abs().amax(0))


def test_own_direction_gives_the_length() -> None:
    vector = drawn(24)
    found = own_direction(vector, "cls")
    assert float(found.logits(vector)[0]) == pytest.approx(float(vector.norm()), rel=1e-5)


# --- inversion


def test_priors_are_loops() -> None:
    x = drawn(1, 2, 3, 4)
    variation, power = [], []
    for c in range(2):
        for i in range(3):
            for j in range(4):
                power.append((abs(float(x[0, c, i, j])) / 2.5) ** 6)
                if i < 2 and j < 3:
                    here = x[0, c, i, j]
                    variation.append(float((x[0, c, i + 1, j] - here) ** 2 + (x[0, c, i, j + 1] - here) ** 2))
    assert float(total_variation(x)) == pytest.approx(np.mean(variation), rel=1e-5)
    assert float(alpha_norm(x)) == pytest.approx(np.mean(power), rel=1e-5)


def test_inversion_finds_what_the_features_hold() -> None:
    """Features that are the pixels themselves give the picture back; their mean colour gives only that."""
    coarse = torch.nn.functional.interpolate(drawn(1, 3, 3, 3), (8, 8), mode="bilinear")[0].clamp(-1.5, 1.5)

    class Itself(Tiny):
        pooled = False

        def forward(
            self,
            images: Tensor,
            *,
            keep: Tensor | None = None,
            mask: Tensor | None = None,
            layers: tuple[int, ...] = (),
            attention: bool = False,
        ) -> Tokens:
            seen = images.mean((2, 3), keepdim=True) if self.pooled else images
            tokens = Tokens(seen.flatten(2).mT, (seen.shape[2], seen.shape[3]))
            return replace(tokens, layers=tuple(tokens for _ in layers))

    exact, vague = Itself(), Itself()
    vague.pooled = True
    found = invert(exact, coarse, 1, steps=150)
    assert found.start > 0.9 and found.features < 0.02 and found.pixels < 0.05
    assert found.reencoded == pytest.approx(found.features, abs=0.02)
    assert found.picture.shape == (8, 8, 3) and found.picture.dtype == torch.uint8
    assert invert(vague, coarse, 1, steps=150).pixels > 0.5
    again = invert(exact, coarse, 1, steps=150)
    assert torch.equal(again.picture, found.picture)
    with pytest.raises(ValueError, match="at least 1"):
        invert(exact, coarse, 1, steps=0)


def test_bytes_and_back() -> None:
    expects = Preprocessing(8, 1.0)
    picture = torch.randint(256, (8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_bytes(from_bytes(picture, expects), expects), picture)


# --- classes


def test_identifiability_counts_ranks() -> None:
    logits = drawn(6, 5)
    label = torch.tensor([0, 1, 2, 3, 4, 0])
    found = identifiability(logits, label)
    for row, y, value in zip(logits.tolist(), label.tolist(), found.tolist(), strict=True):
        assert value == pytest.approx(1 - sorted(row, reverse=True).index(row[y]) / 4)
    assert identifiability(torch.zeros(3, 5), label[:3]).tolist() == [0.5] * 3


def test_lens_reads_every_layer_with_the_last_ones_probe() -> None:
    encoder, images, label = vit(registers=1), drawn(70, 3, 16, 16), torch.arange(70) % 4
    read = replace(head(24, 4), pooling="cls")
    lens = class_lens(encoder, read, images, label)
    with torch.no_grad():
        states = encoder(images, layers=(1, 2, 3)).layers
    assert lens.cls is not None
    for i, state in enumerate(states):
        assert state.cls is not None
        logits = read.logits(state.cls)
        torch.testing.assert_close(lens.cls[i], identifiability(logits, label))
        assert float(lens.top_1[i]) == pytest.approx(float((logits.argmax(-1) == label).double().mean()))
        torch.testing.assert_close(
            lens.patches[i, :, 5], identifiability(read.logits(state.patches[:, 5]), label)
        )
    with pytest.raises(ValueError, match=r"layers of this encoder are \[4, 8, 16, 32\] wide"):
        class_lens(resnet(), head(32, 4), images, label)
    with pytest.raises(ValueError, match="at least 2 classes"):
        class_lens(encoder, own_direction(drawn(24), "cls"), images, label)


# --- concepts


def test_dissection_is_a_loop() -> None:
    activations = drawn(6, 3, 8, 8)
    masks = drawn(6, 4, 16, 16, seed=3) > 0.3
    found = dissect(activations, masks, ("a", "b", "c", "d"))
    large = torch.nn.functional.interpolate(activations, (16, 16), mode="bilinear", align_corners=False)
    for unit in range(3):
        values = np.sort(activations[:, unit].numpy().ravel())[::-1]
        threshold = values[int(SHARE * len(values))]
        active = large[:, unit].numpy() > threshold
        for k in range(4):
            mask = masks[:, k].numpy()
            expected = (active & mask).sum() / (active | mask).sum()
            assert found.iou[unit, k] == pytest.approx(expected, abs=1e-6)
    above = (activations > top_threshold(activations)[:, None, None]).double().mean((0, 2, 3))
    assert (above <= SHARE).all() and (above > SHARE - 1 / 384).all()


def test_a_detector_is_found_and_lost_by_rotation() -> None:
    """One channel that is a concept's mask among channels of noise."""
    masks = torch.zeros(20, 2, 16, 16, dtype=torch.bool)
    masks[:2, 0, 2:6, 2:6] = True
    masks[5:, 1] = drawn(15, 16, 16) > 0
    activations = 0.1 * drawn(20, 24, 16, 16, seed=4)
    activations[:, 7] += masks[:, 0] * (1 + 0.5 * drawn(20, 16, 16, seed=5).abs())
    found = dissect(activations, masks, ("thing", "noise"))
    unit, name, value = found.best[0]
    assert (unit, name) == (7, "thing") and value > 0.5
    assert found.detectors == 1 and found.detected == {"thing": 1}
    mixed = turned(activations, seed=0)
    torch.testing.assert_close(mixed.square().sum(1), activations.square().sum(1), atol=1e-3, rtol=1e-4)
    assert dissect(turned(0.1 * drawn(20, 24, 16, 16), 0), masks, ("thing", "noise")).detectors == 0


def test_concepts_of_the_playground_are_its_scenes() -> None:
    source = DensePlayground(12, size=32)
    found = concepts(source, np.arange(12), 32)
    assert found.masks.shape == (12, len(found.names), 32, 32)
    for i in range(12):
        scene = source.scene(i)
        covered = np.zeros((32, 32), bool)
        for number, thing in enumerate(scene.things, start=1):
            mine = scene.mask == number
            for name in (thing.shape, thing.texture, thing.colour_name):
                assert found.masks[i, found.names.index(name)][mine].all()
            covered |= mine
        np.testing.assert_array_equal(found.masks[i, -1], ~covered)
        shapes = found.masks[i, :10]
        np.testing.assert_array_equal(shapes.sum(0), covered.astype(int))
    masks = np.zeros((4, 2, 3, 3), bool)
    masks[:3, 0], masks[1, 1, 0, 0] = True, True
    both = Concepts(("often", "once"), masks)
    assert both.met(1).names == ("often", "once") and both.met(2).names == ("often",)
    assert both.met(2).masks.shape == (4, 1, 3, 3) and both.met(4).names == ()


# --- Gestalt


@pytest.mark.parametrize("name", list(TESTS))
def test_pieces_have_the_same_ink_at_the_same_places(name: str) -> None:
    for seed in range(5):
        figure = TESTS[name](64, seed)
        ground = int(np.bincount(figure.whole.ravel()).argmax())

        def ink(picture: np.ndarray, ground: int = ground) -> float:
            return float(np.abs(picture.astype(float) - ground).sum())

        whole, grouped, scattered = map(ink, (figure.whole, figure.grouped, figure.scattered))
        assert grouped == pytest.approx(scattered, rel=0.12)
        assert 0.5 < grouped / whole < 0.9
        assert not np.array_equal(figure.grouped, figure.scattered)
        place = [
            np.argwhere(np.abs(p[..., 0].astype(int) - ground) > 60).mean(0)
            for p in (figure.grouped, figure.scattered)
        ]
        np.testing.assert_allclose(place[0], place[1], atol=2.0)
        np.testing.assert_array_equal(TESTS[name](64, seed).whole, figure.whole)
        assert not np.array_equal(TESTS[name](64, seed + 1).whole, figure.whole)


def test_right_is_nearer() -> None:
    whole = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    near, far = torch.tensor([[2.0, 0.1], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert right_about(whole, near, far).tolist() == [True, False]


def test_raw_pixels_do_not_tell_the_pieces_apart() -> None:
    """Were they to, the tests would be about pixels."""
    for draw in TESTS.values():
        figures = [draw(64, seed) for seed in range(40)]
        whole, grouped, scattered = (
            torch.from_numpy(np.stack([part.reshape(-1) for part in parts])).float() - 127.5
            for parts in zip(*((f.whole, f.grouped, f.scattered) for f in figures), strict=True)
        )
        assert 0.25 < float(right_about(whole, grouped, scattered).double().mean()) < 0.75
