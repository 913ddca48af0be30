"""The only training loop. Everything a method does not say about training is here, in the order it happens."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from visrep.advice import advise
from visrep.config import Run
from visrep.continuing.adapting import adapt
from visrep.continuing.init import take_encoder
from visrep.continuing.lora import merge, merged
from visrep.continuing.retention import Retention, held_out
from visrep.data import CanvasSet, Loader, Source
from visrep.encoders import save_encoder
from visrep.interruption import Interruption
from visrep.log import TrainingLog
from visrep.machine import keep_freed_memory, kind_of_device, trains_in_bf16
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.methods import load_method, method_class
from visrep.monitor import Monitor
from visrep.nn.batchnorm import convert_batchnorm
from visrep.optim import (
    average_gradients,
    build_optimizers,
    clip_gradients,
    drop_frozen_gradients,
    set_schedules,
)
from visrep.progress import TrainingProgress
from visrep.rundir import RunFolder
from visrep.views import draw


class _Objective(nn.Module):
    """What a distributed wrapper wraps: its forward is the method's loss."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, call: _Call) -> Losses:
        return self.method.loss(call.batch, call.at)


class _Call:
    """A batch and a moment in one opaque object: wrappers must not look into it, copy it or cast it."""

    def __init__(self, batch: Batch, at: At) -> None:
        self.batch, self.at = batch, at


@dataclass
class _State:
    """What a checkpoint holds, besides the step."""

    method: Method
    optimizers: dict[str, torch.optim.Optimizer]

    def save(self, folder: RunFolder, step: int) -> None:
        optimizers = {turn: optimizer.state_dict() for turn, optimizer in self.optimizers.items()}
        folder.save_checkpoint({"step": step, "method": self.method.state_dict(), "optimizers": optimizers})

    def load(self, folder: RunFolder) -> int:
        saved = folder.load_checkpoint()
        self.method.load_state_dict(saved["method"])
        for turn, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][turn])
        return saved["step"]


@dataclass(frozen=True)
class _Views:
    """Views of the images of the epoch that begins at ``at``: drawn anew whenever somebody iterates over them."""

    run: Run
    loader: Loader
    at: At
    fabric: Fabric

    def __iter__(self) -> Iterator[Batch]:
        at = replace(
            self.at, rng=torch.Generator(self.fabric.device).manual_seed(self.at.rng.initial_seed() + 1)
        )
        for canvas in self.loader.stream(at.step, at.step + at.steps_per_epoch):
            batch = draw(self.run.method.views, canvas.to(self.fabric.device), at)
            yield batch.without_labels()


def build_fabric(run: Run) -> Fabric:
    """Devices, precision and distribution as the run asks for them."""
    keep_freed_memory()
    cuda = run.accelerator == "cuda" or (run.accelerator == "auto" and torch.cuda.is_available())
    backend = "nccl" if cuda else "gloo"
    # Buffers (centres, queues) are kept equal by the methods; copying rank 0's would hide a mistake.
    known = inspect.signature(DistributedDataParallel).parameters
    copying = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    several = DDPStrategy(process_group_backend=backend, **{copying: False})  # pyright: ignore[reportArgumentType]
    return Fabric(
        accelerator=run.accelerator,
        devices=run.devices,
        strategy=several if run.devices > 1 else "auto",
        precision=settled_precision(run),
    )


def settled_precision(run: Run) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """What ``auto`` means here: bfloat16 where the device multiplies it, else 32 bits."""
    if run.precision != "auto":
        return run.precision
    return "bf16-mixed" if trains_in_bf16(kind_of_device(run.accelerator)) else "32-true"


def build_method(run: Run, method: str) -> Method:
    """The method with fresh weights, in training mode: the same for the same seed, whatever the device."""
    torch.manual_seed(run.seed)
    return method_class(load_method(method))(run.method).train()


def take_weights(module: Method, method: str, earlier: str | Path) -> None:
    """Start from the weights (and queues, centres, teachers) of an earlier run of the same method.

    Raises ValueError when that is another method, or when its parts have other names or sizes.
    """
    folder = RunFolder(earlier)
    found = folder.about()["method"]
    if found != method:
        raise ValueError(
            f"start_from={earlier} is a run of {found}, not of {method}. Give a run of {method}."
        )
    try:
        module.load_state_dict(folder.load_checkpoint()["method"])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[1].strip()
        raise ValueError(
            f"start_from={earlier} does not fit this run: {reason} Set the fields of method (encoder, heads, queues) "
            "to those of that run."
        ) from error


def open_canvases(run: Run, source: Source, folder: RunFolder, *, progress: bool) -> CanvasSet:
    """The training images, decoded to canvases."""
    return CanvasSet(
        source,
        run.canvas,
        cache=run.cache,
        workers=run.workers,
        folder=folder.path / "cache",
        progress=progress,
    )


def at_step(run: Run, step: int, total: int, steps_per_epoch: int, fabric: Fabric) -> At:
    """Step ``step`` of the run: its generator depends on seed and step alone, so nothing needs replaying."""
    rng = torch.Generator(fabric.device).manual_seed((run.seed << 32) + step)
    return At(step, total, steps_per_epoch, rng, fabric.global_rank, fabric.world_size)


def micro_batches(batch: Batch, n: int) -> list[Batch]:
    """The batch in ``n`` equal parts. Raises ValueError when it does not divide."""
    if len(batch) % n:
        raise ValueError(
            f"accumulate={n} does not divide the {len(batch)} images that each device gets a step."
        )
    size = len(batch) // n
    return [batch.rows(slice(i * size, (i + 1) * size)) for i in range(n)]


def take_step(
    run: Run, model: Callable[[Any], Losses], state: _State, batch: Batch, at: At, fabric: Fabric
) -> tuple[list[Losses], dict[str, float], Tensor]:
    """One optimisation step: every turn, every micro-batch, then the method's own updates.

    Returns the losses, the optimiser's schedules and the norm of the gradient before clipping.
    """
    batch = batch if state.method.needs_labels else batch.without_labels()
    parts = micro_batches(batch, run.accumulate)
    taken: list[Losses] = []
    values: dict[str, float] = {}
    grad_norm = torch.zeros(())
    # A distributed wrapper waits for the gradients of all parameters, and one of several turns has not all of them.
    alone = len(state.optimizers) == 1
    for turn, optimizer in state.optimizers.items():
        values = set_schedules(optimizer, run.optim, at, run.batch)
        for i, part in enumerate(parts):
            waits = i < len(parts) - 1 or not alone
            with fabric.no_backward_sync(model, enabled=waits):  # pyright: ignore[reportArgumentType]
                losses = model(_Call(part, replace(at, turn=turn)))
                fabric.backward(torch.stack(list(losses.terms.values())).sum() / len(parts))
            taken.append(losses)
        if not alone:
            average_gradients(optimizer)
        drop_frozen_gradients(optimizer)
        grad_norm = clip_gradients(optimizer, run.optim)
        optimizer.step()
        for parameter in state.method.parameters():
            parameter.grad = None
    carry = {
        name: torch.cat([losses.carry[name] for losses in taken if name in losses.carry])
        for name in taken[-1].carry
    }
    state.method.after_step(at, carry)
    return taken, values, grad_norm


def train(
    run: Run,
    source: Source,
    folder: RunFolder,
    fabric: Fabric,
    *,
    method: str,
    resume: bool,
    encoder: Encoder | None = None,
) -> None:
    """The loop: from the first step or the last checkpoint to the end of the run.

    A new run begins with the weights of ``encoder``, where there is one (`begin`).
    Ctrl-C and SIGTERM save a checkpoint at the end of the step and raise KeyboardInterrupt.
    """
    canvases = open_canvases(run, source, folder, progress=fabric.is_global_zero)
    unseen = held_out(run, canvases.usable, canvases.source.groups)
    loader = Loader(
        canvases,
        batch=run.batch,
        seed=run.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        workers=run.workers,
        images=np.setdiff1d(canvases.usable, unseen),
        others=f"held out for the guard (guard.held_out={run.guard.held_out:g})" if len(unseen) else "",
    )
    total = max(1, round(run.epochs * loader.steps_per_epoch))

    module = build_method(run, method)
    if encoder is not None:
        take_encoder(module, run, encoder)
    if run.init:
        run = adapt(module, run)
    if run.start_from and not resume:
        take_weights(module, method, run.start_from)
    seen = run.method.views.preprocessing
    if run.init:
        seen = replace(seen, interpolation=run.adapt.interpolation, squash=run.adapt.squash)
    images_only = (
        not module.encoder.preprocessing.frames
    )  # an encoder of images stays one, also when trained on clips
    module.encoder.preprocessing = replace(seen, frames=0) if images_only else seen
    if fabric.world_size > 1:
        convert_batchnorm(module)
    if run.compile:
        for part in module.modules():
            if isinstance(part, Encoder):
                part.compile()
    turns = build_optimizers(module, run.optim)
    model, *optimizers = fabric.setup(_Objective(module), *turns.values())
    state = _State(module, dict(zip(turns, optimizers, strict=True)))
    start = state.load(folder) if resume else 0
    folder.forget_after(start)
    folder.update("running")

    monitor = Monitor(run, canvases, folder, fabric, unseen)
    guard = Retention(run, monitor, folder, fabric)
    if not resume:
        guard.begin(module)
    every = monitor_steps(run, loader.steps_per_epoch, total)
    log = TrainingLog(run, folder, loader.steps_per_epoch, total)
    saved_at = time.monotonic()
    step, lost = start, ""
    first = at_step(run, 0, total, loader.steps_per_epoch, fabric)
    found = advise(run, len(loader.images), first, method=method, frames=source.frames)
    advice = [*source.notes, *found]
    folder.advise(advice)
    with TrainingProgress(total, start, shown=fabric.is_global_zero) as progress, Interruption() as stop:
        for sentence in advice:
            progress.say(sentence)
        for canvas in log.waiting_for(loader.stream(start, total)):
            at = at_step(run, step, total, loader.steps_per_epoch, fabric)
            # Dropout and drop path draw from the global generator: seeded too, and different on each rank.
            torch.manual_seed(hash((run.seed, step, fabric.global_rank)))
            if step % loader.steps_per_epoch == 0:
                module.before_epoch(_Views(run, loader, at, fabric), at)
            batch = draw(run.method.views, canvas.to(fabric.device), at)
            taken, values, grad_norm = take_step(run, model, state, batch, at, fabric)
            step += 1
            written = log.add(at, taken, values, grad_norm)
            progress.advance(log.loss, run.batch)
            ends = step in every or step == total
            if ends:
                log.flush()
                progress.say(monitor.measure(module, at, loader.steps_per_epoch))
                if lost := guard.check(module, at, loader.steps_per_epoch):
                    progress.say(f"The encoder unlearns what it began with: {lost}.")
                if run.keep_encoders and fabric.is_global_zero:
                    folder.keep_encoder(merged(module.encoder), step)
            # Ranks have clocks and signals of their own: the first one decides, at a moment that all of them reach.
            due = stop.requested or time.monotonic() - saved_at > 60 * run.checkpoint_minutes
            if ends or (fabric.world_size == 1 and due) or (written and fabric.broadcast(due)):
                log.flush()
                state.save(folder, step)
                saved_at = time.monotonic()
                if fabric.broadcast(stop.requested):
                    raise KeyboardInterrupt(f"interrupted after step {step} of {total}")
            if guard.ends(lost):
                break
    ended = guard.ends(lost)
    if fabric.is_global_zero:
        if not (ended and run.guard.act == "rollback"):
            save_encoder(folder.path, merged(module.encoder))
        monitor.save_pictures(module, at_step(run, 0, total, loader.steps_per_epoch, fabric))
        write_unreadable(folder.path, canvases)
    if ended:
        folder.update("stopped", f"guard.act={run.guard.act}: {lost}")
    else:
        folder.update("finished")
        if run.init and run.adapt.lora_rank:
            merge(module)
            state.save(folder, step)
    fabric.barrier()


def monitor_steps(run: Run, steps_per_epoch: int, total: int) -> set[int]:
    """The steps after which the representation is measured and a checkpoint written."""
    if not run.monitor_epochs:
        return set()
    count = int(total / (run.monitor_epochs * steps_per_epoch))
    return {round(i * run.monitor_epochs * steps_per_epoch) for i in range(1, count + 1)}


def write_unreadable(path: Path, canvases: CanvasSet) -> None:
    """List the images that could not be read, so that the user can mend or remove them."""
    if canvases.unreadable:
        lines = (text.replace(": ", "\t", 1) for _, text in sorted(canvases.unreadable.items()))
        (path / "unreadable.txt").write_text("\n".join(lines) + "\n")
