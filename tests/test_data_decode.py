"""Decoding: every kind of image file gives the canvas and the true size that a viewer would show."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visrep.data.decode import ORIENTATION, UnreadableImage, decode, to_array, true_size

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> Image.Image:
    """A picture that JPEG keeps well: red grows rightwards, green downwards, the top left corner is blue."""
    y, x = np.mgrid[:height, :width]
    blue = 255 * ((y < height / 4) & (x < width / 4))
    return Image.fromarray(np.stack([255 * x / width, 255 * y / height, blue], -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey_png16(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint16)), "PNG")


def close(canvas: np.ndarray, image: Image.Image, tolerance: float) -> bool:
    size = canvas.shape[1]
    wanted = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC), dtype=float)
    return float(np.abs(canvas.transpose(1, 2, 0) - wanted).mean()) < tolerance


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_kinds_are_exact_at_their_own_size(kind: str) -> None:
    square = NOISE[:, :24]
    canvas, size = decode(
        encoded(Image.fromarray(square), kind, **({"lossless": True} if kind == "WEBP" else {})), 24
    )
    assert canvas.dtype == np.uint8 and size == (24, 24)
    np.testing.assert_array_equal(canvas, square.transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_the_whole_image_is_squashed_and_its_size_kept(kind: str) -> None:
    image = smooth(60, 150)
    canvas, size = decode(encoded(image, kind), 32)
    assert canvas.shape == (3, 32, 32) and canvas.flags.c_contiguous and size == (60, 150)
    assert close(canvas, image, 8)


def test_shrinking_a_large_jpeg_while_decoding_changes_little() -> None:
    image = smooth(1200, 900)
    canvas, size = decode(encoded(image, "JPEG", quality=95), 32)
    assert size == (1200, 900)
    assert close(canvas, image, 1.5)


def test_shrinking_while_decoding_keeps_detail() -> None:
    stripes = np.zeros((300, 300, 3), dtype=np.uint8)
    stripes[:, np.arange(300) % 12 < 6] = 255  # some 5 pixels wide on a canvas of 128
    canvas, _ = decode(encoded(Image.fromarray(stripes), "JPEG", quality=95), 128)
    assert close(canvas, Image.fromarray(stripes), 3)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    canvas, _ = decode(stripes, 16)
    assert np.abs(canvas[:, :, 1:-1].astype(int) - 127).max() < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    """The pixels are stored turned, the tag says how to turn them back: all eight look the same."""
    upright = smooth(40, 64)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    raw = encoded(stored, kind, exif=exif, **({"quality": 95} if kind in ("JPEG", "WEBP") else {}))
    canvas, size = decode(raw, 32)
    assert size == (40, 64)
    assert close(canvas, upright, 4)
    with Image.open(io.BytesIO(raw)) as image:
        assert to_array(image).shape == (40, 64, 3)


def test_grey_one_bit_and_palette() -> None:
    image = smooth(24, 24)
    for mode, tolerance in (("L", 0.1), ("1", 0.1), ("P", 0.1)):
        converted = image.convert(mode)
        canvas, _ = decode(encoded(converted, "PNG"), 24)
        assert close(canvas, converted, tolerance), mode
    canvas, _ = decode(encoded(image.convert("L"), "JPEG"), 24)
    assert (canvas[0] == canvas[1]).all() and (canvas[0] == canvas[2]).all()


def test_one_bit_images_are_antialiased() -> None:
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2).astype(bool))
    canvas, _ = decode(encoded(board, "PNG"), 16)
    assert np.abs(canvas.astype(int) - 127).max() < 30


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_white(mode: str) -> None:
    image = Image.new(mode, (30, 20), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    canvas, _ = decode(encoded(image, "PNG"), 16)
    assert (canvas == 255).all()
    half = Image.new(mode, (30, 20), (0, 0, 0, 128) if mode == "RGBA" else (0, 128))
    canvas, _ = decode(encoded(half, "PNG"), 16)
    assert (np.abs(canvas.astype(int) - 127) <= 1).all()


def test_a_transparent_palette_colour_is_white() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(0, (0, 0, 16, 8))
    canvas, _ = decode(encoded(image, "PNG", transparency=0), 16)
    assert canvas[:, 0, 0].tolist() == [255, 255, 255]
    assert canvas[:, 15, 0].tolist() == [255, 0, 0]


def test_cmyk_jpeg() -> None:
    image = smooth(48, 48).convert("CMYK")
    canvas, _ = decode(encoded(image, "JPEG", quality=95), 16)
    assert close(canvas, image, 4)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    canvas, _ = decode(grey_png16(ramp), 16)
    np.testing.assert_allclose(canvas[0], ramp / 257, atol=0.51)
    dark, _ = decode(grey_png16(ramp / 16), 16)
    assert dark.max() == 16, "two images of one data set stay comparable"


def test_floats_and_wide_integers_use_their_own_range() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for values in (ramp, ramp * 1e4 - 500):
        canvas, _ = decode(encoded(Image.fromarray(values), "TIFF"), 16)
        np.testing.assert_allclose(canvas[0], ramp * 255, atol=0.51)
    canvas, _ = decode(encoded(Image.fromarray((ramp * 1e9).astype(np.int32)), "TIFF"), 16)
    np.testing.assert_allclose(canvas[0], ramp * 255, atol=0.51)
    with pytest.raises(UnreadableImage, match="infinite or undefined"):
        decode(encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), 8)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    canvas, _ = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 16)
    assert canvas[:, 8, 8].tolist() == [255, 0, 0]


def test_extreme_shapes() -> None:
    assert decode(encoded(Image.new("RGB", (1, 1)), "PNG"), 32)[1] == (1, 1)
    assert decode(encoded(Image.new("RGB", (3000, 2)), "JPEG"), 32)[1] == (2, 3000)


def test_arrays() -> None:
    for channels in (1, 3, 4):
        array = RNG.integers(0, 256, (8, 8, channels), dtype=np.uint8)
        canvas, size = decode(array, 8)
        assert canvas.shape == (3, 8, 8) and size == (8, 8)
    for wrong in (NOISE.astype(np.float32), NOISE[..., :2], NOISE[None], np.empty((0, 4, 3), np.uint8)):
        with pytest.raises(UnreadableImage):
            decode(wrong, 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_broken_files_are_named_not_fatal(kind: str) -> None:
    whole = encoded(Image.fromarray(NOISE), kind)
    with pytest.raises(UnreadableImage):
        decode(whole[: len(whole) // 2], 16)
    for at in range(0, len(whole), max(1, len(whole) // 40)):  # any damage: an image or UnreadableImage
        damaged = whole[:at] + bytes(8) + whole[at + 8 :]
        try:
            decode(damaged, 16)
        except UnreadableImage:
            continue


def test_reasons() -> None:
    with pytest.raises(UnreadableImage, match="empty file"):
        decode(b"", 16)
    with pytest.raises(UnreadableImage, match=r"not an image of a known format \(11 bytes\)"):
        decode(b"hello world", 16)


def test_decompression_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = encoded(Image.new("L", (200, 200)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)
    with pytest.raises(UnreadableImage, match="40000 pixels"):
        decode(raw, 16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)  # large, which Pillow only warns of
    assert decode(raw, 16)[1] == (200, 200)


def test_true_size_reads_headers_only(tmp_path: Path) -> None:
    raw = encoded(smooth(300, 500), "JPEG")
    assert true_size(raw[: len(raw) // 2]) == (300, 500)
    assert true_size(NOISE) == (24, 40)
    with pytest.raises(UnreadableImage):
        true_size(b"no image")
