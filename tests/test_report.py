"""The report: every section, with and without labels, data, evaluation; what it shows is on record."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from visrep.analysis.figures import Line, Mark, curves, intervals, spectrum_plot
from visrep.analysis.pictures import clip_uri, data_uri, heat, image_map, token_colours
from visrep.analysis.report import ORDER, report
from visrep.encoders import ResNet, ViT, save_encoder
from visrep.method import Encoder, Preprocessing

TINY_VIT = ViT(image=32, patch=8, width=32, depth=2, heads=2)
TINY_RESNET = ResNet(18, width=8, stem="small")


def write_run(folder: Path, encoder: Encoder | None, *, data: str, judged: bool = True, **about: Any) -> Path:
    """A run folder as the engine leaves it, with made-up metrics."""
    folder.mkdir(parents=True)
    run = {
        "type": "visrep.config:Run",
        "method": {"type": "visrep.methods.distillation.dino:Config", "prototypes": 128},
        "data": data, "val": "", "canvas": 32, "batch": 64, "seed": 0,
    }  # fmt: skip
    facts = {
        "run": run, "method": "dino", "preset": "small32", "overrides": ["method.prototypes=128"],
        "command": "visrep pretrain dino --data <photos>", "versions": {"torch": "2"},
        "hardware": {"cores": 2},
        "started": "2026-01-01T00:00:00+00:00", "status": "finished", "message": "",
        "advice": ["Few <steps>.", "3 videos were left out."],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps({**facts, **about}))
    steps = [
        {
            "kind": "step", "step": 10 * i, "epoch": i / 10, "loss": 4.85 - i / 100,
            "terms": {"dino": 4.0 - i / 100, "koleo": 0.85},
            "monitor": {"teacher_entropy": 1 - i / 400, "teacher_student_kl": 0.2, "grad_norm": 1.0},
            "schedules": {"lr": 1e-3 * math.cos(i / 80), "weight_decay": 0.04, "tau_teacher": 0.04},
            "images_per_second": 2000.0 + i, "seconds": 3.0 * i,
        }
        for i in range(1, 101)
    ]  # fmt: skip
    epochs = [
        {
            "kind": "epoch", "step": 100 * i, "epoch": float(i),
            "monitors": {
                "feature_std": 0.1, "rankme": 5.0 + i, "alignment": 0.3, "uniformity": -2.0,
                "knn": 20.0 + 3 * i, "width": 32, "images": 500,
            },
        }
        for i in range(1, 11)
    ]  # fmt: skip
    lines = "".join(json.dumps(line) + "\n" for line in [*steps, *epochs])
    (folder / "metrics.jsonl").write_text(lines + '{"kind": "step", "los')  # as a kill leaves it
    if judged:
        (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    if encoder is not None:
        encoder.preprocessing = Preprocessing(size=32, ratio=1.0)
        save_encoder(folder, encoder)
        views = np.random.default_rng(0).integers(0, 256, (3, 5, 32, 32, 3), dtype=np.uint8)
        np.savez_compressed(folder / "pictures.npz", views=views, reconstructions=views[:, :3])
    return folder


def result(encoder: str, protocol: str, value: float, **settings: float) -> dict[str, Any]:
    layer, pooling = (0, "none") if encoder == "pixels" else (2, "cls")
    return {
        "protocol": protocol, "encoder": encoder, "layer": layer, "pooling": pooling, "metric": "top-1",
        "value": value, "ci_low": value - 2, "ci_high": value + 2, "n_train": 800, "n_test": 200,
        "settings": settings,
    }  # fmt: skip


EVALUATION = {
    "results": [
        *(result("trained", "knn", 71.3 + k / 100, k=k) for k in (10, 20, 100)),
        *(result("untrained", "knn", 32.1, k=k) for k in (10, 20, 100)),
        *(result("pixels", "knn", 24.6, k=k) for k in (10, 20, 100)),
        result("trained", "linear", 33.0, C=1.0),
        result("untrained", "linear", 31.9, C=1.0),
        result("pixels", "linear", 27.7, C=0.1),
    ],
    "split": "The test part of the data.",
    "fingerprint": {"data": "photos"},
    "warnings": ["k=200 is more than there are <images>"],
}


class Page(HTMLParser):
    """Checks nesting; collects text by section, images and anything that would need the network."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "rect", "circle"})

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: dict[str, str] = {"": ""}
        self.images: list[str] = []
        self.outside: list[str] = []
        self.section = ""
        self.feed(file.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = values["id"]
            self.text[self.section] = ""
        if tag == "img":
            self.images.append(values["alt"])
        links = (values.get(name, "") for name in ("src", "href", "xlink:href"))
        self.outside += [link for link in links if link and not link.startswith(("data:image/", "#"))]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text[self.section] += data


def folder_of_images(folder: Path, *, labelled: bool) -> Path:
    """40 images in two colours, in a folder for each colour or all in one."""
    rng = np.random.default_rng(0)
    for i in range(40):
        colour = "red & blue"[: 3 + 7 * (i % 2)]
        pixels = rng.integers(0, 90, (40, 30, 3), dtype=np.uint8)
        pixels[..., i % 2] += 150
        place = folder / colour if labelled else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"<{i}>.png")
    return folder


@pytest.mark.parametrize("config", [TINY_VIT, TINY_RESNET], ids=["vit", "resnet"])
def test_a_labelled_run_has_every_section(tmp_path: Path, config: ViT | ResNet) -> None:
    photos = folder_of_images(tmp_path / "photos", labelled=True)
    run = write_run(tmp_path / "run", config.build(), data=str(photos))
    (run / "unreadable.txt").write_text("a/<broken>.jpg\ttruncated\n")
    out = report(run, images=40)
    assert out == run / "report.html"
    page = Page(out)
    assert not page.outside
    absent = {"White-box layers", "Beside its start", "Dense predictions"}
    absent |= set() if isinstance(config, ViT) else {"Attention"}
    applicable = [title for title in ORDER if title not in absent]
    assert list(page.text)[1:] == ["-".join(title.lower().split()) for title in applicable]
    missing = {name for name, text in page.text.items() if "Not available" in text}
    assert not missing
    assert "Said at the start" in page.text[""] and "Few <steps>. 3 videos were left out." in page.text[""]
    assert "71.5 %" in page.text[""]
    assert "Clearly better than untrained and raw pixels in kNN (k=20)" in page.text[""]
    assert "not clearly better than untrained or raw pixels in linear probe" in page.text[""]
    assert "untrained 32.1" in page.text[""] and "raw pixels 24.6" in page.text[""]
    assert "+39.4" in page.text["probes"] and "<images>" in page.text["probes"]
    assert "weight_decay = 0.04" in page.text["loss-and-schedules"]
    assert "lr schedule" in page.text["loss-and-schedules"]
    assert "could not be read and were skipped: 1, see unreadable.txt" in page.text["loss-and-schedules"]
    assert "Teacher entropy" in page.text["health-while-training"]
    assert "share the label" in page.text["nearest-neighbours"]
    assert "<broken>.jpg" in page.text["configuration"] and "prototypes" in page.text["configuration"]
    assert any("red & blue, cosine" in text and ".png" in text for text in page.images)
    if isinstance(config, ViT):
        assert "head 2" in page.text["attention"] and "tokens" in page.images
    else:
        assert "attention" not in page.text  # a convolutional encoder has none


def test_without_labels_the_map_is_coloured_by_cluster(tmp_path: Path) -> None:
    photos = folder_of_images(tmp_path / "photos", labelled=False)
    page = Page(report(write_run(tmp_path / "run", TINY_VIT.build(), data=str(photos), judged=False)))
    assert "k-means" in page.text["map"] and "cluster 1" in page.text["map"]
    assert "no labels" in page.text["nearest-neighbours"]
    assert "visrep evaluate" in page.text["probes"]


def test_missing_data_leaves_the_rest_of_the_report(tmp_path: Path) -> None:
    page = Page(report(write_run(tmp_path / "run", TINY_VIT.build(), data=str(tmp_path / "moved"))))
    for name in ("map", "nearest-neighbours", "spectrum", "attention", "patch-tokens"):
        assert "Not available" in page.text[name] and "moved" in page.text[name]
    assert "+39.4" in page.text["probes"]
    assert sum("column" in text for text in page.images) == 3 * 5 + 3 * 3


def test_clips_play_and_stand_still_below_their_caption(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", None, data="playground-video")
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 40, 40, 3), dtype=np.uint8)
    captions = [("found <places>", "Columns: one; two & three; four.")]
    arrays = {"found <places>": clips, "views": clips[:, :, 0]}
    np.savez_compressed(run / "pictures.npz", allow_pickle=False, captions=np.array(captions), **arrays)
    file = report(run)
    page = Page(file)
    said = page.text["pictures-by-the-method"]
    assert "Found <places>" in said and "Columns: one; two & three; four." in said
    assert "Columns" not in page.text["sample-views"]  # of earlier versions, without captions
    drawn = [text for text in page.images if text.startswith("column")]
    assert drawn.count("column 3, frame 4") == 2 and len(drawn) == 6 + 6 * 4 + 6
    body = file.read_text().partition('id="pictures-by-the-method"')[2].partition("</section>")[0]
    uris = re.findall(r'src="data:image/png;base64,([^"]+)"', body)
    moving = [image for image in map(opened, uris) if image.info.get("loop") == 0]
    assert len(moving) == 6 and len(uris) == 6 * 5
    for image, clip in zip(moving, clips.reshape(-1, 4, 40, 40, 3), strict=True):
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
        assert np.array_equal(frames, clip)
    assert np.array_equal(np.asarray(opened(uris[6 + 5])), clips[0, 1, 1])  # stills: by row, column, frame


def test_larger_clips_are_webp() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    head, _, body = clip_uri(frames).partition(",")
    image = opened(body)
    assert head == "data:image/webp;base64" and image.info["loop"] == 0
    assert [frame.size for frame in ImageSequence.Iterator(image)] == [(64, 64)] * 3


def test_plain_pictures_keep_their_colours() -> None:
    classes = np.random.default_rng(0).integers(0, 256, (60, 3), dtype=np.uint8)[np.arange(112 * 80) % 60]
    head, _, body = data_uri(classes.reshape(112, 80, 3)).partition(",")
    assert head.startswith("data:image/png") and np.array_equal(
        np.asarray(opened(body)), classes.reshape(112, 80, 3)
    )
    many = np.random.default_rng(0).integers(0, 256, (112, 80, 3), dtype=np.uint8)
    assert data_uri(many).startswith("data:image/webp")


def opened(base64_text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(base64_text)))


def test_a_run_that_just_began(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", None, data="playground", judged=False, status="running")
    (run / "metrics.jsonl").unlink()
    page = Page(report(run))
    assert "not finished" in page.text[""] and "Too early" in page.text[""]
    assert "Not available" in page.text["map"]
    assert "No step" in page.text["loss-and-schedules"]


def test_diverged_and_collapsed_encoders_are_reported_not_crashed_on(tmp_path: Path) -> None:
    photos = folder_of_images(tmp_path / "photos", labelled=True)
    for name, value in (("nan", math.nan), ("constant", 0.0)):
        encoder = TINY_VIT.build()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.fill_(value)
        page = Page(report(write_run(tmp_path / name, encoder, data=str(photos)), images=20))
        text = page.text["spectrum"]
        assert ("not finite" if name == "nan" else "no variance") in text


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run\.json"):
        report(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        report(tmp_path / "nowhere")
    run = write_run(tmp_path / "run", None, data="playground")
    with pytest.raises(ValueError, match="at least 2"):
        report(run, images=1)


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    photos = folder_of_images(tmp_path / "photos", labelled=True)
    run = write_run(tmp_path / "run", TINY_VIT.build(), data=str(photos))
    first = report(run, images=20).read_bytes()
    assert report(run, images=20).read_bytes() == first


def test_figures_follow_the_page_and_draw_every_point() -> None:
    lines = [Line([0, 1, 2], [3.0, math.nan, 1.0], "loss")]
    drawn = curves(lines, x_label="epoch", limit=2, limit_label="limit")
    assert drawn.startswith("<svg") and "limit" in drawn
    assert "currentColor" in drawn and "#010203" not in drawn
    values = {"trained": 80.0, "pixels": 20.0}
    marks = [Mark("kNN", who, value, value - 1, value + 1) for who, value in values.items()]
    assert all(word in intervals(marks) for word in ("kNN", "trained", "pixels"))
    drawn, axes_for_90 = spectrum_plot([8.0, 1.0, 0.5, 0.5])
    assert axes_for_90 == 2 and "90 % of the variance in 2" in drawn
    with pytest.raises(ValueError, match="no variance"):
        spectrum_plot([0.0, 0.0])


def test_heat_is_brightest_where_the_value_is_highest() -> None:
    values = np.zeros((4, 4))
    values[0, 3] = 1.0
    shown = heat(np.full((32, 32, 3), 128, np.uint8), values).mean(-1)
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert row < 8 and column >= 24


def test_token_colours_separate_two_kinds_of_token() -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, (3, 16))
    tokens = rng.normal(size=(3, 16, 8)) * 0.1 + 5 * kind[..., None]
    red = token_colours(tokens, (4, 4))[..., 0].reshape(3, 16).astype(float)
    assert abs(red[kind == 0].mean() - red[kind == 1].mean()) > 150


def test_image_map_puts_pictures_at_their_points() -> None:
    pictures = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (50, 100, 150)])
    sheet = image_map(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), pictures, side=100, cells=5)
    assert sheet.shape == (100, 100, 4)
    assert sheet[90, 10].tolist() == [50, 50, 50, 255]  # low y is at the bottom
    assert sheet[90, 90, 0] == 100 and sheet[10, 90, 0] == 150
    assert sheet[50, 50, 3] == 0
