"""What every encoder refuses, in the same words."""

from __future__ import annotations

from torch import Tensor


class NoFreshWeights(ValueError):
    """An encoder cannot be built anew, so that there is no untrained twin of it."""


def check_choice(field: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises ValueError unless a configuration field has one of its values."""
    if value not in choices:
        raise ValueError(f"{field}={value!r} is not possible. Choose one of {', '.join(map(repr, choices))}.")


def check_images(images: Tensor, channels: int) -> None:
    """Raises ValueError unless ``images`` is "b c h w" with that many channels."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(
            f"Expected images 'b c h w' with {channels} channels, got shape {tuple(images.shape)}. "
            "Join views along the batch axis; repeat the channel of grey images."
        )


def check_keep(keep: Tensor, n_images: int) -> None:
    """Raises ValueError unless ``keep`` is "b m" with a row an image; gathering would just drop images."""
    if keep.ndim != 2 or len(keep) != n_images:
        raise ValueError(
            f"keep has shape {tuple(keep.shape)}; {n_images} images need ({n_images}, patches to keep)."
        )


def check_layers(layers: tuple[int, ...], depth: int, first: int = 1) -> None:
    """Raises ValueError unless every layer is in first..depth."""
    for layer in layers:
        if not first <= layer <= depth:
            raise ValueError(
                f"layers={layers} asks for layer {layer}; this encoder has layers {first} to {depth}."
            )


def check_whole(kind: str, keep: Tensor | None, mask: Tensor | None, attention: bool) -> None:
    """Raises ValueError when a convolutional network, a ``kind``, is asked for what needs separate patches."""
    for name, asked in (("keep", keep is not None), ("mask", mask is not None), ("attention", attention)):
        if asked:
            raise ValueError(
                f"A {kind} cannot do {name}=, which works on separate patches. Use a ViT encoder."
            )
