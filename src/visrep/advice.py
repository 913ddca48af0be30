"""Settings that do not fit the data, told at the start of a run. Advice stops nothing."""

from __future__ import annotations

from dataclasses import replace

from visrep.config import Run
from visrep.data.playgrounds import playground_settings
from visrep.encoders.saved import saved_config
from visrep.encoders.tokenizer import LogitTokenizer
from visrep.machine import kind_of_device
from visrep.method import At
from visrep.methods import load_method, presets
from visrep.schedules import Constant, Cosine, Line, Ramp, Step, Warmup

FEW_STEPS = 100
"""steps in which hardly any method learns"""
MEMORY = 5
"""a teacher that averages more than a fifth of the run's steps still looks like its start when the run ends"""
SMALL = 64
"""largest side of views, in pixels, for which a CPU is enough"""
TOKENS = {"beitv2": "vqkd", "peco": "peco_tokenizer"}
"""methods named after what their tokens tell: which tokenizer makes such tokens"""


def advise(run: Run, images: int, first: At, *, method: str, frames: int = 0) -> list[str]:
    """What looks wrong with a run on so many images, each with the field to change; ``first`` is its first step.

    ``method`` is the name or file of what it trains, ``frames`` how many each clip of the data has, 0 for images.
    """
    settings = vars(run.method)
    found = [
        _few_steps(first.total),
        _prototypes(settings.get("prototypes"), images),
        _queue(settings.get("queue"), images, run.batch),
        _teacher(settings.get("teacher_decay"), first),
        _moments(run, frames),
        _tokens(method, settings.get("tokenizer")),
        _no_gpu(run, method, first.total),
    ]
    return [sentence for sentence in found if sentence]


def _few_steps(total: int) -> str:
    if total >= FEW_STEPS:
        return ""
    return f"Only {total} steps: hardly anything can be learned. Raise epochs or lower batch."


def _prototypes(k: object, images: int) -> str:
    if not isinstance(k, int) or k <= images:
        return ""
    fitting = max(16, 2 ** ((images // 20).bit_length() - 1)) if images >= 20 else 16
    return (
        f"{k:,} prototypes for {images:,} images: most stay unused, and a teacher's codes uniform for a long time. "
        f"Set method.prototypes to about {fitting}."
    )


def _queue(size: object, images: int, batch: int) -> str:
    if not isinstance(size, int) or size <= images:
        return ""
    return (
        f"A queue of {size:,} vectors of {images:,} images holds several of each, so that an image is told from "
        f"itself. Set method.queue to about {max(batch, images // 2 // batch * batch)}."
    )


def _teacher(decay: object, first: At) -> str:
    if not isinstance(decay, Constant | Cosine | Line | Ramp | Step | Warmup):
        return ""
    moved = 1 - decay(first)
    if moved * first.total >= MEMORY:
        if decay(replace(first, step=first.total * 3 // 4)) < 1:
            return ""
        return (
            "The teacher stands still long before the run ends: method.teacher_decay reaches 1 after fewer epochs than "
            "it has. Let it end where the run does, as a Line or Cosine from start to end does for any length."
        )
    lasting = f"about {1 / moved:,.0f}" if moved > 0 else "all"
    return (
        f"The teacher averages {lasting} steps and the run has {first.total:,}: it would hardly leave its start. "
        f"Let method.teacher_decay begin at {max(0.0, 1 - 2 * MEMORY / first.total):.3g}, or train longer."
    )


def _moments(run: Run, frames: int) -> str:
    wanted = run.method.views.frames
    if not wanted or frames != wanted or playground_settings(run.data) is not None:
        return ""  # in the playground the whole clip is one motion
    return (
        f"Clips and views have {frames} frames, so every epoch sees the same moments of each video. Give longer clips, "
        f"as in --data 'FOLDER:frames={3 * frames // 2}': then each view begins at a random frame of its clip."
    )


def _tokens(method: str, tokenizer: object) -> str:
    if method not in TOKENS or not isinstance(saved_config(str(tokenizer)), LogitTokenizer):
        return ""
    return (
        f"{tokenizer} names pixels (it is a dVAE), which is what beit predicts; {method} is called after the tokens of "
        f"{TOKENS[method]}. Set method.tokenizer to a run of {TOKENS[method]}, or train beit."
    )


def _no_gpu(run: Run, method: str, steps: int) -> str:
    small = run.data != "playground" or run.method.views.size <= SMALL
    if small or kind_of_device(run.accelerator) != "cpu" or "small32" not in presets(load_method(method)):
        return ""
    return (
        f"No GPU was found, and this trains on the built-in playground for {steps:,} steps with views of "
        f"{run.method.views.size} px. To try the method, use `visrep pretrain {method}:small32`; "
        "give your own images with --data."
    )
