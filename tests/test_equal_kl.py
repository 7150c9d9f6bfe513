"""What a method gains at equal KL, against a line without noise and against the slow way to fit one with noise."""

import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rarlhf_nb.lab.evaluation.scores import gain_at_equal_kl
from rarlhf_nb.lab.evaluation.sweep_report import build_sweep_report

GAIN = 0.5


def scores(noise=0.0, seeds=5, kl_coefs=(0.1, 0.2), **columns):
    """Runs of RLHF and RU whose reward is that of their seed, plus 2 √KL and, for RU, GAIN."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        product(("rlhf", "ra_rlhf_ru"), range(1, seeds + 1), kl_coefs), columns=["method", "seed", "kl_coef"]
    ).assign(kl=lambda runs: rng.uniform(1, 9, len(runs)))
    gains = GAIN * (table["method"] == "ra_rlhf_ru") + noise * rng.normal(size=len(table))
    return table.assign(
        reward=10.0 * table["seed"] + 2 * np.sqrt(table["kl"]) + gains, run=range(len(table)), **columns
    )


def at_equal_kl(found):
    """Those rows of the report's JSON."""
    return [row for row in json.loads(found.to_json())["numbers"] if row["kl_coef"] is None]


def gain(table):
    return gain_at_equal_kl(table, "reward", "ra_rlhf_ru", "rlhf")


def test_seed_and_kl_are_taken_out():
    assert gain(scores()) == pytest.approx((GAIN, GAIN, GAIN))
    backwards = gain_at_equal_kl(scores(), "reward", "rlhf", "ra_rlhf_ru")
    assert backwards == pytest.approx((-GAIN, -GAIN, -GAIN))
    others = scores().assign(method="quark", reward=-100.0)
    lost = scores().assign(reward=np.nan)
    assert gain(pd.concat([scores(), others, lost])) == pytest.approx(gain(scores()))


def test_the_interval_is_that_of_the_regression():
    table = scores(noise=1.0)
    # Frisch and Waugh: what seed and KL leave of the reward, regressed on what they leave of the method
    nuisance = np.column_stack([np.sqrt(table["kl"]), pd.get_dummies(table["seed"])]).astype(float)
    reward, method = (
        target - nuisance @ np.linalg.lstsq(nuisance, target)[0]
        for target in (table["reward"].to_numpy(), (table["method"] == "ra_rlhf_ru").to_numpy(dtype=float))
    )
    value = reward @ method / (method @ method)
    freedom = 20 - 7  # runs; five seeds, the slope and the gain
    error = np.sqrt(np.square(reward - value * method).sum() / freedom / (method @ method))
    half = stats.t.ppf(0.975, freedom) * error
    assert half > 0.1
    assert gain(table) == pytest.approx((value, value - half, value + half))


@pytest.mark.parametrize(
    "table",
    [
        scores()[lambda runs: runs["method"] == "rlhf"],
        scores(seeds=1, kl_coefs=(0.2,)),
        scores(seeds=1, kl_coefs=(0.1, 0.2))[:3],
        scores().assign(kl=lambda runs: runs["kl"] + 10 * (runs["method"] == "rlhf")),
    ],
    ids=["one method", "one run of each", "as many unknowns as runs", "no KL in common"],
)
def test_runs_that_say_nothing_about_it_give_no_number(table):
    assert np.isnan(gain(table)).all()


def test_the_report_of_a_sweep_over_beta_compares_at_equal_kl():
    table = scores(tail_reward=0.0)
    found = build_sweep_report(table)
    gain = {"runs": "10", "reward": "0.50 [0.50, 0.50]", "tail reward": "0.00 [0.00, 0.00]"}
    assert found.sections()["At equal KL"].to_dict("index") == {"RA-RLHF (RU) minus RLHF": gain}
    assert "**At equal KL**" in found.to_markdown()
    assert any(note.startswith("At equal KL: a reward is fitted") for note in found.notes)
    row = at_equal_kl(found)[0]
    assert (row["method"], row["baseline"], row["metric"], row["runs"]) == ("ra_rlhf_ru", "rlhf", "reward", 10)
    assert [row["value"], row["low"], row["high"]] == pytest.approx([GAIN] * 3)

    two = [scores(tail_reward=0.0, **{"ppo.epochs": epochs}) for epochs in (2, 4)]
    found = build_sweep_report(pd.concat(two))
    titles = [title for title in found.sections() if "equal" in title]
    assert titles == ["At equal KL, ppo.epochs 2", "At equal KL, ppo.epochs 4"]
    assert [row["ppo.epochs"] for row in at_equal_kl(found)] == [2, 2, 4, 4]


@pytest.mark.parametrize(
    "table",
    [
        scores(kl_coefs=(0.2,)),
        scores()[lambda runs: runs["method"] == "ra_rlhf_ru"],
        scores().assign(**{"ppo.epochs": lambda runs: 10 * runs["kl_coef"]}),
    ],
    ids=["one beta", "no RLHF", "beta moves with another setting"],
)
def test_without_a_comparison_at_equal_kl_the_report_says_what_is_missing(table):
    found = build_sweep_report(table.assign(tail_reward=0.0))
    assert not any("equal" in title for title in found.sections()) and not at_equal_kl(found)
    assert any("with several values of ppo.kl_coef in its grid" in note for note in found.notes)


def test_if_kl_was_not_measured_nothing_is_said_of_it():
    without = build_sweep_report(scores(tail_reward=0.0).drop(columns="kl"))
    assert "equal KL" not in without.to_markdown()
