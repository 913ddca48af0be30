"""Whole pretraining steps beside lightly's, with the same narrow ResNet, images, batch and views, in one run.

    pip install lightly==1.6.0
    python benchmarks/pretrain.py [--json]

Both sides hold the same uint8 images in memory and do all that a step needs: loading, views, student, teacher where
there is one, loss, optimiser, moving average. lightly runs as its own examples do, in a process of its own, with its
own ResNet-18 (layer by layer the same as ours) and the number of worker processes that is best for it. The second row
of each method splits our own step into the networks and the rest.
"""

# lightly is installed for this comparison only
# pyright: reportMissingImports=false, reportPrivateImportUsage=false, reportArgumentType=false

from __future__ import annotations

import copy
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor, nn

from bookkeeping import show
from visrep.config import Optim, Run
from visrep.data import CanvasSet, Loader, open_source
from visrep.encoders import NAMED, ResNet
from visrep.engine import _Objective, _State, at_step, build_fabric, take_step
from visrep.methods.contrastive import simclr
from visrep.methods.distillation import dino
from visrep.optim import build_optimizer
from visrep.schedules import Constant
from visrep.views import TwoViews, draw

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import _torchvision  # noqa: F401 - declares operators that CPU builds of torch lack, before lightly is imported

NARROW = NAMED["resnet_narrow"]
assert isinstance(NARROW, ResNet)
ENCODER: ResNet = NARROW
OPTIM = Optim(lr=Constant(1e-3), lr_scaling="none", weight_decay=Constant(0.05))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    batch: int = 128
    steps: int = 8
    """measured steps a repetition"""
    repetitions: int = 3
    """the median counts; ours and lightly's take turns"""
    workers: tuple[int, ...] = (0, 1, 2)
    """lightly's numbers of worker processes to try"""
    json: bool = False


def rate(step: Callable[[], None], settings: Settings) -> float:
    """Images a second of one repetition."""
    began = time.perf_counter()
    for _ in range(settings.steps):
        step()
    return settings.steps * settings.batch / (time.perf_counter() - began)


def images(n: int) -> np.ndarray:
    """The playground at 32 px: uint8 "n h w 3"."""
    source = open_source(f"playground:n={n},size=32")
    return np.stack([np.asarray(source.read(i)) for i in range(n)])


def ours(run: Run, pixels: np.ndarray) -> tuple[Callable[[], None], Callable[[], None]]:
    """A whole step of ours, and the networks' part of it: encoder and head, student both ways, teacher forward."""
    run = replace(run, canvas=32, precision="32-true")  # as the peer
    fabric = build_fabric(run)
    canvases = CanvasSet(open_source(pixels), 32, cache="memory")
    loader = Loader(canvases, batch=run.batch, seed=0)
    method = simclr.SimCLR(run.method) if isinstance(run.method, simclr.Config) else dino.DINO(run.method)
    model, optimizer = fabric.setup(_Objective(method), build_optimizer(method.named_parameters(), run.optim))
    state = _State(method, {"main": optimizer})
    total = 10_000
    stream = enumerate(loader.stream(0, total))

    def step() -> None:
        i, canvas = next(stream)
        at = at_step(run, i, total, loader.steps_per_epoch, fabric)
        take_step(run, model, state, draw(run.method.views, canvas, at), at, fabric)

    groups = draw(
        run.method.views, canvases.get(np.arange(run.batch)), at_step(run, 0, total, 1, fabric)
    ).crops

    def networks() -> None:
        if isinstance(method, dino.DINO):
            method.teacher(groups[:1])
            method.student(groups).sum().backward()
        else:
            method.head(method.backbone(groups[0].flatten(0, 1)).pool()).sum().backward()
        for parameter in method.parameters():
            parameter.grad = None

    return step, networks


class Pictures(torch.utils.data.Dataset):
    """The same images as PIL, as torchvision data sets give them."""

    def __init__(self, pixels: np.ndarray, transform: Callable[[Image.Image], list[Tensor]]) -> None:
        self.pictures = [Image.fromarray(x) for x in pixels]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> list[Tensor]:
        return self.transform(self.pictures[index])


def endless(loader: torch.utils.data.DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def backbone() -> tuple[nn.Module, int]:
    """lightly's ResNet-18 for small images as its examples cut it, as narrow as ours, and its width."""
    from lightly.models import ResNetGenerator

    narrow = ResNetGenerator("resnet-18", width=ENCODER.width / 64)
    layers = [*narrow.children()][:-1]
    weights, ours = (
        sum(p.numel() for p in x.parameters()) for x in (nn.Sequential(*layers), ENCODER.build())
    )
    if weights != ours:
        raise RuntimeError(
            f"lightly's encoder has {weights} parameters and ours {ours}: not the same encoder"
        )
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), ENCODER.width * 8


def lightly_simclr(run: Run, pixels: np.ndarray, workers: int) -> Callable[[], None]:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    view = run.method.views.first
    transform = SimCLRTransform(
        input_size=32,
        cj_strength=1.0,
        cj_bright=view.brightness,
        cj_contrast=view.contrast,
        cj_sat=view.saturation,
        cj_hue=view.hue,
        gaussian_blur=view.blur,
    )
    encoder, width = backbone()
    model = nn.Sequential(encoder, SimCLRProjectionHead(width, run.method.hidden, run.method.out))
    criterion = NTXentLoss(temperature=run.method.tau)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batches = endless(load(Pictures(pixels, transform), run.batch, workers))

    def step() -> None:
        first, second = next(batches)
        loss = criterion(model(first), model(second))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_dino(run: Run, pixels: np.ndarray, workers: int) -> Callable[[], None]:
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import DINOTransform

    cfg = run.method
    transform = DINOTransform(global_crop_size=32, local_crop_size=16, n_local_views=cfg.views.n_local)
    student, width = backbone()
    # Two heads: copying one fails on its weight norm.
    head, teacher_head = (
        DINOProjectionHead(width, cfg.hidden, cfg.bottleneck, cfg.prototypes, freeze_last_layer=-1)
        for _ in range(2)
    )
    teacher_head.load_state_dict(head.state_dict())
    teacher = copy.deepcopy(student)
    deactivate_requires_grad(teacher)
    deactivate_requires_grad(teacher_head)
    criterion = DINOLoss(output_dim=cfg.prototypes)
    optimizer = torch.optim.AdamW([*student.parameters(), *head.parameters()], lr=1e-3, fused=True)
    batches = endless(load(Pictures(pixels, transform), run.batch, workers))

    def step() -> None:
        views = next(batches)
        update_momentum(student, teacher, m=0.99)
        update_momentum(head, teacher_head, m=0.99)
        with torch.no_grad():
            targets = [teacher_head(teacher(view)) for view in views[:2]]
        loss = criterion(targets, [head(student(view)) for view in views], epoch=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def load(data: Pictures, batch: int, workers: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(
        data, batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )


PEER: list[Callable[[], None]] = []
"""in a process of lightly's: its step"""


def become_peer(make: Callable, run: Run, pixels: np.ndarray, workers: int, threads: int) -> None:
    torch.set_num_threads(threads)
    PEER.append(make(run, pixels, workers))


def peer_rate(settings: Settings) -> float:
    return rate(PEER[0], settings)


def start_peer(make: Callable, run: Run, pixels: np.ndarray, workers: int) -> ProcessPoolExecutor:
    arguments = (make, run, pixels, workers, torch.get_num_threads())
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=become_peer, initargs=arguments)


def main(settings: Settings) -> None:
    pixels = images(4096)
    view = simclr.SMALL
    methods: dict[str, tuple[Any, Callable]] = {
        "simclr 2x32": (
            simclr.Config(encoder=ENCODER, views=TwoViews(view, view), hidden=512, tau=0.2),
            lightly_simclr,
        ),
        "dino 2x32+6x16": (
            dino.Config(
                encoder=ENCODER,
                views=dino.crops(size=32, local=16, n_local=6, scale=(0.4, 1.0), local_scale=(0.05, 0.4)),
                prototypes=1024,
                hidden=512,
                bottleneck=64,
            ),
            lightly_dino,
        ),
    }
    for name, (config, peer) in methods.items():
        compare(name, Run(method=config, optim=OPTIM, batch=settings.batch), peer, pixels, settings)


def compare(name: str, run: Run, make_peer: Callable, pixels: np.ndarray, settings: Settings) -> None:
    step, networks = ours(run, pixels)
    warm = replace(settings, steps=2)
    best, most = 0, 0.0
    for workers in settings.workers:
        with start_peer(make_peer, run, pixels, workers) as peer:
            peer.submit(peer_rate, warm).result()
            speed = peer.submit(peer_rate, settings).result()
        if speed > most:
            best, most = workers, speed
    rates: dict[str, list[float]] = {"ours": [], "peer": [], "networks": []}
    with start_peer(make_peer, run, pixels, best) as peer:
        for measure in (
            lambda s: peer.submit(peer_rate, s).result(),
            lambda s: rate(step, s),
            lambda s: rate(networks, s),
        ):
            measure(warm)
        for _ in range(settings.repetitions):
            rates["ours"].append(rate(step, settings))
            rates["networks"].append(rate(networks, settings))
            rates["peer"].append(peer.submit(peer_rate, settings).result())
    mine, theirs, alone = (statistics.median(rates[who]) for who in ("ours", "peer", "networks"))
    hardware = f"{torch.get_num_threads()} threads, {torch.__version__}"
    whole = {
        "name": f"{name}: whole step, lightly 1.6 ({best} workers)",
        "ratio": round(mine / theirs, 2),
        "ours": round(mine, 1),
        "lightly": round(theirs, 1),
        "unit": "images/s",
        "hardware": hardware,
    }
    share = {
        "name": f"{name}: share of the step outside encoder and head",
        "ratio": round(1 - mine / alone, 3),
        "ours": round(mine, 1),
        "encoder and head alone": round(alone, 1),
        "unit": "images/s",
        "hardware": hardware,
    }
    for row in (whole, share):
        show(row, as_json=settings.json)


if __name__ == "__main__":
    main(tyro.cli(Settings))
