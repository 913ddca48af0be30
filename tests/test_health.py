"""The verdict on a run's health, on metrics shaped like those of sound and of broken runs."""

import math

import numpy as np
import pytest

from visrep.analysis.health import State, diagnose
from visrep.analysis.signs import Gain

WIDTH, IMAGES = 128, 2000


def steps_of(losses, *, entropy=None, kl=None, lr=1e-3, warm_for=0, start=0):
    """One ``step`` record for each loss; scalars are constant, arrays are one value a step."""
    n = len(losses)
    spread = {"entropy": entropy, "kl": kl}
    spread = {name: np.broadcast_to(value, n) for name, value in spread.items() if value is not None}
    names = {"entropy": "teacher_entropy", "kl": "teacher_student_kl"}
    return [
        {
            "kind": "step",
            "step": start + i + 1,
            "epoch": i / 50,
            "loss": float(loss),
            "terms": {"main": float(loss)},
            "monitor": {names[name]: float(values[i]) for name, values in spread.items()},
            "schedules": {
                "lr": lr * min(1.0, (i + 1) / max(1, warm_for)),
                **({"tau_teacher": 0.07} if entropy is not None else {}),
            },
            "images_per_second": 1000.0,
            "seconds": 0.1,
        }
        for i, loss in enumerate(losses)
    ]


def epochs_of(*, spread, rank, knn=()):
    """One ``epoch`` record for each entry: ``spread`` = std * sqrt(d), ``rank`` = share of directions."""
    records = []
    for i, (s, r) in enumerate(zip(spread, rank, strict=True)):
        monitors = {
            "feature_std": s / math.sqrt(WIDTH),
            "rankme": r * WIDTH,
            "uniformity": -2.0 * s,
            "alignment": 0.3,
            "width": WIDTH,
            "images": IMAGES,
        }
        if knn:
            monitors["knn"] = knn[i]
        records.append({"kind": "epoch", "step": 50 * (i + 1), "epoch": i + 1.0, "monitors": monitors})
    return records


def taught(entropy, kl, *, in_use=None):
    """200 steps of a teacher with 128 prototypes: the loss is its entropy plus the student's divergence."""
    entropy, kl = np.broadcast_to(entropy, 200), np.broadcast_to(kl, 200)
    steps = steps_of(entropy * math.log(128) + kl, entropy=entropy, kl=kl)
    for record in steps:
        record["monitor"] |= {} if in_use is None else {"prototype_entropy": in_use}
    return steps


def projected(losses, spread):
    """Steps of a method that logs the spread of its projections."""
    steps = steps_of(losses)
    for record, value in zip(steps, spread, strict=True):
        record["monitor"]["projection_std"] = float(value)
    return steps


def falling(start, end, n=200, noise=0.02):
    curve = end + (start - end) * np.exp(-np.arange(n) / (n / 4))
    return curve + noise * np.random.default_rng(0).standard_normal(n)


LEARNED = epochs_of(spread=(0.5, 0.6, 0.7), rank=(0.2, 0.3, 0.4))


@pytest.mark.parametrize(
    ("name", "steps", "epochs", "state", "mentions"),
    [
        ("contrastive", steps_of(falling(6.2, 4.9)), LEARNED, "healthy", "6."),
        ("masked", steps_of(falling(1.0, 0.7)), epochs_of(spread=(0.2, 0.25), rank=(0.1, 0.1)),
         "healthy", "RankMe"),
        ("few directions, but more and more", steps_of(falling(12.4, 3.5)),
         epochs_of(spread=(0.15, 0.17, 0.17), rank=(0.125, 0.16, 0.165), knn=(31.0, 35.0, 37.0)), "healthy", "37.0 %"),
        ("few directions, and no use in more", steps_of(falling(12.4, 3.5)),
         epochs_of(spread=(0.15, 0.17, 0.17), rank=(0.125, 0.16, 0.165), knn=(31.0, 30.0, 31.0)),
         "dimensional collapse", "RankMe"),
        ("cosine loss below zero", steps_of(falling(-0.01, -0.9)), LEARNED, "healthy", "-0."),
        ("few useful directions", steps_of(falling(2.3, 0.1)),
         epochs_of(spread=(0.5, 0.8), rank=(0.2, 0.08), knn=(30.0, 80.0)), "healthy",
         "They are narrow and not collapsed: kNN rose from 30.0 to 80.0 %"),
        ("teacher's cross-entropy rises", taught(np.linspace(0.2, 0.7, 200), 0.5, in_use=0.8), LEARNED,
         "healthy", "teacher entropy"),
        ("one vector", steps_of(falling(0.0, -1.0)), epochs_of(spread=(0.01,), rank=(0.02,)),
         "complete collapse", "spread"),
        ("fell to one vector", steps_of(falling(0.0, -1.0)),
         epochs_of(spread=(0.6, 0.3, 0.05), rank=(0.2, 0.2, 0.2)), "complete collapse", "0.05"),
        ("one projection", projected(falling(-0.1, -1.0), np.linspace(0.17, 1e-3, 200)), LEARNED,
         "complete collapse", "projections 0.0"),
        ("projections stay apart", projected(falling(-0.1, -0.8), np.full(200, 0.15)), LEARNED, "healthy", "-0."),
        ("one-hot teacher", taught(np.linspace(1, 0, 200), np.linspace(1, 0, 200)), LEARNED,
         "complete collapse", "method.center_momentum"),
        ("one prototype for all", taught(0.05, 0.4, in_use=0.1), LEARNED, "complete collapse", "in use 0.100"),
        ("returned to uniform", taught(np.r_[np.full(60, 0.8), np.full(140, 0.999)], 1e-3), LEARNED,
         "complete collapse", "method.tau_teacher (0.07 now)"),
        ("uniform teacher, lost student", taught(np.r_[np.full(60, 0.3), np.full(140, 0.999)], 0.3), LEARNED,
         "complete collapse", "optim.lr"),
        ("blunt and the same for all", taught(np.r_[np.full(60, 0.3), np.full(140, 0.9)], 0.1, in_use=0.905),
         LEARNED, "complete collapse", "method.prototypes"),
        ("low rank", steps_of(falling(6.2, 3.0)), epochs_of(spread=(0.5, 0.5), rank=(0.02, 0.02)),
         "dimensional collapse", "method.views"),
        ("rank fell", steps_of(falling(6.2, 3.0)), epochs_of(spread=(0.5, 0.5), rank=(0.3, 0.08)),
         "dimensional collapse", "30.0 %"),
        ("low spread and rank", steps_of(falling(5.2, 3.9)), epochs_of(spread=(0.23, 0.2), rank=(0.09, 0.13)),
         "dimensional collapse", "optim.lr"),
        ("kNN gain within its error", steps_of(falling(6.2, 3.0)),
         epochs_of(spread=(0.5, 0.5), rank=(0.02, 0.02), knn=(15.0, 19.0)), "dimensional collapse", "RankMe"),
        ("worse than guessing", taught(0.6, np.linspace(0.9, 6.9, 200)), LEARNED, "diverging", "optim.lr"),
        ("few directions and hardly any spread", steps_of(falling(4.0, 0.97)),
         epochs_of(spread=(0.056,), rank=(0.01,)), "complete collapse", "optim.lr"),
        ("loss rises", steps_of(falling(1.0, 40.0)), LEARNED, "diverging", "optim.lr"),
        ("loss rises again", steps_of(np.r_[falling(6.2, 3.0, 100), np.linspace(3.0, 12.0, 100)]), LEARNED,
         "diverging", "best 3"),
        ("nothing happens", steps_of(falling(6.237, 6.236, noise=0.005)), LEARNED, "flat", "optim.lr"),
        ("teacher stays uniform", taught(0.999, np.linspace(0.05, 0.001, 200)), LEARNED,
         "flat", "method.prototypes"),
        ("still warming up", steps_of(falling(6.237, 6.236, noise=0.005), warm_for=400), LEARNED,
         "too early", "warming"),
        ("too few steps", steps_of(falling(6.2, 4.9, 20)), LEARNED, "too early", "50 steps"),
        ("nothing yet", [], [], "too early", "No step"),
    ],
)  # fmt: skip
def test_state_and_words(name: str, steps, epochs, state: State, mentions: str) -> None:
    verdict = diagnose(steps, epochs)
    assert verdict.state == state, verdict
    assert mentions in " ".join((verdict.evidence, verdict.cause, verdict.change)), verdict
    says_what_to_do = bool(verdict.cause and verdict.change)
    assert says_what_to_do == (state not in ("healthy", "too early")), verdict
    assert "nan" not in verdict.evidence + verdict.change, verdict


NARROW = epochs_of(spread=(0.11, 0.13), rank=(0.04, 0.04), knn=(33.0, 30.0))
"""as MaskFeat leaves them: few directions from the first measurement on, and kNN of a few images says nothing"""


def judged(start: float, end: float, n: int = 10_000, *, k: int = 20, who: str = "untrained") -> dict:
    """An evaluation of two layers, of which the first is far better."""
    values = [("trained", 4, end), (who, 4, start), ("trained", 2, 90.0), (who, 2, 10.0)]
    results = [
        {"protocol": "knn", "encoder": name, "layer": layer, "pooling": "mean", "value": value, "n_test": n,
         "settings": {"k": k}}
        for name, layer, value in values
    ]  # fmt: skip
    return {"results": results}


@pytest.mark.parametrize(
    ("evaluation", "state"),
    [
        (judged(27.3, 32.8), "healthy"),
        (judged(27.3, 32.8, n=300), "dimensional collapse"),  # two errors are 7.7 points
        (judged(27.3, 29.5), "dimensional collapse"),  # beyond its error of 1.3, and hardly any
        (judged(32.8, 27.3), "dimensional collapse"),
        (judged(27.3, 32.8, k=200), "dimensional collapse"),
        (judged(27.3, 32.8, who="pixels"), "dimensional collapse"),
        ({}, "dimensional collapse"),
    ],
)
def test_few_directions_that_the_labels_like_are_narrow(evaluation: dict, state: State) -> None:
    verdict = diagnose(steps_of(falling(0.07, 0.06, noise=0.002)), NARROW, evaluation)
    assert verdict.state == state
    said = "They are narrow and not collapsed: kNN finds 32.8 % of 10,000 images, 27.3 % with fresh weights"
    assert (said in verdict.evidence) == (state == "healthy")
    assert "use 4.0 % of the directions" in verdict.evidence


def test_an_evaluation_excuses_nothing_but_few_directions() -> None:
    one_vector = epochs_of(spread=(0.01, 0.01), rank=(0.02, 0.02))
    assert diagnose(steps_of(falling(0.0, -1.0)), one_vector, judged(20, 80)).state == "complete collapse"
    flat = steps_of(falling(6.237, 6.236, noise=0.005))
    assert diagnose(flat, NARROW, judged(20, 80)).state == "flat"
    wide = diagnose(steps_of(falling(6.2, 4.9)), LEARNED, judged(20, 80))
    assert wide.state == "healthy" and "narrow" not in wide.evidence


def test_the_error_is_that_of_the_images_asked() -> None:
    gain = Gain(15.0, 19.0, 500)
    right = np.random.default_rng(0).random((2, 4000, 500)) < 0.19  # two encoders that find 19 %
    assert gain.noise == pytest.approx(200 * np.std(right[0].mean(1) - right[1].mean(1)), rel=0.05)
    assert gain.points == 0 and Gain(15.0, 19.0, 5000).points == pytest.approx(4)
    epochs = epochs_of(spread=(0.5, 0.5), rank=(0.02, 0.02), knn=(15.0, 19.0))  # of 2,000 images, so of 500
    assert diagnose(steps_of(falling(6.2, 3.0)), epochs).state == "dimensional collapse"
    for record in epochs:
        record["monitors"]["queries"] = 5000
    assert diagnose(steps_of(falling(6.2, 3.0)), epochs).state == "healthy"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_and_term_at_once(bad: float) -> None:
    steps = steps_of([1.0, 0.9, 0.8])
    steps[-1] |= {"loss": bad, "terms": {"prediction": 0.8, "spread": bad}}
    verdict = diagnose(steps, [])
    assert verdict.state == "diverging"
    assert (
        "step 3" in verdict.evidence and "spread" in verdict.evidence and "prediction" not in verdict.evidence
    )


def test_knn_below_its_best_is_said_but_is_no_alarm() -> None:
    verdict = diagnose(
        steps_of(falling(6.2, 4.9)),
        epochs_of(spread=(0.5,) * 3, rank=(0.3,) * 3, knn=(20.0, 50.0, 40.0)),
    )
    assert verdict.state == "healthy"
    assert "50.0 %" in verdict.evidence and "epochs" in verdict.change


def test_a_short_spike_is_not_divergence() -> None:
    losses = falling(6.2, 4.9)
    losses[150] = 400.0
    assert diagnose(steps_of(losses), LEARNED).state == "healthy"
