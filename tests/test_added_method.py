"""A method is added to the project by copying one file: the list, the suite, the docs and training all find it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with one more file: SimCLR under another name and with another first line."""
    copy = tmp_path_factory.mktemp("project")
    clutter = shutil.ignore_patterns("__pycache__", "*.npz")
    for folder in ("src", "tests", "docs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=clutter)
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copy(ROOT / "README.md", copy)
    family = copy / "src/visrep/methods/contrastive"
    text = (family / "simclr.py").read_text()
    (family / "mine.py").write_text(text.replace(text.splitlines()[0], '"""Mine: an idea of my own.', 1))
    return copy


def python(project: Path, *arguments: str) -> str:
    """What Python prints inside that project."""
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_list_shows_it(project: Path) -> None:
    listed = python(project, "-c", "from visrep.cli import main; main()", "list", "--json")
    entries = {entry["name"]: entry for entry in json.loads(listed)}
    assert entries["mine"]["family"] == "contrastive"
    assert entries["mine"]["idea"] == "Mine: an idea of my own."
    assert entries["mine"]["status"].startswith("unverified"), "nobody has trained it"


def test_the_conformance_suite_runs_it(project: Path) -> None:
    names = python(project, "-m", "pytest", "-q", "--collect-only", "tests/test_methods.py", "-k", "mine")
    collected = {line.partition("::")[2] for line in names.splitlines() if "::" in line}
    assert "test_two_ranks_equal_one[mine]" in collected
    own = {line for line in collected if line.startswith("test_method[mine-")}
    assert len(own) >= 10, collected
    python(project, "-m", "pytest", "-q", "tests/test_methods.py", "-k", "mine and loss_is_pure")


def test_the_table_of_methods_names_it(project: Path) -> None:
    python(project, "docs/generate.py")
    assert "| mine |" in (project / "docs/methods/README.md").read_text()
    text = (project / "docs/methods/contrastive.md").read_text()
    assert "### mine" in text and "Mine: an idea of my own." in text


def test_it_trains(project: Path) -> None:
    command = "pretrain mine:tiny --out run --epochs 1"
    python(project, "-c", "from visrep.cli import main; main()", *command.split())
    assert (project / "run/encoder.safetensors").exists()
