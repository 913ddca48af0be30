"""Small random encoders and a run folder for the tests of exports, and running what a model card says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from _extras import randomised
from visrep.encoders import ViT, save_encoder
from visrep.evaluation.fingerprint import digest_of
from visrep.evaluation.results import Judged, Result
from visrep.method import Canvases, Encoder, Preprocessing
from visrep.methods import method_class, preset
from visrep.rundir import RunFolder, describe
from visrep.views import center

SMALL = ViT(image=32, patch=8, width=48, depth=2, heads=4)


@contextmanager
def unchecked() -> Iterator[None]:
    """Without the checks of annotations that tests add: a recorder's sizes of tensors are no ints."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def encoder_of(config: Any) -> Encoder:
    """An encoder with nothing left at zero or one."""
    encoder: Any = randomised(config.build())
    if encoder.preprocessing.size == 224:  # smaller and so faster
        encoder.preprocessing = replace(encoder.preprocessing, size=64, ratio=1.0)
    return encoder


def saved(folder: Path, config: Any) -> tuple[str, Encoder]:
    """A folder that `visrep.load_encoder` reads, and the encoder in it."""
    encoder = encoder_of(config)
    encoder.preprocessing = replace(
        encoder.preprocessing, ratio=0.9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)
    )
    save_encoder(folder, encoder)
    return str(folder), encoder


def run_folder(folder: Path) -> Encoder:
    """A finished run of SimCLR as the engine leaves it, with results, and its encoder."""
    module, name, run = preset("simclr:tiny")
    torch.manual_seed(0)
    method = method_class(module)(run.method)
    randomised(method)
    run = replace(run, data="/home/somebody/photos", out=str(folder))
    rundir = RunFolder.create(folder, describe(run, method="simclr", preset=name, overrides=()))
    rundir.save_checkpoint({"step": 1, "method": method.state_dict(), "optimizers": {}})
    rundir.update("finished")
    save_encoder(folder, method.encoder)
    judged: tuple[tuple[Judged, float], ...] = (("trained", 71.25), ("untrained", 42.5), ("pixels", 31.75))
    found = [
        Result(
            "knn",
            who,
            0 if who == "pixels" else 4,
            "mean",
            "top-1",
            value,
            value - 3,
            value + 3,
            90,
            40,
            {"k": 20},
        )
        for who, value in judged
    ]
    evaluation = {
        "results": [asdict(result) for result in found],
        "split": "fitted on 90 images of /home/somebody/photos/train, judged on 40 of /home/somebody/photos/test",
        "fingerprint": {"encoder": digest_of(method.encoder)},
        "warnings": ["only 40 test images: intervals are wide"],
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return method.encoder


def photo() -> np.ndarray:
    """Smooth colours, wider than high, "h w 3"."""
    y, x = np.mgrid[:90, :120]
    waves = np.stack([np.sin(x / 30), np.cos(y / 25), np.sin((x + y) / 40)], axis=-1)
    return (127 + 100 * waves).astype(np.uint8)


def card_features(folder: Path) -> tuple[Tensor, Tensor]:
    """What the code in a model card makes of a photo, and that photo as our own reader sees it, "1 3 h w"."""
    Image.fromarray(photo()).save(folder / "photo.jpg", quality=95)
    code = "\n".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL))
    found: dict[str, Any] = {}
    with chdir(folder):
        exec(compile(code, "README.md", "exec"), found)
    (folder / "photo.jpg").unlink()
    return torch.as_tensor(found["features"]).detach(), found["images"]


def seen_by_us(image: np.ndarray, seen: Preprocessing) -> Tensor:
    """An image through our own views."""
    squashed = Image.fromarray(image).resize((256, 256), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(squashed)).permute(2, 0, 1)[None]
    sizes = torch.tensor([image.shape[:2]]).float()
    return center(Canvases(pixels, sizes, torch.zeros(1).long()), seen)


def cosine(a: Tensor, b: Tensor) -> float:
    """The lowest cosine of two sets of vectors."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).min())
