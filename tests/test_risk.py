"""Risk against numbers worked by hand; `test_properties` has what holds for every input."""

import pytest
import torch

from rarlhf_nb.risk import (
    SoftRiskSchedule,
    cvar,
    drawn_above,
    inclusion_probabilities,
    kept_episodes,
    tail_count,
    var,
)

PAPER_SCHEDULES = [  # alpha, M, ⌈rho M⌉, {m: kept}, all at B = 128, n = 30, rho = 0.95
    (0.4, 194, 185, {1: 128, 30: 128, 31: 128, 50: 119, 100: 94, 150: 69, 184: 52, 185: 52, 194: 52}),
    (0.2, 288, 274, {30: 128, 50: 120, 100: 99, 150: 78, 194: 60, 273: 27, 274: 26, 288: 26}),
    (0.2, 452, 430, {30: 128, 50: 123, 100: 111, 194: 87, 429: 26, 430: 26, 452: 26}),
]


@pytest.mark.parametrize("alpha, iterations, reached_at, vector", PAPER_SCHEDULES)
def test_schedule_gives_the_papers_vectors(alpha, iterations, reached_at, vector):
    schedule = SoftRiskSchedule(128, alpha, iterations, warm_start=30, rho=0.95)
    assert schedule.reached_at == reached_at
    assert {m: schedule.kept(m) for m in vector} == vector
    counts = schedule.kept_counts()
    assert len(counts) == iterations and counts == sorted(counts, reverse=True)


def test_counts_are_guarded_against_round_off():
    assert (tail_count(0.2, 5), tail_count(0.07, 100), tail_count(0.1, 30), tail_count(0.001, 8)) == (1, 7, 3, 1)
    assert SoftRiskSchedule(10, 0.1, 10, 0, 0.7).reached_at == 7
    assert (tail_count(5 / 6, 6), tail_count(1 / 3, 3), tail_count(0.2, 10**400)) == (5, 1, 2 * 10**399)
    assert SoftRiskSchedule(10, 0.1, 10**400, 0, 0.7).kept(10**399) == 9


def test_nan_and_empty_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        cvar([1.0, float("nan")], 0.5)
    with pytest.raises(ValueError, match="empty"):
        var([], 0.5)
    with pytest.raises(ValueError, match="NaN"):
        kept_episodes(torch.tensor([1.0, float("nan")]), 1)


def test_what_is_drawn_above_var_stands_for_all_of_it():
    rewards = torch.tensor([3.0, 1.0, 3.0, 0.0, 5.0], dtype=torch.float64)  # kept: 1, 3 and, of the tied ones, 0
    sizes = torch.tensor([2.0, 9.0, 5.0, 9.0, 1.0])
    # above the two lowest, in the order of their rewards: 0, 2 and 4, whose sizes are 2, 5 and 1 of 8
    for number, drawn in [(0.1, [0.0, 0.0, 8.0]), (0.2, [0.0, 8 / 5, 0.0]), (0.8, [8 / 2, 0.0, 0.0])]:
        weights = drawn_above(rewards, sizes, 2, 0.3, number)
        assert weights.tolist() == pytest.approx([drawn[0], 1.0, drawn[1], 1.0, drawn[2]])
    numbers = (torch.arange(4000) + 0.5) / 4000
    for kept, share, count in [(1, 0.5, 2), (2, 0.3, 1), (3, 0.5, 1)]:
        for own in (sizes, torch.zeros(5)):
            draws = torch.stack([drawn_above(rewards, own, kept, share, number.item()) for number in numbers])
            assert ((draws > 0).sum(1) == kept + count).all()
            torch.testing.assert_close(draws.mean(0), torch.ones(5, dtype=torch.float64), atol=5e-3, rtol=0)
    for kept, share in [(2, 1.0), (5, 0.1)]:
        assert drawn_above(rewards, sizes, kept, share, 0.3).tolist() == [1.0] * 5


def test_who_has_the_largest_size_is_drawn_for_certain():
    chances = inclusion_probabilities(torch.tensor([8.0, 1.0, 2.0, 1.0]), 2)
    assert chances.tolist() == [1.0, 0.25, 0.5, 0.25]
    assert inclusion_probabilities(torch.tensor([0.0, 0.0, 3.0]), 2).tolist() == [0.5, 0.5, 1.0]
