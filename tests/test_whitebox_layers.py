"""What layers of white-box encoders do: rates and sparsity as measured by the official code, curves, the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from test_golden import arrays
from test_report import Page, folder_of_images, write_run
from test_whitebox import SIZE, converted, normal, official
from visrep.analysis.report import report
from visrep.analysis.report_whitebox import layer_plot
from visrep.analysis.whitebox import is_whitebox, layer_curves
from visrep.encoders import CRATE, AoT, CRATEAlpha, ResNet, ToST, ViT, ViTLike
from visrep.encoders.crate import subspace_rate


def test_rates_and_sparsity_equal_the_official_measurement() -> None:
    gold, weights = official("crate")
    found = layer_curves(converted(weights, heads=3), gold["images"])
    np.testing.assert_allclose(found.rate.mean(1), gold["rate_mean"], rtol=1e-9)
    np.testing.assert_allclose(found.rate.std(1, ddof=1), gold["rate_std"], rtol=1e-9)
    np.testing.assert_allclose(1 - found.nonzero.mean(1), gold["zeros_mean"], rtol=1e-12)
    np.testing.assert_allclose(found.nonzero.std(1), gold["zeros_std"], rtol=1e-9)


def test_the_rate_is_a_log_determinant_in_each_subspace() -> None:
    u = normal(1, 2, 6, 4)
    expected = 0.0
    for head in u[0]:
        unit = (head / head.norm(dim=1, keepdim=True)).numpy()
        expected += 0.5 * np.linalg.slogdet(np.eye(4) + 4 / (6 * 0.01) * unit.T @ unit)[1]
    assert subspace_rate(u).item() == pytest.approx(expected, rel=1e-12)
    assert subspace_rate(5 * u).item() == pytest.approx(expected, rel=1e-12), "only directions count"


@pytest.mark.parametrize(
    ("config", "sparse"), [(CRATE(**SIZE), 2), (CRATEAlpha(**SIZE), 2), (ToST(**SIZE), 0), (AoT(**SIZE), 0)]
)
def test_every_layer_and_image_is_measured(config: ViTLike, sparse: int) -> None:
    torch.manual_seed(0)
    encoder, images = config.build().eval(), normal(40, 3, 16, 16).float()  # more than one batch
    found = layer_curves(encoder, images)
    assert found.rate.shape == (2, 40) and found.nonzero.shape == (sparse, 40)
    assert found.bound.shape == (2 * isinstance(config, ToST), 40)
    assert not len(found.bound) or (found.rate < found.bound).all()
    assert (found.rate > 0).all() and np.isfinite(found.rate).all()
    assert ((0 < found.nonzero) & (found.nonzero < 1)).all()
    alone = layer_curves(encoder, images[35:36])
    np.testing.assert_allclose(alone.rate[:, 0], found.rate[:, 35], rtol=1e-4)
    hooks = [m for m in encoder.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks, "nothing stays behind in the encoder"


def test_no_other_encoder_is_measured() -> None:
    images = torch.zeros(1, 3, 16, 16)
    for config in (ViT(**SIZE), AoT(**SIZE, attention="mhsa"), ResNet(18, width=4, stem="small")):
        encoder = config.build()
        assert not is_whitebox(encoder)
        with pytest.raises(ValueError, match=f"{type(config).__name__} is no white-box encoder"):
            layer_curves(encoder, images)


def test_curves_show_both_networks_and_their_spread() -> None:
    drawn = layer_plot(np.array([[3.0, 4.0], [1.0, 2.0]]), np.array([[3.0, 5.0], [2.0, 2.0]]))
    assert drawn.count("opacity: 0.15") == 2 and "untrained" in drawn
    flat = layer_plot(np.array([[3.0, 3.0], [1.0, 1.0]]), np.array([[3.0, 3.0], [2.0, 2.0]]))
    assert drawn != flat, "bands are drawn"


def test_the_report_of_a_white_box_run(tmp_path: Path) -> None:
    photos = folder_of_images(tmp_path / "photos", labelled=True)
    torch.manual_seed(0)
    for name, config in (
        ("crate", CRATE(image=32, patch=8, width=32, depth=3, heads=2)),
        ("tost", ToST(image=32, patch=8, width=32, depth=3, heads=2)),
    ):
        page = Page(report(write_run(tmp_path / name, config.build(), data=str(photos)), images=40))
        said = page.text["white-box-layers"]
        assert "Means of 40 images" in said and "of 2 steps" in said and "untrained" in said
        assert ("not zero" in said) == (name == "crate")
        assert ("The bound on it" in said) == (name == "tost")
        assert ("attention" in page.text) == (name == "crate"), "ToST has no maps to show"


def test_stored_numbers_are_not_trivial() -> None:
    gold = arrays("whitebox.npz", "crate.")
    assert gold["rate_mean"][0] != gold["rate_mean"][1] and (gold["rate_std"] > 0).all()
    assert (0.1 < gold["zeros_mean"]).all() and (gold["zeros_mean"] < 0.9).all()
