"""Views of images: crops, flips, blur and colour changes, made in batches on the device that trains."""

from visrep.views.erasing import Erasing, erase
from visrep.views.randaugment import RandAugment, rand_augment
from visrep.views.recipes import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    GappedView,
    MultiCrop,
    OneView,
    Recipe,
    TwoViews,
    View,
    crops,
)
from visrep.views.render import center, draw

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Erasing",
    "GappedView",
    "MultiCrop",
    "OneView",
    "RandAugment",
    "Recipe",
    "TwoViews",
    "View",
    "center",
    "crops",
    "draw",
    "erase",
    "rand_augment",
]
