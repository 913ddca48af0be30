"""Optimisers and their parameter groups; learning rate and weight decay set anew before every step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from visrep.config import Optim
from visrep.distributed import mean_over_ranks
from visrep.method import At, Method


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling, You et al. 2017 (arXiv:1708.03888).

    As in the official MoCo v3, VICReg and Barlow Twins code: the update (gradient plus weight decay) is scaled
    to ``trust * |w| / |update|``, momentum comes after, lr outside the buffer. Groups with ``decay=False``
    (biases, norms) get neither weight decay nor scaling.
    """

    def __init__(self, params: Iterable[dict], lr: float, momentum: float, trust: float) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0, "decay": True}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                state = self.state[w]
                if not state:
                    state["momentum"] = torch.zeros_like(w)
                momentum = state["momentum"].mul_(group["momentum"])
                if group["decay"]:
                    update = w.grad.add(w, alpha=group["weight_decay"]) if group["weight_decay"] else w.grad
                    w_norm, update_norm = w.norm(), update.norm()
                    scale = torch.where(
                        (w_norm > 0) & (update_norm > 0),
                        group["trust"] * w_norm / update_norm,
                        torch.ones_like(w_norm),
                    )
                    momentum.addcmul_(update, scale)
                else:
                    momentum.add_(w.grad)
                w.add_(momentum, alpha=-group["lr"])


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], cfg: Optim, others: Iterable[str] = ()
) -> list[dict]:
    """Split trainable parameters by (weight decay or not, which multiplier): see `Optim`.

    ``others``: names of parameters in other optimisers, for which a multiplier may be meant.
    """

    def multiplier_of(name: str) -> int:
        matches = (i for i, (pattern, _) in enumerate(cfg.multipliers) if fnmatchcase(name, pattern))
        return next(matches, -1)

    groups: dict[tuple[bool, int], dict] = {}
    used = {multiplier_of(name) for name in others}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        decay = parameter.ndim > 1 and not any(fnmatchcase(name, pattern) for pattern in cfg.no_decay)
        multiplier = multiplier_of(name)
        used.add(multiplier)
        group = groups.setdefault(
            (decay, multiplier), {"params": [], "names": [], "decay": decay, "multiplier": multiplier}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    for i, (pattern, _) in enumerate(cfg.multipliers):
        if i not in used:
            raise ValueError(
                f"optim.multipliers names {pattern!r}, which no parameter matches (or an earlier pattern takes "
                "them all). Remove it or correct the pattern."
            )
    return list(groups.values())


def build_optimizers(method: Method, cfg: Optim) -> dict[str, torch.optim.Optimizer]:
    """An optimiser for each of the method's turns; see `build_optimizer`."""
    names = {id(p): name for name, p in method.named_parameters()}
    turns = {turn: [(names[id(p)], p) for p in parameters] for turn, parameters in method.turns().items()}
    every = [name for named in turns.values() for name, p in named if p.requires_grad]
    return {turn: build_optimizer(named, cfg, others=every) for turn, named in turns.items()}


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], cfg: Optim, others: Iterable[str] = ()
) -> torch.optim.Optimizer:
    """The optimiser named in ``cfg``; its learning rate is set by `set_schedules` before every step.

    ``others``: see `parameter_groups`. Raises ValueError for settings that the chosen optimiser would ignore.
    """
    defaults = Optim()
    ignored = {"adamw": ("momentum", "trust"), "sgd": ("betas", "trust"), "lars": ("betas",)}[cfg.name]
    for field in ignored:
        value = {"momentum": cfg.momentum, "trust": cfg.trust, "betas": cfg.betas}[field]
        default = {"momentum": defaults.momentum, "trust": defaults.trust, "betas": defaults.betas}[field]
        if value != default:
            raise ValueError(
                f"optim.{field}={value} has no effect with optim.name={cfg.name!r}. Leave it at {default}."
            )
    groups = parameter_groups(named, cfg, others)
    if cfg.name == "lars":
        return LARS(groups, lr=0.0, momentum=cfg.momentum, trust=cfg.trust)
    if cfg.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=cfg.momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=cfg.betas, fused=True)


def learning_rate(cfg: Optim, at: At, batch: int) -> float:
    """The learning rate of this step, before multipliers, for a batch of ``batch`` images."""
    ratio = batch / cfg.lr_batch
    return cfg.lr(at) * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[cfg.lr_scaling]


def set_schedules(optimizer: torch.optim.Optimizer, cfg: Optim, at: At, batch: int) -> dict[str, float]:
    """Set every group's learning rate and weight decay for this step; returns the values for the log."""
    lr, weight_decay = learning_rate(cfg, at, batch), cfg.weight_decay(at)
    for group in optimizer.param_groups:
        factor = 1.0 if group["multiplier"] < 0 else cfg.multipliers[group["multiplier"]][1](at)
        group["lr"] = lr * factor
        group["frozen"] = factor == 0.0
        group["weight_decay"] = weight_decay if group["decay"] else 0.0
    return {"lr": lr, "weight_decay": weight_decay}


def drop_frozen_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Forget the gradients of groups whose multiplier is 0, so that a frozen layer gathers no momentum."""
    for group in optimizer.param_groups:
        if group["frozen"]:
            for parameter in group["params"]:
                parameter.grad = None


@torch.no_grad()
def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace the gradients of its parameters by their mean over ranks."""
    for group in optimizer.param_groups:
        for parameter in (p for p in group["params"] if p.grad is not None):
            parameter.grad.copy_(mean_over_ranks(parameter.grad))


@torch.no_grad()
def clip_gradients(optimizer: torch.optim.Optimizer, cfg: Optim) -> Tensor:
    """Scale gradients to at most ``cfg.clip``, jointly or each by its own norm; returns the joint norm before."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not cfg.clip_each:
        return torch.nn.utils.clip_grad_norm_(parameters, cfg.clip if cfg.clip > 0 else math.inf)
    largest = cfg.clip if cfg.clip > 0 else math.inf
    norms = [torch.nn.utils.clip_grad_norm_(parameter, largest) for parameter in parameters]
    return torch.stack(norms).norm() if norms else torch.zeros(())
