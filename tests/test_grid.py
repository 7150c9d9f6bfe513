"""The grid of a sweep, and its folder."""

import json
from dataclasses import asdict

import pytest

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.runs import Run
from rarlhf_nb.lab.sweep import Grid, Sweep, read_alphas, read_grid, read_seeds


def test_every_combination_is_a_run_and_the_first_alpha_comes_first():
    assert read_alphas("1,0.4") == [1.0, 0.4] and read_seeds("1-3, 7") == [1, 2, 3, 7]
    grid = read_grid("pocket", "1,0.2", "1-2", ["ppo.kl_coef=0.1,0.2", "ppo.iterations=30"])
    assert grid == Grid("pocket", [1.0, 0.2], [1, 2], {"ppo.kl_coef": [0.1, 0.2]}, {"ppo.iterations": 30})
    trials = grid.trials()
    assert [trial.name for trial in trials[:5]] == [
        "alpha_1-kl_coef_0.1-seed_1",
        "alpha_1-kl_coef_0.1-seed_2",
        "alpha_1-kl_coef_0.2-seed_1",
        "alpha_1-kl_coef_0.2-seed_2",
        "alpha_0.2-kl_coef_0.1-seed_1",
    ]
    assert len({trial.name for trial in trials}) == len(trials) == 8
    profile = grid.settings(trials[-1])
    assert (profile.risk.alpha, profile.ppo.kl_coef, profile.ppo.iterations) == (0.2, 0.2, 30)
    assert profile.sweep.alphas == []
    no_file_names = Grid("pocket", [0.4], [1], {"prompted.prefixes": [["../a b"], ["c"]]})
    assert [trial.name for trial in no_file_names.trials()] == [
        "alpha_0.4-prefixes_no1-seed_1",
        "alpha_0.4-prefixes_no2-seed_1",
    ]


def test_values_are_those_that_the_profile_reads_and_columns_of_one_kind():
    free = {
        "ppo.learning_rate": ["1e-4", 0.0003],
        "ppo.kl_target": [6, None],
        "policy.lora": [{"r": 4, "alpha": 8}, None],
    }
    grid = Grid("pocket", [0.4], [1], free)
    assert grid.free["ppo.learning_rate"] == [0.0001, 0.0003]  # YAML reads 1e-4 as text
    first, last = map(grid.columns, (grid.trials()[0], grid.trials()[-1]))
    assert first["ppo.learning_rate"] == 0.0001 and first["ppo.kl_target"] == "6.0"
    assert '"r": 4' in first["policy.lora"] and last["policy.lora"] == last["ppo.kl_target"] == "null"
    assert Grid(**json.loads(json.dumps(asdict(grid)))) == grid


def test_a_sweep_may_grow_and_nothing_else(tmp_path):
    Sweep.open("grid", Grid("pocket", [1.0], [1, 2]), tmp_path)
    grown = Sweep.open("grid", Grid("pocket", [1.0, 0.4], [1, 2, 3]), tmp_path)
    assert Sweep.reopen("grid", tmp_path).grid == grown.grid
    before = (tmp_path / "grid" / "sweep.json").read_bytes()
    with pytest.raises(
        UserError, match="'grid' belongs to other parameters: profile pocket, α 1,0.4, seeds 1,2,3 in the"
    ):
        Sweep.open("grid", Grid("pocket", [0.4], [1]), tmp_path)
    with pytest.raises(UserError, match="A sweep may only grow"):
        Sweep.open("grid", Grid("pocket-jigsaw", [1.0, 0.4], [1, 2, 3]), tmp_path)
    assert (tmp_path / "grid" / "sweep.json").read_bytes() == before
    named_by_place = [
        Grid("pocket", [1.0], [1], {"prompted.prefixes": two}) for two in ([["a"], ["b"]], [["b"], ["c"]])
    ]
    Sweep.open("prefixes", named_by_place[0], tmp_path)
    with pytest.raises(UserError, match="A sweep may only grow"):
        Sweep.open("prefixes", named_by_place[1], tmp_path)
    with pytest.raises(UserError, match="sweep = 'grid/inner': a sweep lies beside the runs"):
        Sweep.open("grid/inner", Grid("pocket", [1.0], [1]), tmp_path)
    Run.open("mine", {}, 1, tmp_path)
    with pytest.raises(UserError, match="sweep = 'mine' is the name of a run"):
        Sweep.open("mine", Grid("pocket", [1.0], [1]), tmp_path)
    with pytest.raises(UserError, match="run = 'grid' is a sweep: name one of its runs"):
        Run.open("grid", {}, 1, tmp_path)
    (tmp_path / "grid" / "sweep.json").write_text('{"profile"')
    with pytest.raises(UserError, match="sweep.json of sweep 'grid' is damaged: delete that file"):
        Sweep.reopen("grid", tmp_path)
    with pytest.raises(UserError, match="there is no such sweep"):
        Sweep.reopen("other", tmp_path)
