"""How images are resized comes with weights, is applied where they are judged, and is handed on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import visrep
from _exports import SMALL, card_features, encoder_of, photo, unchecked
from _extras import needs
from visrep import cli
from visrep.data import open_source
from visrep.data.canvas import CanvasSet, canvas_size
from visrep.encoders import save_encoder
from visrep.encoders.pretrained import hf, open_clip, timm
from visrep.evaluation.features import extract
from visrep.evaluation.sitting import _described  # pyright: ignore[reportPrivateUsage]
from visrep.method import Encoder, Preprocessing
from visrep.views import center

own_timm = needs("timm")
transformers = needs("transformers")

BASE = Preprocessing(112, 0.875, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
"""with 128 pixels before cropping: other tools crop whole pixels"""
WAYS = [
    replace(BASE, interpolation=kind, squash=squash)
    for kind in ("bilinear", "bicubic")
    for squash in (False, True)
]
SHAPES = [(60, 90), (300, 450), (720, 480)]
"""height and width of images: smaller than what is seen, larger, much larger than a canvas. Crops of other shapes
begin between two pixels, and other tools move them by up to half a pixel: more than filters differ"""


def picture(height: int, width: int) -> Image.Image:
    """Stripes, edges and noise, of which filters make different things."""
    y, x = np.mgrid[:height, :width]
    bands = np.stack([np.sin(x / 3 + y / 7), np.sin(y / 2.3), np.sign(np.sin((x + 2 * y) / 11))], axis=-1)
    noise = np.random.default_rng(0).normal(0, 20, (height, width, 3))
    return Image.fromarray((127 + 60 * bands + noise).clip(0, 255).astype(np.uint8))


def by_us(image: Image.Image, folder: Path, *ways: Preprocessing) -> list[Tensor]:
    """The image decoded to a canvas as evaluation does it, then seen in these ways."""
    folder.mkdir()
    image.save(folder / "one.png")
    source = open_source(folder)
    canvases = CanvasSet(source, canvas_size(source, ways[0].size), workers=0).get(
        np.zeros(1, dtype=np.int64)
    )
    return [center(canvases, way)[0] for way in ways]


def nearest(theirs: Tensor, ours: list[Tensor]) -> Preprocessing:
    return WAYS[int(torch.stack([(theirs - x).abs().mean() for x in ours]).argmin())]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_timms_own_transform_is_nearest_to_what_its_configuration_makes_us_see(
    way: Preprocessing, shape: tuple[int, int], tmp_path: Path
) -> None:
    said: dict[str, Any] = {
        "input_size": (3, 112, 112),
        "crop_pct": 0.875,
        "mean": BASE.mean,
        "std": BASE.std,
        "interpolation": way.interpolation,
        "crop_mode": "squash" if way.squash else "center",
    }
    assert timm.preprocessing(said, Preprocessing()) == way
    transform = own_timm.data.create_transform(**own_timm.data.resolve_data_config(said), is_training=False)
    ours = by_us(picture(*shape), tmp_path / "images", *WAYS)
    assert nearest(transform(picture(*shape)), ours) == way


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_processors_of_transformers_too(way: Preprocessing, shape: tuple[int, int], tmp_path: Path) -> None:
    size = {"height": 128, "width": 128} if way.squash else {"shortest_edge": 128}
    said = {
        "size": size,
        "do_center_crop": True,
        "crop_size": {"height": 112, "width": 112},
        "image_mean": list(BASE.mean),
        "image_std": list(BASE.std),
        "resample": 2 if way.interpolation == "bilinear" else 3,
    }
    assert hf.read_preprocessing(said, 0) == way
    processor = transformers.BitImageProcessor(**said)
    theirs = processor(picture(*shape), return_tensors="pt")["pixel_values"][0]
    assert nearest(theirs, by_us(picture(*shape), tmp_path / "images", *WAYS)) == way


@pytest.mark.parametrize(("side", "squash"), [(224, False), (384, True)])
def test_convnexts_processor_squashes_large_images(side: int, squash: bool, tmp_path: Path) -> None:
    said = {"size": {"shortest_edge": side}, "crop_pct": 0.875, "resample": 3}
    kind = {"image_processor_type": "ConvNextImageProcessor"}
    seen = hf.read_preprocessing({**said, **kind}, 0)
    assert (seen.size, seen.squash, seen.ratio) == (side, squash, 1.0 if squash else 0.875)
    processor = transformers.ConvNextImageProcessor(**said, image_mean=BASE.mean, image_std=BASE.std)
    theirs = processor(picture(300, 500), return_tensors="pt")["pixel_values"][0]
    ways = [replace(BASE, size=side, ratio=1.0 if how else 0.875, squash=how) for how in (False, True)]
    errors = [float((theirs - x).abs().mean()) for x in by_us(picture(300, 500), tmp_path / "images", *ways)]
    assert errors[squash] < errors[not squash] / 3


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_open_clip_says_it_too(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("open_clip")
    tower: Any = open_clip.OpenClipModel("ViT-B-32-plus-240")
    module = needs("open_clip")
    small = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
    }
    visual = module.CLIP(**small).visual
    said = {"size": 32, "mean": BASE.mean, "std": BASE.std, "interpolation": "bilinear", "resize_mode": mode}
    visual.preprocess_cfg = {**said, "mode": "RGB", "fill_color": 0}
    way = open_clip.wrap(tower, visual).preprocessing
    assert (way.interpolation, way.squash, way.ratio) == ("bilinear", mode == "squash", 1.0)
    transform = module.transform.image_transform_v2(module.transform.PreprocessCfg(**said), is_train=False)
    ways = [
        replace(way, interpolation=kind, squash=how)
        for kind in ("bilinear", "bicubic")
        for how in (False, True)
    ]
    ours = by_us(picture(60, 80), tmp_path / "images", *ways)
    theirs = transform(picture(60, 80))
    assert min(ways, key=lambda one: float((theirs - ours[ways.index(one)]).abs().mean())) == way


@pytest.mark.parametrize("target", ["timm", "hf", "onnx", "torchscript", "safetensors"])
def test_exports_hand_it_on(target: str, tmp_path: Path) -> None:
    needs("onnxruntime") if target == "onnx" else None
    for way in (replace(BASE, interpolation="bilinear"), replace(BASE, squash=True)):
        encoder = encoder_of(SMALL)
        encoder.preprocessing = way
        name = f"{way.interpolation}-{way.squash}"
        save_encoder(tmp_path / name, encoder)
        out = tmp_path / f"out-{name}"
        with unchecked():
            visrep.export(tmp_path / name, target, out)
        if target != "torchscript":
            back = {"timm": f"timm:local-dir:{out}", "hf": f"hf:{out}", "onnx": f"{out}/model.onnx"}
            assert visrep.load_encoder(back.get(target, str(out))).preprocessing == way
        if target in ("onnx", "torchscript"):
            said = json.loads((out / "preprocessing.json").read_text())
            assert (said["interpolation"], said["squash"]) == (way.interpolation, way.squash)
        if target == "hf":
            _, seen = card_features(out)
            card = (out / "README.md").read_text()
            assert f"112 x 112 pixels, {way.interpolation} with antialiasing" in card
            ways = [
                replace(way, interpolation=k, squash=q)
                for k in ("bilinear", "bicubic")
                for q in (False, True)
            ]
            image = card_image()
            ours = by_us(image, tmp_path / f"images-{name}", *ways)
            best = min(ways, key=lambda one: float((seen[0] - ours[ways.index(one)]).abs().mean()))
            assert best == way


def card_image() -> Image.Image:
    """The photo that `card_features` shows to the code of a card, as it is after JPEG's loss."""
    content = BytesIO()
    Image.fromarray(photo()).save(content, "JPEG", quality=95)
    return Image.open(content).convert("RGB")


def test_evaluation_sees_images_so_and_keeps_features_apart(tmp_path: Path) -> None:
    encoder = SMALL.build().eval()
    for number in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        picture(50 + 10 * number, 90).save(tmp_path / "images" / f"{number}.png")
    source = open_source(tmp_path / "images")
    canvases = CanvasSet(source, 128, workers=0)
    found: list[Tensor] = []
    marks: list[str] = []
    for way in WAYS:
        encoder.preprocessing = replace(way, size=32, ratio=1.0)
        found.append(next(iter(extract(encoder, canvases, np.arange(3)).vectors.values())))
        marks.append(json.dumps(_described(encoder)))
        with torch.no_grad():
            expected = encoder(center(canvases.get(np.arange(3)), encoder.preprocessing)).pool()
        torch.testing.assert_close(found[-1], expected)
    assert len(set(marks)) == len(WAYS), "kept features are found by these"
    apart = torch.pdist(torch.stack(found).flatten(1))
    assert apart.min() > 1e-3


def test_encoders_saved_before_are_seen_as_then(tmp_path: Path) -> None:
    encoder = SMALL.build()
    encoder.preprocessing = BASE
    save_encoder(tmp_path, encoder)
    described = json.loads((tmp_path / "encoder.json").read_text())
    for name in ("interpolation", "squash"):
        del described["preprocessing"][name]
    (tmp_path / "encoder.json").write_text(json.dumps(described))
    seen = visrep.load_encoder(tmp_path).preprocessing
    assert seen == BASE and (seen.interpolation, seen.squash) == ("bicubic", False)


def test_a_continued_encoder_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: Encoder = replace(SMALL, width=32, heads=2).build()
    encoder.preprocessing = Preprocessing(32, 1.0, interpolation="bilinear", squash=True)
    save_encoder(tmp_path / "start", encoder)
    out = tmp_path / "run"
    words = f"simclr:tiny --init {tmp_path / 'start'} --data playground:n=32,size=32 --out {out} --epochs 1 --batch 16"
    monkeypatch.setattr(sys, "argv", ["visrep", "pretrain", *words.split()])
    cli.main()
    assert visrep.load_encoder(out).preprocessing == encoder.preprocessing
