"""Protocols with exactly the published settings, and kNN with few labels: against scikit-learn and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from visrep.evaluation import attentive_efficient as efficient
from visrep.evaluation import linear_dino, linear_mae
from visrep.evaluation.attentive_efficient import attentive_efficient, attentive_efficient_as_published
from visrep.evaluation.features import Features
from visrep.evaluation.fewshot_ridge import fewshot_ridge
from visrep.evaluation.judging import judge
from visrep.evaluation.knn_fewlabels import FewLabelled
from visrep.evaluation.linear import fit
from visrep.evaluation.linear_dino import linear_dino_as_published, normal_linear
from visrep.evaluation.linear_mae import linear_mae_as_published
from visrep.evaluation.logreg import CS, logreg
from visrep.evaluation.probe_training import Published, batches, best_epoch, numbers_of
from visrep.evaluation.protocols import KNOWN_AS, ORDER, check_protocols, full_names, place, without_all
from visrep.evaluation.results import Inapplicable, score


def blobs(n: int, d: int, k: int, seed: int, spread: float = 1.5) -> tuple[Tensor, Tensor]:
    centres = torch.randn(k, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.arange(n) % k
    return centres[labels] + spread * noise, labels


def drawn(labels: Tensor, n: int, seed: int, draw: int) -> np.ndarray:
    """So many rows of each class."""
    rng = np.random.default_rng([seed, draw])
    known = labels.numpy()
    return np.concatenate([rng.permutation(np.flatnonzero(known == c))[:n] for c in np.unique(known)])


# --- kNN with few labels


@pytest.mark.parametrize(
    ("name", "each", "ks"), [("knn:5", 5, [5]), ("knn:25", 25, [10, 20, 25]), ("knn:10%", 6, [6])]
)
def test_knn_of_few_is_a_loop_of_scikit_learn(name: str, each: int, ks: list[int]) -> None:
    (x, y), (test, answers) = blobs(240, 6, 4, seed=1), blobs(90, 6, 4, seed=2)
    y, answers = 10 * y + 3, 10 * answers + 3
    found = FewLabelled.named(name)(x, y, test, seed=7)
    assert [p.settings["k"] for p in found] == ks
    for prediction in found:
        k, accuracies = int(prediction.settings["k"]), []
        for draw in range(5):
            rows = drawn(y, each, 7, draw)
            oracle = KNeighborsClassifier(
                k,
                weights=lambda d: np.exp((1 - d) / 0.07),  # pyright: ignore[reportArgumentType]
                metric="cosine",
                algorithm="brute",
            )
            expected = oracle.fit(x[rows].numpy(), y[rows].numpy()).predict(test.numpy())
            np.testing.assert_array_equal(prediction.predicted[draw].numpy(), expected)
            accuracies.append(100 * float((expected == answers.numpy()).mean()))
        result = score(prediction, answers, encoder="trained", layer=1, pooling="mean", n_train=240)
        assert result.value == pytest.approx(np.mean(accuracies))
        assert result.settings["sd_over_draws"] == pytest.approx(np.std(accuracies, ddof=1))
        assert result.ci_low < result.value < result.ci_high
        assert (result.protocol, result.n_train, result.settings["draws"]) == (name, 4 * each, 5)


def test_knn_of_few_is_asked_for_by_name() -> None:
    check_protocols(("knn:5", "knn:10%"))
    assert place("knn:5") == place("knn")
    for wrong in ("knn:", "knn:0", "knn:ten", "knn:100%"):
        with pytest.raises(ValueError, match="is no amount of labels"):
            check_protocols((wrong,))
    (x, y), (test, answers) = blobs(40, 6, 4, seed=1), blobs(20, 6, 4, seed=2)
    train, other = (
        Features({(1, "mean"): z.float()}, labels, torch.arange(len(z)))
        for z, labels in ((x, y), (test, answers))
    )
    how = {"device": torch.device("cpu"), "seed": 0}
    found, _ = judge("trained", train, other, ("knn:5", "linear-mae@paper"), **how)
    assert [(r.protocol, r.n_train) for r in found] == [("knn:5", 20), ("linear-mae@paper", 40)]


# --- few-shot ridge


def test_fewshot_ridge_is_big_visions() -> None:
    """Their formula, draw by draw: 1e-5 added to deviations, an eigendecomposition of the smaller Gram matrix."""
    (x, y), (test, _) = blobs(120, 60, 4, seed=1), blobs(90, 60, 4, seed=2)
    x[:, 3] = test[:, 3] = 2.0  # constant: divided by 1e-5
    test[::2, 3] = 2.0 + 1e-5
    found = fewshot_ridge(x, 10 * y + 3, test, seed=7)
    assert [p.settings["n"] for p in found] == [1, 5, 10, 25]
    assert [p.n_train for p in found] == [4, 20, 40, 100]
    for prediction in found:
        assert prediction.protocol == "fewshot-ridge" and prediction.predicted.shape == (3, 90)
        for draw in range(3):
            rows = drawn(y, int(prediction.settings["n"]), 7, draw)
            mean, std = x[rows].numpy().mean(0), x[rows].numpy().std(0) + 1e-5
            a, b = (
                np.pad((part - mean) / std, ((0, 0), (0, 1)), constant_values=100.0)
                for part in (x[rows].numpy(), test.numpy())
            )
            targets = 2.0 * np.eye(4)[y[rows].numpy()] - 1
            if len(a) >= a.shape[1]:
                values, q = np.linalg.eigh(a.T @ a)
                left, right = q, q.T @ (a.T @ targets)
            else:
                values, q = np.linalg.eigh(a @ a.T)
                left, right = a.T @ q, q.T @ targets
            expected = 10 * (b @ (left / (values + 1024)) @ right).argmax(1) + 3
            np.testing.assert_array_equal(prediction.predicted[draw].numpy(), expected)


def test_fewshot_ridge_leaves_out_what_classes_do_not_have() -> None:
    (x, y), (test, _) = blobs(40, 5, 4, seed=1), blobs(10, 5, 4, seed=2)
    found = fewshot_ridge(x, y, test)
    assert [p.settings["n"] for p in found] == [1, 5, 10]
    assert found[0].caution == "fewshot-ridge: the smallest class has 10 images, n=25 is left out."


# --- logistic regression


def test_logreg_is_scikit_learns_over_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same C by the same held-out images, and the same answers; features as they are."""
    assert len(CS) == 45 and CS == pytest.approx(np.logspace(-6, 5, 45))
    some = tuple(CS[step] for step in (2, 14, 20, 26, 32))
    monkeypatch.setattr("visrep.evaluation.logreg.CS", some)
    (x, y), (test, _) = blobs(400, 20, 3, seed=1, spread=2.5), blobs(150, 20, 3, seed=2, spread=2.5)
    scales = torch.logspace(-2, 0, 20, dtype=torch.float64)
    x, test = x * scales + 2, test * scales + 2
    order = torch.randperm(400, generator=torch.Generator().manual_seed(5)).numpy()
    held_out, fitted = order[:40], order[40:]

    def oracle(c: float, rows: np.ndarray) -> LogisticRegression:
        made = LogisticRegression(C=c, max_iter=100_000, tol=1e-10)
        return made.fit(x[rows].numpy(), y[rows].numpy())

    accuracies = [oracle(c, fitted).score(x[held_out].numpy(), y[held_out].numpy()) for c in some]
    (found,) = logreg(x, 10 * y + 3, test, seed=5)
    best = int(np.argmax(accuracies))
    assert accuracies[3] == accuracies[4] == max(accuracies) and best == 3, "the smaller one of equals"
    assert found.settings["C"] == some[best]
    assert found.settings["held_out"] == 40 and found.settings["converged"]
    assert found.settings["held_out_top1"] == pytest.approx(100 * accuracies[best])
    expected = oracle(some[best], order)
    np.testing.assert_array_equal(
        found.predicted.numpy(), 10 * np.asarray(expected.predict(test.numpy())) + 3
    )
    scores = fit(x, y, 3, some[best], tolerance=1e-8).logits(test).softmax(-1)
    np.testing.assert_allclose(scores, expected.predict_proba(test.numpy()), atol=1e-5)


def test_logreg_takes_the_whole_grid() -> None:
    (x, y), (test, answers) = blobs(120, 5, 3, seed=1), blobs(120, 5, 3, seed=2)
    (found,) = logreg(x.float(), y, test.float())
    assert found.settings["C"] in CS
    assert (found.predicted == answers).double().mean() > 0.6
    with pytest.raises(ValueError, match="at least 2 classes"):
        logreg(x, torch.zeros_like(y), test)


# --- the best epoch on the test images, as published

SHORT = Published(epochs=6, batch=16, lr=0.3, by_epoch=True)


def dino_epochs(x: Tensor, y: Tensor, test: Tensor, answers: Tensor) -> list[float]:
    """Accuracies after each epoch of a linear layer under SGD, written out."""
    rng = torch.Generator().manual_seed(3)
    layer = normal_linear(x.shape[1], 3, rng).to(x)
    weight, bias = layer.weight.data.clone(), layer.bias.data.clone()
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    accuracies: list[float] = []
    last = 0
    for epoch, rows in batches(len(x), SHORT, rng):
        if math.floor(epoch) > last:
            accuracies.append(float(((test @ weight.T + bias).argmax(1) == answers).double().mean()))
            last = math.floor(epoch)
        slope = (x[rows] @ weight.T + bias).softmax(1) - F.one_hot(y[rows], 3)
        lr = 0.3 * (1 + math.cos(math.pi * math.floor(epoch) / 6)) / 2
        for number, gradient in enumerate((slope.T @ x[rows] / len(rows), slope.mean(0))):
            speed[number] = 0.9 * speed[number] + gradient
        weight, bias = weight - lr * speed[0], bias - lr * speed[1]
    return [*accuracies, float(((test @ weight.T + bias).argmax(1) == answers).double().mean())]


def test_dino_as_published_reports_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_dino, "SCHEDULE", SHORT)
    (x, y), (test, answers) = blobs(48, 4, 3, seed=1), blobs(300, 4, 3, seed=2)
    x, test = x.float(), test.float()
    expected = dino_epochs(x, y, test, answers)
    best = int(np.argmax(expected))
    assert len(set(expected)) > 3 and best < 5, "the last epoch is not the best"
    sides = {(1, "mean"): x}, {(1, "mean"): test}
    (paper,) = linear_dino_as_published(sides[0], 10 * y + 3, sides[1], 10 * answers + 3, seed=3)
    assert paper.settings["epoch"] == best + 1 and paper.settings["chosen_on"] == "test images"
    assert float((paper.predicted == 10 * answers + 3).double().mean()) == pytest.approx(expected[best])
    assert "best of 6 epochs was chosen on the reported test images" in paper.caution
    (last,) = linear_dino.linear_dino(sides[0], y, sides[1], answers.roll(1), seed=3)
    assert float((last.predicted == answers).double().mean()) == pytest.approx(expected[-1])
    assert not last.caution


def test_mae_and_efficient_as_published_report_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained for 1, 2, ... epochs of the same schedule, each from the start, none does better on the test images."""
    schedule = Published(epochs=5, batch=16, lr=2.0)
    monkeypatch.setattr(linear_mae, "SCHEDULE", schedule)
    monkeypatch.setattr(efficient, "SCHEDULE", schedule)
    (x, y), (test, answers) = blobs(48, 4, 3, seed=1), blobs(300, 4, 3, seed=2)
    x, test = x.float(), test.float()

    def after(
        epochs: int,
        made: nn.Module,
        optimiser: torch.optim.Optimizer,
        rng: torch.Generator,
        sides: tuple[Tensor, Tensor],
    ) -> float:
        made.train()
        for epoch, rows in batches(48, schedule, rng):
            if epoch >= epochs:
                break
            for group in optimiser.param_groups:
                group["lr"] = schedule.lr_at(epoch)
            optimiser.zero_grad()
            F.cross_entropy(made(sides[0][rows]), y[rows]).backward()
            optimiser.step()
        return float((made.eval()(sides[1]).argmax(1) == answers).double().mean())

    tokens = x[:, None] + torch.zeros(1, 3, 1), test[:, None] + torch.zeros(1, 3, 1)
    for start, run, sides in (
        (linear_mae._start, linear_mae_as_published, (x, test)),
        (efficient._start, attentive_efficient_as_published, tokens),
    ):
        accuracies = [after(epochs, *start(sides[0], y.unique(), 3), sides) for epochs in range(1, 6)]
        assert len(set(accuracies)) > 1
        (paper,) = run(sides[0], y, sides[1], answers, seed=3)
        assert paper.settings["epoch"] == int(np.argmax(accuracies)) + 1
        found = float((paper.predicted == answers).double().mean())
        assert found == pytest.approx(max(accuracies), abs=0.004)
        assert "chosen on the reported test images" in paper.caution
        assert paper.protocol.endswith("@paper")
    assert attentive_efficient(tokens[0], y, tokens[1])[0].protocol == "attentive-efficient"


def test_epochs_whose_answers_are_not_finite_are_never_the_best() -> None:
    class Broken(nn.Module):
        """Answers, when it is judged, once its weights have grown to some size."""

        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            logits = x + self.shift
            return logits if self.training or float(self.shift.abs().sum()) > broken else logits * torch.nan

    x, y = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0])
    schedule = Published(epochs=3, batch=2, lr=1.0)

    def run() -> tuple[int, Tensor]:
        made = Broken()
        optimiser = torch.optim.SGD(made.parameters(), lr=1.0)
        return best_epoch(made, x, y, optimiser, schedule, torch.Generator().manual_seed(0), x, y)

    broken = -1.0
    assert run()[0] == 1
    broken = 0.6
    assert run()[0] == 2
    broken = 100.0
    with pytest.raises(Inapplicable, match="answers for 2 of 2 images"):
        run()


def test_labels_that_were_not_trained_on_are_never_right() -> None:
    assert numbers_of(torch.tensor([3, 9, 5, 1]), torch.tensor([3, 5])).tolist() == [0, -1, 1, -1]


# --- names


def test_names_of_papers_lead_to_protocols() -> None:
    for name, message in (
        ("dino", r"no protocol 'dino'\. Did you mean linear-dino or knn\? Use some of: knn"),
        ("DINOv2", r"mean linear-dinov2 or logreg or knn\?"),
        ("mae", r"mean linear-mae or finetune-mae\?"),
    ):
        with pytest.raises(ValueError, match=message):
            check_protocols(full_names((name,)))
    asked = (
        "AIM",
        "vjepa",
        "efficient@paper",
        "vjepa2@paper",
        "k-nn:5",
        "kmeans",
        "ridge",
        "attentive-aim",
        "all",
    )
    assert full_names(asked) == (
        "attentive-aim", "attentive-vjepa", "attentive-efficient@paper", "attentive-vjepa2@paper", "knn:5",
        "clustering", "fewshot-ridge", "all",
    )  # fmt: skip
    check_protocols(full_names(asked[:-1]))
    assert all(full_names((name,)) == (name,) for name in ORDER)
    assert all(meant in ORDER for names in KNOWN_AS.values() for meant in names)
    assert not set(KNOWN_AS) & set(ORDER)
    check_protocols(
        ("logreg", "fewshot-ridge", "linear-dino@paper", "linear-mae@paper", "attentive-efficient@paper")
    )
    every = without_all(("all",))[0]
    assert not {"logreg", "fewshot-ridge"} & set(every) and not [name for name in every if "@" in name]
    assert "logreg" in without_all(("all", "logreg"))[0]
