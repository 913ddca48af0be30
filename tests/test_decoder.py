"""Trained decoders of features: what is there is drawn, what is not there is the mean image, and nothing leaks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visrep.analysis.inside import decoder
from visrep.analysis.inside.decoder import Decoder, decode, encode_maps, picture_error, small, train_decoder
from visrep.analysis.inside.decoding import decodings, split
from visrep.analysis.inside.subject import Inapplicable, Subject
from visrep.data import CanvasSet, Source, Subset, open_source
from visrep.encoders import ResNet, ViT
from visrep.evaluation.features import centred
from visrep.method import Encoder, Preprocessing


def smooth(n: int, side: int = 16, seed: int = 0) -> Tensor:
    """Images of a few large blots."""
    coarse = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (side, side), mode="bilinear")


def pictures(n: int, side: int = 32) -> Source:
    found = (smooth(n, side) * 60 + 128).clamp(0, 255).byte().permute(0, 2, 3, 1)
    return open_source([picture.numpy() for picture in found])


def vit() -> Encoder:
    torch.manual_seed(5)  # not that of the untrained twin
    encoder = ViT(image=32, patch=8, width=24, depth=2, heads=2).build().eval()
    encoder.preprocessing = Preprocessing(32, ratio=1.0)
    return encoder


def subject(source: Source, encoder: Encoder, shown: tuple[int, ...] = (3, 0)) -> Subject:
    some = Subset(source, list(shown))
    keys = tuple(some.key(place) for place in range(len(shown)))
    return Subject(encoder, source, CanvasSet(some, 32), keys, torch.device("cpu"), 0, False)


def judged(maps: Tensor, images: Tensor, *, fitted: int, steps: int = 150) -> float:
    made = train_decoder(maps[:fitted], images[:fitted], steps=steps)
    return picture_error(decode(made, maps[fitted:]), images[fitted:], made.mean)


def test_what_features_hold_is_drawn() -> None:
    """Colours of patches of 4 x 4 pixels, in a random basis among noise: a map of another width and stride."""
    images = smooth(96)
    basis = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
    maps = torch.einsum("dc,ncij->ndij", basis, F.avg_pool2d(images, 4))
    assert judged(maps, images, fitted=64) < 0.15


def test_constant_features_give_the_mean_image() -> None:
    images = smooth(96) + torch.linspace(-2, 2, 16)
    error = judged(torch.ones(96, 12, 4, 4), images, fitted=64, steps=60)
    assert error == pytest.approx(1.0, abs=0.05)
    made = train_decoder(torch.ones(64, 12, 4, 4), images[:64], steps=60)
    (drawn,) = decode(made, torch.ones(1, 12, 4, 4))
    assert float((drawn - images[:64].mean(0)).square().mean()) < 0.02 * float(images.var())


def test_features_of_other_images_say_nothing_of_unseen_ones() -> None:
    """A decoder may learn pairs by heart; held-out images show it."""
    images = smooth(96)
    maps = torch.randn(96, 12, 4, 4, generator=torch.Generator().manual_seed(2))
    made = train_decoder(maps[:64], images[:64], steps=100)
    assert picture_error(decode(made, maps[:64]), images[:64], made.mean) < 0.9
    assert picture_error(decode(made, maps[64:]), images[64:], made.mean) > 0.95


def test_error_is_a_share_of_the_distance_from_the_mean_image() -> None:
    images, drawn = smooth(5), smooth(5, seed=1)
    mean = smooth(1, seed=2)[0]
    above = below = 0.0
    for one, other in zip(images.flatten(1).tolist(), drawn.flatten(1).tolist(), strict=True):
        above += sum((a - b) ** 2 for a, b in zip(one, other, strict=True))
        below += sum((a - m) ** 2 for a, m in zip(one, mean.flatten().tolist(), strict=True))
    assert picture_error(drawn, images, mean) == pytest.approx(above / below, rel=1e-4)
    assert picture_error(mean.expand(5, 3, 16, 16), images, mean) == pytest.approx(1.0)
    assert picture_error(images, images, mean) == 0


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (7, 7), (16, 16), (40, 40)])
def test_maps_of_any_grid_start_at_the_mean_image(grid: tuple[int, int]) -> None:
    images, maps = smooth(6), 1e3 * torch.randn(6, 5, *grid)
    drawn = Decoder(maps, images)(maps)
    torch.testing.assert_close(drawn, images.mean(0).expand(6, 3, 16, 16))


def test_channels_are_standardised() -> None:
    maps = (
        40 * torch.randn(37, 5, 3, 4, generator=torch.Generator().manual_seed(0))
        + torch.arange(5.0)[:, None, None]
    )
    made = Decoder(maps.half(), smooth(37))
    deviation, mean = torch.std_mean(maps.half().double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(made.shift.flatten(), mean.float())
    torch.testing.assert_close(1 / made.scale.flatten(), deviation.float())


@pytest.mark.parametrize("build", [vit, lambda: ResNet(depth=18, width=4, stem="small").build()])
def test_maps_are_those_of_the_encoder(build: type) -> None:
    encoder: Encoder = build()
    encoder.preprocessing = Preprocessing(32, ratio=1.0)
    canvases = CanvasSet(pictures(9), 32)
    order = np.array([5, 0, 8])
    encoder.train()
    found = encode_maps(encoder, canvases, order, (1, encoder.depth))
    assert encoder.training
    encoder.eval()
    (pixels, _, _) = next(centred(canvases, order, encoder.preprocessing, 3))
    torch.testing.assert_close(found.images, pixels)  # 32 pixels are few enough to stay
    with torch.no_grad():
        last = encoder(pixels)
    rows, columns = last.grid
    for i in range(rows):
        for j in range(columns):
            expected = last.patches[:, i * columns + j].half()
            torch.testing.assert_close(found.maps[encoder.depth][:, :, i, j], expected)


def test_large_images_are_averaged() -> None:
    assert small(torch.zeros(2, 3, 160, 160)).shape == (2, 3, 53, 53)  # a third
    ramp = small(torch.arange(128.0).expand(1, 3, 128, 128))
    assert ramp.shape[-1] == 64 and ramp[0, 0, 0, :3].tolist() == [0.5, 2.5, 4.5]
    assert small(smooth(1, 64)).shape[-1] == 64


def test_maps_beyond_the_memory_allowed_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "ENCODED", 4)
    monkeypatch.setattr(decoder, "BYTES", 24 * 16 * 2 * 6)
    found = encode_maps(vit(), CanvasSet(pictures(20), 32), np.arange(20), (2,))
    assert len(found.images) == len(found.maps[2]) == 8


def test_held_out_images_are_held_out() -> None:
    source = pictures(60)
    looked_at = subject(source, vit(), shown=(3, 0))
    fitted, held_out = split(looked_at)
    assert not {*fitted.tolist()} & {*held_out.tolist()}
    assert {*fitted.tolist(), *held_out.tolist()} == set(range(60)) - {0, 3}
    assert len(held_out) == round(0.2 * 58)


def test_only_what_was_held_out_is_judged() -> None:
    """Changing images that are not trained on changes no decoder; changing those that are does."""
    source = pictures(50)
    looked_at = subject(source, vit())
    fitted, held_out = split(looked_at)
    first = decodings(looked_at, (1, 2), 5)
    again = decodings(subject(source, vit()), (1, 2), 5)
    assert first.learned == len(fitted) and first.held_out == len(held_out)
    assert set(first.trained) == set(first.untrained) == {1, 2}
    for layer in (1, 2):
        assert torch.equal(first.trained[layer].pictures, again.trained[layer].pictures)
        assert first.trained[layer].error == again.trained[layer].error
        assert first.trained[layer].error != first.untrained[layer].error

    def changed(rows: np.ndarray) -> Tensor:
        images = [
            np.asarray(source.read(i)) if i not in rows else np.full((32, 32, 3), 200, np.uint8)
            for i in range(50)
        ]
        return decodings(subject(open_source(images), vit()), (2,), 5).trained[2].pictures

    assert torch.equal(changed(held_out), first.trained[2].pictures)
    assert not torch.equal(changed(fitted[:1]), first.trained[2].pictures)


def test_seeds_decide() -> None:
    images = smooth(30)
    maps = F.avg_pool2d(images, 4)
    state = torch.get_rng_state()
    one, same, other = (train_decoder(maps, images, steps=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(decode(one, maps), decode(same, maps))
    assert not torch.equal(decode(one, maps), decode(other, maps))


def test_what_cannot_be() -> None:
    images = smooth(30)
    with pytest.raises(ValueError, match=r"at least 24 images.* there are 23"):
        train_decoder(images[:23], images[:23], steps=4)
    with pytest.raises(ValueError, match="steps=0"):
        train_decoder(images, images, steps=0)
    with pytest.raises(Inapplicable, match=r"at least 24 images.* there are 22"):
        decodings(subject(pictures(30), vit()), (2,), 4)
    broken = vit()
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(Inapplicable, match="not finite in layer 2"):
        decodings(subject(pictures(40), broken), (2,), 4)
