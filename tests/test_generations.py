"""Other people's generations: a made-up file whose report is worked by hand, and files that are refused."""

import pandas as pd
import pytest

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.evaluation.generations import read_generations
from rarlhf_nb.lab.evaluation.report import build_report

TABLE = pd.DataFrame(
    {
        "query": ["bad", "awful", "fine", "good"],
        "prompt_score": [-2.6, -3.0, 0.0, 2.0],
        "rlhf_response": [" a", " b", " c", None],
        "rlhf_reward": [-1.0, -2.0, 1.0, 4.0],
        "ra_rlhf_response": [" d", " e", " f", " g"],
        "ra_rlhf_reward": [0.0, -1.0, 1.0, 2.0],
    }
)


def test_the_report_of_a_published_file_by_hand(tmp_path):
    TABLE.to_csv(tmp_path / "generations.csv", index=False)
    episodes = read_generations(tmp_path / "generations.csv")
    assert list(episodes) == ["rlhf", "ra_rlhf"] and episodes["rlhf"]["completion"].tolist() == [" a", " b", " c", ""]
    report = build_report(episodes, {}, tail_threshold=-2.5, cvar_levels=[0.25], resamples=20)
    assert report.of("reward")["value"].to_dict() == {"rlhf": 0.5, "ra_rlhf": 0.5}
    assert report.of("tail_reward")["value"].to_dict() == {"rlhf": -1.5, "ra_rlhf": -0.5}
    assert report.of("cvar_25")["value"].to_dict() == {"rlhf": -2.0, "ra_rlhf": -1.0}
    assert report.of("tail_reward", "rlhf")["value"].to_dict() == {"ra_rlhf": 1.0}


def test_columns_of_other_names_are_given(tmp_path):
    TABLE.rename(columns={"rlhf_response": "out", "rlhf_reward": "score"}).to_csv(tmp_path / "g.csv", index=False)
    episodes = read_generations(tmp_path / "g.csv", {"rlhf": ("out", "score")})
    assert list(episodes) == ["rlhf"] and episodes["rlhf"]["reward"].tolist() == [-1.0, -2.0, 1.0, 4.0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE.drop(columns="prompt_score"), "lacks the column 'prompt_score'; it has: query, rlhf_response"),
        (TABLE.drop(columns="rlhf_reward"), "lacks the column 'rlhf_reward'"),
        (TABLE[["query", "prompt_score"]], "lacks a pair of columns <method>_response"),
        (TABLE.assign(rlhf_reward=["1", "2", "three", "4"]), "rlhf_reward = 'three' in data row 3 is not a number"),
        (TABLE.assign(rlhf_reward=[1.0, 2.0, 3.0, float("inf")]), "rlhf_reward = 'inf' in data row 4 is not a number"),
        (TABLE.iloc[:0], "holds no rows"),
        (TABLE.assign(prompt_score=[0.0, 1.0, None, 2.0]), "prompt_score = .*nan.* in data row 3"),
    ],
)
def test_a_file_that_does_not_fit_says_how(tmp_path, table, message):
    table.to_csv(tmp_path / "g.csv", index=False)
    with pytest.raises(UserError, match=message):
        read_generations(tmp_path / "g.csv")


def test_texts_are_read_as_they_stand(tmp_path):
    TABLE.assign(query=["NA", "007", "null", "1e5"]).to_csv(tmp_path / "g.csv", index=False)
    assert read_generations(tmp_path / "g.csv")["rlhf"]["prompt"].tolist() == ["NA", "007", "null", "1e5"]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read as csv"):
        read_generations(tmp_path / "none.csv")
