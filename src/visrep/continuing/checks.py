"""Options of runs that begin with weights, refused where nothing would read them."""

from __future__ import annotations

from dataclasses import replace

from visrep.config import Adapt, Guard, Run

FILLED = ("fresh", "interpolation", "squash")
"""fields of `Adapt` that `visrep.continuing.init.begin` sets from the weights"""


def check_options(run: Run) -> None:
    """Look at a run as it is asked for, before `begin`.

    Raises ValueError for fields of ``adapt`` and ``guard`` that such a run would not read, and for those that the
    weights say.
    """
    adapting, guarding = changed("adapt", run.adapt, Adapt()), changed("guard", run.guard, Guard())
    if said := [adapting[f"adapt.{name}"] for name in FILLED if f"adapt.{name}" in adapting]:
        raise ValueError(
            f"{', '.join(said)}: this is read off the weights at the start, whatever is given. Leave it out."
        )
    if adapting and not run.init:
        beside = " (start_from continues with everything, at the preset's own pace)" if run.start_from else ""
        raise ValueError(
            f"{', '.join(adapting.values())} says how the weights of init are treated, and there is no init{beside}. "
            "Give one (--init NAME), or leave it out."
        )
    if run.guard.act == "off":
        guarding.pop("guard.act")  # nothing is asked for, and nothing is done
    if guarding and not (run.init or run.start_from):
        raise ValueError(
            f"{', '.join(guarding.values())}: the guard compares a run with the weights that it began with, and this "
            "one begins with random ones. Give some (--init NAME or --start-from RUN), or leave it out."
        )


def changed(name: str, value: Adapt | Guard, default: Adapt | Guard) -> dict[str, str]:
    """Fields that are not as by default: their path, and that with their value."""
    usual = vars(default)
    fields = {f"{name}.{field}": (x, usual[field]) for field, x in vars(value).items()}
    return {path: f"{path}={x}" for path, (x, y) in fields.items() if x != y}


def as_asked(run: Run) -> Run:
    """A run of a run folder as it was asked for: without what `begin` filled in."""
    usual = vars(Adapt())
    return replace(run, adapt=replace(run.adapt, **{name: usual[name] for name in FILLED}))
