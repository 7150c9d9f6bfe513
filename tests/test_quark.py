import copy
import json

import pytest
import torch
from datasets import Dataset
from tiny import PROMPTS, SAMPLING, good_minus_bad, quark_trainer, sampling_settings, tiny_policy

from rarlhf_nb.baselines.quark import add_reward_tokens, kl_divergence, quantile_bins, quark_terms
from rarlhf_nb.distributed import join
from rarlhf_nb.errors import UserError
from rarlhf_nb.lab.glossary import logged_keys
from rarlhf_nb.policy import evaluate_tokens, load_policy
from rarlhf_nb.ppo import masked_mean
from rarlhf_nb.rewards import check_rewards
from rarlhf_nb.seeding import shuffled_stream
from rarlhf_nb.settings import LoraSettings

FOUR_TIMES = Dataset.from_dict({"prompt": PROMPTS * 4})


def explored(trainer):
    """A trainer with a quantised pool, prompts and completions of several lengths in it."""
    trainer.explore(0)
    trainer.bins = quantile_bins(trainer.pool.env_rewards, trainer.args.quantiles)
    return trainer


def test_more_quantiles_than_completions_are_named():
    with pytest.raises(UserError, match=r"quark\.quantiles = 9.*holds 8"):
        quark_trainer(quantiles=9)  # before it explores


def test_kl_and_entropy_by_hand():
    p_0, p = (torch.tensor(probabilities).double().log() for probabilities in ([0.7, 0.2, 0.1], [0.5, 0.3, 0.2]))
    assert kl_divergence(p_0, p).item() == pytest.approx(0.08512, abs=1e-5)
    assert kl_divergence(p, p_0).item() == pytest.approx(0.09203, abs=1e-5)
    arguments = (p[None, None] + 2, p_0[None, None] - 1, torch.tensor([[2]]), 0.5, 0.1)  # a shift changes nothing
    terms = quark_terms(*arguments)
    assert terms["kl_per_token"].item() == pytest.approx(0.08512, abs=1e-5)
    assert terms["loss"].item() == pytest.approx(1.60944 + 0.5 * 0.08512 - 0.1 * 1.02965, abs=1e-5)


def test_the_loss_equals_a_slow_loop_without_padding():
    """One completion at a time, one token at a time, straight from the definition; EOS and short prompts included."""
    policy, reference = tiny_policy(0), tiny_policy(1)
    trainer = explored(quark_trainer(policy, reference=reference, train_dataset=FOUR_TIMES))
    episodes, bins = trainer.pool, trainer.bins
    assert not episodes.completion_mask.all() and not episodes.prompt_mask.all()
    total, tokens = 0.0, 0
    for i, quantile in enumerate(bins.tolist()):
        prompt = episodes.prompt_ids[i][episodes.prompt_mask[i]].tolist()
        completion = episodes.completion_ids[i][episodes.completion_mask[i]].tolist()
        for t, token in enumerate(completion):
            read = prompt + completion[:t]
            allowed = [v for v in range(11) if v > 2 or (v == 2 and t >= 2)]  # no pad, no unknown, EOS only late
            p = policy.model(torch.tensor([[11 + quantile, *read]])).logits[0, -1][allowed].double().softmax(-1)
            p_0 = reference.model(torch.tensor([read])).logits[0, -1][allowed].double().softmax(-1)
            kl = sum(a * (a / b).log() for a, b in zip(p_0, p, strict=True))
            entropy = -sum(a * a.log() for a in p)
            total += (-p[allowed.index(token)].log() + 0.05 * kl - 0.06 * entropy).item()
            tokens += 1
    loss = masked_mean(trainer.terms(episodes, bins)["loss"], episodes.completion_mask)
    assert loss.item() == pytest.approx(total / tokens, abs=1e-5)


def test_padding_and_the_company_of_a_batch_change_nothing():
    trainer = explored(quark_trainer(reference=tiny_policy(1), train_dataset=FOUR_TIMES))
    episodes, bins = trainer.pool, trainer.bins
    clean = trainer.terms(episodes, bins)
    dirty = copy.deepcopy(episodes)
    dirty.prompt_ids[~dirty.prompt_mask], dirty.completion_ids[~dirty.completion_mask] = 5, 7
    for one, other in zip(clean.values(), trainer.terms(dirty, bins).values(), strict=True):
        mask = episodes.completion_mask
        torch.testing.assert_close(one[mask], other[mask], atol=1e-6, rtol=0)
    for i in range(len(trainer.pool)):
        alone = trainer.pool.take(torch.tensor([i])).trimmed()
        assert alone.prompt_mask.all() and alone.completion_mask.all()
        mine = trainer.terms(alone, bins[i : i + 1])["loss"][0]
        torch.testing.assert_close(mine, clean["loss"][i][episodes.completion_mask[i]], atol=1e-5, rtol=0)


def test_the_logits_of_reward_tokens_enter_no_loss():
    trainer = explored(quark_trainer())
    episodes, bins = trainer.pool, trainer.bins
    before = trainer.terms(episodes, bins)["loss"]
    forward = trainer.wrapped

    def favours_reward_tokens(*inputs, **named):
        logits, values = forward(*inputs, **named)
        assert logits.shape[-1] == 11 + 3
        return torch.cat([logits[..., :11], logits[..., 11:] + 50], -1), values

    trainer.wrapped = favours_reward_tokens
    assert torch.equal(trainer.terms(episodes, bins)["loss"], before)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])  # the head tied to the embeddings, and not
def test_new_embeddings_are_drawn_like_the_old_ones(architecture):
    policy = tiny_policy(architecture=architecture)
    old = policy.model.get_input_embeddings().weight.data
    old *= torch.linspace(0.5, 2, 16)  # each dimension has its own mean and deviation
    old += torch.linspace(-1, 1, 16)
    old, tokenizer = old.clone(), policy.processing_class
    state = torch.random.get_rng_state()
    ids = add_reward_tokens(policy, 4000, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    weight = policy.model.get_input_embeddings().weight
    assert ids == list(range(11, 4011)) and weight.shape == policy.model.get_output_embeddings().weight.shape
    assert (weight is policy.model.get_output_embeddings().weight) == (architecture == "gpt2")
    assert torch.equal(weight[:11], old)
    torch.testing.assert_close(weight[11:].mean(0), old.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(weight[11:].std(0), old.std(0), atol=0, rtol=0.05)
    assert len(tokenizer) == 11 and set(ids) <= set(policy.forbidden_ids)
    with pytest.raises(UserError, match="already has reward tokens"):
        add_reward_tokens(policy, 3, seed=0)


def test_a_model_with_more_rows_than_tokens_keeps_them():
    policy = tiny_policy()
    policy.model.resize_token_embeddings(64, mean_resizing=False)
    policy.model.transformer.wte.weight.data[11:] = -1e3  # rows that no one ever trained
    policy.model.transformer.wte.weight.data[11:, ::2] = 1e3
    trainer = quark_trainer(policy, train_dataset=FOUR_TIMES)
    assert len(policy.model.get_input_embeddings().weight) == 64 == trainer.vocabulary
    assert policy.model.get_input_embeddings().weight[11:14].abs().max() < 10  # drawn like the tokens' rows
    assert set(trainer.reward_ids) == {11, 12, 13} <= set(trainer.forbidden_ids)


def test_the_pool_is_explored_without_a_token_first_and_under_the_best_one_afterwards(tmp_path):
    start = tiny_policy()
    trainer = quark_trainer(start, reference=tiny_policy(1), exploration_prompts=5, log_file=tmp_path / "quark.jsonl")
    samplers = []
    for name, policy in {"reference": trainer.reference, "policy": trainer.policy}.items():
        policy.sample = lambda prompts, *rest, name=name, policy=policy, sample=policy.sample, **place: (
            samplers.append((name, list(policy.prefix_ids), prompts)) or sample(prompts, *rest, **place)
        )
    log = trainer.train()
    assert [(name, prefix) for name, prefix, _ in samplers] == [("reference", []), ("policy", [11])]
    prompts = [prompt for *_, batch in samplers for prompt in batch]
    assert len(prompts) == 10 and set(prompts) == set(PROMPTS)  # the next prompts of the shuffle, then its second round
    assert trainer.pool.prompts == prompts  # nothing is purged
    assert log["pool_size"].tolist() == [5] * 4 + [10] * 4
    assert log["gradient_examples"].tolist() == [8 * step for step in range(1, 9)]
    rewards = trainer.pool.env_rewards
    assert torch.equal(trainer.bins, quantile_bins(rewards, 3))  # the whole pool, anew
    assert log["env_reward_mean"][7] == pytest.approx(rewards[5:].mean().item())
    assert set(log.columns) == set(logged_keys("Quark's log"))
    rows = [json.loads(line) for line in (tmp_path / "quark.jsonl").read_text().splitlines()]
    assert rows == log.to_dict("records")


def test_mini_batches_go_round_the_pool():
    stream = shuffled_stream(5, 3, 0, 15).reshape(3, 5)
    assert [sorted(epoch) for epoch in stream.tolist()] == [[0, 1, 2, 3, 4]] * 3 and len(set(map(tuple, stream))) > 1
    assert shuffled_stream(5, 3, 4, 6).tolist() == stream.reshape(-1)[4:10].tolist()


def test_missing_scores_are_dropped_and_wrong_ones_named():
    def sometimes(prompts, completions, **columns):
        return [None, float("nan")] + good_minus_bad(prompts, completions)[2:]

    trainer = explored(quark_trainer(reward=sometimes))
    kept = trainer.pool
    assert kept.env_rewards.tolist() == good_minus_bad(kept.prompts, kept.completions)
    assert len(kept) == 6 and len(trainer.bins) == 6
    kept = explored(quark_trainer(reward=[sometimes, good_minus_bad])).pool  # the sum of what there is
    expected = [(1 if i < 2 else 2) * r for i, r in enumerate(good_minus_bad(kept.prompts, kept.completions))]
    assert kept.env_rewards.tolist() == expected
    assert check_rewards(torch.tensor([1.0, float("nan")]), ["a", "b"], ["c", "d"], missing=True)[0] == 1.0
    for wrong in ([1.0], [1.0, "good"], [1.0, float("inf")], 3.0):
        with pytest.raises(UserError, match="reward"):
            check_rewards(wrong, ["a", "b"], ["c", "d"], missing=True)


def test_a_saved_policy_speaks_under_the_best_token(tmp_path):
    trainer = quark_trainer(learning_rate=1e-2)
    trainer.train()
    trainer.policy.save(tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.prefix_ids == [11] and set(trainer.reward_ids) <= set(loaded.forbidden_ids)
    one, other = (policy.sample(PROMPTS, SAMPLING, seed=3) for policy in (trainer.policy, loaded))
    assert one.completions == other.completions
    torch.testing.assert_close(loaded.token_log_probs(one, SAMPLING), trainer.policy.token_log_probs(one, SAMPLING))
    # what is learned under the best token is what evaluation finds
    best = trainer.terms(one, torch.zeros(8, dtype=torch.int64))["log_likelihood"]
    expected = loaded.token_log_probs(one, SAMPLING)
    torch.testing.assert_close(best[one.completion_mask], expected[one.completion_mask], atol=1e-5, rtol=0)


def test_two_trainings_of_one_seed_are_one_training():
    logs = []
    for state in range(2):
        torch.manual_seed(state)  # the global state must not matter
        logs.append(quark_trainer(warmup_steps=2, max_grad_norm=0.5).train().drop(columns="seconds"))
    assert logs[0].equals(logs[1])
    assert logs[0]["learning_rate"].tolist() == pytest.approx(
        [1e-3 * s for s in (0, 1 / 2, *(k / 6 for k in range(6, 0, -1)))]
    )


def test_training_raises_the_reward_and_the_quantiles_are_told_apart():
    trainer = quark_trainer(
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 16}),
        steps=90,
        sample_interval=30,
        batch_size=64,
        learning_rate=1e-2,
        quantiles=4,
    )
    log = trainer.train()
    assert log["kl_per_token"].min() >= 0 and trainer.policy.prefix_ids == [11]

    def reward_under(policy, token=None):
        policy.prefix_ids = [] if token is None else [token]
        episodes = policy.sample(PROMPTS * 32, SAMPLING, seed=9)
        rewards = good_minus_bad(episodes.prompts, episodes.completions)
        return sum(rewards) / len(rewards)

    start = reward_under(tiny_policy())
    best, worst = (reward_under(trainer.policy, trainer.reward_ids[k]) for k in (0, -1))
    assert best > start + 0.5 and worst < best - 0.5
    assert log["env_reward_mean"].iloc[-1] > log["env_reward_mean"][0] + 0.3


def test_a_lora_policy_learns_its_adapter_and_the_reward_tokens_alone(tmp_path):
    tiny_policy().save(tmp_path / "start")
    policy = load_policy(tmp_path / "start", lora=LoraSettings(r=2, alpha=4), seed=1)
    trainer = quark_trainer(policy, learning_rate=1e-2)
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    log = trainer.train()
    changed = {name for name, parameter in policy.named_parameters() if not torch.equal(parameter, before[name])}
    assert log["kl_per_token"].iloc[-1] > 0 and any("lora_" in name for name in changed)
    (embedding,) = (name for name in changed if "lora_" not in name)
    weight = policy.model.get_input_embeddings().weight
    assert torch.equal(weight[:11], before[embedding][:11]) and not torch.equal(weight[11:], before[embedding][11:])
    policy.save(tmp_path / "merged")
    merged = load_policy(tmp_path / "merged")
    episodes = policy.sample(PROMPTS, SAMPLING, seed=3)
    ours, theirs = (evaluate_tokens(p, episodes, SAMPLING).log_probs for p in (policy, merged))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_prompt_without_room_for_the_reward_token_is_named():
    prompt = " ".join(["film"] * 27)  # 27 + 5 tokens fill the context of 32; p_0 needs no more
    with pytest.raises(UserError, match="prompt_length = 28"):
        quark_trainer(train_dataset=Dataset.from_dict({"prompt": [prompt] * 8})).train()


def test_a_batch_of_the_pool_is_padded_to_its_own_longest_episode():
    policy = tiny_policy()
    parts = [policy.sample([prompt], sampling_settings(), seed=0) for prompt in ("film", "the plot was very", "is bad")]
    episodes = join(parts, "cpu").take(torch.tensor([0, 2])).trimmed()
    assert episodes.prompt_mask.tolist() == [[False, True], [True, True]]
    assert episodes.prompt_ids.tolist() == [[0, 5], [7, 4]]
    assert episodes.completion_mask.shape == episodes.completion_ids.shape == (2, 5)
