"""Training from Python: a run with fields changed, begun, or continued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from visrep.config import Run


def override(value: Any, path: str, new: Any) -> Any:
    """A copy of nested frozen dataclasses with one field changed: ``override(run, "method.tau", 0.2)``.

    Raises ValueError, with the fields there are, when the path leads nowhere.
    """
    name, _, rest = path.partition(".")
    known = [f.name for f in fields(value)] if is_dataclass(value) else []
    if name not in known:
        raise ValueError(
            f"There is no field {name!r} in {type(value).__name__}. It has: {', '.join(known) or 'none'}."
        )
    changed = override(getattr(value, name), rest, new) if rest else new
    return replace(value, **{name: changed})  # pyright: ignore[reportArgumentType, reportCallIssue]


def with_encoder(run: Run, name: str) -> Run:
    """The run with another named encoder, made to fit the size of its views.

    Where both are like a ViT, cls, mask and register tokens stay those that the method was given; Swin keeps the mask
    token.
    Raises ValueError with the names there are, and for a run that begins with weights, whose network is theirs.
    """
    from visrep.encoders import NAMED, Swin, ViTLike

    check_one_encoder(name, run.init)
    if name not in NAMED:
        raise ValueError(f"There is no encoder {name!r}. Available: {', '.join(NAMED)}.")
    encoder, old = NAMED[name], run.method.encoder
    if isinstance(encoder, Swin):
        masked = isinstance(old, ViTLike | Swin) and old.mask_token
        encoder = replace(encoder, image=run.method.views.size, mask_token=masked)
    if isinstance(encoder, ViTLike):
        encoder = replace(encoder, image=run.method.views.size)
        if isinstance(old, ViTLike):
            encoder = replace(encoder, cls=old.cls, mask_token=old.mask_token, registers=old.registers)
    return override(run, "method.encoder", encoder)


def check_one_encoder(encoder: str, init: str) -> None:
    """Raises ValueError for an encoder with fresh weights beside one to continue with."""
    if encoder and init:
        raise ValueError(
            f"encoder={encoder} asks for fresh weights, and init={init} for those of an encoder, whose network then is "
            "trained. Give init alone to continue with it, or encoder alone to begin anew."
        )


def pretrain(
    method: str,
    data: str = "",
    out: str = "",
    *,
    encoder: str = "",
    init: str = "",
    epochs: float = 0,
    batch: int = 0,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
) -> Path:
    """Train an encoder on images; returns the run folder.

    ``method`` is a name, ``name:preset`` or the path of your own file (see `visrep.methods.preset` for the default
    preset); empty ``data``, and ``epochs`` and ``batch`` of 0, keep the preset's; ``overrides`` changes any other
    field: ``{"method.tau": 0.2}``. ``encoder`` is the name of one with fresh weights, ``init`` of one to continue with:
    whatever `load_encoder` knows; see `visrep.config.Adapt`.
    """
    from visrep.methods import preset
    from visrep.starting import start

    _, preset_name, run = preset(method)
    run = replace(run, data=data or run.data, out=out, seed=seed, init=init or run.init)
    run = replace(run, epochs=epochs or run.epochs, batch=batch or run.batch)
    if encoder:
        run = with_encoder(run, encoder)
    for path, value in (overrides or {}).items():
        run = override(run, path, value)
    check_one_encoder(encoder, run.init)
    return start(
        run, method=method.split(":")[0], preset=preset_name, overrides=tuple(map(str, overrides or ()))
    )


def resume(run: str | Path) -> Path:
    """Continue a stopped run to its end; returns the run folder."""
    from visrep.starting import resume

    return resume(run)
