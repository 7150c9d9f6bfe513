"""The tables of the studies, over seeds and at equal KL, against numbers worked out by hand."""

from itertools import product

import pandas as pd
import pytest

from benchmarks import real_model
from benchmarks.studies import STUDIES
from benchmarks.study import RLHF, Way, equal_kl_table, seed_table, the_kept
from rarlhf_nb.lab.profiles import load_profile

# mean 0.5, standard deviation 0.1: t(2) = 4.303, so the interval reaches 4.303 x 0.1 / sqrt(3) = 0.248 to either side
GAINS = {1: 0.4, 2: 0.5, 3: 0.6}
COLUMNS = ["seed", "KL", "reward", "tail reward", "CVaR 10 %"]


def test_over_seeds_ways_are_paired():
    # the seeds differ by far more than the ways
    plain = pd.DataFrame({"seed": s, "reward": float(s)} for s in GAINS)
    ours = pd.DataFrame({"seed": s, "reward": s + gain} for s, gain in reversed(GAINS.items()))
    table = seed_table({"RLHF": plain, "RA-RLHF": ours}, {"RLHF": "RLHF", "RA-RLHF": "RLHF"}, ["reward"])
    assert table["reward"].to_dict() == {
        "RLHF": "2.00",
        "RA-RLHF": "2.50",
        "RA-RLHF: minus RLHF": "0.50 [0.25, 0.75]",
    }


def test_at_equal_kl_a_way_meets_the_line_through_all_runs():
    # a seed's rewards rise by 2 for each root of a nat; the other way is half a logit above that line
    plain = pd.DataFrame([(s, kl, s + 2 * kl**0.5, 0.0, 0.0) for s in GAINS for kl in (1.0, 4.0)], columns=COLUMNS)
    ours = pd.DataFrame([(s, 2.25, s + 3.5, 0.0, 0.0) for s in GAINS], columns=COLUMNS)
    table = equal_kl_table({"RLHF": plain, "RU": ours}, {"RLHF": "RLHF", "RU": "RLHF"})
    assert table.loc["RU: minus RLHF", ["runs", "KL", "reward"]].tolist() == ["3", "2.2 to 2.2", "0.50 [0.50, 0.50]"]


def test_equal_compute_counts_what_is_updated():
    profile = load_profile("pocket-imdb", {"risk.warm_start": 0, "risk.rho": 0.1, "ppo.iterations": 10})
    all_kept, fifth = RLHF["RLHF"].compute(profile), Way("ra_rlhf@0.2", updated=the_kept).compute(profile)
    # B 128, 4 epochs: 3 x 128 to sample and score, and 12 for each updated episode, of which the tail has ⌈0.2 x 128⌉
    assert all_kept == 10 * (3 * 128 + 12 * 128) and fifth == 10 * (3 * 128 + 12 * 26)
    # of 25 iterations, the first two keep 94 and 60: 25 x 384 + 12 x (94 + 60 + 23 x 26) = 18,624; of 26, 19,320
    assert all_kept == 19_200
    assert Way("ra_rlhf@0.2", updated=the_kept).iterations_for(all_kept, profile) == 25


@pytest.mark.parametrize("name", STUDIES)
def test_every_way_of_a_study_has_settings_and_something_to_be_compared_with(name):
    study = STUDIES[name]
    for way in study.ways.values():
        assert way.than in study.ways
        load_profile(study.profiles[0], study.overrides | way.overrides)


def test_the_report_on_a_real_model_holds_whole_seeds_only(tmp_path, capsys):
    acting = {real_model.CONDITIONED: [f"conditioned@{alpha:g}" for alpha in real_model.ALPHAS]}
    trainings = [
        (kl_coef, seed, method)
        for kl_coef, methods in real_model.TRAININGS.items()
        for seed, method in product([1, 2, 3, 4], methods)
    ]
    trainings.remove((0.05, 4, "ra_rlhf"))
    rows = [
        {"kl_coef": kl_coef, "seed": seed, "training": method, "method": key, "reward": seed + (method != "rlhf")}
        | {"KL": 0.5 / kl_coef if method == "rlhf" else 7.5}
        for kl_coef, seed, method in [real_model.START, *trainings]
        for key in acting.get(method, [method])
    ]
    rest = {"profile": "imdb-smollm2", "seconds": 1.0, "tail reward": 0.0, "CVaR 10 %": 0.0, "perplexity": 50.0}
    pd.DataFrame(rows).assign(**rest).to_csv(tmp_path / "imdb-smollm2.csv", index=False)
    real_model.report(tmp_path)
    out = capsys.readouterr().out.replace("\N{NO-BREAK SPACE}", " ")
    assert "## imdb-smollm2, β 0.05, 3 seeds" in out and "## imdb-smollm2, β 0.1, 4 seeds" in out
    # at equal KL: RLHF stands at 5 and at 10 nats, with one reward
    cells = [[cell.strip() for cell in line.split("|")[1:5]] for line in out.splitlines()]
    assert ["RA-RLHF (RU): minus RLHF", "7", "7.5 to 7.5", "1.00 [1.00, 1.00]"] in cells
