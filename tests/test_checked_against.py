"""Every protocol, measure and explanation has a row in the docs that says what it was checked against."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist, pdist
from scipy.stats import entropy
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from test_explain import SECTIONS
from visrep.analysis.health import State
from visrep.analysis.inside.attention import patch_likeness
from visrep.analysis.measures.clusters import clid, cluster_learnability
from visrep.analysis.measures.intrinsic import two_nn
from visrep.analysis.measures.prototypes import code_entropy, prototype_entropy, prototype_use
from visrep.analysis.measures.registry import MEASURES
from visrep.analysis.pictures import token_colours
from visrep.analysis.similarity.registry import SIMILARITIES
from visrep.analysis.spectra import alignment, feature_std, uniformity
from visrep.cli.evaluate import evaluate
from visrep.evaluation import protocols
from visrep.evaluation.protocols import COPIES, KNOWN_AS, ORDER, check_protocols

DOCS = Path(__file__).parents[1] / "docs"


HOW_WELL = r"\de-\d|\d %|\b(the same|equal)\b"
"""an error, a percentage, or no difference: how well the two agree"""


def rows(page: str, after: str = "") -> list[list[str]]:
    """Cells of the rows of all tables of a page, below a heading."""
    text = (DOCS / page).read_text().partition(after)[2] if after else (DOCS / page).read_text()
    text = text.partition("\n## ")[0] if after else text
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


FEW = "knn:5"
"""stands for kNN with few labels, which is asked for by a number"""


def test_every_registered_protocol_can_be_asked_for() -> None:
    constants = [value for name, value in vars(protocols).items() if name.isupper()]
    tables = [value for value in constants if isinstance(value, dict) and value is not KNOWN_AS]
    assert {COPIES}.union(*tables) == set(ORDER) and len(ORDER) == len(set(ORDER)), "forgotten in ORDER"
    check_protocols((*ORDER, FEW))


def test_every_protocol_has_a_row() -> None:
    named = [(re.findall(r"`([^`]+)`", row[0]), row[-1]) for row in rows("protocols.md")]
    said = {name: last for names, last in named for name in names}
    assert not {*ORDER, FEW} - said.keys(), "without a row in docs/protocols.md"
    vague = {name: said[name] for name in (*ORDER, FEW) if not re.search(HOW_WELL, said[name])}
    assert not vague, (
        "checked against what, and how nearly equal? A number, or 'the same', or 'equal' says it"
    )


def test_the_help_names_every_protocol() -> None:
    """Those with @paper by what stands before it."""
    said = set(re.findall(r"[a-z0-9@:-]+", (evaluate.__doc__ or "").partition("protocols:")[2]))
    paper = (evaluate.__doc__ or "").partition("@paper")[2]
    for name in (*ORDER, FEW):
        protocol = name.removesuffix("@paper")
        assert protocol in said, f"visrep evaluate --help does not name {name}"
        assert not name.endswith("@paper") or protocol in paper.partition(". ")[0], name


def test_every_verdict_of_the_doctor_has_a_row() -> None:
    assert {row[0] for row in rows("diagnostics.md", "## The doctor")} == {"finding", *get_args(State)}


@pytest.mark.parametrize(
    ("page", "titles"),
    [("diagnostics.md", [m.title for m in MEASURES]), ("similarity.md", [s.title for s in SIMILARITIES])],
)
def test_every_measure_has_a_row(page: str, titles: list[str]) -> None:
    checked = [row for row in rows(page, "## Checked against") if row[0] != "measure"]
    said = "|".join(f"{row[0].lower()}, " for row in checked)
    missing = [title for title in titles if title.lower() not in said]
    assert not missing, f"not in the table of docs/{page}"
    assert all(row[1] and row[2] for row in checked)


def test_every_explanation_has_a_row() -> None:
    said = {row[0]: row[-1] for row in rows("inside.md")}
    assert all(len(said[title]) > 8 for title in SECTIONS), said


# --- checks of those that had none


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_measures_on_the_sphere_by_scipy_and_scikit_learn() -> None:
    x, y = drawn(60, 7) + 1, drawn(60, 7, seed=1) + 1
    a, b = (np.asarray(normalize(z.numpy())) for z in (x, y))
    assert alignment(x, y) == pytest.approx(cdist(a, b, "sqeuclidean").diagonal().mean(), abs=1e-12)
    assert uniformity(x) == pytest.approx(np.log(np.exp(-2 * pdist(a, "sqeuclidean")).mean()), abs=1e-9)
    assert feature_std(x) == pytest.approx(np.std(a, axis=0, ddof=1).mean(), abs=1e-12)


def test_prototype_measures_by_scipy() -> None:
    codes = drawn(40, 6).mul(2).softmax(1)
    p = codes.numpy()
    assert prototype_entropy(codes) == pytest.approx(entropy(p.mean(0), base=6), abs=1e-9)
    assert code_entropy(codes) == pytest.approx(entropy(p, axis=1, base=6).mean(), abs=1e-9)
    assert prototype_use(codes) == len(np.unique(p.argmax(1))) / 6


def test_clid_is_the_product_of_its_parts() -> None:
    x = drawn(150, 5)
    assert clid(x) == pytest.approx(cluster_learnability(x) * two_nn(x), rel=1e-12)


def test_colours_of_tokens_by_scikit_learn() -> None:
    """Three principal components of all tokens, signs and percentiles written out; 8 bits may be cut one apart."""
    tokens = (drawn(3, 12, 8) * torch.arange(8, 0, -1)).numpy()
    pca = PCA(3, svd_solver="full").fit(tokens.reshape(36, 8))
    scores = pca.transform(tokens.reshape(36, 8))
    for column, axis in enumerate(np.asarray(pca.components_)):
        if axis[np.abs(axis).argmax()] < 0:
            scores[:, column] *= -1
        low, high = np.percentile(scores[:, column], [1, 99])
        scores[:, column] = 255 * np.clip((scores[:, column] - low) / (high - low), 0, 1)
    found = token_colours(tokens, (3, 4)).astype(float)
    np.testing.assert_allclose(found, np.floor(scores).reshape(3, 3, 4, 3), atol=1)
    assert found.std() > 40


def test_likeness_to_a_patch_one_by_one() -> None:
    patches = drawn(2, 6, 5)
    found = patch_likeness(patches, (2, 3), 1, 0)
    for image in range(2):
        for place in range(6):
            expected = F.cosine_similarity(patches[image, place], patches[0, 3], dim=0)
            assert float(found[image, place // 3, place % 3]) == pytest.approx(float(expected), abs=1e-6)
