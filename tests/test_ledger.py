"""The ledger: published numbers beside ours, with the reason if the two do not compare."""

import json

import numpy as np
import pytest
from made_up import made_up_episodes

from rarlhf_nb.lab.evaluation.ledger import build_ledger, ledger_table
from rarlhf_nb.lab.evaluation.report import build_report
from rarlhf_nb.lab.profiles import load_profile


def made_up_report():
    table = made_up_episodes([0.0, 3.0], prompt_score=[-3.0, 1.0])
    return build_report({"rlhf": table}, {}, tail_threshold=-2.5, cvar_levels=[0.1], resamples=20)


def test_a_run_of_the_papers_profile_compares():
    ledger = build_ledger(made_up_report(), load_profile("imdb-gpt2"))
    row = ledger.query("published_for == 'imdb-gpt2' and method == 'rlhf' and metric == 'tail_reward'").squeeze()
    assert (row["published"], row["published_std"], row["ours"]) == (-1.96, 0.07, 0.0)
    assert row["difference"] == pytest.approx(1.96) and row["comparable"] and row["reason"] == ""
    missing = ledger.query("published_for == 'imdb-gpt2' and method == 'sft' and metric == 'reward'").squeeze()
    assert not missing["comparable"] and missing["reason"] == "not measured in this run"
    other = ledger.query("published_for == 'imdb-gptj' and method == 'rlhf' and metric == 'reward'").squeeze()
    assert not other["comparable"] and other["differs"] == ["policy.model", "ppo.iterations"]
    assert other["reason"].startswith("differs in policy, iterations; the draft's reference and SFT model were GPT-2")


def test_a_run_of_other_models_and_data_does_not():
    ledger = build_ledger(made_up_report(), load_profile("pocket-imdb"))
    assert not ledger["comparable"].any() and len(ledger) == 24  # 3 metrics, 4 methods, GPT-2 and GPT-J
    row = ledger.iloc[0]
    assert row["differs"][:4] == ["policy.model", "reward.model", "task.dataset", "task.prompt_length"]
    assert row["reason"].startswith("differs in policy, reward model, data set, prompt length, completion length, ")
    assert json.loads(ledger.to_json(orient="records"))[0]["differs"] == row["differs"]
    shown = ledger_table(ledger)
    assert shown["comparable"].str.startswith("no: differs in policy, reward model, ").all()
    assert shown["published"].iloc[2] == "1.26 ± 0.02" and shown["ours"].iloc[2].startswith("1.50 [")
    assert (shown.loc[ledger["ours"].isna(), "ours"] == "–").all()


@pytest.mark.parametrize(
    "change", [{"ppo.iterations": 100}, {"task.tail_threshold": -1.0}, {"sampling.completion_length": 60}]
)
def test_a_changed_profile_does_not(change):
    reasons = build_ledger(made_up_report(), load_profile("imdb-gpt2", change))["reason"]
    assert (reasons != "").all()


def test_each_published_number_stands_once():
    for profile, count in {"imdb-gpt2": 24, "jigsaw-gpt2": 16, "rtp-gpt2": 12}.items():
        ledger = build_ledger(made_up_report(), load_profile(profile))
        assert len(ledger) == count and not ledger.duplicated(["published_for", "method", "metric"]).any()
        assert np.isfinite(ledger["published"]).all()
