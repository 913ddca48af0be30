"""Image towers of open_clip behind the interface of our encoders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import visrep
from _extras import needs
from visrep.encoders import save_encoder
from visrep.encoders.pretrained import hub
from visrep.encoders.pretrained.open_clip import OpenClipEncoder
from visrep.encoders.pretrained.timm_wrapped import TimmEncoder

open_clip = needs("open_clip")

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
TOWERS: dict[str, dict[str, Any]] = {
    "tiny-vit": {"image_size": 32, "layers": 3, "width": 48, "head_width": 12, "patch_size": 8},
    "tiny-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "tiny-timm": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
}


@pytest.fixture(autouse=True, scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models small enough for a test, known to open_clip by name."""
    folder = tmp_path_factory.mktemp("configs")
    for name, vision in TOWERS.items():
        whole = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(whole))
    open_clip.add_model_config(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "grid", "depth"),
    [
        ("tiny-vit", OpenClipEncoder, 4, 3),
        ("tiny-resnet", OpenClipEncoder, 2, 5),
        ("tiny-timm", TimmEncoder, 10, 6),
    ],
)
def test_towers(name: str, kind: type, grid: int, depth: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = open_clip.create_model(name)
    torch.save(own.state_dict(), tmp_path / "weights.pt")
    encoder = visrep.load_encoder(f"open_clip:{name}@{tmp_path / 'weights.pt'}")
    assert type(encoder) is kind and encoder.depth == depth
    assert encoder.preprocessing.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    size = encoder.preprocessing.size
    pixels = torch.randn(2, 3, size, size)
    tokens = encoder(pixels, layers=tuple(range(1, depth + 1)))
    assert tokens.grid == (grid, grid) and tokens.patches.shape == (2, grid**2, encoder.width)
    assert size == grid * encoder.stride
    assert torch.equal(tokens.layers[-1].patches, tokens.patches)
    if name == "tiny-vit":
        with torch.no_grad():
            embedded = own.eval().visual(pixels)
            torch.testing.assert_close(tokens.pool() @ own.visual.proj, embedded)
    with pytest.raises(ValueError, match="cannot do attention="):
        encoder(pixels, attention=True)
    save_encoder(tmp_path / "saved", encoder)
    assert torch.equal(visrep.load_encoder(tmp_path / "saved")(pixels).pool(), tokens.pool())


def test_files_that_do_not_fit_or_cannot_be_read(tmp_path: Path) -> None:
    weights, file = open_clip.create_model("tiny-vit").state_dict(), tmp_path / "a.pt"
    for changes, said in (
        (
            {"visual.conv1.weight": torch.zeros(48, 3, 4, 4)},
            r"\[48, 3, 4, 4\].*\[48, 3, 8, 8\].*the same patches",
        ),
        ({"visual.else": torch.zeros(1)}, r"Unexpected key.*visual\.else.*Give the model"),
    ):
        torch.save(weights | changes, file)
        with pytest.raises(ValueError, match=rf"a\.pt does not fit open_clip:tiny-vit: .*{said}"):
            visrep.load_encoder(f"open_clip:tiny-vit@{file}")
    for content, said in ((b"<html>", "is a web page"), (file.read_bytes()[:5000], "it is torn")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"a\.pt .*{said}.*Fetch it again") as error:
            visrep.load_encoder(f"open_clip:tiny-vit@{file}")
        assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("Failed to download weights")])
def test_errors(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(ValueError, match="open_clip has no model 'nothing'"):
        visrep.load_encoder("open_clip:nothing")
    monkeypatch.setattr(hub, "silent", lambda: "it does not answer")
    with pytest.raises(ValueError, match="Tags of ViT-B-32: openai"):
        visrep.load_encoder("open_clip:ViT-B-32@no_such_tag")
    with pytest.raises(
        ValueError, match=r"not say which weights.*ViT-B-32@TAG, @FILE, or @random.*: openai, "
    ):
        visrep.load_encoder("open_clip:ViT-B-32")
    drawn = [visrep.load_encoder("open_clip:tiny-vit@random")(torch.ones(1, 3, 32, 32)).pool() for _ in "ab"]
    assert not torch.equal(*drawn)

    def offline(name: str, **options: Any) -> None:
        raise error

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(ConnectionError, match=r"\(it does not answer\).*open_clip:tiny-vit@FILE"):
        visrep.load_encoder("open_clip:tiny-vit@openai")
    for name, tag, said in (
        (
            "ViT-B-32",
            "laion2b_s34b_b79k",
            r"open_clip_model\.safetensors from .*co/laion/CLIP-ViT-B-32-laion2B\S+/tree",
        ),
        ("RN50", "openai", r"open_clip_model\.safetensors from .*co/timm/resnet50_clip\.openai/tree"),
    ):
        with pytest.raises(ConnectionError, match=rf"fetch {said}.* and give open_clip:{name}@FILE"):
            visrep.load_encoder(f"open_clip:{name}@{tag}")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r'pip install "visrep\[open_clip\]"'):
        visrep.load_encoder("open_clip:tiny-vit")
