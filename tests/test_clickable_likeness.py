"""Vectors inside the page of `visrep explain`: cosines within the error that is stated, and the map a click draws."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from visrep.analysis.inside import embedded as module
from visrep.analysis.inside.embedded import Embedded, embedded
from visrep.analysis.inside.sections_maps import likeness_section
from visrep.analysis.inside.subject import Subject
from visrep.data import CanvasSet
from visrep.data.dense_playground import DensePlayground
from visrep.encoders import ViT
from visrep.method import Preprocessing


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def errors(patches: Tensor, few: Embedded) -> np.ndarray:
    """Cosines from the text that goes into the page, less scipy's of the vectors themselves."""
    n, p, k = few.vectors.shape
    rows = np.frombuffer(base64.b64decode(few.text), np.int8).reshape(n * p, k).astype(np.float64)
    given = patches[:n].flatten(0, 1).double().numpy()
    true = 1 - cdist(given, given, "cosine")
    return rows @ rows.T * few.scale**2 - true


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_cosines_are_within_the_error_that_is_stated(shift: float) -> None:
    """Also of vectors that have most of their length in one direction, as many encoders' have."""
    patches = drawn(3, 64, 48) + shift
    few = embedded(patches)
    assert few.vectors.shape == (3, 64, 48)
    found = np.abs(errors(patches, few)).max()
    assert found == pytest.approx(few.error, abs=1e-5) and few.error < 0.015


def test_wide_vectors_are_reduced_to_what_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BYTES", 3 * 64 * 10)
    patches = drawn(3, 64, 8) @ drawn(8, 48, seed=1) + 0.1 * drawn(3, 64, 48, seed=2)
    few = embedded(patches)
    assert few.vectors.shape == (3, 64, 10)
    assert np.abs(errors(patches, few)).max() == pytest.approx(few.error, abs=1e-5)
    assert few.error <= module.ERROR


def test_fewer_images_where_the_error_would_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BYTES", 2 * 64 * 48)
    patches = drawn(3, 64, 48)
    few = embedded(patches)
    assert few.vectors.shape == (2, 64, 48) and few.error <= module.ERROR
    monkeypatch.setattr(module, "BYTES", 64 * 12)
    one = embedded(patches)
    assert one.vectors.shape == (1, 64, 12) and one.error > module.ERROR
    assert np.abs(errors(patches, one)).max() == pytest.approx(one.error, abs=1e-5)


def test_vectors_of_nothing() -> None:
    few = embedded(torch.zeros(1, 4, 3))
    assert not few.vectors.any() and few.error == 0


def subject() -> Subject:
    torch.manual_seed(0)
    encoder = ViT(image=32, patch=8, width=24, depth=1, heads=2).build().eval()
    encoder.preprocessing = Preprocessing(32, ratio=1.0)
    source = DensePlayground(3, size=32)
    shown = CanvasSet(source, 32, cache="memory", workers=0)
    return Subject(encoder, source, shown, ("a", "b", "c"), torch.device("cpu"), 0, False)


def test_the_page_holds_what_a_click_needs() -> None:
    looked_at = subject()
    section, numbers = likeness_section(looked_at, (0.3, 0.8))
    data = dict(re.findall(r'data-(\w+)="([^"]*)"', section.body))
    assert (data["rows"], data["columns"], data["row"], data["column"]) == ("4", "4", "3", "1")
    assert section.body.count("<canvas") == 3 and section.body.count("<script>") == 1
    assert (
        'class="likeness" hidden' in section.body
    )  # shown by the script: without one there is nothing to click
    stated = re.search(r"within (\S+) of the true", unescape(section.body))
    assert stated and float(stated[1]) < 0.02
    found = numbers["clickable"]
    assert (found["images"], found["bytes a patch"]) == (3, 24)
    assert 0 < found["error"] <= float(stated[1]) <= found["error"] + 0.001  # rounded up


STUB = """
const given = JSON.parse(require("fs").readFileSync(0, "utf-8")), drawings = [];
globalThis.ImageData = class { constructor(w, h) { this.data = new Uint8ClampedArray(4 * w * h); } };
const pen = {
  clearRect() {}, drawImage() {}, strokeRect() {}, putImageData(image) { drawings.push([...image.data]); },
};
const canvas = () => ({
  width: 224, height: 224, clientWidth: 100, clientHeight: 100, on: {},
  getContext: () => pen, addEventListener(name, what) { this.on[name] = what; },
});
const canvases = [canvas(), canvas(), canvas()], output = {};
const box = { dataset: given.data, hidden: true, querySelectorAll: () => canvases, querySelector: () => output };
globalThis.document = { currentScript: { parentElement: box }, createElement: canvas };
eval(given.script);
drawings.length = 0;
canvases[1].on.click({ currentTarget: canvases[1], offsetX: 60, offsetY: 99 });
const said = [];
for (let place = 0; place < 16; place++) {
  const at = { offsetX: 25 * (place % 4) + 1, offsetY: 25 * Math.floor(place / 4) + 1 };
  canvases[2].on.mousemove({ currentTarget: canvases[2], ...at });
  said.push(output.textContent);
}
console.log(JSON.stringify({ hidden: box.hidden, said, drawings }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")
def test_a_click_draws_the_cosines(tmp_path: Path) -> None:
    """The script in a page of stubs: patch (3, 2) of the second image is clicked, the third image read."""
    looked_at = subject()
    section, _ = likeness_section(looked_at, None)
    data = dict(re.findall(r'data-(\w+)="([^"]*)"', section.body))
    script = section.body.partition("<script>")[2].partition("</script>")[0]
    (tmp_path / "page.js").write_text(STUB)
    done = subprocess.run(
        ["node", str(tmp_path / "page.js")],
        input=json.dumps({"data": data, "script": script}),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    tokens = looked_at.tokens().patches
    true = torch.cosine_similarity(tokens, tokens[1, 3 * 4 + 2], dim=-1)
    said = [float(text.removeprefix("cosine ")) for text in found["said"]]
    np.testing.assert_allclose(said, true[2].numpy(), atol=0.02)
    assert float(true[2].max() - true[2].min()) > 0.05
    assert not found["hidden"] and len(found["drawings"]) == 3
    for values, pixels in zip(true, np.array(found["drawings"]).reshape(3, 16, 4), strict=True):
        brightness = pixels[:, :3].sum(1)  # inferno grows brighter throughout
        assert brightness[int(values.argmax())] == brightness.max()
        assert brightness[int(values.argmin())] == brightness.min()
        assert (pixels[:, 3] == 179).all()
