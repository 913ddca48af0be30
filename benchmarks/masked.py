"""Steps of MAE and I-JEPA beside lightly's modules, with the same encoder, decoder, images and masks, in one run.

    pip install lightly==1.6.0 timm==1.0.31
    python benchmarks/masked.py [--json]

A step is forward, backward, optimiser and, for I-JEPA, the moving average, on images that are there already: views cost
the same on both sides and are measured elsewhere. Ours is the engine's step. lightly's is that of its examples, on its
modules for timm's transformer; no class token on either side. MAE's masks are drawn in the step; lightly draws those
of I-JEPA image by image while loading, so its step is given ours, for nothing, and drawing them is a row of its own.
Tokens are the patches of the images, hidden ones included. Each side has a process of its own; they take turns.
"""

# lightly and timm are installed for this comparison only
# pyright: reportMissingImports=false, reportPrivateImportUsage=false

from __future__ import annotations

import copy
import itertools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from bookkeeping import show
from visrep.config import Run
from visrep.encoders import ViTLike
from visrep.engine import _Objective, _State, at_step, build_fabric, build_method, take_step
from visrep.machine import keep_freed_memory
from visrep.method import At, Batch
from visrep.methods.masked import mae
from visrep.methods.predictive import ijepa
from visrep.optim import build_optimizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import _torchvision  # noqa: F401 - declares operators that CPU builds of torch lack, before lightly is imported

TOTAL = 10_000
"""steps of the runs that are pretended"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure."""

    batch: int = 128
    steps: int = 8
    """measured steps a repetition"""
    repetitions: int = 3
    """the median counts"""
    threads: int = torch.get_num_threads()
    bf16: bool = False
    """autocast to bf16 on both sides"""
    json: bool = False


@dataclass(frozen=True)
class Side:
    """One library's step, in the process that runs it."""

    step: Callable[[], None]
    parameters: int = 0
    """numbers that are learned"""


def images(settings: Settings, size: int) -> Tensor:
    return torch.randn(settings.batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def ours(method: str, run: Run, settings: Settings) -> Side:
    run = replace(run, batch=settings.batch, accelerator="cpu")
    run = replace(run, precision="bf16-mixed" if settings.bf16 else "32-true")
    fabric = build_fabric(run)
    module = build_method(run, method)
    optimizer = build_optimizer(module.named_parameters(), run.optim)
    model, optimizer = fabric.setup(_Objective(module), optimizer)
    state = _State(module, {"main": optimizer})
    crops, box = images(settings, run.method.views.size)[None], torch.zeros(1, settings.batch, 4)
    batch = Batch((crops,), (box,), (box[..., 0] > 0,), torch.arange(settings.batch))
    number = itertools.count()

    def step() -> None:
        take_step(run, model, state, batch, at_step(run, next(number), TOTAL, 100, fabric), fabric)

    return Side(step, learned(module))


def our_mae(settings: Settings) -> Side:
    return ours("mae", mae.small32(), settings)


def our_ijepa(settings: Settings) -> Side:
    return ours("ijepa", ijepa.small32(), settings)


def learned(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)


def lightly_encoder(cfg: ViTLike) -> Any:
    """timm's transformer of our encoder's size, in lightly's wrapper."""
    from lightly.models.modules import MaskedVisionTransformerTIMM
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(
        img_size=cfg.image,
        patch_size=cfg.patch,
        embed_dim=cfg.width,
        depth=cfg.depth,
        num_heads=cfg.heads,
        num_classes=0,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
    )
    backbone = MaskedVisionTransformerTIMM(vit)
    backbone.mask_token.requires_grad_(False)  # of no use here
    return backbone


def lightly_mae(settings: Settings) -> Side:
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerDecoderTIMM

    cfg = mae.small32().method
    encoder, width = cfg.encoder, cfg.decoder_width
    n = (encoder.image // encoder.patch) ** 2
    backbone = lightly_encoder(encoder)
    embed, predict = nn.Linear(encoder.width, width), nn.Linear(width, 3 * encoder.patch**2)
    decoder = MaskedVisionTransformerDecoderTIMM(n, width, cfg.decoder_depth, cfg.decoder_heads, 0)
    model = nn.ModuleList([backbone, embed, decoder, predict])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    x = images(settings, encoder.image)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            keep, hidden = utils.random_token_mask((len(x), n), cfg.mask_ratio, mask_class_token=True)
            seen = embed(backbone.encode(x, idx_keep=keep))
            tokens = utils.repeat_token(decoder.mask_token, (len(x), n))
            tokens = utils.set_at_index(tokens, keep, seen.type_as(tokens))
            tokens = decoder.decode(decoder.add_pos_embed(tokens))
            prediction = predict(utils.get_at_index(tokens, hidden))
            target = utils.get_at_index(utils.patchify(x, encoder.patch), hidden)
            target = utils.normalize_mean_var(target, dim=-1)
            loss = F.mse_loss(prediction, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return Side(step, learned(model))


def our_masks(settings: Settings) -> list[tuple[Tensor, list[Tensor]]]:
    """Masks of some steps of our I-JEPA, as lightly wants them."""
    method = ijepa.IJEPA(ijepa.small32().method)
    moments = (At(i, TOTAL, 100, torch.Generator().manual_seed(i)) for i in range(64))
    drawn = (method._masks(settings.batch, at) for at in moments)
    return [(keep, list(blocks.unbind(1))) for keep, blocks in drawn]


def lightly_ijepa(settings: Settings) -> Side:
    from lightly.models import utils
    from lightly.models.modules import IJEPAPredictorTIMM

    cfg = ijepa.small32().method
    encoder = cfg.encoder
    backbone = lightly_encoder(encoder)
    teacher = copy.deepcopy(backbone).requires_grad_(False)
    predictor = IJEPAPredictorTIMM(
        (encoder.image // encoder.patch) ** 2,
        cfg.predictor_depth,
        encoder.width,
        cfg.predictor_width,
        encoder.heads,
    )
    optimizer = torch.optim.AdamW([*backbone.parameters(), *predictor.parameters()], lr=1e-3, fused=True)
    x, masks = images(settings, encoder.image), itertools.cycle(our_masks(settings))

    def step() -> None:
        keep, blocks = next(masks)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            with torch.no_grad():
                h = teacher.encode(x)
                target = utils.apply_masks(F.layer_norm(h, (h.shape[-1],)), blocks)
            prediction = predictor(backbone.encode(x, idx_keep=keep), [keep], blocks)
            loss = F.smooth_l1_loss(prediction, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        utils.update_momentum(backbone, teacher, m=0.99)

    return Side(step, learned(backbone, predictor))


def our_sampler(settings: Settings) -> Side:
    method, number = ijepa.IJEPA(ijepa.small32().method), itertools.count()

    def step() -> None:
        method._masks(settings.batch, At(0, TOTAL, 100, torch.Generator().manual_seed(next(number))))

    return Side(step)


def lightly_sampler(settings: Settings) -> Side:
    """Its masks are for our settings, though it reaches neither the last row nor the last column."""
    from lightly.data.ijepa_collate import IJEPAMaskCollator

    cfg = ijepa.small32().method
    draw = IJEPAMaskCollator(
        input_size=cfg.encoder.image,
        patch_size=cfg.encoder.patch,
        enc_mask_scale=cfg.context_scale,
        pred_mask_scale=cfg.target_scale,
        aspect_ratio=cfg.target_aspect,
        npred=cfg.n_targets,
    )

    def step() -> None:
        draw([0] * settings.batch)

    return Side(step)


HERE: list[Side] = []
"""in a process of one side"""


def become(make: Callable[[Settings], Side], settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    HERE.append(make(settings))


def learned_here() -> int:
    return HERE[0].parameters


def rate_here(settings: Settings) -> float:
    """Images a second of one repetition."""
    began = time.perf_counter()
    for _ in range(settings.steps):
        HERE[0].step()
    return settings.steps * settings.batch / (time.perf_counter() - began)


def process(make: Callable[[Settings], Side], settings: Settings) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=become, initargs=(make, settings))


def compare(name: str, makers: tuple[Callable[[Settings], Side], ...], settings: Settings) -> dict[str, Any]:
    """Rates of both sides and the median ratio of the rounds. Raises RuntimeError for networks of two sizes."""
    with process(makers[0], settings) as mine, process(makers[1], settings) as theirs:
        sizes = [side.submit(learned_here).result() for side in (mine, theirs)]
        if sizes[0] != sizes[1]:
            raise RuntimeError(
                f"{name}: ours learns {sizes[0]} numbers and lightly's {sizes[1]}: not the same networks"
            )
        for side in (mine, theirs):
            side.submit(rate_here, replace(settings, steps=2)).result()
        rounds = [
            [side.submit(rate_here, settings).result() for side in (mine, theirs)]
            for _ in range(settings.repetitions)
        ]
    first, second = (statistics.median(rates) for rates in zip(*rounds, strict=True))
    row: dict[str, Any] = {"name": name, "ratio": round(statistics.median(a / b for a, b in rounds), 2)}
    row |= {"ours": round(first, 1), "lightly": round(second, 1), "unit": "images/s"}
    if sizes[0]:
        vit = mae.small32().method.encoder
        n = (vit.image // vit.patch) ** 2
        row |= {"ours_tokens_per_second": round(n * first), "lightly_tokens_per_second": round(n * second)}
        row |= {"parameters": sizes[0]}
    precision = "bf16 autocast" if settings.bf16 else "32 bits"
    return row | {"hardware": f"{settings.threads} threads, {precision}, torch {torch.__version__}"}


CASES = {
    "mae 32 px, patch 4: step": (our_mae, lightly_mae),
    "ijepa 32 px, patch 4: step": (our_ijepa, lightly_ijepa),
    "ijepa 32 px, patch 4: drawing masks": (our_sampler, lightly_sampler),
}


def main(settings: Settings) -> None:
    for name, makers in CASES.items():
        show(compare(name, makers, settings), as_json=settings.json)


if __name__ == "__main__":
    main(tyro.cli(Settings))
