"""Parts of a model card, as Markdown: results, settings, preprocessing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visrep.evaluation.results import variant
from visrep.method import Preprocessing

WHO = ("trained", "untrained", "pixels")
SPLITS = ("train", "test", "val", "valid", "validation")
"""names of folders that do not say which images these are"""
PIXELS = """\
import numpy as np
import torch
from PIL import Image


def pixels(path: str) -> torch.Tensor:
    image = Image.open(path).convert("RGB")
    {across}
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, left + across, top + down)
    image = image.resize(({size}, {size}), Image.Resampling.{filter}, box=box)
    x = torch.tensor(np.array(image)).permute(2, 0, 1) / 255
    mean, std = torch.tensor({mean}), torch.tensor({std})
    return ((x - mean[:, None, None]) / std[:, None, None]).unsqueeze(0)


images = pixels("photo.jpg")
"""
SQUARE = "across = down = {ratio} * min(image.size)"
SQUASHED = "across, down = {ratio} * image.width, {ratio} * image.height"
CLIPS = """\
import torch

images = torch.zeros(1, {frames}, 3, {size}, {size})  # a clip, prepared as below
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def images_code(seen: Preprocessing) -> str:
    """Python that makes ``images``."""
    if seen.frames:
        return CLIPS.format(frames=seen.frames, size=seen.size)
    return PIXELS.format(
        across=SQUASHED.format(ratio=seen.ratio) if seen.squash else SQUARE.format(ratio=seen.ratio),
        filter=seen.interpolation.upper(),
        size=seen.size,
        mean=list(seen.mean),
        std=list(seen.std),
    )


def preprocessing(seen: Preprocessing) -> str:
    """What images must go through, in words."""
    rows = [
        ["what is seen", _part(seen)],
        ["size", f"{seen.size} x {seen.size} pixels, {seen.interpolation} with antialiasing"],
        ["values", "RGB in [0, 1], minus mean, divided by std"],
        ["mean", ", ".join(f"{value:g}" for value in seen.mean)],
        ["std", ", ".join(f"{value:g}" for value in seen.std)],
    ]
    if seen.frames:
        rows.append(["frames", f"{seen.frames} from the middle of the clip"])
    return table(["", ""], rows)


def _part(seen: Preprocessing) -> str:
    if seen.squash:
        return f"the middle {100 * seen.ratio:.4g} % of both sides, squashed to a square"
    return f"the central square, {100 * seen.ratio:.4g} % of the shorter side"


def results(evaluation: dict[str, Any]) -> str:
    """Every number of evaluation.json with its interval, beside its baselines."""
    found = evaluation["results"]
    rows = []
    for trained in (one for one in found if one["encoder"] == "trained"):
        beside = [_beside(found, trained, who) for who in WHO]
        rows.append([_protocol(trained), f"{trained['layer']}, {trained['pooling']}", *map(_value, beside)])
    head = ("protocol", "layer, pooling", "this encoder", "the same untrained", "raw pixels")
    warnings = "".join(f"\n- {anonymous(text)}" for text in evaluation["warnings"])
    lines = [
        f"In % with 95 % intervals, top-1 accuracy where nothing else is named; {anonymous(evaluation['split'])}.",
        table(head, rows),
        "Intervals are of the choice of test images, not of the seed of training.",
    ]
    return "\n\n".join([*lines, f"Cautions:\n{warnings}"] if warnings else lines)


def settings(run: dict[str, Any]) -> str:
    """The whole configuration, folded away, without the folders of the machine that trained."""
    return (
        "<details><summary>All settings</summary>\n\n```json\n"
        + json.dumps(_plain(run), indent=2)
        + "\n```\n\n</details>"
    )


def anonymous(text: str) -> str:
    """Text with every path cut to its last name, of files and of splits with the folder above: no home is published."""
    return re.sub(r"[^\s,;:'\"]*/[^\s,;:'\"]+", lambda found: _short(found[0]), text)


def _short(path: str) -> str:
    parts = [part for part in Path(path).parts if part not in ("/", ".", "..", "~")]
    says_little = Path(path).suffix or parts[-1:] in ([split] for split in SPLITS)
    return "/".join(parts[-2:] if says_little else parts[-1:])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if name not in ("type", "out")}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return anonymous(value) if isinstance(value, str) else value


def _beside(found: list[dict[str, Any]], trained: dict[str, Any], who: str) -> dict[str, Any] | None:
    """The result of another encoder in the same protocol; raw pixels have no layers."""
    keys = ("protocol", "metric") if who == "pixels" else ("protocol", "metric", "layer", "pooling")
    for one in found:
        alike = one["encoder"] == who and variant(one["settings"]) == variant(trained["settings"])
        if alike and all(one[key] == trained[key] for key in keys):
            return one
    return None


def _protocol(result: dict[str, Any]) -> str:
    found = variant(result["settings"])
    metric = "" if result["metric"] == "top-1" else f", {result['metric']}"
    return result["protocol"] + (f", {found[0]}={found[1]}" if found else "") + metric


def _value(result: dict[str, Any] | None) -> str:
    return (
        "-"
        if result is None
        else f"{result['value']:.1f} ({result['ci_low']:.1f} to {result['ci_high']:.1f})"
    )
