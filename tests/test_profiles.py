"""Profiles hold the published numbers, take overrides, and refuse what does not fit."""

import pytest

from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.profiles import load_profile, profile_files, risk_of_method

FILES = {"task.train_file": __file__, "task.test_file": __file__}


def test_every_profile_loads_and_is_named_like_its_file():
    for name, file in profile_files().items():
        profile = load_profile(name, FILES)
        assert profile.name == file.stem
        assert profile.schedule().kept(profile.ppo.iterations) < profile.ppo.batch_size
    assert load_profile("pocket") == load_profile("pocket-imdb")


PAPER = ["imdb-gpt2", "jigsaw-gpt2", "rtp-gpt2", "imdb-gptj", "jigsaw-gptj"]
# The paper's tables, one row per profile: prompt and completion length, training and test prompts, characters, toxic
# shares, tail threshold; then B, M, alpha, n and the learning rate.
TASK_TABLE = {
    "imdb-gpt2": (64, 48, 24895, 5000, 201, None, None, -2.5),
    "jigsaw-gpt2": (8, 32, 36973, 7708, 65, 0.3, 0.5, 5.0),
    "rtp-gpt2": (32, 32, 57983, 8698, 1, 0.3, 0.5, 5.0),
    "imdb-gptj": (64, 48, 24895, 5000, 201, None, None, -2.5),
    "jigsaw-gptj": (8, 32, 36973, 7708, 65, 0.3, 0.5, 5.0),
}
RISK_TABLE = {
    "imdb-gpt2": (128, 194, 0.4, 30, 1.41e-5),
    "jigsaw-gpt2": (128, 288, 0.2, 30, 1.41e-5),
    "rtp-gpt2": (128, 452, 0.2, 30, 1.41e-5),
    "imdb-gptj": (8, 24895 // 8, 0.2, 300, 2 * 1.47e-5),
    "jigsaw-gptj": (8, 36973 // 8, 0.2, 300, 2 * 1.47e-5),
}
# kept(m): the published values for GPT-2; those for GPT-J are worked by hand from the same formula
SCHEDULE_TABLE = {
    "imdb-gpt2": {30: 128, 31: 128, 50: 119, 100: 94, 150: 69, 184: 52, 185: 52, 194: 52},
    "jigsaw-gpt2": {30: 128, 50: 120, 100: 99, 150: 78, 194: 60, 273: 27, 274: 26, 288: 26},
    "rtp-gpt2": {30: 128, 50: 123, 100: 111, 194: 87, 429: 26, 430: 26, 452: 26},
    "imdb-gptj": {300: 8, 301: 8, 1628: 5, 2956: 2, 3111: 2},  # halfway 8 (1 - 0.8 / 2) = 4.8; rho M = 2,955.45
    "jigsaw-gptj": {300: 8, 2345: 5, 4390: 2, 4621: 2},  # rho M = 4,389.95
}


@pytest.mark.parametrize("name", PAPER)
def test_a_profile_of_the_paper_has_the_published_numbers(name):
    profile, reviews, large = load_profile(name), name.startswith("imdb"), name.endswith("gptj")
    task, sampling, ppo, risk, sft = profile.task, profile.sampling, profile.ppo, profile.risk, profile.sft
    found = (task.prompt_length, sampling.completion_length, task.train_prompts, task.test_prompts)
    found += (task.minimum_characters, task.train_toxic_share, task.test_toxic_share, task.tail_threshold)
    assert found == TASK_TABLE[name]
    assert sampling.minimum_completion_length == sampling.completion_length and sampling.temperature == 1
    assert task.positive_label == (1 if reviews else 0)

    assert (ppo.batch_size, ppo.iterations, risk.alpha, risk.warm_start, ppo.learning_rate) == RISK_TABLE[name]
    assert (risk.rho, risk.estimator) == (0.95, "tail_selection")
    assert (ppo.kl_coef, ppo.kl_target, ppo.kl_horizon) == (0.2, 6, 10_000)
    assert (ppo.epochs, ppo.gamma, ppo.lam, ppo.vf_coef, ppo.max_grad_norm) == (4, 1, 0.95, 0.1, None)
    assert (ppo.cliprange, ppo.cliprange_value, ppo.ratio_threshold) == (0.2, 0.2, 10)
    assert (sft.learning_rate, sft.batch_size, sft.gradient_accumulation_steps) == (1e-5, 64, 16)
    assert (sft.packing, sft.max_length, sft.epochs) == (True, 64, 10)
    assert sft.max_steps == (100 if reviews else None)
    assert {m: profile.schedule().kept(m) for m in SCHEDULE_TABLE[name]} == SCHEDULE_TABLE[name]

    policy, reward = profile.policy, profile.reward
    model = ("lvwerra/distilbert-imdb", 1, 1) if reviews else ("unitary/toxic-bert", 0, -1)
    assert (reward.model, reward.label, reward.sign) == model
    if large:
        assert (policy.lora.r, policy.lora.alpha, policy.dtype) == (16, 16, "bfloat16")
    else:
        assert (policy.model, policy.lora, policy.dtype) == ("gpt2", None, "float32")

    dexperts, quark = profile.dexperts, profile.quark
    experts = dexperts.experts
    assert (dexperts.alpha, experts.epochs) == ((3.2, 3) if reviews else (2.0, 1))
    assert (dexperts.top_p, experts.learning_rate, experts.packing, experts.max_length) == (0.9, 5e-5, True, 128)
    assert experts.batch_size * experts.gradient_accumulation_steps == 64
    assert (quark.quantiles, quark.kl_coef, quark.entropy_coef) == (5, 0.05, 0.06)
    assert (quark.learning_rate, quark.batch_size, quark.adam_epsilon) == (1e-5, 128, 1e-5)


def test_overrides_reach_sections_within_sections_and_no_other_load():
    plain = load_profile("pocket")
    changes = {"dexperts.experts.learning_rate": 1e-3, "policy.lora.r": 2, "policy.lora.alpha": 4, "risk.alpha": 0.25}
    profile = load_profile("pocket", changes)
    assert profile.dexperts.experts.learning_rate == 1e-3 and profile.risk.alpha == 0.25
    assert profile.dexperts.experts.batch_size == plain.dexperts.experts.batch_size
    assert (profile.policy.lora.r, profile.policy.lora.alpha) == (2, 4)
    assert load_profile("pocket", {"policy.lora": {"r": 4, "alpha": 8}}).policy.lora.r == 4
    assert load_profile("pocket") == plain
    assert load_profile("imdb-gptj", {"policy.lora.r": 2}).policy.lora.alpha == 16


@pytest.mark.parametrize(
    "name, overrides, words",
    [
        ("pokcet", {}, ["pokcet", "pocket"]),
        ("pocket", {"risk.alhpa": 0.2}, ["risk.alhpa", "did you mean 'risk.alpha'"]),
        ("pocket", {"alpha": 0.2}, ["did you mean 'risk.alpha'"]),
        ("pocket", {"risk.alpha": 0}, ["risk.alpha = 0", "greater than 0"]),
        ("pocket", {"risk.alpha": True}, ["risk.alpha = True", "is not a switch", "give its value"]),
        ("pocket", {"ppo.max_grad_norm": False}, ["ppo.max_grad_norm = False", "is not a switch"]),
        ("pocket", {"risk.alpha": 1.5}, ["risk.alpha = 1.5"]),
        ("pocket", {"risk.warm_start": 20}, ["warm_start = 20", "lower warm_start"]),
        ("pocket", {"risk.estimator": "worst"}, ["risk.estimator = 'worst'", "tail_selection"]),
        ("pocket", {"sweep.alphas": [0.2, 1.5]}, ["sweep.alphas = [0.2, 1.5]", "1.5 is not a tail share"]),
        ("pocket", {"sweep.alphas": [0.2, 0.2]}, ["sweep.alphas", "twice"]),
        ("pocket", {"ppo.epochs": "many"}, ["ppo.epochs = 'many'"]),
        ("pocket", {"ppo.learning_rate": float("nan")}, ["ppo.learning_rate"]),
        ("pocket", {"sampling.minimum_completion_length": 99}, ["99", "sampling.completion_length = 18"]),
        ("pocket", {"compute.processes": 500}, ["compute.processes = 500 is above ppo.batch_size = 128", "lower it"]),
        ("pocket", {"risk.alpha": {"a": 1}}, ["risk.alpha = {'a': 1}", "valid number"]),
        ("pocket", {"evaluation.cvar_levels": [0.1, 2]}, ["evaluation.cvar_levels.1 = 2", "less than or equal to 1"]),
        ("pocket", FILES | {"task.source": "files"}, ["policy.model = 'pocket'", "name a folder or a hub id"]),
        ("pocket", {"task.train_file": "x" * 5000}, ["task.train_file = 'xxx", "no such file"]),
        ("pocket", {"policy.lora.r": 4}, ["policy.lora.alpha", "required"]),
        ("pocket", {"policy.model": 7}, ["policy.model = 7", "reads this as int", "in quotes"]),
        ("pocket", {"prompted.prefixes": ["a", 1.5]}, ["prompted.prefixes.1 = 1.5", "in quotes"]),
        (
            "pocket",
            {"policy.lora": "x", "policy.lora.r": 4},
            ["policy.lora.r", "another parameter sets policy.lora to 'x'"],
        ),
        ("pocket", {"dexperts.experts.learnin_rate": 1}, ["did you mean 'dexperts.experts.learning_rate'"]),
        ("pocket", {"prompted.prefixes": []}, ["prompted.prefixes = []"]),
        ("pocket", {"prompted.prefixes": ["fine", " "]}, ["prompted.prefixes", "number 2 is empty"]),
        ("pocket", {"dexperts.top_p": 0}, ["dexperts.top_p = 0"]),
        ("pocket", {"quark.quantiles": 1}, ["quark.quantiles = 1", "greater than 1"]),
        ("rtp-gpt2", {"task.dataset": None}, ["task.dataset is missing", "'rtp'"]),
        ("rtp-gpt2", {"task.test_toxic_share": 1}, ["task.test_toxic_share = 1", "less than 1"]),
        ("imdb-gptj", {"policy.dtype": "float16"}, ["policy.dtype = 'float16'", "bfloat16"]),
        ("imdb-smollm2", {}, ["task.train_file", "-p task.train_file"]),
        ("imdb-smollm2", FILES | {"task.test_file": "no.jsonl"}, ["task.test_file = 'no.jsonl'", "no such file"]),
    ],
)
def test_settings_that_do_not_fit_are_named_with_their_remedy(name, overrides, words):
    with pytest.raises(UserError) as caught:
        load_profile(name, overrides)
    for word in words:
        assert word in str(caught.value)


def test_a_value_that_grows_without_end_is_cut_in_the_message():
    aliased = ["lol"] * 10
    for _ in range(20):
        aliased = [aliased] * 10
    with pytest.raises(UserError, match="prompted.prefixes.0 = ") as caught:
        load_profile("pocket", {"prompted.prefixes": aliased})
    assert len(str(caught.value)) < 20_000


def test_a_methods_key_determines_its_risk_settings():
    risk = load_profile("pocket").risk
    assert risk_of_method(risk, "rlhf").alpha == 1 and risk_of_method(risk, "rlhf").estimator == "tail_selection"
    assert risk_of_method(risk, "ra_rlhf") == risk
    sweep = risk_of_method(risk, "ra_rlhf_ru@0.2")
    assert (sweep.alpha, sweep.estimator, sweep.rho) == (0.2, "rockafellar_uryasev", risk.rho)
    with pytest.raises(UserError, match="quark"):
        risk_of_method(risk, "quark")
