"""What is written while training: one line of metrics every few steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor

from visrep.config import Run
from visrep.distributed import mean_over_ranks
from visrep.method import At, Losses
from visrep.monitor import NotFinite
from visrep.rundir import RunFolder
from visrep.schedules import Constant, Cosine, Line, Ramp, Stages, Step, Warmup

T = TypeVar("T")
KINDS_OF_SCHEDULE = (Constant, Cosine, Line, Ramp, Stages, Step, Warmup)


class TrainingLog:
    """Collects losses on the device and writes their means: one synchronisation every few steps, not every step."""

    def __init__(self, run: Run, folder: RunFolder, steps_per_epoch: int, total: int) -> None:
        self.run, self.folder = run, folder
        self.steps_per_epoch = steps_per_epoch
        self.every = max(1, min(50, total // 200))
        self.pending: list[tuple[At, dict[str, Tensor], dict[str, Tensor]]] = []
        self.schedules: dict[str, float] = {}
        self.loss = float("nan")
        self.began = self.since = time.monotonic()
        self.cpu_began = time.process_time()
        self.waited = 0.0

    def waiting_for(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches, with the time that they kept the training loop waiting."""
        source = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.waited += time.monotonic() - asked
            yield batch

    def add(self, at: At, taken: list[Losses], values: dict[str, float], grad_norm: Tensor) -> bool:
        """Keep the losses of one step; True when they were written."""
        terms = _means([losses.terms for losses in taken])
        monitor = {**_means([losses.monitor for losses in taken]), "grad_norm": grad_norm}
        self.pending.append((at, terms, monitor))
        self.schedules = values
        if len(self.pending) < self.every:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        """Write the mean over the pending steps and all ranks. Raises NotFinite naming the term and the step."""
        if not self.pending:
            return
        names = list(self.pending[0][1])
        terms = self._over_ranks([step_terms for _, step_terms, _ in self.pending])
        for (at, _, _), row in zip(self.pending, terms.tolist(), strict=True):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value):
                    raise NotFinite(
                        f"The loss term {name!r} became {value} at step {at.step} (epoch {at.epoch:.2f}). "
                        f"The last checkpoint is from before. Lower optim.lr (now {self.run.optim.lr}), "
                        "lengthen its warm-up, or set optim.clip to 1-3."
                    )
        at = self.pending[-1][0]
        monitor = self._over_ranks([step_monitor for _, _, step_monitor in self.pending]).mean(0).tolist()
        means = terms.mean(0).tolist()
        self.loss = sum(means)
        now = time.monotonic()
        self.folder.record(
            {
                "kind": "step",
                "step": at.step + 1,
                "epoch": (at.step + 1) / self.steps_per_epoch,
                "loss": self.loss,
                "terms": dict(zip(names, means, strict=True)),
                "monitor": dict(zip(self.pending[0][2], monitor, strict=True)),
                "schedules": {**self.schedules, **schedule_values(self.run, at)},
                "images_per_second": len(self.pending) * self.run.batch / (now - self.since),
                "data_wait": self.waited / max(now - self.since, 1e-9),
                "seconds": now - self.began,
                "cpu_seconds": time.process_time() - self.cpu_began,
            }
        )
        self.pending.clear()
        self.since, self.waited = now, 0.0

    def _over_ranks(self, rows: list[dict[str, Tensor]]) -> Tensor:
        """Rows of named scalars as "steps names" on the CPU, each the mean over ranks."""
        table = torch.stack([torch.stack(list(row.values())) for row in rows])
        return mean_over_ranks(table).cpu()


def _means(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of every named scalar over the micro-batches and turns that have it, still on the device."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {
        name: torch.stack([row[name].detach().float() for row in rows if name in row]).mean()
        for name in names
    }


def schedule_values(run: Run, at: At) -> dict[str, float]:
    """The method's own schedules at this moment, by field name."""
    values = ((f.name, getattr(run.method, f.name)) for f in fields(run.method))
    return {name: value(at) for name, value in values if isinstance(value, KINDS_OF_SCHEDULE)}
