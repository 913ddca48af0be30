"""Training an encoder with a linear classifier on labelled images, as `finetune` does it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from visrep.config import Optim
from visrep.data.canvas import CanvasSet
from visrep.data.workers import default_workers
from visrep.encoders import VideoViT, ViTLike
from visrep.encoders.video import VideoTransformer
from visrep.encoders.vit import VisionTransformer
from visrep.evaluation.features import Features, centred, evaluation_mode
from visrep.evaluation.holdout import hold_out
from visrep.evaluation.mixing import Mixing, mix
from visrep.machine import trains_in_bf16
from visrep.method import At, Canvases, Encoder
from visrep.progress import tracked
from visrep.schedules import Cosine, Warmup
from visrep.views import Erasing, OneView, RandAugment, View, draw, erase, rand_augment
from visrep.views.colour import normalise_

MICRO = 256
"""images through the network at a time, which bounds memory"""
LAST_LR = 1e-6
Norm = Literal["none", "batch", "layer"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of fine-tuning."""

    tries: tuple[tuple[float, float], ...]
    """(learning rate, layer decay); of several the one with the best held-out accuracy is taken"""
    epochs: float
    least_steps: int = 0
    """for few images, of which ``epochs`` would be too few steps"""
    warmup: float
    """share of the steps"""
    batch: int
    """or all images, when there are fewer"""
    view: View
    """its size and normalisation are the encoder's"""
    augment: RandAugment | None = None
    """before normalisation, on values rounded to 8 bits"""
    erasing: Erasing | None = None
    """after normalisation"""
    mixing: Mixing = Mixing()
    drop_path: float = 0.1
    """of vision transformers"""
    norm: Norm = "none"
    """of the mean patch. ``batch``: BatchNorm without affine, as a few steps cannot first grow what differs little.
    ``layer``: a new LayerNorm, which a vision transformer then has in place of its own last one"""
    positions: bool = False
    """whether positions of a vision transformer are trained also where they were fixed sines and cosines"""
    weight_decay: float = 0.05

    def steps(self, n: int) -> int:
        """For ``n`` images."""
        return max(1, self.least_steps, round(self.epochs * n / min(self.batch, n)))


@dataclass(frozen=True)
class Images:
    """Some images of a set, with labels."""

    canvases: CanvasSet
    index: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]

    @classmethod
    def of(cls, canvases: CanvasSet, features: Features) -> Images:
        """Those that features were made of. Raises ValueError without labels."""
        if features.labels is None:
            raise ValueError("fine-tuning needs labels, and these images come without.")
        return cls(canvases, features.index, features.labels)

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, rows: Int64[Tensor, " m"]) -> Images:
        return Images(self.canvases, self.index[rows], self.labels[rows])


class Classifier(nn.Module):
    """Images or clips to logits "b k"."""

    def __init__(self, encoder: Encoder, k: int, norm: Norm = "none") -> None:
        super().__init__()
        self.encoder = encoder
        if norm == "batch":
            self.norm: nn.Module = nn.BatchNorm1d(encoder.width, affine=False)
        else:
            self.norm = nn.LayerNorm(encoder.width, eps=1e-6) if norm == "layer" else nn.Identity()
        self.head = nn.Linear(encoder.width, k)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Float[Tensor, "b *c h w"]) -> Float[Tensor, "b k"]:
        return self.head(self.norm(self.encoder(images).pool("mean").float())).float()


@dataclass(frozen=True)
class Fit:
    """Trains copies of an encoder; all but images and what is tried stays the same."""

    encoder: Encoder
    classes: Tensor
    recipe: Recipe
    device: torch.device
    seed: int
    progress: bool
    title: str

    def choose(self, images: Images, tries: tuple[tuple[float, float], ...]) -> tuple[float, float]:
        """The one with the best accuracy on images that were held out, the first among equals."""
        if len(tries) == 1:
            return tries[0]
        fitted, held_out = (images.rows(rows) for rows in hold_out(images.labels, self.seed))
        accuracies = []
        for number, (lr, decay) in enumerate(tries, start=1):
            network = self(fitted, lr, decay, f"try {number} of {len(tries)}")
            accuracies.append(float((self.predict(network, held_out) == held_out.labels).double().mean()))
        return tries[int(np.argmax(accuracies))]

    def __call__(self, images: Images, lr: float, layer_decay: float, what: str) -> Classifier:
        """The network, trained to the end."""
        recipe, n = self.recipe, len(images)
        batch, total = min(recipe.batch, n), recipe.steps(n)
        schedule = Warmup(recipe.warmup, then=Cosine(lr, LAST_LR))
        batches = images.canvases.stream(
            shuffled(images.index.numpy(), batch, total, self.seed), rows=batch, workers=default_workers()
        )
        steps = tracked(batches, f"fine-tuning, {self.title}, {what}", total=total, shown=self.progress)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)  # of the classifier and of drop path
            network = Classifier(trainable(self.encoder, recipe), len(self.classes), recipe.norm)
            network.to(self.device).train()
            optimiser = torch.optim.AdamW(
                parameter_groups(network, recipe.weight_decay, layer_decay), fused=True
            )
            for step, canvases in enumerate(steps):
                rng = torch.Generator(self.device).manual_seed((self.seed << 32) + step)
                at = At(step, total, total, rng)  # the whole is one epoch: the warm-up is a share of it
                for group in optimiser.param_groups:
                    group["lr"] = schedule(at) * group["scale"]
                assert canvases.labels is not None
                x = self._views(canvases.to(self.device), images.canvases.source.frames, at)
                y = torch.searchsorted(self.classes, canvases.labels).to(self.device)
                mixing = np.random.default_rng([self.seed, step])
                optimiser.zero_grad()
                self._backward(network, *mix(x, y, len(self.classes), recipe.mixing, mixing))
                optimiser.step()
        return network

    def predict(self, network: Classifier, images: Images) -> Tensor:
        """A label for each image, seen as in every other protocol; -1, which is none, where training diverged."""
        expects, index = self.encoder.preprocessing, images.index.numpy()
        with evaluation_mode(network), torch.no_grad():
            logits = torch.cat(
                [network(x).cpu() for x, *_ in centred(images.canvases, index, expects, MICRO, self.device)]
            )
        return self.classes[logits.argmax(-1)].where(logits.isfinite().all(-1), -1)

    def _views(self, canvases: Canvases, frames: int, at: At) -> Float[Tensor, "b *t 3 h w"]:
        """What the network sees of images, or of clips of so many frames, at one step."""
        expects, recipe = self.encoder.preprocessing, self.recipe
        view = replace(recipe.view, size=expects.size, mean=expects.mean, std=expects.std)
        shown = view if recipe.augment is None else replace(view, mean=(0, 0, 0), std=(1, 1, 1))
        x = draw(OneView(shown, frames=expects.frames or frames), canvases, at).crops[0][0]
        if recipe.augment is not None:
            fill = tuple(min(255, round(255 * mean)) for mean in view.mean)
            x = rand_augment(x.mul_(255).round_().to(torch.uint8), recipe.augment, fill, at) / 255
            normalise_(x, view.mean, view.std)
        return x if recipe.erasing is None else erase(x, recipe.erasing, at)

    def _backward(self, network: Classifier, x: Tensor, y: Tensor) -> None:
        parts = math.ceil(len(x) / MICRO)
        fast = trains_in_bf16(self.device.type)
        for pixels, targets in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
                logits = network(pixels)
            (F.cross_entropy(logits, targets, reduction="sum") / len(x)).backward()


def shuffled(
    index: Int64[np.ndarray, " n"], batch: int, total: int, seed: int
) -> Iterator[Int64[np.ndarray, " b"]]:
    """So many batches; each epoch in a new order, what is left of it dropped."""
    steps = len(index) // batch
    for step in range(total):
        epoch, at = divmod(step, steps)
        order = np.random.default_rng([seed, epoch]).permutation(index)
        yield order[at * batch : (at + 1) * batch]


def trainable(encoder: Encoder, recipe: Recipe) -> Encoder:
    """A copy that can be trained; a vision transformer has the drop path, norm and positions of the recipe.

    Raises ValueError for an encoder without weights, such as an ONNX file.
    """
    if next(encoder.parameters(), None) is None:
        raise ValueError(
            "this encoder has no weights that can be trained: an ONNX file is for judging frozen features. Fine-tune "
            "the run that it was exported from."
        )
    config, weights = encoder.config, encoder.state_dict()
    if isinstance(config, ViTLike | VideoViT):
        config = replace(config, drop_path=recipe.drop_path)
    if recipe.positions and isinstance(encoder, VisionTransformer) and config.position == "sincos":
        config, weights["position"] = replace(config, position="learned"), encoder.position
    copy: Encoder = config.build()
    copy.load_state_dict(weights)
    copy.preprocessing = encoder.preprocessing
    if recipe.norm == "layer" and isinstance(copy, VisionTransformer | VideoTransformer):
        copy.norm = nn.Identity()
    return copy


def parameter_groups(network: Classifier, weight_decay: float, layer_decay: float) -> list[dict]:
    """Groups by weight decay (none for biases, norms, tokens and positions) and ``scale`` of the learning rate.

    Where no layer can be told from the names of the parameters, all of them learn alike.
    """
    depth = network.encoder.depth
    layers = {name: layer_of(name, depth) for name, _ in network.named_parameters()}
    if not any(0 < layer <= depth for layer in layers.values()):
        layer_decay = 1.0
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in network.named_parameters():
        decays = parameter.ndim > 1 and not any(fnmatchcase(name, pattern) for pattern in Optim().no_decay)
        scale = layer_decay ** (depth + 1 - layers[name])
        empty = {"params": [], "scale": scale, "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault((layers[name], decays), empty)["params"].append(parameter)
    return list(groups.values())


def layer_of(name: str, depth: int) -> int:
    """Which layer a parameter of a `Classifier` is of: 0 below the first, depth + 1 for last norm and classifier."""
    if numbered := re.search(r"\b(?:blocks|stages)\.(\d+)\.", name):
        return int(numbered[1]) + 1
    if numbered := re.search(r"\blayer(\d)\.", name):
        return int(numbered[1])
    return depth + 1 if re.search(r"\b(?:norm|head)\.", name) else 0
