"""What it means to be a method, executable: checks that run on the ``tiny`` preset of any method file.

Each check takes a `Case` and raises AssertionError, saying what is wrong, when the method breaks its promise.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from visrep.config import Run, from_json, to_json
from visrep.data.playground import Playground
from visrep.data.playground_video import PlaygroundVideo
from visrep.encoders import applied_to
from visrep.encoders.video import clip_grid, cut, paste
from visrep.functional import feature_std
from visrep.method import At, Batch, Canvases, Encoder, Losses, Method, Tokens
from visrep.methods import load_method, method_class, presets
from visrep.nn.batchnorm import convert_batchnorm
from visrep.optim import build_optimizers, clip_gradients, drop_frozen_gradients, set_schedules
from visrep.starting import start
from visrep.views import draw

TOTAL = 100
"""steps in the run that the checks pretend to be in"""


@dataclass(frozen=True)
class Case:
    """A method file under test."""

    name: str
    """a built-in method's name, or the path of a file"""

    @property
    def module(self) -> ModuleType:
        return load_method(self.name)

    @property
    def run(self) -> Run[Any]:
        run = presets(self.module)["tiny"]()
        return replace(run, method=with_runs(run.method))

    def fresh(self, seed: int = 0, cfg: Any = None) -> Method:
        """The method with fresh weights."""
        torch.manual_seed(seed)
        return method_class(self.module)(self.run.method if cfg is None else cfg)

    def images(self, n: int) -> Canvases:
        """What it learns from: images, or clips of the length that it wants."""
        return images(n, frames=self.run.method.views.frames)

    def applied(self, method: Method) -> Encoder:
        """Its encoder for `images`: on clips frame by frame where it is one of images."""
        return applied_to(method.encoder, self.run.method.views.frames)

    def build(self, seed: int = 0, cfg: Any = None) -> Method:
        """The method with fresh weights, at the start of an epoch of 16 images."""
        method = self.fresh(seed, cfg)
        method.before_epoch([views(self, step=0)], moment(0))
        return method


@cache
def _runs() -> Path:
    """Where `tiny_run` keeps its runs while the tests last; processes that are started later find it too."""
    if "VISREP_TINY_RUNS" not in os.environ:
        os.environ["VISREP_TINY_RUNS"] = folder = tempfile.mkdtemp(prefix="visrep-tiny-runs-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(os.environ["VISREP_TINY_RUNS"])


def tiny_run(name: str) -> str:
    """The folder of a finished run of a method's ``tiny`` preset, trained by the engine when first asked for."""
    folder = _runs() / name
    if not (folder / "encoder.safetensors").is_file():
        run = replace(Case(name).run, out=str(folder), accelerator="cpu")
        start(run, method=name, preset="tiny")
    return str(folder)


def with_runs(cfg: Any) -> Any:
    """The configuration with a tiny run in place of each run folder, ``runs/METHOD-PRESET``, that it names."""
    values = {field.name: getattr(cfg, field.name) for field in fields(cfg)}
    named = {name: value for name, value in values.items() if isinstance(value, str) and value[:5] == "runs/"}
    return replace(cfg, **{name: tiny_run(value[5:].partition("-")[0]) for name, value in named.items()})


def images(n: int, size: int = 32, frames: int = 0) -> Canvases:
    """Images of the playground, or clips of ``frames`` frames."""
    world = PlaygroundVideo(n=n, size=size, frames=frames) if frames else Playground(n=n, size=size)
    pixels = (
        torch.from_numpy(np.stack([np.stack(list(world.read(i))) for i in range(n)]))
        .movedim(-1, -3)
        .contiguous()
    )
    labels = torch.from_numpy(np.asarray(world.labels))
    return Canvases(pixels, torch.full((n, 2), float(size)), torch.arange(n), labels)


def moment(step: int = TOTAL // 2, *, rank: int = 0, world: int = 1) -> At:
    """A moment of a run whose random numbers depend on the step alone."""
    return At(step, TOTAL, 10, torch.Generator().manual_seed(step), rank, world)


def views(case: Case, n: int = 16, step: int = TOTAL // 2) -> Batch:
    """Views of ``n`` images, with labels only for methods that need them, as the engine hands them over."""
    batch = draw(case.run.method.views, case.images(n), moment(step))
    return batch if method_class(case.module).needs_labels else batch.without_labels()


def optimizers(run: Run[Any], method: Method) -> dict[str, torch.optim.Optimizer]:
    return build_optimizers(method, run.optim)


def take_step(
    run: Run[Any], method: Method, turns: dict[str, torch.optim.Optimizer], batch: Batch, at: At
) -> Losses:
    """One step as the engine takes it."""
    losses = Losses({})
    for turn, optimizer in turns.items():
        set_schedules(optimizer, run.optim, at, run.batch)
        method.zero_grad(set_to_none=True)
        losses = method.loss(batch, replace(at, turn=turn))
        torch.stack(list(losses.terms.values())).sum().backward()
        drop_frozen_gradients(optimizer)
        clip_gradients(optimizer, run.optim)
        optimizer.step()
    method.after_step(at, losses.carry)
    return losses


def state(method: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in method.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys(), f"state appeared or vanished: {before.keys() ^ after.keys()}"
    return {name for name in before if not torch.equal(before[name], after[name])}


def batchnorm_statistics(method: nn.Module) -> set[str]:
    norms = ((name, module) for name, module in method.named_modules() if isinstance(module, _BatchNorm))
    return {f"{name}.{buffer}" for name, module in norms for buffer, _ in module.named_buffers()}


def check_losses(case: Case) -> None:
    """Terms are finite scalars with gradient, what is logged or carried has none; the encoder fits."""
    method, batch = case.build(), views(case)
    for turn in method.turns():
        losses = method.loss(batch, replace(moment(), turn=turn))
        assert losses.terms, f"turn {turn!r} has no loss"
        for name, term in losses.terms.items():
            assert term.shape == () and term.isfinite(), f"term {name!r} is not a finite scalar: {term}"
            assert term.requires_grad, f"term {name!r} has no gradient"
        for name, value in losses.monitor.items():
            assert value.shape == () and value.isfinite(), f"monitor {name!r} is not a finite scalar: {value}"
            assert not value.requires_grad, f"monitor {name!r} holds on to the graph: detach it"
        for name, value in losses.carry.items():
            assert value.ndim > 0, (
                f"carry {name!r} has no leading axis along which micro-batches can be joined"
            )
            assert not value.requires_grad, f"carry {name!r} holds on to the graph: detach it"
    assert any(module is method.encoder for module in method.modules()), (
        "the encoder is not part of the method"
    )
    method.eval()
    crops = batch.crops[0][0]
    for size in (crops.shape[-1], 2 * crops.shape[-1]):
        resized = nn.functional.interpolate(crops.flatten(0, -4), size=(size, size))
        tokens = case.applied(method)(resized.unflatten(0, crops.shape[:-3]))
        assert isinstance(tokens, Tokens)
        assert tokens.pool().shape == (len(batch), method.encoder.width)
    for name, picture in method.pictures(batch, moment()).items():
        assert picture.ndim in (5, 6), (
            f"picture {name!r} is not rows columns (t) c h w: {tuple(picture.shape)}"
        )
        assert picture.shape[-3] == 3, f"picture {name!r} is not in colour: {tuple(picture.shape)}"
        assert 0 <= picture.min() and picture.max() <= 1, f"picture {name!r} leaves [0, 1]"
        caption = method.captions.get(name, "")
        named = caption.partition(".")[0].removeprefix("Columns").count(";") + 1
        assert caption.startswith("Columns") and 1 < named <= picture.shape[1], (
            f"picture {name!r} has {picture.shape[1]} columns: say in `captions` what each shows, "
            f"'Columns: the image; ...'. Found {caption!r}"
        )


def check_loss_is_pure(case: Case) -> None:
    """The loss, called twice, is the same and changes nothing (BatchNorm statistics excepted)."""
    method, batch = case.build(), views(case)
    crops = [x.clone() for x in batch.crops]
    before = state(method)
    first = method.loss(batch, moment()).terms
    tampered = changed(before, state(method)) - batchnorm_statistics(method)
    assert not tampered, f"loss changes state: {sorted(tampered)}. Move that to after_step"
    second = method.loss(batch, moment()).terms
    for name, term in first.items():
        assert torch.equal(term, second[name]), (
            f"term {name!r} differs between two calls at one moment: {term} and {second[name]}. "
            "Draw random numbers from `at`, keep state in buffers that only after_step changes"
        )
    assert all(torch.equal(a, b) for a, b in zip(crops, batch.crops, strict=True)), "loss changes the batch"


def check_half_precision(case: Case) -> None:
    """Under bf16 autocast, the default on GPUs, losses are computed in 32 bits and near the exact ones."""
    method, batch = case.build(), views(case)
    exact = method.loss(batch, moment()).terms
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method.loss(batch, moment()).terms
    torch.stack(list(terms.values())).sum().backward()
    for name, term in terms.items():
        assert term.dtype == torch.float32, (
            f"term {name!r} is computed in {term.dtype}: widen what enters the loss"
        )
        assert abs(term - exact[name]) <= 0.1 * abs(exact[name]), (
            f"term {name!r}: {term} instead of {exact[name]}"
        )
    for name, parameter in method.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), (
            f"the gradient of {name} is not finite"
        )


def check_after_step(case: Case) -> None:
    """What moves after a step are buffers and parameters that no optimiser owns."""
    method = case.build()
    losses = method.loss(views(case), moment())
    trainable = {name for name, p in method.named_parameters() if p.requires_grad}
    with torch.no_grad():  # as if an optimiser had stepped, so that a teacher has something to follow
        for parameter in (p for p in method.parameters() if p.requires_grad):
            parameter.add_(0.01)
    before = state(method)
    method.after_step(moment(), losses.carry)
    moved = changed(before, state(method)) & trainable
    assert not moved, f"after_step changes parameters that the optimiser owns: {sorted(moved)}"


def check_gradients(case: Case) -> None:
    """Every trainable parameter belongs to a turn and gets a gradient there; frozen ones get none."""
    method, run = case.build(), case.run
    turns = optimizers(run, method)
    for step in range(
        TOTAL // 2, TOTAL // 2 + 2
    ):  # layers that start at zero hide those before them at first
        take_step(run, method, turns, views(case, step=step), moment(step))
    method.zero_grad(set_to_none=True)
    batch = views(case)
    owned: set[int] = set()
    for turn, parameters in method.turns().items():
        method.zero_grad(set_to_none=True)
        sum(method.loss(batch, replace(moment(), turn=turn)).terms.values(), torch.zeros(())).backward()
        owned |= {id(p) for p in parameters}
        for name, parameter in method.named_parameters():
            if not parameter.requires_grad:
                assert parameter.grad is None, f"frozen parameter {name} got a gradient"
            elif any(parameter is p for p in parameters):
                assert parameter.grad is not None and parameter.grad.any(), (
                    f"trainable parameter {name} gets no gradient: freeze it, remove it or use it"
                )
    for name, parameter in method.named_parameters():
        assert not parameter.requires_grad or id(parameter) in owned, f"no turn optimises {name}"


def check_config_is_read(case: Case) -> None:
    """Every field of the Config is read while building the method and taking one step."""
    cfg = case.run.method
    read: set[str] = set()

    class Recorded(type(cfg)):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    recorded = object.__new__(Recorded)
    for field in fields(cfg):
        object.__setattr__(recorded, field.name, getattr(cfg, field.name))
    method = case.build(cfg=recorded)
    at = moment()
    batch = draw(recorded.views, case.images(16), at)
    batch = batch if method.needs_labels else batch.without_labels()
    method.after_step(at, method.loss(batch, at).carry)
    unread = {field.name for field in fields(cfg)} - read
    assert not unread, f"nothing reads these fields of Config: {sorted(unread)}"


def check_labels_cannot_leak(case: Case) -> None:
    """Labels change nothing, unless the method says that it needs them; then their absence is an error."""
    method, at = case.build(), moment()
    batch = draw(case.run.method.views, case.images(16), at)
    assert batch.labels is not None

    def terms(labels: Tensor | None) -> list[float]:
        losses = method.loss(replace(batch, labels=labels), replace(at, rng=torch.Generator().manual_seed(0)))
        return [term.item() for term in losses.terms.values()]

    if not method.needs_labels:
        assert terms(None) == terms(batch.labels) == terms(batch.labels.flip(0)), (
            "the loss depends on labels. Set needs_labels if it is meant to"
        )
        return
    assert terms(batch.labels) != terms(batch.labels.roll(1)), "needs_labels is set and labels change nothing"
    try:
        terms(None)
    except ValueError:
        return
    raise AssertionError("needs_labels is set, yet missing labels are no ValueError")


class _Shuffled(At):
    """The same random numbers, handed out in another order of the images."""

    order = torch.empty(0, dtype=torch.long)

    def rand(self, b: int, *shape: int) -> Tensor:
        return super().rand(b, *shape)[self.order]

    def randn(self, b: int, *shape: int) -> Tensor:
        return super().randn(b, *shape)[self.order]


def check_order_of_images(case: Case) -> None:
    """The loss does not depend on the order of the images in the batch."""
    method, batch, at = case.build().double(), doubled(views(case)), moment()
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
    shuffled = _Shuffled(at.step, at.total, at.steps_per_epoch, torch.Generator().manual_seed(at.step))
    object.__setattr__(shuffled, "order", order)
    first, second = method.loss(batch, at).terms, method.loss(batch.rows(order), shuffled).terms
    for name, term in first.items():
        torch.testing.assert_close(
            second[name], term, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def check_exact_resume(case: Case) -> None:
    """Three steps, a checkpoint read into a fresh method, three more steps: bit for bit six steps."""
    run = case.run

    def steps(method: Method, turns: dict[str, torch.optim.Optimizer], start: int, stop: int) -> None:
        for step in range(start, stop):
            torch.manual_seed(step)  # the engine does: dropout draws from the global generator
            take_step(run, method, turns, views(case, step=step), moment(step))

    unbroken = case.build()
    turns = optimizers(run, unbroken)
    steps(unbroken, turns, 50, 53)
    file = io.BytesIO()
    torch.save([unbroken.state_dict(), {turn: o.state_dict() for turn, o in turns.items()}], file)
    steps(unbroken, turns, 53, 56)

    file.seek(0)
    saved, saved_turns = torch.load(file, weights_only=True)
    resumed = case.build(seed=1)
    resumed.load_state_dict(saved)
    turns = optimizers(run, resumed)
    for turn, optimizer in turns.items():
        optimizer.load_state_dict(saved_turns[turn])
    steps(resumed, turns, 53, 56)
    different = changed(state(unbroken), state(resumed))
    assert not different, (
        f"a resumed run differs in {sorted(different)}: is some state not a parameter or buffer?"
    )


@dataclass(frozen=True)
class _Lazily:
    """Batches that are made only if somebody iterates over them."""

    make: Callable[[], list[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.make())


def check_learns(case: Case) -> None:
    """Within seconds on the playground the loss falls and the features do not collapse.

    A teacher's targets get harder while a student learns, so losses of two moments cannot be compared: the
    trained parameters are compared with those of the start, both against the targets at the end.
    """
    run, method, canvases = case.run, case.fresh(), case.images(256)

    def batch(at: At, n: int = 16) -> Batch:
        return of(torch.randint(len(canvases), (n,), generator=at.rng), at)

    def of(rows: Tensor, at: At) -> Batch:
        assert canvases.labels is not None
        part = Canvases(canvases.pixels[rows], canvases.sizes[rows], rows, canvases.labels[rows])
        drawn = draw(run.method.views, part, at)
        return drawn if method.needs_labels else drawn.without_labels()

    trainable = [p for p in method.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trainable]
    turns = optimizers(run, method)
    for step in range(TOTAL):
        at = moment(step)
        if step % at.steps_per_epoch == 0:
            method.before_epoch(_Lazily(lambda: [of(r, moment()) for r in torch.arange(256).split(64)]), at)
        take_step(run, method, turns, batch(at), at)

    def loss() -> float:
        with torch.no_grad():
            moments = [moment(TOTAL - 1 - i) for i in range(4)]
            return float(
                np.mean([sum(t.item() for t in method.loss(batch(at), at).terms.values()) for at in moments])
            )

    method.eval()
    with torch.no_grad():
        features = case.applied(method)(batch(moment(), n=128).crops[0][0]).pool()
    method.train()
    late = loss()
    with torch.no_grad():
        for parameter, value in zip(trainable, start, strict=True):
            parameter.copy_(value)
    early = loss()
    assert late < early - 0.02 * abs(early), (
        f"the loss does not fall: {early:.4f} untrained, {late:.4f} after {TOTAL} steps"
    )
    spread = feature_std(features).item() * features.shape[1] ** 0.5
    assert spread > 0.1, f"the features have collapsed: their deviation is {spread:.3f} of an even spread"


def check_presets(case: Case) -> None:
    """Presets survive JSON; those for small images build, and their optimisers find what they name."""
    known = presets(case.module)
    assert "tiny" in known, f"there is no preset 'tiny': {sorted(known)}"
    for name, preset in known.items():
        run = preset()
        assert from_json(to_json(run)) == run, f"preset {name} changes on its way through JSON"
        if run.method.views.size <= 64:
            optimizers(run, case.fresh(cfg=with_runs(run.method)))


VISIBLE_ONLY = (
    "mae", "crossmae", "data2vec2", "localmim", "hpm", "cae", "dbot", "latentmim", "videomae", "ijepa", "vjepa",
)  # fmt: skip
"""methods whose student is given the visible patches alone"""


def check_hidden_pixels(case: Case) -> None:
    """Encoders that learn are asked for some patches only, and the pixels of others do not change what they say."""
    method, asked = case.build(), list[tuple[Encoder, Tensor, dict[str, Any]]]()

    def note(student: Encoder, images: tuple[Tensor], how: dict[str, Any]) -> None:
        asked.append((student, *images, how))

    for module in method.modules():
        if isinstance(module, Encoder) and any(p.requires_grad for p in module.parameters()):
            module.register_forward_pre_hook(note, with_kwargs=True)
    method.loss(views(case, n=4), moment())
    method.eval()  # without drop path
    calls = tuple(asked)
    assert calls, "no encoder that learns sees the images"
    for student, images, how in calls:
        assert how.get("keep") is not None, "an encoder that learns sees all patches: ask for those in keep="
        with torch.no_grad():
            before, after = (student(x, **how) for x in (images, with_noise(student, images, how["keep"])))
        for found, expected in zip((after, *after.layers), (before, *before.layers), strict=True):
            for what in ("patches", "cls"):
                torch.testing.assert_close(
                    getattr(found, what), getattr(expected, what),
                    msg=lambda m, w=what: f"hidden pixels reach the {w} of a student: {m}",
                )  # fmt: skip


def with_noise(encoder: Encoder, images: Tensor, keep: Tensor) -> Tensor:
    """Images or clips with noise in place of all patches but those in ``keep``."""
    clips, tubelet = (images, encoder.config.tubelet) if images.ndim == 5 else (images[:, None], 1)
    patches = cut(clips, tubelet, encoder.stride)
    visible = torch.zeros(patches.shape[:2], dtype=torch.bool).scatter(1, keep, True)
    assert not visible.all(), "nothing is hidden"
    noise = torch.randn(patches.shape, generator=torch.Generator().manual_seed(0))
    _, t, _, h, w = clips.shape
    grid = clip_grid(t, h, w, tubelet, encoder.stride)
    return paste(patches.where(visible[..., None, None, None, None], noise), grid).view_as(images)


class _Count(TorchDispatchMode):
    """Counts the operations of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def check_no_loop_over_images(case: Case) -> None:
    """Masks, targets and loss of four times as many images take as many operations."""
    method, counted = case.build(), []
    for n in (4, 16):
        batch = views(case, n=n)
        with _Count() as count, torch.no_grad():
            method.loss(batch, moment())
        counted.append(count.operations)
    assert counted[0] == counted[1], (
        f"{counted[0]} operations for 4 images, {counted[1]} for 16: loop over none"
    )


CHECKS: dict[str, Callable[[Case], None]] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_losses,
        check_loss_is_pure,
        check_half_precision,
        check_after_step,
        check_gradients,
        check_config_is_read,
        check_labels_cannot_leak,
        check_order_of_images,
        check_exact_resume,
        check_learns,
        check_presets,
    )
}


def doubled(batch: Batch) -> Batch:
    """The batch in 64 bits, so that two orders of summing agree to many digits."""
    return replace(batch, crops=tuple(x.double() for x in batch.crops))


@dataclass(frozen=True)
class Outcome:
    """Two steps: the mean loss over ranks of each, the gradients of the second, the state after it."""

    losses: tuple[float, ...]
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]


def two_steps(case: Case, rank: int, world: int) -> Outcome:
    """Two steps of plain gradient descent in 64 bits on this rank's share of the images."""
    method = case.fresh().double()
    if world > 1:
        convert_batchnorm(method)
    b = 16 // world
    share = slice(rank * b, (rank + 1) * b)
    method.before_epoch([doubled(views(case, step=0)).rows(share)], moment(0, rank=rank, world=world))
    means = []
    for step in (50, 51):
        at = moment(step, rank=rank, world=world)
        batch = doubled(views(case, step=step)).rows(share)
        method.zero_grad(set_to_none=True)
        for turn in method.turns():
            losses = method.loss(batch, replace(at, turn=turn))
            loss = torch.stack(list(losses.terms.values())).sum()
            loss.backward()
            means.append(_mean(loss.detach(), world).item())
            with torch.no_grad():
                for parameter in (p for p in method.parameters() if p.grad is not None):
                    parameter.grad = _mean(parameter.grad, world)
                    parameter.sub_(0.1 * parameter.grad)
            method.after_step(at, losses.carry)
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return Outcome(tuple(means), gradients, state(method))


def _mean(x: Tensor | None, world: int) -> Tensor:
    assert x is not None
    x = x.clone()
    if world > 1:
        dist.all_reduce(x)
    return x / world


def _rank(rank: int, names: tuple[str, ...], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    outcomes = {name: vars(two_steps(Case(name), rank, 2)) for name in names}
    torch.save(outcomes, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def on_two_ranks(names: tuple[str, ...], folder: Path) -> list[dict[str, Outcome]]:
    """`two_steps` of every method on two gloo processes; what each rank ends with."""
    for name in names:
        Case(name).run  # noqa: B018 - runs that it starts from are made here once, not by each rank
    mp.spawn(_rank, args=(names, str(folder)), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    return [{name: Outcome(**outcome) for name, outcome in rank.items()} for rank in ranks]


def check_ranks(case: Case, ranks: list[dict[str, Outcome]]) -> None:
    """Two ranks with half the images each have the loss, gradients and state of one rank with all."""
    alone = two_steps(case, 0, 1)
    for outcomes in ranks:
        shared = outcomes[case.name]
        np.testing.assert_allclose(shared.losses, alone.losses, rtol=1e-9, err_msg="the loss")
        assert shared.gradients.keys() == alone.gradients.keys()
        for what, left, right in (
            ("gradient", shared.gradients, alone.gradients),
            ("state", shared.state, alone.state),
        ):
            for name, value in right.items():
                torch.testing.assert_close(
                    left[name], value, rtol=1e-6, atol=1e-9, msg=lambda m, w=what, n=name: f"{w} of {n}: {m}"
                )
