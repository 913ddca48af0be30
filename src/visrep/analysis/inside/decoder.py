"""Feature inversion by a trained decoder (arXiv:1506.02753): a small network learns to draw images from their features.

    minimise over g   E |g(phi(x)) - x|²        whose best g is the mean of all images with these features

with phi the map of patch tokens of a layer. A picture of `inversion` is one of the many that share their features; a
decoder draws the average of them. It is therefore blurred where the features leave the picture open and sharp where
they fix it, but it may also add what training images have in common. Error is squared and divided by the squared
distance of the same images from the mean training image: 1 is what one gets without features. Only images that it
never saw count.

The network is the same for maps of any width and stride: channels standardised, one 1x1 convolution to 64 channels,
then 3x3 convolutions with the map doubled between them, bilinearly, to the picture. It adds to the mean image.

*Deviations*: a few hundred steps of AdamW on at most a thousand images, pictures of at most 64 pixels a side: what a
decoder of this size finds soon, not all that there is. The paper trains on ImageNet to pictures of 227 pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Int64
from torch import Tensor, nn

from visrep.data.canvas import CanvasSet
from visrep.evaluation.features import centred, evaluation_mode
from visrep.evaluation.probe_training import seeded
from visrep.method import Encoder
from visrep.progress import tracked

SIDE = 64
"""of pictures, at most"""
WIDTH, NARROWEST = 64, 16
"""channels on the map, halved whenever it is doubled, and the fewest"""
BATCH = 16
PASSES = 40
"""over the training images, at most: of few images a decoder soon knows each by heart"""
LR, WARM_UP, WEIGHT_DECAY = 3e-3, 0.1, 0.05
"""with its share of steps that the rate takes to rise"""
LEAST = 24
"""images to train on"""
BYTES = 2**30
"""of maps in memory"""
ENCODED = 64
"""images at a time"""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images, small, and what layers make of them."""

    images: Float[Tensor, "n 3 s s"]
    """normalised as the encoder expects, averaged to at most 64 pixels a side"""
    maps: dict[int, Float16[Tensor, "n d r c"]]
    """by layer"""


class Decoder(nn.Module):
    """Maps of features "n d r c" to images "n 3 s s"."""

    mean: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, maps: Float[Tensor, "n d r c"], images: Float[Tensor, "n 3 s s"]) -> None:
        """Statistics of channels and the mean image are those of the training images."""
        super().__init__()
        centre, deviation = _statistics(maps)
        self.register_buffer("mean", images.mean(0))
        self.register_buffer("shift", centre[:, None, None])
        self.register_buffer("scale", 1 / deviation.clamp_min(1e-4 * deviation.max() + 1e-8)[:, None, None])
        sizes = _sizes(min(maps.shape[-2:]), images.shape[-1])
        widths = [max(NARROWEST, WIDTH >> place) for place in range(len(sizes))]
        self.sizes = sizes
        self.enter = nn.Conv2d(maps.shape[1], WIDTH, 1)
        self.steps = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in zip([WIDTH, *widths], widths, strict=False)
        )
        self.leave = nn.Conv2d(widths[-1], 3, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)  # the first picture is the mean image

    def forward(self, maps: Float[Tensor, "n d r c"]) -> Float[Tensor, "n 3 s s"]:
        x = self.enter((maps.float() - self.shift) * self.scale)
        for size, convolve in zip(self.sizes, self.steps, strict=True):
            x = F.gelu(convolve(_resized(x, size)))
        return self.mean + self.leave(x)


def encode_maps(
    encoder: Encoder,
    canvases: CanvasSet,
    indices: Int64[np.ndarray, " n"],
    layers: tuple[int, ...],
    *,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Encoded:
    """Images and maps of these layers in one pass; the first images only where the maps of all are above 1 GiB.

    Raises ValueError for features that are not finite in half precision.
    """
    encoder.to(device)
    images: list[Tensor] = []
    maps: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    left = BYTES
    with evaluation_mode(encoder), torch.no_grad():
        batches = centred(canvases, indices, encoder.preprocessing, ENCODED, device)
        for pixels, _, _ in tracked(batches, "maps", total=-(-len(indices) // ENCODED), shown=progress):
            states = encoder(pixels, layers=layers).layers
            for layer, state in zip(layers, states, strict=True):
                rows, columns = state.grid[-2:]
                maps[layer].append(state.patches.half().mT.unflatten(2, (rows, columns)).cpu())
            images.append(small(pixels).float().cpu())
            left -= sum(found[-1].numel() * 2 for found in maps.values())
            if left <= 0:
                break
    joined = {layer: torch.cat(found) for layer, found in maps.items()}
    for layer, found in joined.items():
        if bad := int((~found.isfinite().flatten(1).all(1)).sum()):
            raise ValueError(
                f"the features of {bad} of {len(found)} images are not finite in layer {layer}: training diverged, or "
                "they are beyond 65,504. A decoder cannot read them."
            )
    return Encoded(torch.cat(images), joined)


def train_decoder(
    maps: Float[Tensor, "n d r c"],
    images: Float[Tensor, "n 3 s s"],
    *,
    steps: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
    title: str = "decoder",
) -> Decoder:
    """A decoder of these maps, trained for so many steps, or 40 passes where that is less.

    ``seed`` draws initial weights and batches. Raises ValueError for too few images and for less than one step.
    """
    n = len(maps)
    check_enough(n)
    if steps < 1:
        raise ValueError(f"steps={steps}: a decoder needs at least 1 step of training, say 400.")
    total = min(steps, PASSES * math.ceil(n / BATCH))
    decoder = seeded(lambda: Decoder(maps, images), seed).to(device)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
    rng = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(n, generator=rng) for _ in range(math.ceil(total * BATCH / n))])
    decoder.train()
    with torch.enable_grad():
        for step in tracked(range(total), title, shown=progress):
            rows = order[step * BATCH : (step + 1) * BATCH]
            rises = min(1.0, (step + 1) / (WARM_UP * total))
            optimiser.param_groups[0]["lr"] = LR * rises * (1 + math.cos(math.pi * step / total)) / 2
            loss = F.mse_loss(decoder(maps[rows].to(device)), images[rows].to(device))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return decoder.eval()


@torch.no_grad()
def decode(decoder: Decoder, maps: Float[Tensor, "n d r c"]) -> Float[Tensor, "n 3 s s"]:
    """The pictures that a decoder draws, on the CPU."""
    return torch.cat([decoder(some.to(decoder.mean.device)).cpu() for some in maps.split(ENCODED)])


def picture_error(
    drawn: Float[Tensor, "n 3 s s"], images: Float[Tensor, "n 3 s s"], mean: Float[Tensor, "3 s s"]
) -> float:
    """Squared distance from the images, divided by that of the mean image: 0 is the same, 1 knows nothing of them."""
    spread = (images - mean).square().sum().clamp_min(1e-12)
    return float((drawn - images).square().sum() / spread)


def small(images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 s s"]:
    """Images averaged over the smallest squares of pixels that leave at most 64 a side."""
    side = images.shape[-1]
    return F.adaptive_avg_pool2d(images, side // math.ceil(side / SIDE))


def check_enough(n: int) -> None:
    """Raises ValueError for too few images to train on."""
    if n < LEAST:
        raise ValueError(
            f"a decoder is trained on at least {LEAST} images, beside those it is judged on; here there are {n}. "
            "Give more images, or ask for no decoder (0 steps)."
        )


def _statistics(maps: Float[Tensor, "n d r c"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Mean and standard deviation of each channel; some images at a time, as maps may fill the memory."""
    parts, n = maps.split(BATCH), maps[:, 0].numel()
    mean = torch.stack([part.double().sum((0, 2, 3)) for part in parts]).sum(0) / n
    apart = [(part.double() - mean[:, None, None]).square().sum((0, 2, 3)) for part in parts]
    return mean.float(), (torch.stack(apart).sum(0) / n).sqrt().float()


def _sizes(first: int, last: int) -> list[int]:
    """Sides of the map at each convolution: doubled from what the encoder gives to the picture."""
    sizes = [min(first, last)]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], last))
    return sizes if len(sizes) > 1 else [last, last]


def _resized(x: Tensor, size: int) -> Tensor:
    if x.shape[-2:] == (size, size):
        return x
    if min(x.shape[-2:]) > size:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
