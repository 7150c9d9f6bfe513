"""Runs with the same settings are found."""

import numpy as np
import pandas as pd
import pytest

from rarlhf_nb.lab.evaluation.report import COLUMNS, Report
from rarlhf_nb.lab.evaluation.scores import alpha_scores, related_scores
from rarlhf_nb.lab.evaluation.tables import Tables
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.profiles import risk_of_method
from rarlhf_nb.lab.runs import Run


def leave_report(root, name, seed, kl_coef, rewards, alpha=0.4, epochs=4):
    # runs may differ in their sweeps (here in the alphas) and still belong together
    sweep = {"alphas": [seed / 10]}
    settings = {"name": "x", "risk": {"alpha": alpha}, "ppo": {"kl_coef": kl_coef, "epochs": epochs}, "sweep": sweep}
    run = Run.open(name, settings, seed, root)
    rows = [(method, "", "reward", value, 0.0, 1.0) for method, value in rewards.items()]
    rows += [(method, "", "cvar_10", np.nan, np.nan, np.nan) for method in rewards]
    names = {"reward": "reward", "cvar_10": "CVaR 10 %"}
    run.write("report.json", Report(pd.DataFrame(rows, columns=COLUMNS), names, []).to_json())
    return run


def test_runs_are_related_when_only_the_seed_or_what_is_free_differs(tmp_path):
    run = leave_report(tmp_path, "a", 1, 0.2, {"rlhf": 1.0, "ra_rlhf": 2.0})
    leave_report(tmp_path, "b", 2, 0.2, {"rlhf": 3.0, "ra_rlhf": 3.5})
    leave_report(tmp_path, "c", 1, 0.4, {"rlhf": 9.0})
    leave_report(tmp_path, "d", 3, 0.2, {"rlhf": 9.0}, alpha=0.2)
    Run.open("unfinished", {"name": "x"}, 4, tmp_path)
    scores = related_scores(run)
    assert scores[["run", "seed", "method", "reward"]].to_numpy().tolist() == [
        ["a", 1, "rlhf", 1.0],
        ["a", 1, "ra_rlhf", 2.0],
        ["b", 2, "rlhf", 3.0],
        ["b", 2, "ra_rlhf", 3.5],
    ]
    assert np.isnan(scores["cvar_10"]).all()
    over_beta = related_scores(run, free=["ppo.kl_coef"])
    assert over_beta["run"].unique().tolist() == ["a", "b", "c"] and set(over_beta["kl_coef"]) == {0.2, 0.4}
    leave_report(tmp_path, "e", 1, 0.2, {"rlhf": 5.0}, epochs=2)
    over_epochs = related_scores(run, free=["ppo.epochs"])
    assert over_epochs.loc[over_epochs["method"] == "rlhf", "ppo.epochs"].tolist() == [4, 4, 2]
    assert related_scores(run)["run"].unique().tolist() == ["a", "b"]
    leave_report(tmp_path, "f", 1, 0.2, {"rlhf": 5.0}, epochs={"nested": 1})  # as policy.lora is
    nested = related_scores(run, free=["ppo.epochs"])
    assert nested.loc[nested["method"] == "rlhf", "ppo.epochs"].tolist()[-1] == "{'nested': 1}"


def test_a_sweep_trains_both_estimators_at_every_alpha_once(tmp_path, monkeypatch):
    monkeypatch.setattr("rarlhf_nb.lab.runs.default_root", lambda: tmp_path)
    experiment = Experiment.open("pocket", "swept", 1, {"sweep.alphas": [0.4, 0.25]})  # 0.4 is the profile's own
    assert experiment.risk_methods() == ["ra_rlhf", "ra_rlhf_ru", "ra_rlhf@0.25", "ra_rlhf_ru@0.25"]
    settings = [risk_of_method(experiment.profile.risk, method) for method in experiment.risk_methods()]
    assert [risk.alpha for risk in settings] == [0.4, 0.4, 0.25, 0.25]
    assert [risk.estimator for risk in settings[2:]] == ["tail_selection", "rockafellar_uryasev"]
    alone = Experiment.open("pocket", "alone", 1, {"sweep.alphas": []})
    assert alone.risk_methods() == ["ra_rlhf", "ra_rlhf_ru"]


def test_the_alphas_of_one_run_are_scored_as_their_episodes():
    def episodes(*rewards, **columns):
        return pd.DataFrame({"reward": rewards, "kl": [1.0, 3.0], **columns})

    found = alpha_scores(
        Tables(
            {name: episodes(place, place + 1.0) for place, name in enumerate(["sft", "rlhf", "ra_rlhf_ru", "grpo"])}
            | {"ra_rlhf@0.2": episodes(-5.0, 5.0)},
            {},
            {},
            {},
            {"conditioned": pd.concat([episodes(7.0, 8.0, alpha=1.0), episodes(6.0, 9.0, alpha=0.25)])},
        ),
        profile_alpha=0.4,
        seed=3,
    )
    expected = {
        "rlhf": [1.0, 1.5],
        "ra_rlhf_ru@0.4": [2.0, 2.5],
        "ra_rlhf@0.2": [-5.0, 0.0],
        "conditioned@0.25": [6.0, 7.5],
        "conditioned@1": [7.0, 7.5],
    }
    scores = found.set_index("method")[["cvar_10", "reward"]].T.to_dict("list")
    assert scores == {method: pytest.approx(values) for method, values in expected.items()}
    assert set(found["kl"]) == {2.0} and set(found["seed"]) == {3}


def test_no_report_no_scores(tmp_path):
    assert related_scores(Run.open("a", {"ppo": {"kl_coef": 1}}, 1, tmp_path)).empty
