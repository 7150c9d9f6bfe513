import pandas as pd
import pytest
import torch
from tiny import PROMPTS, good_minus_bad, sampling_settings, tiny_policy

from rarlhf_nb.lab.evaluation.evaluate import evaluate, held_out_log_likelihoods
from rarlhf_nb.lab.profiles import EvaluationSettings
from rarlhf_nb.policy import Reference

TEST = pd.DataFrame({"prompt": PROMPTS, "prompt_score": range(8), "label": 1, "group": "all"})
SETTINGS = EvaluationSettings(samples_per_prompt=2, held_out_texts=4, held_out_length=6, batch_size=3)


def test_the_episodes_of_two_methods_pair_row_by_row():
    policy, other = tiny_policy(0), tiny_policy(1)
    reference = Reference(policy)
    one, two = (
        evaluate(p, reference, good_minus_bad, TEST, sampling_settings(), SETTINGS, seed=3) for p in (policy, other)
    )
    columns = ["prompt", "prompt_score", "label", "group", "completion", "reward", "kl", "completion_length", "seed"]
    assert list(one) == columns and set(one["completion_length"]) == {5}
    assert one["seed"].tolist() == [0] * 8 + [1] * 8 and one["prompt"].tolist() == PROMPTS * 2
    assert one[["prompt", "prompt_score", "seed"]].equals(two[["prompt", "prompt_score", "seed"]])
    assert one["kl"].abs().max() < 1e-5 and two["kl"].mean() > 0.1  # the reference itself, and another policy
    assert one["reward"].tolist() == good_minus_bad(one["prompt"].tolist(), one["completion"].tolist())
    assert one["completion"][:8].tolist() != one["completion"][8:].tolist()  # the samples differ
    again = evaluate(policy, reference, good_minus_bad, TEST, sampling_settings(), SETTINGS, seed=3)
    pd.testing.assert_frame_equal(one, again)
    whole = SETTINGS.model_copy(update={"batch_size": 8})
    at_once = evaluate(policy, reference, good_minus_bad, TEST, sampling_settings(), whole, seed=3)
    pd.testing.assert_frame_equal(one, at_once, atol=1e-5)


def slow_log_likelihood(policy, ids, first):
    """The sum of log p of each token from `first` on, by a pass over the one text alone."""
    log_probs = policy.model(torch.tensor([ids])).logits.log_softmax(-1)
    return pytest.approx(sum(log_probs[0, t - 1, ids[t]].item() for t in range(first, len(ids))), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_held_out_log_likelihood_is_the_sum_over_scored_tokens(batch_size):
    policy = tiny_policy()
    texts = ["the film is very good", "bad plot", "the the the the the the the the"]
    table = held_out_log_likelihoods(policy, texts, length=6, batch_size=batch_size)
    assert table["text"].tolist() == texts
    assert table["tokens"].tolist() == [4, 1, 5]  # no BOS: the first token has no context
    for text, found in zip(texts, table["log_likelihood"], strict=True):
        assert found == slow_log_likelihood(policy, policy.processing_class(text)["input_ids"][:6], 1)


def test_bos_gives_the_first_token_its_context():
    policy = tiny_policy()
    policy.processing_class.bos_token = "[EOS]"
    table = held_out_log_likelihoods(policy, ["bad plot"], length=6, batch_size=1)
    assert table["tokens"].tolist() == [2]
    ids = [2, *policy.processing_class("bad plot")["input_ids"]]
    assert table["log_likelihood"][0] == slow_log_likelihood(policy, ids, 1)


@pytest.mark.parametrize("bos", [None, "[EOS]"])
def test_a_prefix_stands_in_for_bos_and_the_same_tokens_are_scored(bos):
    texts, policy = ["bad plot", "the film is very good"], tiny_policy()
    policy.processing_class.bos_token = bos
    without = held_out_log_likelihoods(policy, texts, length=6, batch_size=2)
    policy.prefix_ids = policy.processing_class("good film")["input_ids"]
    table = held_out_log_likelihoods(policy, texts, length=6, batch_size=2)
    assert table["tokens"].tolist() == without["tokens"].tolist()
    for text, found in zip(texts, table["log_likelihood"], strict=True):
        ids = policy.prefix_ids + policy.processing_class(text)["input_ids"]
        assert found == slow_log_likelihood(policy, ids, 2 if bos else 3)  # without BOS not the text's first token


def test_completions_are_scored_by_the_base_model_after_their_prompts():
    policy, base = tiny_policy(0), tiny_policy(1)
    table = evaluate(policy, Reference(policy), good_minus_bad, TEST, sampling_settings(), SETTINGS, seed=3, base=base)
    for row in table.head(8).itertuples():  # prompts of several lengths
        prompt, whole = (base.processing_class(text)["input_ids"] for text in (row.prompt, row.prompt + row.completion))
        assert row.base_log_likelihood == slow_log_likelihood(base, whole, len(prompt))
