"""The rules of docs/architecture.md, read off the source: a rule without a test does not last."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import visrep

ROOT = Path(visrep.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
METHODS = sorted(file for file in ROOT.glob("methods/*/*.py") if file.name != "__init__.py")

Rule = Callable[[Path], Iterator[str]]

CONTRACT = {"method", "config", "schedules"}
MAY_IMPORT = {
    "method": set(),
    "schedules": {"method"},
    "config": {"method", "schedules"},
    "distributed": set(),
    "functional": set(),
    "masking": set(),
    "progress": set(),
    "views": {"method"},
    "data": {"method", "progress"},
    "nn": {"method", "distributed", "functional", "masking"},
    "encoders": {*CONTRACT, "nn", "functional"},
    "methods": {*CONTRACT, "nn", "encoders", "distributed", "functional", "masking", "views"},
    "evaluation": {*CONTRACT, "encoders", "data", "views", "analysis", "optim", "machine", "progress"},
    "analysis": {*CONTRACT, "functional", "encoders", "data", "views", "evaluation", "progress"},
}
"""Imports point one way. What is not listed (engine, cli, ...) stands above and may import all of these."""
OPTIONAL = {
    "torchvision",
    "pyarrow",
    "timm",
    "transformers",
    "open_clip",
    "av",
    "faiss",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "webdataset",
    "umap",
    "imagecorruptions",
    "captum",
    "mteb",
}
"""Packages of extras: imported where they are needed, with an error that names the extra"""


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def where(file: Path, node: ast.AST) -> str:
    return f"{name(file)}:{node.lineno}"  # pyright: ignore[reportAttributeAccessIssue] - statements and calls have it


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def imported(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module or ""


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def no_docstring(file: Path) -> Iterator[str]:
    body = tree(file).body
    if body and ast.get_docstring(tree(file)) is None:
        yield f"{name(file)} does not start with a docstring"


def probing(file: Path) -> Iterator[str]:
    for call, function in calls(tree(file)):
        if function == "hasattr" or (function == "getattr" and len(call.args) > 2):
            yield f"{where(file, call)} asks an object what it is: {ast.unparse(call)}"


def kwargs(file: Path) -> Iterator[str]:
    for function in functions(tree(file)):
        if function.args.kwarg is not None and not function.name.startswith("_"):
            yield f"{where(file, function)} {function.name} takes **{function.args.kwarg.arg}"


def unannotated(file: Path) -> Iterator[str]:
    for function in functions(tree(file)):
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        bare = [a.arg for a in every if a.annotation is None and a.arg not in ("self", "cls")]
        if bare or function.returns is None:
            yield f"{where(file, function)} {function.name} lacks annotations of {bare or 'its result'}"


def work_at_import(file: Path) -> Iterator[str]:
    """Only definitions and constants; a constant may be computed, but nothing is read, set or registered."""
    harmless = {"replace", "crops", "frozenset", "tuple", "list", "dict", "range", "split", "compile"}
    harmless |= {"cos", "sin", "tensor", "permutations"}
    for node in tree(file).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            made = {function.rpartition(".")[2] for _, function in calls(node)}
            busy = {function for function in made if not function[0].isupper()} - harmless
            if busy:
                yield f"{where(file, node)} calls {', '.join(sorted(busy))} at import"
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        elif isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "__name__ == '__main__'",
        ):
            continue
        elif not isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef):
            yield f"{where(file, node)} runs at import: {ast.unparse(node).splitlines()[0]}"


def extras_at_import(file: Path) -> Iterator[str]:
    top = ast.Module([node for node in tree(file).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    for node, module in imported(top):
        if module.partition(".")[0] in OPTIONAL:
            yield f"{where(file, node)} imports {module}, which a plain installation does not have"


def wrong_way(file: Path) -> Iterator[str]:
    part = file.relative_to(ROOT).parts[0].removesuffix(".py")
    if part not in MAY_IMPORT:
        return
    for node, module in imported(tree(file)):
        first, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if first == "visrep" and other != part and other not in MAY_IMPORT[part]:
            yield f"{where(file, node)}: {part} must not import {module}"


def unfinished(file: Path) -> Iterator[str]:
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if re.search(r"\b(TODO|FIXME|XXX)\b", line):
            yield f"{name(file)}:{number} is unfinished"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"{where(file, node)} catches everything"
        if (
            isinstance(node, ast.Raise)
            and node.exc is not None
            and "NotImplementedError" in ast.unparse(node.exc)
        ):
            yield f"{where(file, node)} is a stub"


RULES: list[Rule] = [
    no_docstring,
    probing,
    kwargs,
    unannotated,
    work_at_import,
    extras_at_import,
    wrong_way,
    unfinished,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_source(rule: Rule) -> None:
    faults = [fault for file in FILES for fault in rule(file)]
    assert not faults, "\n".join(faults)


BAD = """
import pyarrow
from visrep.engine import train
print("hello")
LOADED = open("x")
def ask(x, **kwargs):  # TODO
    try:
        return hasattr(x, "y") or getattr(x, "y", 1)
    except:
        raise NotImplementedError
"""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rules_catch_what_they_forbid(rule: Rule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "functional.py"
    file.write_text(BAD)
    assert list(rule(file))


def method_docstring(file: Path) -> Iterator[str]:
    text = ast.get_docstring(tree(file)) or ""
    if not re.search(r"arXiv:\d{4}\.\d{5}", text):
        yield f"{name(file)}: the docstring names no paper (arXiv:2104.14294)"
    yield from (
        f"{name(file)}: the docstring lacks '{w}:'"
        for w in ("Verified against", "Deviations")
        if w not in text
    )


def method_order(file: Path) -> Iterator[str]:
    """Config, then the loss as a function, then the class, then presets."""
    body = tree(file).body
    lines: dict[str, int] = {}
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            lines["Config"] = node.lineno
            if "frozen=True, kw_only=True" not in "".join(map(ast.unparse, node.decorator_list)):
                yield f"{name(file)}: Config is not a frozen, keyword-only dataclass"
        elif isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Method" for base in node.bases):
            lines["class"] = node.lineno
            if "final" not in map(ast.unparse, node.decorator_list):
                yield f"{name(file)}: {node.name} is not @final"
        elif isinstance(node, ast.FunctionDef) and node.returns is not None and not node.name.startswith("_"):
            returns = ast.unparse(node.returns)
            if "Config" in lines and "class" not in lines and "Float" in returns:
                lines["loss"] = node.lineno
            if returns.startswith("Run"):
                lines.setdefault("presets", node.lineno)
                if not ast.get_docstring(node):
                    yield f"{name(file)}: preset {node.name} has no docstring"
                elif node.name == "paper" and "Unverified: not run here." not in (
                    ast.get_docstring(node) or ""
                ):
                    yield f"{name(file)}: preset paper does not say whether it was run"
    wanted = ["Config", "loss", "class", "presets"]
    if sorted(lines, key=lambda part: lines[part]) != wanted:
        yield f"{name(file)}: expected {', '.join(wanted)} in this order; found {', '.join(lines) or 'none'}"


def method_length(file: Path) -> Iterator[str]:
    lines = file.read_text().count("\n")
    if lines > 250:
        yield f"{name(file)} has {lines} lines: more than one idea?"


def method_sideways(file: Path) -> Iterator[str]:
    for node, module in imported(tree(file)):
        if module.startswith("visrep.methods"):
            yield f"{where(file, node)} imports another method: move what they share to functional or nn"


def method_hidden_state(file: Path) -> Iterator[str]:
    """Attributes are set in __init__; what changes later is a buffer, changed in place."""
    for function in functions(tree(file)):
        if function.name == "__init__":
            continue
        for node in ast.walk(function):
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AugAssign | ast.AnnAssign):
                targets = [node.target]
            for target in targets:
                if ast.unparse(target).startswith("self."):
                    yield f"{where(file, node)} sets {ast.unparse(target)} outside __init__"


def method_randomness(file: Path) -> Iterator[str]:
    drawn = "rand|bernoulli|multinomial|normal|uniform|choice|shuffle"
    drawing = rf"(torch|np|numpy|random)\.(\w+\.)*({drawn})\w*$"
    for call, function in calls(tree(file)):
        if re.match(drawing, function):
            yield f"{where(file, call)} draws its own random numbers: take them from `at`"


METHOD_RULES: list[Rule] = [
    method_docstring,
    method_order,
    method_length,
    method_sideways,
    method_hidden_state,
    method_randomness,
]

BAD_METHOD = (
    '''
"""Bad."""
from visrep.methods.contrastive.simclr import nt_xent
class Bad(Method):
    def loss(self, batch, at):
        self.calls = torch.rand(3)
'''
    + "\n" * 300
)


@pytest.mark.parametrize("rule", METHOD_RULES, ids=lambda rule: rule.__name__)
def test_method_files(rule: Rule) -> None:
    assert METHODS, "no method file was found"
    faults = [fault for file in METHODS for fault in rule(file)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("rule", METHOD_RULES, ids=lambda rule: rule.__name__)
def test_method_rules_catch_what_they_forbid(
    rule: Rule, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "bad.py"
    file.write_text(BAD_METHOD)
    assert list(rule(file))
