"""Every method file keeps the promises of conformance.py, and the checks catch methods that do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance import (
    CHECKS,
    VISIBLE_ONLY,
    Case,
    Outcome,
    check_hidden_pixels,
    check_no_loop_over_images,
    check_ranks,
    on_two_ranks,
)
from visrep.encoders.vit import VisionTransformer
from visrep.masking import unit_mask
from visrep.method import Tokens
from visrep.methods import DEFAULTS, method_files, preset
from visrep.methods.masked import simmim

NAMES = tuple(method_files())
HIDING = (
    *(name for name, file in method_files().items() if file.parent.name in ("masked", "predictive")),
    *("ibot", "dinov2", "dinov3", "simdinov2"),
)
"""methods that hide patches, and two that are beside them"""

TOY = '''
"""Toy: views of one image should be alike, and of others not. arXiv:0000.00000."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from visrep.config import Optim, Run
from visrep.distributed import gather, mean_over_ranks
from visrep.encoders import ViT
from visrep.method import At, Batch, Encoder, Losses, Method
from visrep.schedules import Constant
from visrep.views import TwoViews, View


@dataclass(frozen=True, kw_only=True)
class Config:
    encoder: ViT = ViT(image=32, patch=8, width=32, depth=1, heads=2)
    views: TwoViews = TwoViews(View(size=32), View(size=32))
    w_spread: float = 1.0


@final
class Toy(Method):
    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        self.backbone = cfg.encoder.build()
        self.register_buffer("mean", torch.zeros(self.backbone.width))
        self.calls = 0

    @property
    def encoder(self) -> Encoder:
        return self.backbone

    def loss(self, batch: Batch, at: At) -> Losses:
        z = self.backbone(batch.crops[0].flatten(0, 1)).pool().unflatten(0, (2, -1)) - self.mean
        everyone = gather(z.transpose(0, 1)).transpose(0, 1)
        spread = self.cfg.w_spread * (1 - everyone.std(1, correction=0)).relu().mean()
        alike = (z[0] - z[1]).square().mean()
        return Losses({"alike": alike, "spread": spread}, carry={"mean": z.detach().mean((0, 1))[None]})

    def after_step(self, at: At, carry: Mapping[str, Tensor]) -> None:
        self.mean.lerp_(mean_over_ranks(carry["mean"].mean(0)), 0.01)


def tiny() -> Run[Config]:
    return Run(method=Config(), optim=Optim(lr=Constant(1e-3)), batch=16)
'''

FAULTS = {
    "losses": ('carry={"mean": z.detach()', 'carry={"mean": z'),
    "loss_is_pure": ("        spread = self", "        self.mean.add_(1)\n        spread = self"),
    "half_precision": ("        alike = (z[0] - z[1])", "        alike = (z[0] - z[1]).bfloat16()"),
    "after_step": (
        "        self.mean.lerp_",
        "        self.backbone.norm.bias.data.add_(1)\n        self.mean.lerp_",
    ),
    "gradients": ("        self.calls = 0", "        self.unused = nn.Linear(3, 3)"),
    "config_is_read": ("    w_spread: float = 1.0", "    w_spread: float = 1.0\n    sharpness: float = 2.0"),
    "labels_cannot_leak": (
        "        alike =",
        "        z = z + (0 if batch.labels is None else batch.labels.sum())\n        alike =",
    ),
    "order_of_images": ("        alike = (z[0]", "        alike = (z[0] * torch.arange(len(batch))[:, None]"),
    "exact_resume": (
        "        self.mean.lerp_",
        "        self.calls += 1\n        self.mean.add_(self.calls)\n        self.mean.lerp_",
    ),
    "learns": ("self.cfg.w_spread *", "0 * self.cfg.w_spread *"),
    "presets": ("def tiny() -> Run[Config]:", "def small() -> Run[Config]:"),
}

WORDS = {
    "losses": "holds on to the graph",
    "loss_is_pure": "loss changes state: \\['mean'\\]",
    "half_precision": "'alike' is computed in torch.bfloat16",
    "after_step": "the optimiser owns: \\['backbone.norm.bias'\\]",
    "gradients": "unused.weight gets no gradient",
    "config_is_read": "sharpness",
    "labels_cannot_leak": "depends on labels",
    "order_of_images": "alike",
    "exact_resume": "differs in .*'mean'",
    "learns": "collapsed",
    "presets": "no preset 'tiny'",
}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Outcome]]:
    return on_two_ranks((*NAMES, toy(tmp_path_factory.mktemp("toy"))), tmp_path_factory.mktemp("ranks"))


def toy(folder: Path, old: str = "", new: str = "") -> str:
    """A method file of the user's own, with one thing changed; a name of its own, as modules are cached."""
    file = folder / f"toy_{abs(hash((str(folder), new)))}.py"
    assert old in TOY
    file.write_text(TOY.replace(old, new) if old else TOY)
    return str(file)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_method(name: str, check: str) -> None:
    CHECKS[check](Case(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_default_preset_is_never_tiny(name: str) -> None:
    _, chosen, run = preset(name)
    assert chosen in DEFAULTS and run == preset(f"{name}:{chosen}")[2] != preset(f"{name}:tiny")[2]


def test_default_preset_of_a_users_file(tmp_path: Path) -> None:
    """Its first besides tiny, whatever it is called; tiny where there is no other."""
    assert preset(toy(tmp_path))[1] == "tiny"
    other = "def photos() -> Run[Config]:\n    return tiny()\n\n\ndef tiny() -> Run[Config]:"
    (tmp_path / "below").mkdir()
    assert preset(toy(tmp_path, "def tiny() -> Run[Config]:", other))[1] == "photos"
    file = Path(toy(tmp_path / "below"))
    file.write_text(file.read_text() + "\n\ndef photos() -> Run[Config]:\n    return tiny()\n")
    assert preset(str(file))[1] == "photos"


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_equal_one(name: str, two_ranks: list[dict[str, Outcome]]) -> None:
    check_ranks(Case(name), two_ranks)


@pytest.mark.parametrize("name", VISIBLE_ONLY)
def test_hidden_pixels_are_not_seen(name: str) -> None:
    check_hidden_pixels(Case(name))


def test_hidden_pixels_that_are_seen_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a method whose encoder gets whole images, and by an encoder whose tokens know more than it was asked for."""
    with pytest.raises(AssertionError, match="sees all patches"):
        check_hidden_pixels(Case("simclr"))
    forward = VisionTransformer.forward

    def leaking(self: VisionTransformer, images: Tensor, **how: Any) -> Tokens:
        found = forward(self, images, **how)
        return replace(found, patches=found.patches + 1e-3 * images.mean())

    monkeypatch.setattr(VisionTransformer, "forward", leaking)
    with pytest.raises(AssertionError, match="hidden pixels reach the patches"):
        check_hidden_pixels(Case("mae"))


@pytest.mark.parametrize("name", HIDING)
def test_masks_and_losses_do_not_loop_over_images(name: str) -> None:
    check_no_loop_over_images(Case(name))


def test_a_loop_over_images_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_by_one(noise: Tensor, ratio: float, scale: int) -> Tensor:
        return torch.cat([unit_mask(row[None], ratio, scale) for row in noise])

    monkeypatch.setattr(simmim, "unit_mask", one_by_one)
    with pytest.raises(AssertionError, match="for 16: loop over none"):
        check_no_loop_over_images(Case("simmim"))


@pytest.mark.parametrize("check", CHECKS)
def test_a_users_file_passes(check: str, tmp_path: Path) -> None:
    CHECKS[check](Case(toy(tmp_path)))


@pytest.mark.parametrize("check", CHECKS)
def test_checks_catch_faults(check: str, tmp_path: Path) -> None:
    old, new = FAULTS[check]
    with pytest.raises(AssertionError, match=WORDS[check]):
        CHECKS[check](Case(toy(tmp_path, old, new)))


def test_pictures_need_captions(tmp_path: Path) -> None:
    """One for each picture, which names no more columns than there are."""
    old = "    def after_step"
    draws = (
        "    def pictures(self, batch: Batch, at: At) -> dict[str, Tensor]:\n"
        '        return {"crops": batch.crops[0].transpose(0, 1).sigmoid()}\n\n' + old
    )
    for caption in ("", "Two crops of an image.", "Columns: a crop; another; a third."):
        said = f'    captions = {{"crops": "{caption}"}}\n\n' if caption else ""
        with pytest.raises(AssertionError, match="picture 'crops' has 2 columns: say in `captions`"):
            CHECKS["losses"](Case(toy(tmp_path, old, said + draws)))
    said = '    captions = {"crops": "Columns: a crop; another, of the same image."}\n\n'
    CHECKS["losses"](Case(toy(tmp_path, old, said + draws)))
