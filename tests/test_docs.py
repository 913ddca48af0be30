"""Documentation that is made from records and method files equals what they say now."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_results_page_equals_the_records(generate: ModuleType):
    assert (DOCS / "results.md").read_text() == generate.results(), "run: python docs/generate.py"


def test_methods_page_equals_the_method_files(generate: ModuleType):
    assert (DOCS / "methods.md").read_text() == generate.methods(), "run: python docs/generate.py"


def test_the_readme_shows_the_records(generate: ModuleType):
    text = generate.README.read_text()
    assert generate.readme(text) == text, "run: python docs/generate.py"
