"""One image of any kind to a uint8 canvas: the whole image squashed to a square, its true size kept."""

from __future__ import annotations

import io
import warnings

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)
_WHITE = (255, 255, 255, 255)
Raw = bytes | np.ndarray
"""an encoded file, or uint8 "h w" or "h w c" with 1, 3 or 4 channels"""


class UnreadableImage(Exception):
    """An image that cannot be decoded; the message says why in a few words."""


def decode(raw: Raw | list[Raw], size: int) -> tuple[UInt8[np.ndarray, "*t 3 s s"], tuple[int, int]]:
    """Decode one image to RGB, squash it to ``size`` x ``size`` (antialiased), tell its true (height, width).

    ``raw`` is an encoded file, or uint8 "h w" or "h w c" with 1, 3 or 4 channels. The size is the one a
    viewer shows: after EXIF rotation. Transparent images are laid over white, animations give their first
    frame, 16-bit images are scaled by the range of their type, 1-bit and grey images repeat their channel,
    CMYK is converted without colour profiles. JPEGs much larger than the canvas are decoded at a half, a
    quarter or an eighth of their size, never below twice the canvas.

    A clip is a list of images; it has the true size of the first.

    Raises UnreadableImage for data that is corrupt, truncated, empty or beyond Pillow's limit of pixels,
    and for other arrays.
    """
    if isinstance(raw, list):
        frames = [decode(frame, size) for frame in raw]
        return np.stack([pixels for pixels, _ in frames]), frames[0][1]
    if isinstance(raw, np.ndarray):
        image = _from_array(raw)
        return _planes(_squash(image, size)), (image.height, image.width)
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, which matters to nobody here, and of huge images, which it still opens
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(raw)) as image:
                return _decode(image, size)
        except (UnreadableImage, MemoryError):
            raise
        except Exception as error:  # a corrupt file can make a decoder raise anything
            raise UnreadableImage(_reason(raw, error)) from error


def canvas_shape(frames: int, size: int) -> tuple[int, ...]:
    """Of the canvas of an image (no ``frames``) or of a clip."""
    return (frames, 3, size, size) if frames else (3, size, size)


def true_size(raw: Raw | list[Raw]) -> tuple[int, int]:
    """Height and width from the header alone, before EXIF rotation; of a clip its first frame's.

    Raises UnreadableImage.
    """
    if isinstance(raw, list):
        return true_size(raw[0])
    if isinstance(raw, np.ndarray):
        return raw.shape[0], raw.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(raw)) as image:
                return image.height, image.width
        except Exception as error:  # as in decode
            raise UnreadableImage(_reason(raw, error)) from error


def to_array(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """An open image of any mode as upright RGB, at its own size."""
    image.load()
    return np.asarray(_over_white(_upright(_eight_bit(image), image.getexif().get(ORIENTATION, 1))))


def decode_whole(raw: Raw) -> UInt8[np.ndarray, "h w 3"]:
    """One image as upright RGB at its own size, otherwise as `decode` reads it. Raises UnreadableImage."""
    if isinstance(raw, np.ndarray):
        return np.asarray(_over_white(_from_array(raw)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(raw)) as image:
                return to_array(image)
        except (UnreadableImage, MemoryError):
            raise
        except Exception as error:  # as in decode
            raise UnreadableImage(_reason(raw, error)) from error


def _decode(image: Image.Image, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    width, height = image.size
    drafted = image.draft(None, (2 * size, 2 * size)) is not None  # JPEG only: scale while decoding
    image.load()
    if not drafted:
        width, height = image.size  # TIFFs are turned upright, and lose their EXIF tag, in load
    orientation = image.getexif().get(ORIENTATION, 1)
    if orientation in SIDEWAYS:
        width, height = height, width
    return _planes(_upright(_squash(_eight_bit(image), size), orientation)), (height, width)


def _squash(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=2.0)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _eight_bit(image: Image.Image) -> Image.Image:
    """The same picture in one of the modes L, RGB and RGBA, which can be resized."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scale(np.asarray(image)))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return image.convert("RGBA")
    return image if image.mode == "L" else image.convert("RGB")


def _scale(values: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """16-bit integers by the range of their type; 32-bit integers and floats by their own range."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise UnreadableImage("holds infinite or undefined values")
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif values.dtype.kind != "f" and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    return np.rint((values.astype(np.float64) - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image.convert("RGB")


def _planes(image: Image.Image) -> UInt8[np.ndarray, "3 h w"]:
    return np.ascontiguousarray(np.asarray(_over_white(image)).transpose(2, 0, 1))


def _from_array(array: np.ndarray) -> Image.Image:
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[2] not in (1, 3, 4))
    ):
        raise UnreadableImage(
            f"is {array.dtype} {array.shape}; wanted uint8 (height, width, 1, 3 or 4 channels)"
        )
    if array.size == 0:
        raise UnreadableImage(f"has no pixels: shape {array.shape}")
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def _reason(raw: bytes, error: Exception) -> str:
    if not raw:
        return "empty file"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not an image of a known format ({len(raw)} bytes)"
    return str(error) or type(error).__name__
