"""The report of a table of six episodes against numbers worked by hand, and the tables of a made-up run folder."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from made_up import made_up_episodes

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.report import build_report, read_report, summary_table
from rarlhf_nb.lab.evaluation.tables import load_tables
from rarlhf_nb.lab.evaluation.tail_prompts import tail_prompts_html, tail_prompts_table
from rarlhf_nb.lab.glossary import glossary_table
from rarlhf_nb.lab.methods import method_name, method_order
from rarlhf_nb.lab.runs import Run

HOSTILE = "<script>alert('|')</script>"


def episodes(rewards, samples=1):
    """Six prompts: two are hard, one belongs to a rare group."""
    table = made_up_episodes(
        [0.0] * 6,
        prompt=["a", "b", "c", "d", "e", HOSTILE],
        completion=f" and {HOSTILE}",
        prompt_score=[-3.0, 1.0, 0.0, -2.0, 2.0, 3.0],
        group=["drama"] * 5 + [HOSTILE],
    )
    blocks = [table.assign(seed=seed) for seed in range(samples)]
    return pd.concat(blocks, ignore_index=True).assign(reward=rewards, kl=[0.0, 1, 2, 3, 4, 5] * samples)


RLHF = episodes([-2.0, 3.0, 1.0, 0.0, 2.0, 2.0])
RISK_AVERSE = episodes([1.0, 2.0, 1.0, 1.0, 1.0, 3.0])
TEXTS = pd.DataFrame({"text": ["x", "y"], "log_likelihood": np.log([1 / 4, 1 / 8]), "tokens": [2, 1]})
SAMPLES = made_up_episodes(
    [0.0] * 4,
    prompt=["a", "b"] * 2,
    completion=["the cat sat on the mat", "x", "the cat sat down", "x"],
    normalised_reward=[0.9, 0.8, 0.4, 0.7],
    seed=[0, 0, 1, 1],
)


def report(tables, held_out=None, **changes):
    settings = {"tail_threshold": -2.0, "cvar_levels": [0.2, 0.5], "resamples": 200, "seed": 1}
    return build_report(tables, held_out or {}, **settings | changes)


def own(found, method="rlhf"):
    """A method's own numbers: index metric; columns value, low, high."""
    return found.own[found.own["method"] == method].set_index("metric")[["value", "low", "high"]]


def test_cells_by_hand():
    numbers = own(report({"rlhf": RLHF, "ra_rlhf": RISK_AVERSE}, {"rlhf": TEXTS}, tail_share=0.25))
    found = numbers["value"]
    assert found["reward"] == pytest.approx(1.0)
    assert found["tail_reward"] == pytest.approx(-1.0)  # prompts a and d
    assert found["tail_reward_25"] == pytest.approx((-2 + 0.5 * 0) / 1.5)  # a, and half of d
    assert found["cvar_20"] == pytest.approx((-2 + 0.2 * 0) / 1.2)
    assert found["cvar_50"] == pytest.approx(-1 / 3)
    assert found[f"reward[{HOSTILE}]"] == pytest.approx(2.0)
    assert found["kl"] == pytest.approx(2.5)
    assert found["perplexity"] == pytest.approx(5.0)
    assert numbers.loc["reward", "low"] < 1.0 < numbers.loc["reward", "high"]


def test_the_summary_by_hand():
    found = summary_table({"ra_rlhf@0.2": RISK_AVERSE, "rlhf": RLHF}, tail_threshold=-2.0)
    assert found.index.tolist() == ["RLHF", "RA-RLHF α 0.2"]
    assert found.loc["RLHF"].to_dict() == pytest.approx(
        {"reward": 1.0, "tail reward": -1.0, "CVaR 10 %": -2, "KL": 2.5}
    )


def test_differences_are_paired():
    tables = {"sft": RLHF.assign(reward=RLHF["reward"] - 1), "rlhf": RLHF, "ra_rlhf": RISK_AVERSE}
    found = report(tables)
    pairs = found.numbers.loc[found.numbers["baseline"] != "", ["method", "baseline"]].drop_duplicates()
    assert pairs.to_numpy().tolist() == [["sft", "rlhf"], ["ra_rlhf", "rlhf"], ["rlhf", "sft"], ["ra_rlhf", "sft"]]
    # every episode shifts by the same amount, so the paired difference does not vary
    for metric in ("reward", "cvar_20"):
        assert found.of(metric, "sft").loc["rlhf"].tolist() == pytest.approx([1.0] * 3)
    assert found.of("reward", "rlhf").loc["ra_rlhf", "value"] == pytest.approx(0.5)


def test_prompts_are_resampled_with_all_their_samples():
    once = report({"rlhf": RLHF})
    # two equal samples per prompt say no more than one; resampling episodes would narrow the interval
    twice = report({"rlhf": episodes(RLHF["reward"].tolist() * 2, samples=2)})
    pd.testing.assert_frame_equal(once.numbers, twice.numbers)


def test_same_seed_same_report_and_another_seed_other_intervals():
    assert report({"rlhf": RLHF}).to_json() == report({"rlhf": RLHF}).to_json()
    assert report({"rlhf": RLHF}, seed=2).to_json() != report({"rlhf": RLHF}).to_json()


def test_metrics_of_many_samples_by_hand():
    numbers = own(report({"rlhf": RLHF}, samples={"rlhf": SAMPLES}, toxicity=True))
    found = numbers["value"]
    assert found["prompt_dist_1"] == pytest.approx((0.6 + 0.5) / 2)
    assert found["prompt_dist_3"] == pytest.approx((0.5 + 0.0) / 2)
    assert found["expected_maximum_toxicity"] == pytest.approx((0.6 + 0.3) / 2)
    assert found["toxicity_probability"] == pytest.approx(0.5)
    assert numbers.loc["toxicity_probability", ["low", "high"]].tolist() == [0, 1]
    assert "toxicity_probability" not in report({"rlhf": RLHF}, samples={"rlhf": SAMPLES}).names


def test_perplexity_of_completions_leaves_out_the_absurd_and_kl_is_optional():
    table = RLHF.assign(completion_length=2, base_log_likelihood=[-2.0, -4.0, -2.0, -2.0, -2.0, -40.0])
    found = report({"rlhf": table.drop(columns="kl")})
    assert found.of("completion_perplexity").loc["rlhf", "value"] == pytest.approx((4 * np.e + np.e**2) / 5)
    assert "kl" not in found.names


def test_an_empty_tail_is_nan_with_a_note():
    found = report({"rlhf": RLHF}, tail_threshold=-9.0)
    assert np.isnan(found.of("tail_reward").loc["rlhf", "value"])
    assert "reward, prompts scored ≤ -9 has no value: there is no such episode." in found.notes
    (row,) = [row for row in json.loads(found.to_json())["numbers"] if row["metric"] == "tail_reward"]
    assert row == {"method": "rlhf", "baseline": "", "metric": "tail_reward", "value": None, "low": None, "high": None}
    assert "| –" in found.to_markdown()


def test_markdown_shows_the_numbers_and_escapes_texts():
    found = report({"rlhf": RLHF, "ra_rlhf@0.2": RISK_AVERSE})
    markdown = found._repr_markdown_()
    _, low, high = found.of("reward").loc["rlhf"]
    assert f"1.00\u00a0[{low:.2f},\u00a0{high:.2f}]" in markdown  # where no viewer breaks the line
    assert "RA-RLHF α 0.2" in markdown and "<script" not in markdown
    everything = markdown.split("**Every metric**")[1]
    rows = [line for line in everything.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in rows[:10]} == {4}
    assert len({len(line) for line in rows[:10]}) == 1


def test_the_main_table_has_a_row_per_method():
    found = report({"rlhf": RLHF, "ra_rlhf": RISK_AVERSE}, {"rlhf": TEXTS}).main()
    assert found.index.tolist() == ["RLHF", "RA-RLHF"]
    assert found["Dist-1, all completions"].tolist() == ["0.17", "0.17"]  # 2 different words of 12
    assert found.loc["RA-RLHF", "perplexity, held-out texts (lower is better)"] == "–"


def test_a_star_marks_intervals_that_leave_out_zero():
    found = report({"sft": RLHF.assign(reward=RLHF["reward"] - 1), "rlhf": RLHF})
    cells = found.sections()["Difference from SFT (with a * the interval excludes 0)"]["RLHF"]
    assert cells["reward"] == "1.00 [1.00, 1.00] *"
    assert cells["KL from the SFT policy (nats)"] == "0.00 [0.00, 0.00]"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (RLHF.iloc[:5], r"different rows: prompt differs \(6 rows against 5\)|\(5 rows against 6\)"),
        (RLHF.assign(prompt=["a", "b", "c", "d", "X", HOSTILE]), "prompt differs, first in row 4"),
        (RLHF.assign(prompt_score=0.0), "prompt_score differs, first in row 0"),
        (RLHF.assign(reward=[0, 0, np.nan, 0, 0, 0]), r"ra_rlhf.parquet: reward = nan in row 2"),
        (RLHF.drop(columns="label"), "ra_rlhf.parquet lacks the column label"),
    ],
)
def test_tables_that_do_not_fit_are_refused(other, message):
    with pytest.raises(UserError, match=message):
        report({"rlhf": RLHF, "ra_rlhf": other})


def test_nothing_to_report_and_shares_outside_the_unit_interval_are_refused():
    with pytest.raises(UserError, match="episodes is empty"):
        report({})
    with pytest.raises(UserError, match="alpha = 2"):
        report({"rlhf": RLHF}, cvar_levels=[2])


def test_methods_have_one_order_and_readable_names():
    mixed = ["ra_rlhf@0.2", "mine", "rlhf", "ra_rlhf_ru", "ra_rlhf@0.4", "base", "ra_rlhf", "sft"]
    assert method_order(mixed) == [
        *("base", "sft", "rlhf", "ra_rlhf", "ra_rlhf@0.4", "ra_rlhf@0.2", "ra_rlhf_ru", "mine"),
    ]
    assert method_name("mine@home") == "mine@home" and method_name("0.2") == "0.2" and method_name("a@2") == "a@2"
    named = [method_name(method) for method in ("sft", "ra_rlhf@0.2", "ra_rlhf@0.125", "conditioned@0.284804", "mine")]
    assert named == ["SFT", "RA-RLHF α 0.2", "RA-RLHF α 0.125", "Conditioned α 0.28", "mine"]


def test_tail_prompts_are_the_lowest_scored_and_escaped():
    table = tail_prompts_table({"ra_rlhf": RISK_AVERSE, "rlhf": RLHF}, n=2)
    assert [prompt for prompt, _ in table.index] == ["a", "d"]
    assert table["rlhf", "reward"].tolist() == [-2.0, 0.0]
    html = tail_prompts_html(tail_prompts_table({"rlhf": RLHF}, n=6))
    assert "<b>-2.00</b>" in html and "<script" not in html and "mathjax_ignore" in html


def test_a_report_is_read_as_it_was_written_and_one_of_an_earlier_version_is_refused(tmp_path):
    written = report({"sft": RLHF, "rlhf": RISK_AVERSE}, tail_threshold=-9.0)
    run = Run.open("mine", {}, 1, tmp_path)
    run.write("report.json", written.to_json())
    found = read_report(run)
    pd.testing.assert_frame_equal(found.numbers, written.numbers)
    assert (found.names, found.notes) == (written.names, written.notes)
    run.write("report.json", json.dumps({"methods": {}}))
    with pytest.raises(UserError, match=r"'mine' is of rarlhf_nb 0\..*: run notebook 05_analysis again"):
        read_report(run)


def test_load_tables_reads_a_run_folder(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "training").mkdir()
    for method, table in {"ra_rlhf@0.2": RISK_AVERSE, "rlhf": RLHF}.items():
        table.to_parquet(tmp_path / "evaluation" / f"{method}.parquet")
    TEXTS.to_parquet(tmp_path / "evaluation" / "ra_rlhf@0.2.held_out.parquet")
    (tmp_path / "training" / "rlhf.jsonl").write_text('{"iteration": 1, "kl": 0.5}\n{"iteration": 2, "kl": 1.0}\n')
    (tmp_path / "training" / "rlhf.incidents.jsonl").write_text('{"iteration": 2, "symptom": "kl"}\n')
    RLHF.to_parquet(tmp_path / "evaluation" / "rlhf.samples.parquet")
    RLHF.assign(alpha=1.0).to_parquet(tmp_path / "evaluation" / "conditioned.alphas.parquet")
    found, held_out, training, samples, alphas = load_tables(Run(tmp_path))
    assert list(samples) == ["rlhf"] and list(alphas) == ["conditioned"]
    assert list(found) == ["rlhf", "ra_rlhf@0.2"]
    pd.testing.assert_frame_equal(found["ra_rlhf@0.2"], RISK_AVERSE)
    assert list(held_out) == ["ra_rlhf@0.2"]
    assert list(training) == ["rlhf"] and training["rlhf"]["kl"].tolist() == [0.5, 1.0]


def test_the_glossary_explains_every_metric_of_the_report():
    keys = glossary_table().query("where == 'report'")["key"]
    explained = [re.escape(key).replace("<p>", r"\d+").replace("<n>", r"\d").replace("<group>", ".*") for key in keys]
    optional = {"normalised_reward": 0.5, "completion_length": 2, "base_log_likelihood": -3.0}
    table = RLHF.assign(**optional)
    names = report({"rlhf": table}, samples={"rlhf": SAMPLES}, toxicity=True).names
    assert {"completion_perplexity", "expected_maximum_toxicity", "prompt_dist_3"} <= set(names)
    for metric in names:
        assert any(re.fullmatch(pattern, metric, re.DOTALL) for pattern in explained), metric
