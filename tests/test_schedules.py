"""Schedules: pure functions of the moment, equal to the official ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from visrep.method import At
from visrep.schedules import Constant, Cosine, Line, Ramp, Schedule, Step, Warmup

GOLDEN = np.load(Path(__file__).parent / "golden" / "optim.npz")


def at(step: int, total: int = 35, steps_per_epoch: int = 7) -> At:
    return At(step, total, steps_per_epoch, torch.Generator())


def values(schedule: Schedule) -> np.ndarray:
    return np.array([schedule(at(step)) for step in range(35)])


def test_cosine_equals_official_dino():
    np.testing.assert_allclose(values(Cosine(0.996, 1.0)), GOLDEN["cosine_0.996_1_epochs5_it7"], rtol=1e-12)


def test_warmup_then_cosine_equals_official_dino():
    schedule = Warmup(epochs=2, then=Cosine(5e-4, 1e-6))
    np.testing.assert_allclose(
        values(schedule), GOLDEN["cosine_lr_5e-4_1e-6_warm2_epochs5_it7"], rtol=1e-12, atol=1e-18
    )


def test_ramp_is_a_line_then_flat():
    schedule = Ramp(0.04, 0.07, epochs=2)
    assert schedule(at(0)) == 0.04
    assert schedule(at(7)) == pytest.approx(0.055)
    assert schedule(at(14)) == schedule(at(34)) == pytest.approx(0.07)


def test_a_line_spans_the_run():
    assert [Line(0.99, 1.0)(at(step)) for step in (0, 7, 35)] == pytest.approx([0.99, 0.992, 1.0])


def test_ramp_of_no_epochs_is_its_end():
    assert Ramp(1.0, 2.0, epochs=0)(at(0)) == 2.0


def test_step_changes_at_its_epochs():
    schedule = Step((0.0, 1.0, 2.0), at_epochs=(1, 3))
    assert [schedule(at(step)) for step in (0, 6, 7, 20, 21)] == [0, 0, 1, 1, 2]


def test_step_needs_one_more_value_than_milestones():
    with pytest.raises(ValueError, match="Give 2 values"):
        Step((1.0,), at_epochs=(1,))


def test_a_long_warmup_is_cut_to_half_of_a_short_run():
    schedule = Warmup(epochs=40, then=Constant(1.0))
    assert schedule(at(17)) == 1.0
    assert schedule(at(0)) == 0.0


def test_at_draws_the_rows_of_its_rank():
    whole = At(0, 1, 1, torch.Generator().manual_seed(3)).rand(6, 2)
    halves = [
        At(0, 1, 1, torch.Generator().manual_seed(3), rank=rank, world=2).rand(3, 2) for rank in range(2)
    ]
    assert torch.equal(torch.cat(halves), whole)
