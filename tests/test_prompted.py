import pytest
import torch
from tiny import PROMPTS, sampling_settings, tiny_policy

from rarlhf_nb.baselines.prompted import choose_prefix, prompted_policy
from rarlhf_nb.errors import UserError
from rarlhf_nb.policy import evaluate_tokens, load_policy
from rarlhf_nb.sampling import sampler_logits

PREFIX = "very good plot "


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_log_probs_and_values_are_those_after_prefix_and_prompt_and_the_prefix_is_in_no_text(architecture):
    """Row by row, without padding or cache."""
    policy, sampling = tiny_policy(architecture=architecture), sampling_settings()
    prompted = prompted_policy(policy, PREFIX)
    batch = prompted.sample(PROMPTS, sampling, seed=1)
    assert batch.prompts == PROMPTS and not batch.prompt_mask.all()
    assert torch.equal(batch.prompt_ids, policy.tokenize(PROMPTS)[0])
    read = evaluate_tokens(prompted, batch, sampling)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, batch.completions, strict=True)):
        words = policy.processing_class(PREFIX + prompt + completion, return_tensors="pt")["input_ids"]
        output = policy.model(words, output_hidden_states=True)
        logits = sampler_logits(output.logits[:, -6:-1], sampling, policy.forbidden_ids, policy.eos_ids)
        slow = logits.log_softmax(-1)[0, range(5), words[0, -5:]]
        torch.testing.assert_close(read.log_probs[i], slow, atol=1e-5, rtol=0)
        values = policy.value_head(output.hidden_states[-1][0, -6:-1]).squeeze(-1)
        torch.testing.assert_close(read.values[i], values, atol=1e-5, rtol=0)
    assert (read.log_probs - policy.token_log_probs(batch, sampling)).abs().max() > 0.1  # the prefix is read


def test_the_given_policy_is_not_altered_and_weights_are_shared(tmp_path):
    policy, sampling = tiny_policy(), sampling_settings()
    before, state = policy.sample(PROMPTS, sampling, seed=2), torch.random.get_rng_state()
    prompted = prompted_policy(policy, PREFIX)
    assert prompted.prefix_ids == policy.processing_class("very good plot")["input_ids"]
    assert policy.prefix_ids == [] and torch.equal(torch.random.get_rng_state(), state)
    assert policy.sample(PROMPTS, sampling, seed=2).completions == before.completions
    assert all(one is other for one, other in zip(policy.parameters(), prompted.parameters(), strict=True))
    assert prompted_policy(prompted, "bad").prefix_ids == [4]  # in place of the first
    prompted.save(tmp_path)
    again = load_policy(tmp_path)
    assert again.prefix_ids == prompted.prefix_ids
    one, other = (each.sample(PROMPTS, sampling, seed=1).completions for each in (prompted, again))
    assert one == other


def test_the_better_prefix_comes_first_and_rewards_see_no_prefix():
    policy, sampling = tiny_policy(architecture="llama"), sampling_settings()
    prompts, prefixes, seen = PROMPTS * 4, ["very bad ", "good very ", "plot "], []

    def letters(prompts, completions):
        return torch.tensor([float(len(text)) for text in completions])

    def watched(prompts, completions):
        seen.append((prompts, completions))
        return letters(prompts, completions)

    table = choose_prefix(policy, watched, prompts, prefixes, sampling, seed=3, batch_size=20)
    assert [len(batch) for batch, _ in seen] == [20, 12] * 3
    assert [prompt for batch, _ in seen for prompt in batch] == prompts * 3
    # the mean over prompts, not over batches
    means = {
        prefix: sum(letters(*seen[2 * i]).tolist() + letters(*seen[2 * i + 1]).tolist()) / len(prompts)
        for i, prefix in enumerate(prefixes)
    }
    assert len(set(means.values())) == 3
    assert table.columns.tolist() == ["prefix", "reward"]
    assert table["prefix"].tolist() == sorted(prefixes, key=means.get, reverse=True)
    assert table["reward"].tolist() == pytest.approx(sorted(means.values(), reverse=True))
    again = choose_prefix(policy, letters, prompts, prefixes[::-1], sampling, seed=3, batch_size=20)
    assert again.equals(table)  # whatever the order in which they are tried
    assert policy.prefix_ids == []


def test_what_cannot_be_chosen_from_is_named():
    policy, sampling = tiny_policy(), sampling_settings()
    with pytest.raises(UserError, match="prefix = '  ' has no tokens"):
        prompted_policy(policy, "  ")
    with pytest.raises(UserError, match="the reward of episode 1 is nan"):
        choose_prefix(policy, lambda **_: [0, float("nan")], PROMPTS, [PREFIX], sampling, seed=0, batch_size=2)
