"""The benchmarks' tables over seeds and at equal KL, against numbers worked out by hand."""

from itertools import product

import pandas as pd

from benchmarks import real_model
from benchmarks.risk_comparison import METHODS, equal_kl_table, own_kl_table, seed_table
from rarlhf_nb.lab.methods import method_name


def runs(*rows):
    """Rows of (method, seed, kl_coef, KL, reward, CVaR 10 %)."""
    columns = ["method", "seed", "kl_coef", "KL", "reward", "CVaR 10 %"]
    return pd.DataFrame(rows, columns=columns).assign(budget="iterations")


# RLHF's curve of seed s rises from s at 1 nat to s + 2 at 3 nats, and its CVaR from -s to 4 - s
CURVE = [row for s in range(1, 5) for row in [("rlhf", s, 0.4, 1.0, s, -s), ("rlhf", s, 0.2, 3.0, s + 2.0, 4.0 - s)]]
# mean 0.5, standard deviation 0.1: t(2) = 4.303, so the interval reaches 4.303 x 0.1 / sqrt(3) = 0.248 to either side
GAINS = {1: 0.4, 2: 0.5, 3: 0.6}


def test_at_its_own_kl_a_method_meets_the_point_of_rlhfs_curve_between_two_betas():
    # at 2 nats the curves stand at s + 1 and 2 - s
    own = [("ra_rlhf_ru", s, 0.2, 2.0, s + 1 + gain, 2.0 - s - gain) for s, gain in GAINS.items()]
    outside = ("ra_rlhf_ru", 4, 0.2, 3.5, 100.0, 100.0)  # where RLHF of that seed never was
    table = own_kl_table(runs(*own, outside), runs(*CURVE), method_name)
    assert table.to_dict("index") == {
        "RA-RLHF (RU): minus RLHF": {
            "KL": "2.38",
            "seeds": "3",
            "reward": "+0.50 [+0.25, +0.75]",
            "CVaR 10 %": "-0.50 [-0.75, -0.25]",
        }
    }
    few = own_kl_table(runs(*own[:2]), runs(*CURVE), method_name)
    assert few.loc["RA-RLHF (RU): minus RLHF", ["seeds", "reward"]].tolist() == ["2", "–"]


def test_at_a_chosen_kl_both_methods_are_read_off_their_curves():
    # at 2 nats, halfway between its points, the other curve is `gain` above RLHF's in both measures
    own = [
        (method, s, kl_coef, 2 + step / 2, s + 1 + gain + step, 2 - s + gain + step)
        for method in METHODS[1:]
        for s, gain in GAINS.items()
        for kl_coef, step in ((0.4, -1.0), (0.2, 1.0))
    ]
    table = equal_kl_table(runs(*CURVE, *own), levels=[2.0, 2.75])  # the other curve ends before the second
    gain = "+0.50 [+0.25, +0.75]"
    assert table.to_dict("index") == {
        f"{method_name(method)}, KL 2": {"reward: minus RLHF": gain, "CVaR 10 %: minus RLHF": gain}
        for method in METHODS[1:]
    }


def test_over_seeds_methods_are_paired():
    # the seeds differ by far more than the methods
    own = [("ra_rlhf", s, 0.4, 1.0, s + gain, -s) for s, gain in GAINS.items()]
    plain = [row for row in CURVE if row[2] == 0.4 and row[1] in GAINS]
    table = seed_table(runs(*plain, *own), ["reward"])
    assert table["reward"].to_dict() == {
        "RLHF": "2.00",
        "RA-RLHF": "2.50",
        "RA-RLHF: minus RLHF": "+0.50 [+0.25, +0.75]",
    }


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
    assert ["RA-RLHF (RU): minus RLHF", "7", "7.5 to 7.5", "+1.00 [+1.00, +1.00]"] in cells
