"""Methods are found by their files: ``simclr`` is ``methods/*/simclr.py``; a path to a file works the same way."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin, get_type_hints

from visrep.config import Run
from visrep.encoders import VideoViT
from visrep.method import Method

FOLDER = Path(__file__).parent
DEFAULTS = ("imagenette128", "small32")
"""presets that a method's name alone stands for: the first of these that it has"""


def method_files() -> dict[str, Path]:
    """Name to file of every built-in method, by family, then name."""
    files = sorted(FOLDER.glob("*/*.py"))
    return {file.stem: file for file in files if not file.name.startswith("_")}


def load_method(name: str) -> ModuleType:
    """The module of a built-in method, or of the user's own file when ``name`` ends in ``.py``.

    Raises ValueError, with the nearest names, when there is none.
    """
    if name.endswith(".py"):
        return _load_file(Path(name))
    files = method_files()
    if name not in files:
        near = difflib.get_close_matches(name, files, n=3, cutoff=0.5)
        raise ValueError(
            f"There is no method {name!r}. "
            + (f"Perhaps you meant {' or '.join(near)}. " if near else "")
            + f"Available: {', '.join(files)}; or give the path of your own .py file."
        )
    return importlib.import_module(f"visrep.methods.{files[name].parent.name}.{name}")


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"There is no file {path}. Give the path of a Python file that defines a Method.")
    # Under a name of its own in sys.modules, so that a saved configuration finds its classes again.
    name = f"visrep_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be loaded as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def method_class(module: ModuleType) -> type[Method]:
    """The one `Method` that a module defines. Raises ValueError when it defines none or several."""
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ValueError(
            f"{module.__file__} defines {len(found)} subclasses of Method; it must define exactly one."
        )
    return found[0]


def check_views(config: Any) -> None:
    """Raises ValueError for views that a method's configuration is not annotated with, one of two, say; and for views
    with another number of frames than an encoder of clips states its positions for.
    """
    wanted = get_type_hints(type(config)).get("views")
    encoder, frames = vars(config).get("encoder"), config.views.frames
    if inspect.isclass(wanted) and not isinstance(config.views, wanted):
        found, name = type(config.views), type(config).__module__.rpartition(".")[2]
        raise ValueError(
            f"{name} cannot learn from {found.__name__} ({_first_words(found)}). Set "
            f"method.views to {wanted.__name__} ({_first_words(wanted)}), or choose a method for these views."
        )
    if isinstance(encoder, VideoViT) and encoder.frames != frames:
        raise ValueError(
            f"Views of {frames} frames do not fit an encoder whose positions are those of {encoder.frames}. Set "
            f"method.encoder.frames to {frames}, or method.views.frames to {encoder.frames}."
        )


def _first_words(kind: type) -> str:
    first = (inspect.getdoc(kind) or "").partition(".")[0].partition(", as")[0]
    return first[:1].lower() + first[1:]


def presets(module: ModuleType) -> dict[str, Callable[[], Run]]:
    """The presets of a method: its public functions annotated to return a `Run`."""
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and _returns_run(value)
    }


def _returns_run(function: Callable[..., object]) -> bool:
    # A string where the file postpones its annotations, else the class or its generic form.
    annotation = inspect.signature(function).return_annotation
    if isinstance(annotation, str):
        return annotation.split("[")[0] == Run.__name__
    return (get_origin(annotation) or annotation) is Run


def preset(name: str) -> tuple[ModuleType, str, Run]:
    """``method`` or ``method:preset`` to its module, the preset's name and the run it describes.

    Without a preset: the first of `DEFAULTS` that the method has, else the first in its file besides ``tiny``, which
    is for tests and taken only where there is no other.
    Raises ValueError for a method or preset that there is not.
    """
    # A preset follows the last colon, but "C:\\me.py" has one too.
    method, _, wanted = name.rpartition(":") if ":" in name and not name.endswith(".py") else (name, "", "")
    module = load_method(method)
    known = presets(module)
    if not known:
        raise ValueError(f"{module.__file__} has no preset: add a function that returns a visrep.config.Run.")
    usual = [name for name in (*DEFAULTS, *known) if name in known and name != "tiny"]
    chosen = wanted or next(iter(usual or known))
    if chosen not in known:
        raise ValueError(f"{method} has no preset {chosen!r}. It has: {', '.join(known)}.")
    return module, chosen, known[chosen]()
