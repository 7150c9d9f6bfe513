import inspect
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl
from datasets import Dataset
from packaging.specifiers import SpecifierSet
from peft import LoraConfig
from tiny import PROMPTS, good_minus_bad, tiny_policy
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from rarlhf_nb.baselines import grpo
from rarlhf_nb.baselines.grpo import CVaRConfig, CVaRGRPOTrainer, CVaRRLOOTrainer
from rarlhf_nb.errors import UserError

PAIRS = {"grpo": (GRPOTrainer, CVaRGRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, CVaRRLOOTrainer, RLOOConfig)}
ESTIMATORS = ["tail_selection", "rockafellar_uryasev", "cvar_gradient"]
HARD = [-3.0, 1.0, 2.0, 5.0, -1.0, 4.0, -2.0, 0.0]  # two prompts with four samples each


def prompts():
    return Dataset.from_dict({"prompt": PROMPTS})


def make(trainer, config, folder, reward=good_minus_bad, steps=1, risk=None, extra=None, **changes):
    """A trainer on the tiny policy: two prompts per step, four samples each."""
    policy = tiny_policy()
    policy.save(folder / "model")  # TRL loads its reference from there
    settings = {
        "beta": 0.05,
        "learning_rate": 1e-2,
        "max_completion_length": 5,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
    } | changes
    return trainer(
        model=str(folder / "model"),
        reward_funcs=reward,
        args=config(
            output_dir=str(folder),
            max_steps=steps,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            seed=3,
            **settings,
        ),
        train_dataset=prompts(),
        **({} if risk is None else {"risk": risk}),
        **(extra or {}),
    )


def scripted(rewards):
    """A reward function that says what it is told."""
    return lambda prompts, completions, **columns: list(rewards)


def advantages(trainer):
    """The advantages (N,) with which the trainer's first step is made, and its log of that step."""
    seen = []
    generate = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: seen.append(generate(inputs)) or seen[-1]
    trainer.train()
    return seen[0]["advantages"], trainer.state.log_history[0]


def plain_advantages(name, rewards):
    """TRL's formulas, written out slowly, for groups of four."""
    found = []
    for at in range(0, len(rewards), 4):
        group = rewards[at : at + 4]
        mean = sum(group) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / 3)
        for r in group:
            rest = (sum(group) - r) / 3
            found.append((r - mean) / (std + 1e-4) if name == "grpo" else r - rest)
    return found


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("tail", ["batch", "prompt"])
def test_the_advantages_are_those_of_a_slow_reference(name, estimator, tail, tmp_path):
    _, trainer, config = PAIRS[name]
    risk = CVaRConfig(alpha=0.5, estimator=estimator, tail=tail)
    found, log = advantages(make(trainer, config, tmp_path, scripted(HARD), risk=risk, beta=0.0))
    groups = [range(8)] if tail == "batch" else [range(4), range(4, 8)]
    worst = [i for group in groups for i in sorted(group, key=lambda i: HARD[i])[: len(group) // 2]]
    limit = {i: max(HARD[j] for j in worst if j in group) for group in groups for i in group}  # VaR
    if estimator == "tail_selection":
        plain = plain_advantages(name, HARD)
        expected = [2 * plain[i] if i in worst else 0.0 for i in range(8)]
    elif estimator == "cvar_gradient":
        expected = [2 * (HARD[i] - limit[i]) if i in worst else 0.0 for i in range(8)]
    else:
        expected = plain_advantages(name, [limit[i] + 2 * min(HARD[i] - limit[i], 0.0) for i in range(8)])
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert log["cvar/kept"] == 4 and log["cvar/alpha"] == 0.5
    assert log["cvar/cvar"] == pytest.approx(sum(HARD[i] for i in worst) / 4)
    assert log["cvar/var"] == pytest.approx(sum(limit.values()) / 8)
    assert log["reward"] == pytest.approx(sum(HARD) / 8)  # what the reward function said


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("estimator", ["tail_selection", "rockafellar_uryasev"])
def test_alpha_one_is_trl_number_for_number(name, estimator, tmp_path, monkeypatch):
    monkeypatch.setattr("test_grpo.PROMPTS", ["the film is", "film was bad", "very good film", "the plot is"])
    plain, risk_averse, config = PAIRS[name]
    found = []
    for trainer, options in ((plain, {}), (risk_averse, {"risk": CVaRConfig(alpha=1.0, estimator=estimator)})):
        made = make(trainer, config, tmp_path, steps=5, **options)
        made.train()
        found.append((list(made.model.parameters()), [row.get("reward") for row in made.state.log_history]))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(one, other)
    assert found[0][1] == found[1][1]
    assert not torch.equal(found[0][0][0], tiny_policy().model.transformer.wte.weight)


def test_the_schedule_counts_the_optimizer_steps_and_the_tail_learns(tmp_path):
    risk = CVaRConfig(alpha=0.25, warm_start=2, rho=0.5)
    made = make(CVaRGRPOTrainer, GRPOConfig, tmp_path, steps=10, risk=risk, beta=0.0)
    made.train()
    kept = [row["cvar/kept"] for row in made.state.log_history if "cvar/kept" in row]
    assert kept == [8, 8, 6, 4, 2, 2, 2, 2, 2, 2]


RANK = """
import json, os, sys
from pathlib import Path
from test_grpo import CVaRConfig, CVaRGRPOTrainer, GRPOConfig, advantages, make, scripted

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
rewards = [[-1.0, 5.0, 6.0, 7.0], [-4.0, -3.0, -2.0, 4.0]][rank]
risk = CVaRConfig(alpha=0.5, estimator="cvar_gradient")
made = make(
    CVaRGRPOTrainer, GRPOConfig, folder / str(rank), scripted(rewards), risk=risk, per_device_train_batch_size=4
)
(folder / f"rank_{rank}.json").write_text(json.dumps(advantages(made)[0].tolist()))
os._exit(0)  # the threads of gloo may abort the interpreter's end
"""


def test_two_processes_share_one_tail(tmp_path):
    (tmp_path / "rank.py").write_text(RANK)
    tests = Path(__file__).parent
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [sys.executable, *launch, tmp_path / "rank.py", tmp_path],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{tests.parent}:{tests}"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    # the VaR of all eight at 0.5 is -1, the first of rank 0; the other three of the tail lie on rank 1
    advantages_of = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    assert advantages_of == [[0.0, 0.0, 0.0, 0.0], [-6.0, -4.0, -2.0, 0.0]]


def test_an_episode_without_a_reward_is_in_no_tail(tmp_path):
    rewards = [None, 1.0, 2.0, 5.0, -1.0, 4.0, -2.0, 0.0]
    for estimator in ESTIMATORS:
        risk = CVaRConfig(alpha=0.25, estimator=estimator)
        found, log = advantages(make(CVaRGRPOTrainer, GRPOConfig, tmp_path, scripted(rewards), risk=risk, beta=0.0))
        assert found[0] == 0 and found.isfinite().all()
        assert log["cvar/var"] == -1 and log["cvar/cvar"] == -1.5 and log["reward"] == pytest.approx(9 / 7)


def test_several_weighted_rewards_are_ranked_by_their_sum(tmp_path):
    halves = [scripted([r / 2 for r in HARD]), scripted([r / 4 for r in HARD])]
    for estimator in ESTIMATORS:
        found = []
        for reward, changes in ((scripted(HARD), {}), (halves, {"reward_weights": [1.0, 2.0]})):
            risk = CVaRConfig(alpha=0.5, estimator=estimator)
            options = {"risk": risk, "beta": 0.0} | changes
            found.append(advantages(make(CVaRRLOOTrainer, RLOOConfig, tmp_path, reward, **options))[0])
        torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_kl_holds_the_policy_only_on_what_is_trained(estimator, tmp_path):
    """At equal rewards every advantage is 0, and the loss is the KL's alone."""
    risk = CVaRConfig(alpha=0.5, estimator=estimator)
    made = make(
        CVaRGRPOTrainer, GRPOConfig, tmp_path, scripted([1.0] * 8), risk=risk, loss_type="grpo", disable_dropout=True
    )
    made.ref_model.lm_head.weight.data *= 1.5
    losses, compute = [], made._compute_loss
    made._compute_loss = lambda model, inputs: losses.append((compute(model, inputs), inputs)) or losses[-1][0]
    made.train()
    ((loss, inputs),) = losses
    log_ratio = inputs["ref_per_token_logps"] - log_probs_at_start(tmp_path, inputs)
    per_episode = ((log_ratio.exp() - log_ratio - 1) * inputs["completion_mask"]).sum(1)
    per_episode /= inputs["completion_mask"].sum(1)
    counted = per_episode if estimator == "rockafellar_uryasev" else per_episode * (inputs["tool_mask"][:, 0] == 1)
    assert (counted > 0).sum() == (8 if estimator == "rockafellar_uryasev" else 4)
    assert loss.item() == pytest.approx(0.05 * counted.sum().item() / 8, rel=1e-4)


def log_probs_at_start(folder, inputs):
    """Log-probabilities of the completions under the model as it was before training, each read without padding."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    found = torch.zeros(inputs["completion_ids"].shape)
    for i, prompt in enumerate(inputs["prompt_ids"]):
        prompt = prompt[inputs["prompt_mask"][i] == 1]
        completion = inputs["completion_ids"][i][inputs["completion_mask"][i] == 1]
        with torch.no_grad():
            logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        found[i, : len(completion)] = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_prompts_of_unequal_length_are_read_at_their_own_positions(name, tmp_path):
    # TRL 1.16 gives a model with learned positions, as GPT-2, left-padded prompts without position ids
    _, trainer, config = PAIRS[name]
    made = make(trainer, config, tmp_path, risk=CVaRConfig(), disable_dropout=True)
    seen, generate = [], made._generate_and_score_completions
    made._generate_and_score_completions = lambda inputs: seen.append(generate(inputs)) or seen[-1]
    made.train()
    inputs, own = seen[0], log_probs_at_start(tmp_path, seen[0])
    assert len(set(inputs["prompt_mask"].sum(1).tolist())) > 1
    there = inputs["completion_mask"] == 1
    if name == "grpo":
        torch.testing.assert_close(inputs["ref_per_token_logps"][there], own[there], atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(inputs["old_logps"], (own * there).sum(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_table_of_completions_shows_the_advantages_of_the_training(estimator, tmp_path):
    made = make(CVaRRLOOTrainer, RLOOConfig, tmp_path, scripted(HARD), risk=CVaRConfig(estimator=estimator), beta=0.0)
    found, _ = advantages(made)
    assert list(made._logs["advantages"]) == pytest.approx(found.tolist())


def test_a_missing_reward_beside_one_of_weight_zero_leaves_the_others_their_tail(tmp_path):
    given = [None, -5.0, 2.0, 5.0, -1.0, 4.0, -2.0, -3.0]
    halves = [scripted(given), scripted([1.0] * 8)]
    risk = CVaRConfig(alpha=0.5, estimator="rockafellar_uryasev")
    options = {"risk": risk, "beta": 0.0, "reward_weights": [1.0, 0.0]}
    found, log = advantages(make(CVaRRLOOTrainer, RLOOConfig, tmp_path, halves, **options))
    rewards = [0.0, *given[1:]]  # the weighted sum of what is there
    worst = sorted(rewards)[:4]
    transformed = [worst[-1] + 2 * min(reward - worst[-1], 0.0) for reward in rewards]
    assert found.tolist() == pytest.approx(plain_advantages("rloo", transformed), abs=1e-4)
    assert log["cvar/cvar"] == sum(worst) / 4


def test_two_reward_functions_of_one_name_are_logged_as_trl_does(tmp_path):
    for trainer, options in ((RLOOTrainer, {}), (CVaRRLOOTrainer, {"risk": CVaRConfig(0.5, estimator=ESTIMATORS[1])})):
        made = make(trainer, RLOOConfig, tmp_path, [scripted(HARD), scripted([2.0] * 8)], beta=0.0, **options)
        _, log = advantages(made)
        (mean,) = [log[key] for key in log if key.startswith("rewards/") and key.endswith("/mean")]
        assert mean == pytest.approx((sum(HARD) / 8 + 2) / 2)
        assert list(made._logs["rewards"].values()) == [pytest.approx([2.0] * 8)]


def test_an_infinite_reward_is_refused(tmp_path):
    with pytest.raises(UserError, match="reward function <lambda>: it returned an infinite reward"):
        make(CVaRRLOOTrainer, RLOOConfig, tmp_path, scripted([-math.inf, *HARD[1:]]), risk=CVaRConfig()).train()


@pytest.mark.parametrize("name", PAIRS)
def test_lora_accumulation_reuse_and_evaluation_go_on_working(name, tmp_path):
    plain, risk_averse, config = PAIRS[name]
    options = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
        "per_device_eval_batch_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 4,
    }
    extra = {"peft_config": LoraConfig(r=2, task_type="CAUSAL_LM"), "eval_dataset": prompts()}
    made = make(risk_averse, config, tmp_path, steps=4, risk=CVaRConfig(alpha=0.3), extra=extra, **options)
    frozen = made.model.base_model.model.lm_head.weight.clone()
    made.train()
    history = made.state.log_history
    # sixteen episodes are generated for four steps; one step of the schedule is one of the optimizer
    assert [row["cvar/kept"] for row in history if "cvar/kept" in row] == [14]
    (evaluated,) = (row for row in history if "eval_reward" in row)
    assert not any("cvar" in key for key in evaluated)
    assert torch.equal(frozen, made.model.base_model.model.lm_head.weight)
    assert any(p.abs().sum() > 0 for n, p in made.model.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize("risk, words", [
    ({"alpha": 0.0}, "alpha = 0.0: the tail share must lie in"),
    ({"estimator": "ru"}, "estimator = 'ru': choose one of tail_selection"),
    ({"tail": "group"}, "tail = 'group': choose one of batch, prompt"),
])  # fmt: skip
def test_a_tail_that_is_none_is_named(risk, words):
    with pytest.raises(UserError, match=words):
        CVaRConfig(**risk)


@pytest.mark.parametrize("name, risk, changes, words", [
    ("rloo", {"estimator": "cvar_gradient"}, {}, "beta = 0.05 with RLOO"),
    ("grpo", {"estimator": "rockafellar_uryasev"}, {"multi_objective_aggregation": "normalize_then_sum"},
     "multi_objective_aggregation = 'normalize_then_sum'"),
    ("rloo", {}, {"reward_clip_range": (-1.0, 1.0)}, r"reward_clip_range = \(-1.0, 1.0\): TRL would clip"),
    ("grpo", {}, {"loss_type": "bnpo"}, "loss_type = 'bnpo' with beta = 0.05"),
    ("grpo", {"warm_start": 9}, {"steps": 5}, "warm_start = 9"),
    ("grpo", {"alpha": 0.6, "tail": "prompt"}, {"num_generations": 2},
     "num_generations = 2 with alpha = 0.6 .* the tail holds 2 of 2, which is no tail"),
    ("rloo", {"alpha": 0.9}, {}, "generation_batch_size = 8 with alpha = 0.9"),
    ("grpo", {"alpha": 0.1, "estimator": "cvar_gradient"}, {}, "the tail holds 1 of 8, whose weight R - VaR is 0"),
])  # fmt: skip
def test_bad_settings_are_refused_before_any_training(name, risk, changes, words, tmp_path):
    _, trainer, config = PAIRS[name]
    with pytest.raises(UserError, match=words):
        make(trainer, config, tmp_path, risk=CVaRConfig(**risk), **changes)


def test_another_trl_is_named_with_the_range_that_is_supported(tmp_path, monkeypatch):
    assert trl.__version__ in grpo.SUPPORTED_TRL
    monkeypatch.setattr(grpo, "SUPPORTED_TRL", SpecifierSet("<1"))
    with pytest.raises(UserError, match=r"trl .*: CVaRGRPOTrainer supports trl<1"):
        make(CVaRGRPOTrainer, GRPOConfig, tmp_path, risk=CVaRConfig())


@pytest.mark.parametrize("name", PAIRS)
def test_the_contract_with_trl(name, tmp_path, monkeypatch):
    """What `grpo` uses of TRL beside its documented interface.

    If this fails, TRL has moved: see what took the place of the name, mend `grpo`, and raise the lower bound
    in SUPPORTED_TRL and pyproject.toml.
    """
    plain, risk_averse, config = PAIRS[name]
    methods = {name: parameters for name, parameters in grpo.CONTRACT.items() if parameters}
    for method, parameters in methods.items():
        assert list(inspect.signature(getattr(plain, method)).parameters) == ["self", *parameters]
    # no name of the mixin hides one of TRL's, but for the two methods above and the constructor
    assert {n for n in vars(grpo.CVaRMixin) if hasattr(plain, n) and not n.endswith("__")} == set(methods)
    made = make(risk_averse, config, tmp_path, risk=CVaRConfig())
    assert made.args.generation_batch_size == 8
    # per-function rewards of all processes (N, functions); weights; names; the tables of metrics and completions
    assert made.reward_weights.shape == (1,) and made.reward_func_names == ["good_minus_bad"]
    assert isinstance(made.num_generations, int) and made.beta == 0.05
    assert {"train", "eval"} <= set(made._metrics)
    assert {made._logs[name].maxlen for name in ("prompt", "advantages")} | {made._logs["rewards"]["a"].maxlen} == {8}
    # of what a generation returns: one advantage an episode, and for GRPO the mask of the tokens that its loss counts
    assert advantages(made)[0].shape == (8,)
    assert name == "rloo" or 'inputs["tool_mask"]' in inspect.getsource(plain._compute_loss)
    monkeypatch.setitem(grpo.CONTRACT, "_tables", None)
    with pytest.raises(UserError, match=f"{plain.__name__}._tables.*has changed"):
        make(risk_averse, config, tmp_path, risk=CVaRConfig())
    monkeypatch.setattr(plain, "_calculate_rewards", lambda self, inputs: None)
    monkeypatch.delitem(grpo.CONTRACT, "_tables")
    with pytest.raises(UserError, match=f"{plain.__name__}._calculate_rewards.*has changed"):
        make(risk_averse, config, tmp_path, risk=CVaRConfig())
