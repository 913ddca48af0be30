"""Who takes part in a comparison: methods to train with what they have in common set alike, runs, public encoders, and
sheets of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from visrep.analysis.kept import FOLDER, kept_by, kept_encoders
from visrep.api import override, with_encoder
from visrep.api.train import check_one_encoder
from visrep.comparison.sheets import read_sheet
from visrep.config import Run
from visrep.continuing.checks import check_options
from visrep.continuing.init import begin
from visrep.encoders.pretrained.resolve import is_public
from visrep.encoders.saved import WEIGHTS
from visrep.evaluation.evaluate import Evaluation
from visrep.methods import load_method, method_class, method_files, preset
from visrep.rundir import RunFolder

SET_ELSEWHERE = {
    "data": "--data", "out": "--out", "init": "--init", "seed": "--seed", "limit": "--limit", "epochs": "--budget",
}  # fmt: skip
"""fields of a run that have an option of their own"""


@dataclass(frozen=True)
class Common:
    """What is the same for all methods that are trained. What is empty stays as a method's preset has it."""

    data: str = ""
    preset: str = "small32"
    encoder: str = ""
    init: str = ""
    seed: int = 0
    limit: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A method to train, a finished run, a public encoder, or what one was found to be worth."""

    name: str
    folder: Path
    method: str
    data: str
    """trained on; "" where nobody says"""
    preset: str = ""
    run: Run | None = None
    """what to train; None for what is finished"""
    overrides: tuple[str, ...] = ()
    public: str = ""
    """the name of a public encoder"""
    sheet: Evaluation | None = None
    """results on file"""

    @property
    def encoder(self) -> str | Path:
        """For `load_encoder`."""
        return self.public or self.folder

    @property
    def learns_from_labels(self) -> bool:
        """False also for a finished run of somebody's own method, whose file may be gone."""
        known = self.run is not None or self.method in method_files()
        return known and method_class(load_method(self.method)).needs_labels


def gather_candidates(entries: Sequence[str | Path], common: Common, out: Path) -> list[Candidate]:
    """Methods (``simclr``, ``simclr:tiny``, ``mine.py``) to train into folders in ``out``, and what is finished.

    Encoders that a run kept while it trained are entries too, ``RUN/encoders`` stands for all of them.

    Raises ValueError for fewer than two, the same twice, a folder that is not a finished run, a .json file that is no
    sheet, and with the nearest names for a method, preset or setting that does not exist.
    """
    entries = [one for entry in entries for one in _all_kept(entry)]
    candidates = _named_apart([_candidate(entry, common, out) for entry in entries])
    names = [candidate.name for candidate in candidates]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"{twice[0]} was given twice. To compare a method with itself use two presets (simclr:small32 "
            "simclr:playground), or train both with `visrep pretrain` and compare the run folders."
        )
    if len(candidates) < 2:
        raise ValueError(
            f"a comparison needs two or more, {f'only {names[0]}' if names else 'nothing'} was given. Name methods "
            "(visrep compare simclr dino --data photos/ --budget 30m), run folders (visrep compare runs/a runs/b "
            "--data labelled/), public encoders, sheets, or some of each."
        )
    return candidates


def _candidate(entry: str | Path, common: Common, out: Path) -> Candidate:
    text = str(entry)
    if text.endswith(".json"):
        return Candidate("", Path(entry), "", "", sheet=read_sheet(Path(entry)))
    if not _is_code(text) and text not in method_files() and is_public(entry):
        return Candidate(text, Path(), text, "", public=text)
    return _finished(Path(entry)) if _is_run(entry) else _to_train(text, common, out)


def _named_apart(candidates: list[Candidate]) -> list[Candidate]:
    """Run folders and sheets with as much of their paths as it takes; the same one twice stays the same."""

    def name(candidate: Candidate, parts: int) -> str:
        return candidate.name or "/".join(candidate.folder.resolve().parts[-parts:])

    longest = max((len(candidate.folder.resolve().parts) for candidate in candidates), default=1)
    tails = ([name(candidate, parts) for candidate in candidates] for parts in range(1, longest + 1))
    names = next((names for names in tails if len(set(names)) == len(names)), None)
    names = names or [name(candidate, 1) for candidate in candidates]
    return [replace(candidate, name=shown) for candidate, shown in zip(candidates, names, strict=True)]


def _is_run(entry: str | Path) -> bool:
    """Whether a run folder is meant and not a method, after which some other folder may be called."""
    path, text = Path(entry), str(entry)
    if _is_code(text):
        return False
    if (path / "run.json").is_file():
        return True
    return text not in method_files() and (len(path.parts) > 1 or path.is_dir())


def _is_code(text: str) -> bool:
    """Whether somebody's own method is meant, with or without a preset."""
    return text.endswith(".py") or text.rpartition(":")[0].endswith(".py")


def _all_kept(entry: str | Path) -> list[str | Path]:
    """The encoders that a run kept, for ``RUN/encoders``; else the entry itself. Raises ValueError for none."""
    path = Path(entry)
    run = path.resolve().parent
    if path.name != FOLDER or not (run / "run.json").is_file():
        return [entry]
    if kept := kept_encoders(run):
        return [path / folder.name for folder in kept.values()]
    raise ValueError(
        f"{run} kept no encoders. `visrep pretrain ... --keep-encoders` does, at each measurement."
    )


def _finished(path: Path) -> Candidate:
    kept = kept_by(path)
    about = RunFolder(kept[0] if kept else path).about()
    if not (path / WEIGHTS).is_file():
        raise ValueError(
            f"{path} holds no {WEIGHTS}, its status is {about['status']!r}. Finish it with "
            f"`visrep pretrain --resume {path}`, or leave it out."
        )
    return Candidate("", path, about["method"], about["run"]["data"])


def _to_train(text: str, common: Common, out: Path) -> Candidate:
    named = ":" in text and not text.endswith(".py")
    method, _, chosen = text.rpartition(":") if named else (text, "", common.preset)
    _, chosen, run = preset(f"{method}:{chosen}")
    name = f"{Path(method).stem}-{chosen}" if named else Path(method).stem
    try:
        run, overrides = _configured(run, common)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from error
    return Candidate(name, out / name, method, run.data, chosen, run, overrides)


def _configured(run: Run, common: Common) -> tuple[Run, tuple[str, ...]]:
    """The run with what is common, and what was changed, in words."""
    run = replace(run, data=common.data or run.data, seed=common.seed)
    run = replace(run, limit=run.limit if common.limit is None else common.limit)
    changed = []
    if common.init:
        run = replace(run, init=common.init)
        changed.append(f"init={common.init}")
    if common.encoder:
        run = with_encoder(run, common.encoder)
        changed.append(f"encoder={common.encoder}")
    for path, value in common.overrides.items():
        if path in SET_ELSEWHERE:
            raise ValueError(f"{path} has an option of its own. Use {SET_ELSEWHERE[path]}.")
        with suppress(
            AttributeError
        ):  # of a field that does not exist, of which `override` knows more to say
            _check_kind(path, attrgetter(path)(run), value)
        run = override(run, path, value)
        changed.append(f"{path}={value}")
    check_one_encoder(common.encoder, run.init)
    check_options(run)
    if run.devices != 1:
        raise ValueError(f"devices={run.devices}: methods are compared on one device. Leave it at 1.")
    return run, tuple(changed)


def check_init(candidate: Candidate) -> None:
    """Before hours of training: can this method train the weights that it is to begin with? Raises ValueError if not.

    What has begun needs its source no longer.
    """
    if candidate.run and candidate.run.init and not (candidate.folder / "checkpoint.pt").exists():
        try:
            begin(candidate.run)
        except ValueError as error:
            raise ValueError(f"{candidate.name}: {error}") from error


def _check_kind(path: str, old: Any, new: Any) -> None:
    """Raises ValueError when a plain value would be replaced by one of another kind."""
    kinds = (int, float) if isinstance(old, float) else type(old)
    if isinstance(old, bool | int | float | str | tuple) and not isinstance(new, kinds):
        raise ValueError(f"{path}={new!r} does not fit: it is {old!r} now, of kind {type(old).__name__}.")
