"""A run as a value: what to train, on what, how. Frozen dataclasses to and from JSON."""

from __future__ import annotations

import dataclasses
import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from visrep.schedules import Constant, Cosine, Schedule, Warmup

MethodConfig = TypeVar("MethodConfig")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimiser and its schedules."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: Schedule = Warmup(epochs=10, then=Cosine(5e-4, 1e-6))
    """base learning rate; ``lr_scaling`` says how the batch size changes it"""
    lr_scaling: Literal["none", "linear", "sqrt"] = "linear"
    """multiply lr by batch / lr_batch (linear), by its square root (sqrt), or not at all"""
    lr_batch: int = 256
    """batch size for which ``lr`` is stated"""
    weight_decay: Schedule = Constant(0.05)
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW only"""
    momentum: float = 0.9
    """SGD and LARS"""
    trust: float = 0.001
    """LARS only: the trust coefficient"""
    no_decay: tuple[str, ...] = ("*.bias", "*norm*", "*_token", "*_tokens", "*position*", "*gamma*")
    """parameter-name patterns without weight decay (and without LARS scaling); all one-dimensional ones are"""
    multipliers: tuple[tuple[str, Schedule], ...] = ()
    """(parameter-name pattern, factor on lr); the first match counts; a factor of 0 freezes"""
    clip: float = 0.0
    """largest gradient norm, 0 for no clipping"""
    clip_each: bool = False
    """clip each parameter by its own norm, as DINO does, instead of all by their joint norm"""


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """How a run that begins with an encoder's weights (``init``) treats them; other runs refuse what is changed here.

    What is filled in at the start is the weights' to say: there is no flag for it, and a run given it is refused.
    Raises ValueError for values that cannot be.
    """

    size: int = 0
    """side in pixels of the views, 0 for that of the weights; smaller views keep their share of it"""
    freeze_epochs: float = 1.0
    """the encoder stands still for so long, while the heads learn; at most a quarter of the run"""
    lr_scale: float = 0.1
    """factor on the encoder's learning rate"""
    layer_decay: float = 0.9
    """factor from each layer's learning rate to that of the layer below, 1 for one rate"""
    train_blocks: int = 0
    """train only the last so many blocks (of a convolutional network: stages), 0 for all"""
    lora_rank: int = 0
    """train only low-rank additions to the linear layers (arXiv:2106.09685), of this rank, at the full learning rate;
    they are added up in the saved encoder. 0 for none"""
    fresh: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """filled in at the start: tokens that the method needs and the weights lack, which learn like heads"""
    interpolation: Annotated[Literal["bilinear", "bicubic"], tyro.conf.Suppress] = "bicubic"
    """filled in at the start: how the weights expect images to be resized, where they are judged and used"""
    squash: Annotated[bool, tyro.conf.Suppress] = False
    """filled in at the start: whether the weights expect images squashed whole, see `Preprocessing`"""

    def __post_init__(self) -> None:
        if min(self.size, self.freeze_epochs, self.train_blocks, self.lora_rank) < 0 or self.lr_scale <= 0:
            raise ValueError(f"{self}: no number may be negative, nor lr_scale 0. Correct it.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"adapt.layer_decay={self.layer_decay} lies outside (0, 1]. Use 1 for one rate.")


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What happens when a run that begins with weights unlearns them; other runs refuse what is changed here.

    Raises ValueError for thresholds or a share that cannot be.
    """

    act: Literal["warn", "stop", "rollback", "off"] = "warn"
    """warn: say so and go on; stop: end the run; rollback: end it, with the best encoder there was; off: do not look"""
    reference: str = ""
    """images that the encoder must go on telling apart, opened like ``data``; only its training part is used"""
    held_out: float = 0.1
    """share of the images that the guard looks at and the training never sees, ``monitor_images`` at most; 0: it looks
    at images that are trained on, which hides what is lost on others. Without effect with ``val``"""
    min_cka: float = 0.2
    """least likeness to the features at the start (unbiased linear CKA, 1: the same but for rotation and scale)"""
    max_knn_drop: float = 3.0
    """percentage points that kNN may lie below that at the start, where there are labels; two standard errors of the
    difference, image by image, where few images make that more"""

    def __post_init__(self) -> None:
        if self.min_cka > 1 or self.max_knn_drop < 0:
            raise ValueError(
                f"guard.min_cka={self.min_cka} may be at most 1, guard.max_knn_drop={self.max_knn_drop} at least 0."
            )
        if not 0 <= self.held_out < 1:
            raise ValueError(f"guard.held_out={self.held_out} is no share of the images: give 0 to below 1.")


@dataclass(frozen=True, kw_only=True)
class Run(Generic[MethodConfig]):
    """One pretraining run, whole: enough to repeat it."""

    method: MethodConfig
    optim: Optim = Optim()
    data: str = "playground"
    """folder of images (its train/ where it has splits), .parquet, .tar or .npz file, or 'playground' (built in);
    clips: folder of videos, folders of frames as 'folder:frames=16,stride=2', or 'playground-video'"""
    val: str = ""
    """labelled images for the kNN measured while training, default: every monitored image of data is asked for, among
    all others; with ``init`` or ``start_from`` also what the guard looks at, labelled or not"""
    out: str = ""
    """run folder; default runs/<method>-<preset>-<date>"""
    init: str = ""
    """what the encoder starts from: a run folder, a checkpoint file, timm:NAME, hf:NAME_OR_FOLDER, open_clip:NAME@TAG
    or pip:NAME. Heads start fresh; the views become those that the weights were made for"""
    adapt: Adapt = Adapt()
    """with ``init``: what moves, when, how fast"""
    guard: Guard = Guard()
    """with ``init`` or ``start_from``: what happens when the encoder gets worse than it was at the start"""
    start_from: str = ""
    """folder of an earlier run of this method of which to take everything, heads, teachers and queues too: the next
    stage of a recipe, or other data"""
    epochs: float = 100
    batch: int = 256
    """images an optimiser step, over all devices and accumulated micro-batches"""
    seed: int = 0
    limit: int = 0
    """use only the first images of data, 0 for all; in a folder of class folders these are the first classes"""
    canvas: int = 0
    """side of the square that images are decoded to, 0 to choose from the views and the data"""
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    """keep decoded canvases: auto = in memory when they fit in 2 GiB, else off"""
    workers: int = -1
    """decoding processes, -1 to choose"""
    accumulate: int = 1
    """micro-batches a step; losses over a batch then see only a micro-batch"""
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    """processes (CPU) or GPUs"""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """auto = bf16 on CUDA and CPUs with instructions for it; 32 bits elsewhere, where bf16 is several times slower"""
    compile: bool = False
    """torch.compile the encoder: worth it for long runs on a GPU"""
    checkpoint_minutes: float = 5
    """a checkpoint at least this often; also at each end of an epoch that is monitored"""
    monitor_epochs: float = 1
    """measure the representation every so many epochs, 0 for only at the end"""
    monitor_images: int = 2000
    """images used for that"""
    keep_encoders: bool = False
    """keep the encoder of every such moment in encoders/step-NNNNNN of the run folder, each as large as the encoder at
    the end: to judge on its own, or to choose one with ``visrep compare RUN/encoders``"""

    @property
    def guarded(self) -> bool:
        """Whether there is a start to compare with, and somebody who wants to know."""
        return bool(self.init or self.start_from) and self.guard.act != "off"


def to_json(value: Any) -> Any:
    """Frozen dataclasses to JSON values, each tagged with its type so that `from_json` can rebuild it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": f"{type(value).__module__}:{type(value).__qualname__}", **fields}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a run's configuration: {value!r}")


def from_json(value: Any) -> Any:
    """Undo `to_json`. Lists become tuples. Only frozen dataclasses are built.

    Raises ValueError when a type or a field is not known to this version.
    """
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if not isinstance(value, dict):
        return value
    module_name, _, class_name = value["type"].partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"This version of visrep does not know {value['type']!r}.") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ValueError(f"{value['type']!r} is not a configuration.")
    fields = {name: from_json(item) for name, item in value.items() if name != "type"}
    known = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"{value['type']} has no field {unknown[0]!r}. It has: {', '.join(sorted(known))}.")
    return cls(**fields)


def save_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader never sees half of it."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)
