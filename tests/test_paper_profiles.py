"""Every profile of the paper, run on small copies of its models and data sets: only ids and sizes are overridden."""

import re
from pathlib import Path

import datasets
import pytest
import torch
from paper_world import write_data_sets, write_models

from rarlhf_nb.lab import runs
from rarlhf_nb.lab.experiment import Experiment
from rarlhf_nb.lab.profiles import known_keys, load_profile

PAPER_PROFILES = ["imdb-gpt2", "jigsaw-gpt2", "rtp-gpt2", "imdb-gptj", "jigsaw-gptj"]
SIZES = {"sft.batch_size": 4, "sft.gradient_accumulation_steps": 2, "sft.max_steps": 1, "dexperts.experts.max_steps": 1}
SIZES |= {"ppo.iterations": 3, "ppo.batch_size": 8, "ppo.epochs": 1, "risk.warm_start": 1}
SIZES |= {"quark.steps": 4, "quark.sample_interval": 2, "quark.batch_size": 8, "quark.warmup_steps": 0}
SIZES |= {"quark.exploration_prompts": 16, "prompted.validation_prompts": 8}
SIZES |= {"evaluation.held_out_texts": 8, "evaluation.repeated_prompts": 0}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Hub id -> local folder."""
    folder = tmp_path_factory.mktemp("hub")
    return write_models(folder / "models") | write_data_sets(folder / "datasets")


@pytest.fixture
def opened(hub, monkeypatch, tmp_path):
    """A profile's experiment on the local copies, in a run folder of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(runs, "default_root", lambda: tmp_path)

    def open_profile(name, **sizes):
        profile = load_profile(name)
        ids = {"policy.model": profile.policy.model, "reward.model": profile.reward.model}
        copies = {key: hub[name] for key, name in (ids | {"task.dataset": profile.task.dataset}).items()}
        return Experiment.open(name, overrides=copies | SIZES | sizes)

    return open_profile


@pytest.mark.parametrize("name", PAPER_PROFILES)
def test_a_profile_of_the_paper_runs_from_data_to_both_methods(opened, name):
    run = opened(name)
    run.prepare_data()
    profile, train, test = run.profile, run.data("train"), run.data("test")
    labels = train["label"].value_counts(normalize=True)
    if profile.task.train_toxic_share:
        assert labels[1] == pytest.approx(profile.task.train_toxic_share, abs=0.02)
        assert test["label"].mean() == pytest.approx(profile.task.test_toxic_share, abs=0.02)
    tokenizer = run.policy("base").processing_class
    longest = max(map(len, tokenizer(train["prompt"].tolist())["input_ids"]))
    assert longest <= profile.task.prompt_length + 1  # cutting bytes may split a character
    assert len(run.train_sft()) == 1
    assert run.policy("sft").model.dtype == getattr(torch, profile.policy.dtype)
    for method in ("rlhf", "ra_rlhf"):
        log, trainer = run.train(method), run.trainer(method)
        schedule = trainer.schedule
        assert log["kept"].tolist() == [schedule.kept(m) for m in (1, 2, 3)]
        assert log.drop(columns=["kept"]).notna().to_numpy().all()
    assert log["kept"].iloc[-1] < profile.ppo.batch_size
    if profile.policy.lora:  # GPT-J trains an adapter, and its reference has it switched off
        assert trainer.reference._policy is trainer.policy
        dtypes = {(p.requires_grad, p.dtype) for p in trainer.policy.parameters()}
        assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}


def test_every_setting_that_the_page_on_paper_and_code_names_exists():
    page = (Path(__file__).parent.parent / "docs" / "paper_and_code.md").read_text()
    named = set(re.findall(r"`((?:task|policy|reward|sampling|sft|ppo|risk|evaluation)\.\w+)", page))
    assert {"risk.alpha", "risk.warm_start", "task.continuations"} <= named <= set(known_keys())


@pytest.mark.parametrize("name", ["rtp-gpt2", "imdb-gptj"])
def test_the_other_baselines_train_and_are_measured_on_a_profile_of_the_paper(opened, name):
    run = opened(name, **{"task.test_prompts": 8})
    run.prepare_data()
    run.train_sft()
    assert len(run.choose_prefix()) == len(run.profile.prompted.prefixes)
    assert set(run.train_experts()) == {"expert", "anti_expert"}
    run.train("quark")
    for method in ("base", "prompted", "dexperts", "quark"):
        assert run.evaluate(method)["reward"].notna().all()
