"""What views to make, as values: a `View` says how one is drawn, a recipe which views an image gets.

A variant of a view is ``replace(view, size=96, scale=(0.05, 0.4))``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, final

from visrep.method import Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@final
@dataclass(frozen=True)
class View:
    """How one view of an image is drawn, in the order crop, flip, blur, colour jitter, grey, solarise, normalise.

    Raises ValueError for a range or a probability that cannot be.
    """

    size: int = 224
    """side in pixels"""
    scale: tuple[float, float] = (0.08, 1.0)
    """least and greatest share of the image's area in the crop"""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """least and greatest width / height of the crop in the image, log-uniform between"""
    flip: float = 0.5
    """probability of mirroring left-right"""
    jitter: float = 0.8
    """probability of changing brightness, contrast, saturation and hue, in random order"""
    brightness: float = 0.4
    """factors are drawn from [max(0, 1 - x), 1 + x], also for contrast and saturation"""
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    """greatest turn of the hue either way, as a share of the colour circle, at most 0.5"""
    gray: float = 0.2
    """probability of removing colour"""
    blur: float = 0.5
    """probability of a Gaussian blur"""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """least and greatest standard deviation of the blur, in pixels of the view"""
    solarize: float = 0.0
    """probability of inverting values of 0.5 and more"""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """how crops are resized, always with antialiasing"""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} pixels cannot be. Use at least 1.")
        for name in ("flip", "jitter", "gray", "blur", "solarize"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} is not a probability. Use a number from 0 to 1.")
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name}={value} is negative. Use 0 for no change, more for more.")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(
                f"hue={self.hue} lies outside [0, 0.5]: 0.5 already turns the hue half-way round."
            )
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}=({low}, {high}) is not a range. Use 0 < low <= high.")
        if self.scale[1] > 1:
            raise ValueError(
                f"scale=({self.scale[0]}, {self.scale[1]}): a crop is at most 1 of the image's area."
            )
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} must be positive: views are divided by it.")


def _check_one_size(**views: View) -> None:
    if len({view.size for view in views.values()}) > 1:
        found = ", ".join(f"{name}.size={view.size}" for name, view in views.items())
        raise ValueError(f"{found}: these views are encoded together. Give them one size.")


def _check_one_normalisation(**views: View) -> None:
    if len({(view.mean, view.std) for view in views.values()}) > 1:
        found = ", ".join(f"{name}: mean={view.mean}, std={view.std}" for name, view in views.items())
        raise ValueError(f"{found}: one encoder sees all views. Give them one mean and std.")


class Recipe(ABC):
    """Which views each image gets."""

    @property
    @abstractmethod
    def groups(self) -> tuple[tuple[View, ...], ...]:
        """The views by group, global (large) views first; the views of one group have one size."""

    @property
    def copies(self) -> tuple[View, ...]:
        """Views of the first group once more, as a last group: each the same crop, without changes of colour."""
        return ()

    frames: int = 0
    """of the views of a clip: as many, from a random moment on; 0 for views of images"""

    @property
    def size(self) -> int:
        """Side of the largest view."""
        return max(view.size for views in (*self.groups, self.copies) for view in views)

    @property
    def preprocessing(self) -> Preprocessing:
        """What an encoder trained on these views expects: small images whole, others without their margin."""
        view = self.groups[0][0]
        ratio = 1.0 if view.size < 96 else 0.875
        return Preprocessing(size=view.size, ratio=ratio, mean=view.mean, std=view.std, frames=self.frames)


@final
@dataclass(frozen=True)
class OneView(Recipe):
    """One view an image or clip, as in masked image modelling and supervised training."""

    view: View = View()
    frames: int = 0

    @property
    def groups(self) -> tuple[tuple[View, ...], ...]:
        return ((self.view,),)


@final
@dataclass(frozen=True)
class GappedView(Recipe):
    """One view whose patches are cut with gaps between them, as in LatentMIM (arXiv 2407.15837)."""

    view: View = View(size=280)
    image: int = 224
    """side in pixels without the gaps: what encoders see, and expect later"""

    @property
    def groups(self) -> tuple[tuple[View, ...], ...]:
        return ((self.view,),)

    @property
    def preprocessing(self) -> Preprocessing:
        return replace(super().preprocessing, size=self.image, ratio=1.0 if self.image < 96 else 0.875)


@final
@dataclass(frozen=True)
class TwoViews(Recipe):
    """Two views an image or clip, as in SimCLR (arXiv 2002.05709). Raises ValueError unless they agree in size."""

    first: View = View()
    second: View = View()
    frames: int = 0

    def __post_init__(self) -> None:
        _check_one_size(first=self.first, second=self.second)
        _check_one_normalisation(first=self.first, second=self.second)

    @property
    def groups(self) -> tuple[tuple[View, ...], ...]:
        return ((self.first, self.second),)


@final
@dataclass(frozen=True)
class MultiCrop(Recipe):
    """Two large views and some small ones, as in SwAV (arXiv 2006.09882) and DINO (arXiv 2104.14294).

    Local views are a group of their own even when their size is that of the global ones.
    Raises ValueError unless the global views agree in size and all views are normalised alike.
    """

    global_1: View = View()
    global_2: View = View()
    local: View = View(size=96, scale=(0.05, 0.4))
    n_local: int = 8
    """local views an image, 0 for none"""
    clean: int = 0
    """side in pixels of a further copy of each global view without blur and changes of colour, 0 for none"""

    def __post_init__(self) -> None:
        _check_one_size(global_1=self.global_1, global_2=self.global_2)
        _check_one_normalisation(global_1=self.global_1, global_2=self.global_2, local=self.local)
        if self.n_local < 0:
            raise ValueError(f"n_local={self.n_local} is negative. Use 0 for no local views.")
        if self.clean < 0:
            raise ValueError(f"clean={self.clean} pixels cannot be. Use 0 for no copies.")

    @property
    def groups(self) -> tuple[tuple[View, ...], ...]:
        large = (self.global_1, self.global_2)
        return (large, (self.local,) * self.n_local) if self.n_local else (large,)

    @property
    def copies(self) -> tuple[View, ...]:
        views = (self.global_1, self.global_2) if self.clean else ()
        return tuple(replace(view, size=self.clean, blur=0.0) for view in views)


def crops(
    *,
    size: int,
    local: int,
    n_local: int,
    scale: tuple[float, float],
    local_scale: tuple[float, float],
    flip: float = 0.5,
    clean: int = 0,
) -> MultiCrop:
    """DINO's crops at any size: blur and solarisation differ between the two global ones."""
    view = View(size=size, scale=scale, flip=flip)
    return MultiCrop(
        global_1=replace(view, blur=1.0),
        global_2=replace(view, blur=0.1, solarize=0.2),
        local=replace(view, size=local, scale=local_scale, blur=0.5),
        n_local=n_local,
        clean=clean,
    )
