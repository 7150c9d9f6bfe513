"""The sentence that opens a report, on reports made by hand."""

import numpy as np
import pandas as pd
import pytest

from rarlhf_nb.lab.evaluation.report import COLUMNS, Report, tail_metric

NAMES = {"tail_reward": "reward, prompts scored ≤ -1.5", "cvar_10": "CVaR 10 % of reward", "kl": "KL"}


def report(tails, differences=None, kl=None, metric="cvar_10"):
    """tails: method -> interval; differences: (method, baseline) -> interval; kl: method -> estimate."""
    rows = [(method, "", metric, *interval) for method, interval in tails.items()]
    rows += [(method, "", "kl", value, np.nan, np.nan) for method, value in (kl or {}).items()]
    rows += [(*pair, metric, *interval) for pair, interval in (differences or {}).items()]
    numbers = pd.DataFrame(rows, columns=COLUMNS)
    return Report(numbers, {key: name for key, name in NAMES.items() if key in set(numbers["metric"])}, ["A note."])


SFT, RLHF, RISK_AVERSE = (-2, -2.1, -1.9), (0.04, -0.2, 0.3), (0.52, 0.31, 0.7)


def test_a_clear_lead_over_rlhf():
    tails = {"sft": SFT, "rlhf": RLHF, "ra_rlhf_ru@0.2": RISK_AVERSE}
    differences = {
        ("sft", "rlhf"): (-2.04, -2.2, -1.8),
        ("ra_rlhf_ru@0.2", "rlhf"): (0.48, 0.22, 0.71),
        ("rlhf", "sft"): (2.04, 1.8, 2.2),
        ("ra_rlhf_ru@0.2", "sft"): (2.52, 2.4, 2.6),
    }
    assert report(tails, differences, {"sft": 0.0, "rlhf": 2.8, "ra_rlhf_ru@0.2": 3.1}).finding() == (
        "RA-RLHF (RU) α 0.2 has the best tail: its CVaR 10 % of reward is 0.52 [0.31, 0.70], 0.48 [0.22, 0.71] above "
        "RLHF; its KL from the SFT policy is 3.10 nats (RLHF: 2.80)."
    )


def test_without_rlhf_the_baseline_is_sft():
    found = report({"sft": SFT, "quark": RLHF}, {("quark", "sft"): (2.04, 1.8, 2.2)}).finding()
    assert (
        found == "Quark has the best tail: its CVaR 10 % of reward is 0.04 [-0.20, 0.30], 2.04 [1.80, 2.20] above SFT."
    )


@pytest.mark.parametrize(
    ("low", "high", "interval"),
    [(-0.1, 0.21, "0.05 [-0.10, 0.21]"), (0.0, 0.2, "0.05 [0.00, 0.20]"), (*[np.nan] * 2, "0.05")],
)
def test_a_lead_whose_interval_holds_0_or_is_missing(low, high, interval):
    found = report({"rlhf": RLHF, "ra_rlhf": RISK_AVERSE}, {("ra_rlhf", "rlhf"): (0.05, low, high)}).finding()
    assert found.endswith(f"[0.31, 0.70], ahead of RLHF by {interval}, which this run cannot tell from 0.")


@pytest.mark.parametrize(
    ("difference", "lead"),
    [
        ((-0.48, -0.71, -0.22), "0.48 [0.22, 0.71] above the runner-up RA-RLHF"),
        (
            (-0.48, -0.71, 0.1),
            "ahead of the runner-up RA-RLHF by 0.48 [-0.10, 0.71], which this run cannot tell from 0",
        ),
    ],
)
def test_the_baseline_itself_is_best(difference, lead):
    tails = {"sft": SFT, "rlhf": RISK_AVERSE, "ra_rlhf": RLHF}
    differences = {
        ("sft", "rlhf"): (-2.5, -2.6, -2.4),
        ("ra_rlhf", "rlhf"): difference,
        ("rlhf", "sft"): (2.5, 2.4, 2.6),
    }
    assert report(tails, differences, {"sft": 0.0, "rlhf": 2.8, "ra_rlhf": 3.1}).finding() == (
        f"RLHF has the best tail: its CVaR 10 % of reward is 0.52 [0.31, 0.70], {lead}; "
        "its KL from the SFT policy is 2.80 nats (RA-RLHF: 3.10)."
    )


def test_without_a_baseline_nothing_is_compared():
    found = report({"mine": RLHF, "yours": RISK_AVERSE}, kl={"mine": 1.0, "yours": 2.0}).finding()
    assert found == (
        "yours has the best tail: its CVaR 10 % of reward is 0.52 [0.31, 0.70]; "
        "its KL from the SFT policy is 2.00 nats."
    )


def test_a_lone_method():
    assert report({"rlhf": RLHF}, kl={"rlhf": 2.8}).finding() == (
        "Only RLHF has a measured tail: its CVaR 10 % of reward is 0.04 [-0.20, 0.30]."
    )


def test_kl_of_one_method_only():
    differences = {("ra_rlhf", "rlhf"): (0.48, 0.22, 0.71)}
    tails = {"rlhf": RLHF, "ra_rlhf": RISK_AVERSE}
    assert report(tails, differences, {"rlhf": np.nan, "ra_rlhf": 3.1}).finding().endswith("policy is 3.10 nats.")
    assert report(tails, differences, {"rlhf": 2.8, "ra_rlhf": np.nan}).finding().endswith("above RLHF.")


def test_without_cvar_the_tail_is_that_of_the_hard_prompts():
    nothing, some = (np.nan,) * 3, RLHF
    assert report({"rlhf": nothing, "sft": nothing}, metric="tail_reward").finding() == (
        "This run says nothing about the tail: its reward on prompts scored ≤ -1.5 has no value."
    )
    tails = {"rlhf": nothing, "sft": SFT, "ra_rlhf": some}
    differences = {("ra_rlhf", "rlhf"): nothing, ("ra_rlhf", "sft"): (2.04, 1.8, 2.2)}
    assert report(tails, differences, metric="tail_reward").finding() == (
        "RA-RLHF has the best tail: its reward on prompts scored ≤ -1.5 is 0.04 [-0.20, 0.30], "
        "2.04 [1.80, 2.20] above SFT."
    )


def test_the_metric_of_the_tail():
    assert tail_metric(["reward", "cvar_1", "cvar_10", "cvar_20"]) == "cvar_10"
    assert tail_metric(["tail_reward", "cvar_40", "cvar_5"]) == "cvar_5"
    assert tail_metric(["reward", "tail_reward"]) == "tail_reward"


def test_it_opens_every_form_of_the_report_and_is_escaped():
    found = report({"<b>|": RLHF, "<i>": SFT}, kl={"<b>|": 1.0, "<i>": 1.0})
    assert found.finding().startswith("<b>| has")
    for text in (found.summary(), found.to_markdown()):
        assert text.startswith("&lt;b&gt;\\| has the best tail: its CVaR 10 % of reward is 0.04")
        assert "<i>" not in text
