"""The report of a sweep over three seeds against numbers worked by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.metrics import seeds_needed
from rarlhf_nb.lab.evaluation.scores import distinct_scores, grid_settings
from rarlhf_nb.lab.evaluation.sweep_report import build_sweep_report
from rarlhf_nb.lab.glossary import glossary_table

HOSTILE = "<script>alert('|')</script>"
T2 = 4.302653  # t(2 degrees of freedom, 97.5 %)
TAILS = {  # method -> CVaR 10 % by seed
    "sft": [-3.0, -3.0, -3.0],
    "rlhf": [0.0, 1.0, 2.0],
    "ra_rlhf@0.4": [0.5, 1.5, 1.9],  # minus RLHF: 0.5, 0.5, -0.1
    "ra_rlhf_ru@0.2": [1.0, 1.5, 3.5],  # minus RLHF: 1.0, 0.5, 1.5
}


def scores(tails=None, kl_coef=0.2, **columns):
    rows = [
        {
            "run": f"{kl_coef}-{seed}",
            "seed": seed,
            "alpha": np.nan,
            "kl_coef": kl_coef,
            "method": method,
            "reward": tail + 1,
            "tail_reward": tail - 1,
            "cvar_10": tail,
            "kl": 0.0 if method == "sft" else 2.0 + seed,
            "perplexity": np.nan if method == "rlhf" and seed == 3 else 10.0 * seed,
        }
        for method, by_seed in (tails or TAILS).items()
        for seed, tail in enumerate(by_seed, start=1)
    ]
    return pd.DataFrame(rows).assign(**columns)


def rows(found, **wanted):
    """The rows of the report's JSON with the wanted entries."""
    return [row for row in json.loads(found.to_json())["numbers"] if wanted.items() <= row.items()]


def test_means_and_paired_differences_by_hand():
    found = build_sweep_report(scores())
    cells = found.tables()["kl_coef 0.2"]
    methods = ["SFT", "RLHF", "RA-RLHF α 0.4", "RA-RLHF (RU) α 0.2"]
    assert cells.index.tolist() == [*methods, *(f"{method} minus RLHF" for method in methods if method != "RLHF")]
    half = T2 / math.sqrt(3)
    assert cells.loc["RLHF", "CVaR 10 %"] == f"1.00 [{1 - half:.2f}, {1 + half:.2f}]"
    assert cells.loc["RLHF", "KL (nats)"] == f"4.00 [{4 - half:.2f}, {4 + half:.2f}]"
    assert cells.loc["RA-RLHF (RU) α 0.2 minus RLHF", "CVaR 10 %"] == f"1.00 [{1 - half / 2:.2f}, {1 + half / 2:.2f}]"
    assert cells.loc["SFT minus RLHF", "tail reward"] == f"-4.00 [{-4 - half:.2f}, {-4 + half:.2f}]"
    assert cells.loc["RLHF", "seeds"] == "3"
    # the one value that is missing leaves two: mean 15, standard error 5, t(1 degree of freedom) = 12.7062
    assert cells.loc["RLHF", "perplexity"] == f"15.00 [{15 - 5 * 12.7062:.2f}, {15 + 5 * 12.7062:.2f}]"


def test_every_two_rl_methods_are_compared_and_the_seeds_that_would_tell_them_apart():
    tails = TAILS | {"ra_rlhf@0.1": [-1.0, 0.01, 1.0], "ra_rlhf_ru@0.4": [0.0, 3.0, 0.0]}
    found = build_sweep_report(scores(tails))
    (others,) = found.sections().values()
    assert len(others) == 6 and not any("SFT" in pair for pair in others.index)
    assert others.loc["RA-RLHF (RU) α 0.2 minus RA-RLHF α 0.4", "CVaR 10 %"].startswith("0.70 [")  # 0.5, 0, 1.6
    needed = found.tables()["kl_coef 0.2"]["needed to tell them apart"]
    assert needed["RLHF"] == "" and needed["RA-RLHF α 0.1 minus RLHF"] == "told apart"  # -1, -0.99, -1
    expected = seeds_needed([0.5, 0.5, -0.1])
    assert 3 < expected < 50 and needed["RA-RLHF α 0.4 minus RLHF"] == f"{expected:.0f} seeds"
    assert needed["RA-RLHF (RU) α 0.4 minus RLHF"] == "more than 1,000,000 seeds"  # 0, 2, -2


def test_the_finding_says_what_these_seeds_can_tell():
    half = T2 / math.sqrt(3)
    unclear = f"ahead of RLHF by 1.00 [{1 - half / 2:.2f}, {1 + half / 2:.2f}], which this sweep cannot tell from 0"
    found = build_sweep_report(scores()).finding()
    assert found.startswith("RA-RLHF (RU) α 0.2 has the best tail: its CVaR 10 % is 2.00 [")
    assert f"{unclear} ({seeds_needed([1, 0.5, 1.5]):.0f} seeds could); its KL from the SFT policy is 4.00" in found
    assert found.endswith("nats (RLHF: 4.00); means over 3 seeds at kl_coef 0.2.")
    clear = build_sweep_report(scores(TAILS | {"ra_rlhf_ru@0.2": [1.0, 2.1, 3.0]})).finding()
    assert ", 1.03 [0.89, 1.18] above RLHF; its KL" in clear
    behind = build_sweep_report(scores({"rlhf": [0.0, 1.0, 2.0], "ra_rlhf@0.4": [-1.0, 0.01, 1.0]})).finding()
    assert behind.startswith("RLHF has the best tail") and "above the runner-up RA-RLHF α 0.4; its KL" in behind


def test_the_best_tail_is_searched_at_every_setting_and_compared_at_its_own():
    better = TAILS | {"rlhf": [5.0, 5.0, 5.0], "ra_rlhf@0.4": [7.0, 7.1, 6.9], "sft": [9.0, 9.0, 9.0]}
    found = build_sweep_report(pd.concat([scores(), scores(better, 0.1)]))
    settings = ["kl_coef 0.1", "kl_coef 0.2"]
    assert list(found.tables()) == settings
    assert [title for title in found.sections() if "Pairs" in title] == [f"Pairs of RL methods, {s}" for s in settings]
    assert found.finding().startswith("RA-RLHF α 0.4 has the best tail: its CVaR 10 % is 7.00")
    assert "2.00 [1.75, 2.25] above RLHF" in found.finding() and found.finding().endswith("at kl_coef 0.1.")


def test_settings_with_a_dotted_key_are_told_apart():
    table = pd.concat([scores(**{"ppo.epochs": 2}), scores(**{"ppo.epochs": 4})]).assign(**{"cvar_0.5": 0.0})
    assert grid_settings(table) == grid_settings(table.assign(**{"ppo.kl_coef": 0.2})) == ["kl_coef", "ppo.epochs"]
    found = build_sweep_report(table)
    assert list(found.tables()) == ["kl_coef 0.2, ppo.epochs 2", "kl_coef 0.2, ppo.epochs 4"]
    assert json.loads(found.to_json())["numbers"][-1]["ppo.epochs"] == 4


def test_repeated_rows_count_once_and_alpha_1_is_rlhf():
    once = scores(TAILS | {"ra_rlhf@1": TAILS["rlhf"], "ra_rlhf_ru@1": TAILS["rlhf"]})
    found = build_sweep_report(pd.concat([once, once.assign(run="again")]))
    pd.testing.assert_frame_equal(found.numbers, build_sweep_report(scores()).numbers)
    note = "At α = 1 both estimators are RLHF, with the same numbers; the tables leave out RA-RLHF α 1 and RA-RLHF (RU)"
    assert any(note in each for each in found.notes) and not any("differ" in each for each in found.notes[3:])
    other = build_sweep_report(pd.concat([once, once.assign(run="again", cvar_10=once["cvar_10"] + 0.25)]))
    assert any("runs with the same settings and seed differ, by up to 0.25 in CVaR 10 %" in n for n in other.notes)
    assert distinct_scores(once)["method"].unique().tolist() == list(TAILS)
    grpo = scores({"cvar_grpo@1": TAILS["rlhf"]})  # which is GRPO, and GRPO is not always there
    assert distinct_scores(grpo)["method"].unique().tolist() == ["cvar_grpo@1"]


def test_what_the_grid_lacks_is_named_and_pairs_keep_the_seeds_of_both():
    table = pd.concat([scores(), scores(kl_coef=0.1)])
    gone = (table["kl_coef"] == 0.1) & (table["seed"] == 2)
    gone |= (table["kl_coef"] == 0.2) & (table["seed"] == 3) & (table["method"] == "ra_rlhf@0.4")
    found = build_sweep_report(table[~gone])
    assert found.notes[-1] == (
        "Missing: all methods with seed 2 at kl_coef 0.1; RA-RLHF α 0.4 with seed 3 at kl_coef 0.2."
    )
    (pair,) = rows(found, kl_coef=0.2, method="ra_rlhf@0.4", baseline="rlhf", metric="cvar_10")
    assert (pair["runs"], pair["value"]) == (2, 0.5)
    assert not any(note.startswith("Missing") for note in build_sweep_report(scores()).notes)


def test_one_seed_has_no_intervals_and_tells_nothing():
    found = build_sweep_report(scores({method: by_seed[:1] for method, by_seed in TAILS.items()}))
    assert found.finding() == (
        "RA-RLHF (RU) α 0.2 has the best tail: its CVaR 10 % is 1.00, ahead of RLHF by 1.00, which this sweep cannot "
        "tell from 0; its KL from the SFT policy is 3.00 nats (RLHF: 3.00); means over 1 seed at kl_coef 0.2."
    )
    assert set(found.sections()["Pairs of RL methods, kl_coef 0.2"]["needed to tell them apart"]) == {"–"}
    assert found.notes[0].startswith("1 seed (1). One seed has no interval")


def test_json_has_null_where_there_is_no_number():
    tails = {"rlhf": [0.0, 1.0], "ra_rlhf@0.4": [1.0, 0.0]}
    found = build_sweep_report(scores(tails))
    (pair,) = rows(found, baseline="rlhf", metric="cvar_10")
    assert (pair["value"], pair["seeds_needed"]) == (0.0, None) and pair["low"] < 0 < pair["high"]
    (own,) = rows(found, method="rlhf", baseline="", metric="cvar_10")
    assert own["runs"] == 2
    alone = build_sweep_report(scores({"rlhf": [1.0]}))
    (own,) = rows(alone, metric="cvar_10")
    assert (own["value"], own["low"], own["high"]) == (1.0, None, None)
    assert json.loads(alone.to_json())["finding"].startswith("Only RLHF has a measured tail: its CVaR 10 % is 1.00")


def test_without_rl_methods_or_values_nothing_is_claimed():
    for tails in ({"sft": [1.0, 2.0, 3.0]}, {"rlhf": [np.nan, np.nan]}):
        found = build_sweep_report(scores(tails))
        assert found.finding() == "This sweep says nothing about the tail: its CVaR 10 % has no value."
    assert "–" in found.to_markdown()


def test_without_cvar_10_the_tail_is_the_next_best_measure():
    found = build_sweep_report(scores().rename(columns={"cvar_10": "cvar_5"}))
    assert "its CVaR 5 % is 2.00" in found.finding()
    found = build_sweep_report(scores().drop(columns="cvar_10"))
    assert "its tail reward is 1.00" in found.finding()
    assert found.tables()["kl_coef 0.2"]["needed to tell them apart"].any()


def test_markdown_holds_everything_and_escapes_texts():
    found = build_sweep_report(scores(TAILS | {HOSTILE: [1.0, 2.0, 3.0]}, **{"task.name": HOSTILE}))
    markdown = found.to_markdown()
    assert "<script" not in markdown and "&lt;script&gt;" in markdown
    assert "RA-RLHF (RU) α 0.2 minus RA-RLHF α 0.4" in markdown and found.notes[1] in markdown
    assert markdown.startswith("RA-RLHF (RU) α 0.2 has the best tail")
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in rows[:7]}) == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame(), "scores has no rows: run the sweep first"),
        (scores().drop(columns=["cvar_10", "tail_reward"]), "neither cvar_10 nor tail_reward"),
    ],
)
def test_tables_that_cannot_be_reported_are_refused(table, message):
    with pytest.raises(UserError, match=message):
        build_sweep_report(table)


def test_the_glossary_explains_the_columns_of_the_report():
    found = build_sweep_report(scores())
    keys = ", ".join(glossary_table().query("where == 'sweep report'")["key"])
    assert set(found.numbers) - {"kl_coef", "method", "baseline", "metric"} == set(keys.split(", "))
