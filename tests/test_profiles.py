import pytest

from rarlhf_nb.errors import UserError
from rarlhf_nb.profiles import load_profile, profile_files

FILES = {"task.train_file": __file__, "task.test_file": __file__}


@pytest.mark.parametrize("name", profile_files())
def test_every_profile_loads_and_bears_the_name_of_its_file(name):
    profile = load_profile(name, FILES)
    assert profile.name == profile_files()[name].stem
    assert profile.schedule().kept(profile.ppo.iterations) < profile.ppo.batch_size


def test_pocket_is_the_alias_of_pocket_imdb():
    assert load_profile("pocket") == load_profile("pocket-imdb")


def test_overrides_lie_over_the_profile():
    profile = load_profile("pocket", {"risk.alpha": 0.25, "policy.lora": {"r": 4, "alpha": 8}})
    assert profile.risk.alpha == 0.25 and profile.policy.lora.r == 4
    assert load_profile("pocket").risk.alpha != 0.25


@pytest.mark.parametrize(
    "name, overrides, words",
    [
        ("pokcet", {}, ["pokcet", "pocket"]),
        ("pocket", {"risk.alhpa": 0.2}, ["risk.alhpa", "did you mean 'risk.alpha'"]),
        ("pocket", {"alpha": 0.2}, ["did you mean 'risk.alpha'"]),
        ("pocket", {"risk.alpha": 0}, ["risk.alpha = 0", "greater than 0"]),
        ("pocket", {"risk.alpha": 1.5}, ["risk.alpha = 1.5"]),
        ("pocket", {"risk.warm_start": 20}, ["warm_start = 20", "lower warm_start"]),
        ("pocket", {"risk.estimator": "worst"}, ["risk.estimator = 'worst'", "tail_selection"]),
        ("pocket", {"ppo.epochs": "many"}, ["ppo.epochs = 'many'"]),
        ("pocket", {"ppo.learning_rate": float("nan")}, ["ppo.learning_rate"]),
        ("pocket", {"sampling.minimum_completion_length": 99}, ["99", "sampling.completion_length = 18"]),
        ("imdb-smollm2", {}, ["task.train_file", "-p task.train_file"]),
        ("imdb-smollm2", FILES | {"task.test_file": "no.jsonl"}, ["task.test_file = 'no.jsonl'", "no such file"]),
    ],
)
def test_what_does_not_fit_is_named_with_its_remedy(name, overrides, words):
    with pytest.raises(UserError) as caught:
        load_profile(name, overrides)
    for word in words:
        assert word in str(caught.value)


def test_a_methods_name_says_its_risk_settings():
    risk = load_profile("pocket").risk
    assert risk.for_method("rlhf").alpha == 1 and risk.for_method("rlhf").estimator == "tail_selection"
    assert risk.for_method("ra_rlhf") == risk
    sweep = risk.for_method("ra_rlhf_ru@0.2")
    assert (sweep.alpha, sweep.estimator, sweep.rho) == (0.2, "rockafellar_uryasev", risk.rho)
    with pytest.raises(UserError, match="quark"):
        risk.for_method("quark")
