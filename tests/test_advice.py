"""Advice on settings that do not fit the data names the field, and sound presets get none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visrep.advice import TOKENS, advise
from visrep.config import Run
from visrep.encoders import save_encoder
from visrep.encoders.dalle import DalleNet
from visrep.encoders.tokenizer import CodebookTokenizer, LogitTokenizer
from visrep.method import At
from visrep.methods import load_method, method_files, preset, presets
from visrep.schedules import Constant, Cosine, Ramp
from visrep.starting import start


def advice(run: Run, images: int) -> list[str]:
    steps = images // run.batch
    return advise(
        run, images, At(0, round(run.epochs * steps), steps, torch.Generator()), method=method_of(run)
    )


def pixel_codes() -> LogitTokenizer:
    return LogitTokenizer(DalleNet(width=4, groups=2, blocks=1), codes=4)


def feature_codes() -> CodebookTokenizer:
    return CodebookTokenizer(DalleNet(width=4, groups=2, blocks=1), codes=4, width=2, metric="cosine")


def saved(folder: Path, tokenizer: LogitTokenizer | CodebookTokenizer) -> str:
    """The folder of a tokenizer that nobody trained, without its weights: the method has read them already."""
    save_encoder(folder, tokenizer.build())
    (folder / "encoder.safetensors").unlink()
    return str(folder)


def method_of(run: Run) -> str:
    return type(run.method).__module__.rpartition(".")[2]


def changed(name: str, **method: object) -> Run:
    run = preset(name)[2]
    return replace(run, method=replace(run.method, **method))


@pytest.mark.parametrize(
    ("run", "images", "words"),
    [
        (changed("dino:small32", prototypes=65_536), 1000, ("65,536 prototypes", "method.prototypes to about 32")),
        (changed("moco:small32", queue=16_384), 10_000, ("told from itself", "method.queue to about")),
        (changed("dino:small32", teacher_decay=Cosine(0.9996, 1.0)), 10_000, ("2,500 steps", "teacher_decay begin")),
        (changed("dino:small32", teacher_decay=Constant(1.0)), 10_000, ("averages all steps", "teacher_decay")),
        (changed("ijepa:small32", teacher_decay=Ramp(0.99, 1.0, epochs=3)), 10_000, ("stands still", "Line")),
        (preset("simclr:small32")[2], 1000, ("Only 24 steps", "epochs")),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(run: Run, images: int, words: tuple[str, ...]) -> None:
    sentences = advice(run, images)
    assert any(all(word in sentence for word in words) for sentence in sentences), sentences


def test_clips_as_long_as_views_are_told() -> None:
    """Unless they are drawn, or views see a part of each that moves from epoch to epoch."""
    run = replace(preset("videomae:small32")[2], data="films:frames=8")
    at = At(0, 1000, 100, torch.Generator())
    (sentence,) = advise(run, 6400, at, method="videomae", frames=8)
    assert "same moments" in sentence and "'FOLDER:frames=12'" in sentence
    assert not advise(run, 6400, at, method="videomae", frames=12)
    assert not advise(replace(run, data="playground-video:frames=8"), 6400, at, method="videomae", frames=8)
    assert not advise(replace(preset("mae:small32")[2], data="photos"), 6400, at, method="mae")


@pytest.mark.parametrize("name", ["peco", "beitv2"])
def test_names_claim_their_tokens(name: str, tmp_path: Path) -> None:
    """Any tokenizer fits; what is called PeCo or BEiT v2 on tokens of pixels is BEiT."""
    pixels, other = saved(tmp_path / "a", pixel_codes()), saved(tmp_path / "b", feature_codes())
    (sentence,) = advice(changed(f"{name}:small32", tokenizer=pixels), 10_000)
    assert f"{name} is called after the tokens of {TOKENS[name]}. Set method.tokenizer" in sentence
    assert not advice(changed(f"{name}:small32", tokenizer=other), 10_000)
    assert not advice(changed("beit:small32", tokenizer=pixels), 10_000)


def test_large_presets_on_the_playground_want_a_gpu() -> None:
    run = replace(preset("simmim")[2], accelerator="cpu")
    (sentence,) = advice(run, 10_000)
    assert "No GPU was found" in sentence and "`visrep pretrain simmim:small32`" in sentence
    assert not advice(replace(run, accelerator="cuda"), 10_000)
    assert not advice(replace(run, data="photos"), 10_000)


@pytest.mark.parametrize("name", [n for n in method_files() if "small32" in presets(load_method(n))])
def test_the_small_presets_fit_their_data(name: str, tmp_path: Path) -> None:
    run = preset(f"{name}:small32")[2]
    if name in TOKENS:
        run = changed(f"{name}:small32", tokenizer=saved(tmp_path, feature_codes()))
    assert not advice(run, 10_000)


def test_a_run_says_that_masks_were_left_out(tmp_path: Path) -> None:
    for i in range(32):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            pixels = np.full((16, 16, 3), 8 * i * (folder == "images"), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    run = replace(preset("simclr:tiny")[2], data=str(tmp_path), out=str(tmp_path / "run"), batch=8)
    folder = start(run, method="simclr", preset="tiny")
    said = "the images in masks/ (32) were left out: beside images/ they are taken for its masks"
    assert json.loads((folder / "run.json").read_text())["advice"].count(said) == 1


def test_a_run_keeps_its_advice_and_says_it_where_no_terminal_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(preset("simclr:tiny")[2], out=str(tmp_path / "run"))
    folder = start(run, method="simclr", preset="tiny")
    (said,) = json.loads((folder / "run.json").read_text())["advice"]
    assert "Only 4 steps" in said
    assert capsys.readouterr().err.splitlines()[0] == said
