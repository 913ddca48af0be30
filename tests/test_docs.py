"""Documentation that is made from records and method files equals what they say now."""

import base64
import importlib.util
import io
from itertools import chain
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from visrep.catalogue import catalogue

DOCS = Path(__file__).parents[1] / "docs"


def script(name: str) -> ModuleType:
    """A file of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_docs", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    return script("generate")


def test_results_page_equals_the_records(generate: ModuleType):
    assert (DOCS / "results.md").read_text() == generate.results(), "run: python docs/generate.py"


def test_methods_page_equals_the_method_files(generate: ModuleType):
    assert (DOCS / "methods/README.md").read_text() == generate.methods(), "run: python docs/generate.py"


@pytest.mark.parametrize("family", sorted({entry.family for entry in catalogue()}))
def test_the_page_of_a_family_equals_its_method_files(generate: ModuleType, family: str):
    text = (DOCS / f"methods/{family}.md").read_text()
    assert generate.family_page(text, family) == text, "run: python docs/generate.py"
    explained = text.partition("<!-- methods -->")[0]
    assert all(word in explained for word in ("## The target", "## What stops collapse", "## Good at"))


def test_the_readme_shows_the_records(generate: ModuleType):
    text = generate.README.read_text()
    assert generate.readme(text) == text, "run: python docs/generate.py"


@pytest.mark.parametrize("page", ["diagnostics", "similarity", "continue", "whitebox"])
def test_the_tables_of_a_page_equal_records_and_source(generate: ModuleType, page: str):
    text = (DOCS / f"{page}.md").read_text()
    assert generate.REMADE[f"{page}.md"](text) == text, "run: python docs/generate.py"


def test_a_value_of_another_version_says_so_in_the_sheets(generate: ModuleType):
    def row(protocol: str, **more: int) -> dict:
        numbers = {"value": 50.0, "ci_low": 45.0, "ci_high": 55.0, "layer": 3, "metric": "top-1"}
        return {"protocol": protocol, "encoder": "trained", "settings": {}, **numbers, **more}

    shown = generate.sheet_rows(
        {"results": [row("attentive"), row("attentive-vjepa"), row("shifts", version=2)]}
    )
    assert shown["attentive", "top-1"] == "50.0 (45.0 to 55.0) version 1"
    assert shown["attentive-vjepa", "top-1"] == shown["shifts", "top-1"] == "50.0 (45.0 to 55.0)"


def test_sheets_say_what_is_known_of_them(generate: ModuleType):
    def result(who: str, value: float, grid: str, protocol: str = "segmentation") -> dict:
        numbers = {"value": value, "ci_low": 0.0, "ci_high": 9.0, "layer": 3, "settings": {"grid": grid}}
        return {"protocol": protocol, "metric": "mIoU", "encoder": who, **numbers}

    machine = {"device": "cpu", "cores": 2, "arch": "x86_64", "torch": "2"}
    made = {"encoder": "a", "command": "visrep evaluate a", "protocols": ["segmentation"], "machine": machine}
    new = {
        "results": [result("trained", 1.0, "7 x 7"), result("trained", 3.0, "7 x 7", "depth")],
        "made": [{**made, "seconds": {"segmentation": 2.4}}],
        "fingerprint": {side: {"content": "x"} for side in ("train", "test")},
        "warnings": ["few (trained, trained, pixels)", "only 6 test images"],
    }
    old = {
        "results": [result(who, 2.0, "14 x 14") for who in ("trained", "untrained", "pixels")],
        "fingerprint": {side: {"hash": "x"} for side in ("train", "test")},
        "warnings": ["few (trained, pixels)"],
    }
    assert generate.how_made(new) == (
        "without the untrained twin and raw pixels; `visrep evaluate a` (cpu, 2 cores, x86_64, torch 2; seconds: "
        "segmentation 2); depth: made before commands were recorded"
    )
    assert generate.how_made(old) == "made before commands were recorded; made before images were hashed"
    both = {"a": new, "b": old}
    assert generate.warnings_of(both) == {"few (trained, pixels)": ["a", "b"], "only 6 test images": ["a"]}
    rows = [set(generate.sheet_rows(sheet)) for sheet in both.values()]
    assert ("segmentation, 7 x 7 patches", "mIoU") in rows[0] and not rows[0] & rows[1]


def test_the_sheets_equal_their_records(generate: ModuleType):
    assert (DOCS / "sheets.md").read_text() == generate.sheets(), "run: python docs/generate.py"


def test_the_drawing_of_masks_shows_the_masks():
    """Cell by cell: the bytes of the drawing also depend on the versions of matplotlib and zlib."""
    masks = script("masks")
    drawing = ElementTree.parse(masks.FILE)
    rows = masks.gallery()
    words = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert words == [line for name in rows for line in name.split("\n")], "run: python docs/masks.py"
    images = list(drawing.iter("{http://www.w3.org/2000/svg}image"))
    colours = 255 * np.array([to_rgb(colour) for colour in masks.COLOURS])
    for element, state in zip(images, chain.from_iterable(rows.values()), strict=True):
        assert "scale(1 -1)" in element.attrib["transform"]  # stored upside down
        png = element.attrib["{http://www.w3.org/1999/xlink}href"].partition(",")[2]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))[::-1]
        middles = [((np.arange(masks.SIDE) + 0.5) / masks.SIDE * n).astype(int) for n in pixels.shape[:2]]
        cells = pixels[np.ix_(*middles)].reshape(-1, 3)
        found = np.abs(cells[:, None] - colours).sum(2).argmin(1)
        assert np.array_equal(found, state.numpy().reshape(-1)), "run: python docs/masks.py"
